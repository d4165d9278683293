//! What monitors say, for the operator's status.

use std::collections::HashMap;
use std::time::Duration;

use kanchi_domain::UnixMicros;
use sqlx::Row;
use sqlx::postgres::PgRow;

use crate::admin::{BrokerKey, StoreAdmin};
use crate::error::{During, Result};
use crate::model::Heartbeat;

/// A queue and its depth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopQueue {
    /// Queue name.
    pub name: String,
    /// Messages that wait.
    pub ready: u64,
    /// Consumers; `None` where the broker cannot tell.
    pub consumers: Option<u64>,
}

/// What a monitor last said, and how long ago.
#[derive(Clone, Debug, PartialEq)]
pub struct MonitorReport {
    /// The broker.
    pub key: BrokerKey,
    /// Namespace of its CeleryBroker.
    pub namespace: String,
    /// Name of its CeleryBroker.
    pub name: String,
    /// Age of the heartbeat by the server's clock; `None`: no monitor has ever reported.
    pub heartbeat_age: Option<Duration>,
    /// The heartbeat itself.
    pub heartbeat: Option<Heartbeat>,
    /// The fullest queues of the newest sample, at most five, fullest first.
    pub top_queues: Vec<TopQueue>,
    /// Gaps that began within the last 24 hours.
    pub gaps_last_day: u64,
    /// Gaps that are still open.
    pub gaps_open: u64,
}

/// Transitions of the last hour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HourCounts {
    /// Succeeded.
    pub succeeded: u64,
    /// Failed.
    pub failed: u64,
    /// Retried.
    pub retried: u64,
}

impl StoreAdmin {
    /// Returns what every monitor last said, of brokers that are not retired; for a poll every few seconds.
    pub async fn reports(&self) -> Result<Vec<MonitorReport>> {
        let query = sqlx::query(include_str!("../sql/reports.sql"));
        let rows = query.fetch_all(&self.pool).await.during("read the reports")?;
        Ok(rows.iter().map(report).collect())
    }

    /// Returns the counts of the 60 minutes before `now`, of every broker that had any; for a poll every minute.
    ///
    /// Counts the transitions `succeeded`, `failed` and `retried`.
    pub async fn last_hour(&self, now: UnixMicros) -> Result<HashMap<BrokerKey, HourCounts>> {
        let query = sqlx::query(include_str!("../sql/last_hour.sql")).bind(now.0);
        let rows = query.fetch_all(&self.pool).await.during("count the last hour")?;
        let counts = |row: &PgRow| HourCounts {
            succeeded: unsigned(row.get(1)),
            failed: unsigned(row.get(2)),
            retried: unsigned(row.get(3)),
        };
        Ok(rows.iter().map(|row| (BrokerKey(row.get(0)), counts(row))).collect())
    }
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn report(row: &PgRow) -> MonitorReport {
    let age: Option<f64> = row.get("age_seconds");
    let names: Vec<String> = row.get("queue_names");
    let ready: Vec<i64> = row.get("queue_ready");
    let consumers: Vec<Option<i64>> = row.get("queue_consumers");
    let queues = names.into_iter().zip(ready).zip(consumers);
    MonitorReport {
        key: BrokerKey(row.get("broker_id")),
        namespace: row.get("namespace"),
        name: row.get("name"),
        heartbeat_age: age.map(|seconds| Duration::from_secs_f64(seconds.max(0.0))),
        heartbeat: age.map(|_| heartbeat(row)),
        top_queues: queues
            .map(|((name, ready), consumers)| TopQueue {
                name,
                ready: unsigned(ready),
                consumers: consumers.map(unsigned),
            })
            .collect(),
        gaps_last_day: unsigned(row.get("gaps_last_day")),
        gaps_open: unsigned(row.get("gaps_open")),
    }
}

fn heartbeat(row: &PgRow) -> Heartbeat {
    Heartbeat {
        instance: row.get("instance"),
        version: row.get("version"),
        connection: row.get("connection"),
        reason: row.get("reason"),
        message: row.get("message"),
        broker_version: row.get("broker_version"),
        last_event_at: row.get::<Option<i64>, _>("last_event_at").map(UnixMicros),
        lag_seconds: row.get("lag_seconds"),
        events_per_second: row.get("events_per_second"),
        workers_online: row.get::<Option<i64>, _>("workers_online").map(unsigned),
        messages_queued: row.get::<Option<i64>, _>("messages_queued").map(unsigned),
        spool_bytes: row.get::<Option<i64>, _>("spool_bytes").map(unsigned),
        event_queue: row.get("event_queue"),
        config_error: row.get("config_error"),
        store_error: row.get("store_error"),
        complete_until: row.get::<Option<i64>, _>("complete_until").map(UnixMicros),
    }
}
