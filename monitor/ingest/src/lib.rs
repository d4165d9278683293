//! Source, decode, reduce, one transaction a batch, acknowledge; workers, queues, heartbeat.
//!
//! ```text
//! broker ─► source ─► [ring ─► spool]* ─► decoder ─► committer ─► Postgres      * Redis only
//!              ▲                                        │
//!              └──────────── acknowledgement ◄──────────┘
//! before it: standby (another monitor writes)
//! beside it: liveness (workers), sampler (queues), reporter (heartbeat, gaps, history), settings (reload)
//! ```
//!
//! Everything between two stages is bounded in bytes. Nothing is acknowledged before it is durable. This crate holds no SQL
//! and speaks no broker protocol.

pub mod backoff;
pub mod buffer;
pub mod cache;
pub mod commit;
mod connections;
pub mod decoder;
pub mod digests;
pub mod failures;
pub mod filling;
pub mod gather;
pub mod live;
pub mod liveness;
pub mod looks;
pub mod message;
pub mod metrics;
pub mod monitor;
pub mod orphans;
pub mod own;
mod ready;
pub mod reduce;
pub mod repair;
pub mod report;
pub mod sampler;
pub mod settings;
pub mod shared;
pub mod sieve;
pub mod source;
pub mod spool;
pub mod standby;
pub mod statistics;
mod store;
pub mod workers;

pub use metrics::Metrics;
pub use monitor::{Monitor, MonitorLimits};
pub use settings::Settings;
pub use shared::Shared;

/// Returns an error's text with its causes, in one line.
pub fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
