//! Celery's remote control (pidbox): requests to workers and their replies.

mod content;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kanchi_contract::Transport;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::amqp::control::AmqpControl;
use crate::handover::lock;
use crate::net::ConnectError;
use crate::report::ConnectReason;
use crate::resp;
use crate::spec::BrokerConnectSpec;
use crate::time::now;

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

    /// Asks which of these tasks the worker has, and whether they run there.
    pub fn query_task(ids: &[&str]) -> Self {
        Self::new("query_task").with("ids", ids)
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
pub struct Control {
    spec: Mutex<BrokerConnectSpec>,
    amqp: tokio::sync::Mutex<Option<Arc<AmqpControl>>>,
}

impl Control {
    /// Makes a client; connects at the first request.
    pub fn new(spec: BrokerConnectSpec) -> Self {
        Self {
            spec: Mutex::new(spec),
            amqp: tokio::sync::Mutex::new(None),
        }
    }

    /// Sends a command and collects replies until the timeout, or until each node of `destination` has answered.
    /// `destination` holds exact node names; `None` asks all.
    pub async fn broadcast(
        &self,
        command: Command,
        destination: Option<Vec<String>>,
        timeout: Duration,
    ) -> Result<Vec<Reply>, ControlError> {
        let spec = self.permitted(&command)?;
        let request = Request::new(command, destination, Some(timeout));
        match spec.url.transport() {
            Transport::Amqp => Ok(self.amqp(&spec).await?.broadcast(&spec, &request, timeout).await?),
            Transport::Redis => Ok(resp::control::broadcast(spec, request, timeout).await?),
        }
    }

    /// Sends a command without asking for replies.
    pub async fn cast(&self, command: Command, destination: Option<Vec<String>>) -> Result<(), ControlError> {
        let spec = self.permitted(&command)?;
        let request = Request::new(command, destination, None);
        match spec.url.transport() {
            Transport::Amqp => Ok(self.amqp(&spec).await?.publish(&spec, &request).await?),
            Transport::Redis => Ok(resp::control::cast(&spec, &request).await?),
        }
    }

    /// Uses a new spec from the next request on.
    pub fn reload(&self, spec: BrokerConnectSpec) {
        *lock(&self.spec) = spec;
    }

    fn permitted(&self, command: &Command) -> Result<BrokerConnectSpec, ControlError> {
        let spec = lock(&self.spec).clone();
        match command.method.as_str() {
            "election" | "hello" => Err(ControlError::Forbidden(command.method.clone())),
            _other if spec.read_only => Err(ControlError::ReadOnly(command.method.clone())),
            _other => Ok(spec),
        }
    }

    async fn amqp(&self, spec: &BrokerConnectSpec) -> Result<Arc<AmqpControl>, ControlError> {
        let mut cached = self.amqp.lock().await;
        if let Some(client) = cached.as_ref().filter(|client| client.serves(spec)) {
            return Ok(Arc::clone(client));
        }
        let client = Arc::new(AmqpControl::open(spec).await?);
        *cached = Some(Arc::clone(&client));
        Ok(client)
    }
}

impl From<ConnectError> for ControlError {
    fn from(error: ConnectError) -> Self {
        Self::Unavailable {
            reason: error.reason,
            message: error.message,
        }
    }
}

/// A command on its way, whatever the transport.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    command: Command,
    destination: Option<Vec<String>>,
    pub(crate) ticket: String,
    /// When the answer is of no use any more, Unix seconds; 0: never. Workers ignore it, as of Celery 5.7.
    pub(crate) expires: f64,
}

impl Request {
    fn new(command: Command, destination: Option<Vec<String>>, timeout: Option<Duration>) -> Self {
        let expires = timeout.map_or(0.0, |timeout| now().as_seconds() + timeout.as_secs_f64());
        Self {
            command,
            destination,
            ticket: Uuid::new_v4().to_string(),
            expires,
        }
    }

    /// Returns after how many answers there is nothing more to wait for.
    pub(crate) fn expected(&self) -> usize {
        self.destination
            .as_ref()
            .map_or(usize::MAX, |nodes| nodes.iter().collect::<BTreeSet<_>>().len())
    }

    /// Returns the body; `reply_to` is exchange and routing key for answers.
    pub(crate) fn body(&self, reply_to: Option<(&str, &str)>) -> Vec<u8> {
        let mut body = Map::new();
        body.insert("method".into(), self.command.method.clone().into());
        body.insert("arguments".into(), Value::Object(self.command.arguments.clone()));
        // A list always: a plain string would be matched as a substring.
        body.insert("destination".into(), self.destination.clone().into());
        body.insert("pattern".into(), Value::Null);
        body.insert("matcher".into(), Value::Null);
        if let Some((exchange, key)) = reply_to {
            body.insert("ticket".into(), self.ticket.clone().into());
            body.insert(
                "reply_to".into(),
                serde_json::json!({ "exchange": exchange, "routing_key": key }),
            );
        }
        Value::Object(body).to_string().into_bytes()
    }
}

/// Most answers that one request collects; more workers than that are a mistake or an attack.
pub(crate) const MAX_REPLIES: usize = 10_000;

/// Reads an answer's body: an object with the node's name as its only key.
pub(crate) fn read_reply(content_type: Option<&str>, body: &[u8]) -> Vec<Reply> {
    let Some(Value::Object(nodes)) = content::decode(content_type, body) else {
        tracing::debug!(content_type, "an answer to remote control could not be read");
        return Vec::new();
    };
    nodes
        .into_iter()
        .map(|(worker, value)| Reply { worker, value })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::spec;

    #[tokio::test]
    async fn read_only_sends_nothing_and_says_so() {
        let mut spec = spec("amqp://127.0.0.1:1");
        spec.read_only = true;
        let control = Control::new(spec);
        let sent = control.broadcast(Command::ping(), None, Duration::from_secs(1)).await;
        assert!(matches!(sent, Err(ControlError::ReadOnly(method)) if method == "ping"));
        assert!(matches!(
            control.cast(Command::enable_events(), None).await,
            Err(ControlError::ReadOnly(_))
        ));
    }

    #[tokio::test]
    async fn what_belongs_to_workers_is_never_sent() {
        let control = Control::new(spec("redis://127.0.0.1:1"));
        for method in ["hello", "election"] {
            let sent = control.cast(Command::new(method), None).await;
            assert!(matches!(sent, Err(ControlError::Forbidden(_))), "{method}");
        }
    }

    #[test]
    fn a_request_has_a_list_of_nodes_and_asks_for_answers_only_if_told_to() {
        let request = Request::new(
            Command::new("rate_limit").with("rate_limit", 3),
            Some(vec!["a@b".into()]),
            None,
        );
        let silent: Value = serde_json::from_slice(&request.body(None)).unwrap();
        assert_eq!(silent["destination"], serde_json::json!(["a@b"]));
        assert_eq!(silent["arguments"], serde_json::json!({ "rate_limit": 3 }));
        assert!(silent.get("reply_to").is_none());
        let asking: Value = serde_json::from_slice(&request.body(Some(("reply.x", "oid")))).unwrap();
        assert_eq!(
            asking["reply_to"],
            serde_json::json!({ "exchange": "reply.x", "routing_key": "oid" })
        );
        assert_eq!(request.expected(), 1);
    }
}
