//! The names of log fields that several crates share.
//!
//! `tracing`'s macros take names literally; this list is what reviews compare them with.

/// Namespace of the `CeleryBroker`.
pub const BROKER_NAMESPACE: &str = "broker.namespace";
/// Name of the `CeleryBroker`.
pub const BROKER_NAME: &str = "broker.name";
/// A Celery task's id.
pub const TASK_ID: &str = "task.id";
/// A Celery worker's node name.
pub const WORKER_NAME: &str = "worker.name";
/// A queue's name.
pub const QUEUE_NAME: &str = "queue.name";
/// A fixed, machine-readable reason; never free text.
pub const REASON: &str = "reason";
/// How long something took, in milliseconds.
pub const DURATION_MS: &str = "duration_ms";
/// The text of an error with its sources.
pub const ERROR: &str = "error";
