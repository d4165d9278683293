//! What is watched and what is kept: queues, workers, payloads, retention.

#![expect(unreachable_pub, reason = "the derive copies public types into function bodies")]

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Period;
use crate::quantity::period_between;

/// Which queues are sampled, and how often.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Queues {
    /// Queues that are sampled besides those Kanchi finds by itself (from workers, events and Redis bindings). At most 256.
    #[serde(default)]
    #[schemars(length(max = 256), inner(length(min = 1, max = 255)), extend("x-kubernetes-list-type" = "set"))]
    pub include: Vec<String>,
    /// Time between two samples of the queue lengths, for example `15s`. From 5s to 1h.
    #[serde(default = "fifteen_seconds")]
    #[x_kube(validation = period_between("queues.sampleInterval", "5s", "1h"))]
    pub sample_interval: Period,
}

impl Default for Queues {
    fn default() -> Self {
        Self {
            include: Vec::new(),
            sample_interval: fifteen_seconds(),
        }
    }
}

/// When a worker counts as lost, and what becomes of its tasks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Workers {
    /// Silence after which a worker counts as offline, for example `60s`; twice the worker's own heartbeat interval is
    /// always waited. From 5s to 1d.
    #[serde(default = "one_minute")]
    #[x_kube(validation = period_between("workers.offlineAfter", "5s", "1d"))]
    pub offline_after: Period,
    /// Time from a worker's loss until the tasks it was running become `ORPHANED`, for example `30s`; they are healed when it
    /// comes back. From 1s to 1d.
    #[serde(default = "thirty_seconds")]
    #[x_kube(validation = period_between("workers.orphanGrace", "1s", "1d"))]
    pub orphan_grace: Period,
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            offline_after: one_minute(),
            orphan_grace: thirty_seconds(),
        }
    }
}

/// What is kept of arguments, results and tracebacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Payloads {
    /// Whether arguments, results and tracebacks are stored at all.
    pub store: PayloadStore,
    /// Bytes kept of each argument list, result and traceback; the rest is cut and the row marked. From 0 to 1048576.
    #[schemars(range(min = 0, max = 1_048_576))]
    pub max_bytes: u32,
    /// Names of keyword arguments whose values are replaced before they are stored. At most 64.
    #[schemars(length(max = 64), inner(length(min = 1, max = 128)), extend("x-kubernetes-list-type" = "set"))]
    pub redact_keys: Vec<String>,
}

impl Default for Payloads {
    fn default() -> Self {
        Self {
            store: PayloadStore::default(),
            max_bytes: 65_536,
            redact_keys: vec!["password".into(), "token".into()],
        }
    }
}

/// Whether payloads are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum PayloadStore {
    /// Arguments, results and tracebacks, up to `maxBytes` each.
    #[default]
    Full,
    /// None of them.
    None,
}

/// How long rows are kept. A change applies to new rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Retention {
    /// Tasks that succeeded. One of 1d, 3d, 7d, 14d, 30d, 90d, 365d.
    pub succeeded: RetentionClass,
    /// Tasks that ended in any other way. One of 1d, 3d, 7d, 14d, 30d, 90d, 365d.
    pub failed: RetentionClass,
    /// Single events. One of 1d, 3d, 7d, 14d, 30d, 90d, 365d.
    pub events: RetentionClass,
    /// Counts and histograms by day; by hour 90d, by minute 14d at most. One of 1d, 3d, 7d, 14d, 30d, 90d, 365d.
    pub statistics: RetentionClass,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            succeeded: RetentionClass::Days14,
            failed: RetentionClass::Days30,
            events: RetentionClass::Days7,
            statistics: RetentionClass::Days365,
        }
    }
}

/// The lengths of time rows can be kept: partitions exist for these only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum RetentionClass {
    /// One day.
    #[serde(rename = "1d")]
    Days1,
    /// Three days.
    #[serde(rename = "3d")]
    Days3,
    /// A week.
    #[serde(rename = "7d")]
    Days7,
    /// Two weeks.
    #[serde(rename = "14d")]
    Days14,
    /// A month.
    #[serde(rename = "30d")]
    Days30,
    /// A quarter.
    #[serde(rename = "90d")]
    Days90,
    /// A year.
    #[serde(rename = "365d")]
    Days365,
}

impl RetentionClass {
    /// Every class, shortest first.
    pub const ALL: [Self; 7] = [
        Self::Days1,
        Self::Days3,
        Self::Days7,
        Self::Days14,
        Self::Days30,
        Self::Days90,
        Self::Days365,
    ];

    /// Returns the number of days.
    pub fn days(self) -> u16 {
        match self {
            Self::Days1 => 1,
            Self::Days3 => 3,
            Self::Days7 => 7,
            Self::Days14 => 14,
            Self::Days30 => 30,
            Self::Days90 => 90,
            Self::Days365 => 365,
        }
    }
}

fn fifteen_seconds() -> Period {
    Period::from_seconds(15)
}

fn thirty_seconds() -> Period {
    Period::from_seconds(30)
}

fn one_minute() -> Period {
    Period::from_seconds(60)
}
