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
pub mod commit;
pub mod intake;
pub mod metrics;
pub mod monitor;
pub mod repair;
pub mod report;
pub mod sampler;
pub mod settings;
pub mod shared;
pub mod standby;
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
