//! Celery's result backend: records of tasks, read only.

use crate::net::ConnectError;
use crate::report::ConnectReason;
use crate::resp::results::RedisResults;
use crate::spec::BrokerConnectSpec;

/// Tasks that are asked for in one call at most.
pub const RECORDS_AT_ONCE: usize = 200;

/// A larger record is not read: a monitor must stay small whatever tasks return.
pub const MAX_RECORD_BYTES: u64 = 1 << 20;

/// Why the result backend was not read.
#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    /// No connection, or none that answers.
    #[error("failed to read the result backend: {message}")]
    Unavailable {
        /// Why.
        reason: ConnectReason,
        /// For people; free of credentials.
        message: String,
    },
}

impl From<ConnectError> for ResultError {
    fn from(error: ConnectError) -> Self {
        Self::Unavailable {
            reason: error.reason,
            message: error.message,
        }
    }
}

/// What the result backend holds of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Nothing: unknown, expired, or its result is ignored.
    None,
    /// More than [`MAX_RECORD_BYTES`].
    TooLarge,
    /// The record as Celery wrote it.
    Bytes(Vec<u8>),
}

/// A part of a scan over all records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanPage {
    /// Ids of tasks; one may come twice.
    pub ids: Vec<String>,
    /// Where the scan goes on; 0 at its end.
    pub next: u64,
}

/// Reads the records of one result backend, on a connection of its own.
#[derive(Debug)]
pub struct ResultBackend {
    redis: RedisResults,
}

impl ResultBackend {
    /// Connects. `spec` is that of the broker with the URL of the backend; its `global_key_prefix` is that of the backend, as
    /// the user wrote it.
    pub async fn open(spec: &BrokerConnectSpec) -> Result<Self, ResultError> {
        Ok(Self {
            redis: RedisResults::open(spec).await?,
        })
    }

    /// Returns the records of the first of these tasks in their order: of as many as fit into about a megabyte, at least one and
    /// at most [`RECORDS_AT_ONCE`]. Ask again for the others.
    pub async fn records(&mut self, ids: &[&str]) -> Result<Vec<Record>, ResultError> {
        let ids = ids.get(..RECORDS_AT_ONCE).unwrap_or(ids);
        Ok(self.redis.records(ids).await?)
    }

    /// Looks at a thousand keys of the backend's database, whatever they are, and returns the tasks among them.
    pub async fn scan(&mut self, cursor: u64) -> Result<ScanPage, ResultError> {
        Ok(self.redis.scan(cursor).await?)
    }
}
