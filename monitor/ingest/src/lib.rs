//! Source, decode, reduce, one transaction a batch, acknowledge; workers, queues, heartbeat.

pub mod backoff;
pub mod buffer;
pub mod cache;
pub mod spool;
