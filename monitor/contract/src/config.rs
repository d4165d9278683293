//! The monitor's configuration without its secrets.

use serde::{Deserialize, Serialize};

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not YAML, a field missing or of another type.
    #[error("failed to parse config.yaml")]
    Parse(#[source] serde_yaml::Error),
    /// The configuration could not be written as YAML.
    #[error("failed to render config.yaml")]
    Render(#[source] serde_yaml::Error),
}

/// Everything a monitor needs to know about its broker, except credentials.
///
/// Fields that a monitor does not know are passed over: after an upgrade a newer operator writes the file before each
/// monitor has had its turn, and one that refused it would also refuse a rotated password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MonitorConfig {
    /// Which `CeleryBroker` this monitor serves.
    pub broker: Identity,
    /// The broker's key in the store. The role of the store URL derives the same key; the monitor compares the two.
    pub broker_key: i32,
    /// Never publish anything to this broker: no remote control, no `enable_events`.
    pub read_only: bool,
    /// Celery's own settings of this deployment.
    pub celery: Celery,
    /// Where the results of tasks are, for the repair of gaps; absent: the workers alone are asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_backend: Option<ResultBackend>,
    /// Which queues are sampled, and how often.
    pub queues: Queues,
    /// When a worker counts as offline.
    pub workers: Workers,
    /// What is kept of arguments, results and tracebacks.
    pub payloads: Payloads,
    /// How long rows are kept.
    pub retention: Retention,
    /// Monitors of this broker, one of which writes: with more than one a process stands by until no other writes, and the
    /// writer keeps what a successor needs.
    pub replicas: u8,
    /// `tracing` filter, for example `info`.
    pub log_level: String,
}

/// The custom resource a monitor belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Namespace of the `CeleryBroker`.
    pub namespace: String,
    /// Name of the `CeleryBroker`.
    pub name: String,
}

impl Identity {
    /// Returns the broker's id in API, metrics and UI: `namespace/name`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// Celery's settings that shape the wire (`wire/celery-wire.md` sections 3 and 4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Celery {
    /// `event_exchange`.
    pub event_exchange: String,
    /// `control_exchange`; `.pidbox` is appended.
    pub control_exchange: String,
    /// Broadcast `enable_events` to workers that do not send task events.
    pub enable_events: bool,
    /// Redis: `broker_transport_options["global_keyprefix"]`.
    pub global_key_prefix: String,
    /// RabbitMQ: the queue in which events wait for the monitor.
    pub event_queue: EventQueue,
}

/// Celery's result backend; its URL is in a file of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResultBackend {
    /// Redis: `result_backend_transport_options["global_keyprefix"]`, as the user wrote it.
    pub global_key_prefix: String,
}

/// The monitor's own queue on RabbitMQ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventQueue {
    /// Kind of queue.
    #[serde(rename = "type")]
    pub queue_type: EventQueueType,
    /// `x-max-length-bytes`; the oldest events are dropped beyond it, and a gap is recorded.
    pub max_length_bytes: u64,
    /// `x-expires`, in seconds: the broker deletes the queue when no monitor has used it for so long.
    pub expires_seconds: u64,
}

/// RabbitMQ's queue types that Kanchi uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventQueueType {
    /// Fast; its (transient) messages do not survive a restart of the broker.
    Classic,
    /// Replicated and written to disk; survives a restart of the broker.
    Quorum,
}

/// Which queues are sampled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Queues {
    /// Queues that are sampled besides the discovered ones.
    pub include: Vec<String>,
    /// Seconds between two samples.
    pub sample_interval_seconds: u64,
}

/// When a worker counts as offline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Workers {
    /// Seconds of silence; at least twice the worker's own heartbeat interval is always waited.
    pub offline_after_seconds: u64,
    /// Seconds from a worker's loss until its running tasks become ORPHANED.
    pub orphan_grace_seconds: u64,
}

/// What is kept of arguments, results and tracebacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Payloads {
    /// Whether payloads are stored at all.
    pub store: PayloadStore,
    /// Bytes kept of each payload; the rest is cut and the row marked.
    pub max_bytes: u64,
    /// Keyword names whose values are replaced.
    pub redact_keys: Vec<String>,
}

/// Whether payloads are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PayloadStore {
    /// Arguments, results and tracebacks, up to `maxBytes` each.
    Full,
    /// None of them.
    None,
}

/// Days that rows are kept: each one of 1, 3, 7, 14, 30, 90, 365.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retention {
    /// Tasks that succeeded.
    pub succeeded_days: u16,
    /// Tasks that ended in any other way.
    pub failed_days: u16,
    /// Single events.
    pub events_days: u16,
    /// Counts and histograms by day; by hour 90 days, by minute 14 at most.
    pub statistics_days: u16,
}

impl MonitorConfig {
    /// Parses `config.yaml`.
    pub fn from_yaml(text: &str) -> Result<Self, ConfigError> {
        serde_yaml::from_str(text).map_err(ConfigError::Parse)
    }

    /// Renders `config.yaml`; the same configuration always gives the same bytes.
    pub fn to_yaml(&self) -> Result<String, ConfigError> {
        serde_yaml::to_string(self).map_err(ConfigError::Render)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> MonitorConfig {
        MonitorConfig {
            broker: Identity {
                namespace: "shop".into(),
                name: "orders".into(),
            },
            broker_key: 42,
            read_only: false,
            celery: Celery {
                event_exchange: "celeryev".into(),
                control_exchange: "celery".into(),
                enable_events: true,
                global_key_prefix: String::new(),
                event_queue: EventQueue {
                    queue_type: EventQueueType::Quorum,
                    max_length_bytes: 1 << 30,
                    expires_seconds: 86_400,
                },
            },
            result_backend: None,
            queues: Queues {
                include: vec!["billing".into()],
                sample_interval_seconds: 15,
            },
            workers: Workers {
                offline_after_seconds: 60,
                orphan_grace_seconds: 30,
            },
            payloads: Payloads {
                store: PayloadStore::Full,
                max_bytes: 65_536,
                redact_keys: vec!["password".into()],
            },
            retention: Retention {
                succeeded_days: 14,
                failed_days: 30,
                events_days: 7,
                statistics_days: 365,
            },
            replicas: 1,
            log_level: "info".into(),
        }
    }

    #[test]
    fn what_the_operator_renders_is_what_the_monitor_reads() {
        let text = sample().to_yaml().unwrap();
        assert_eq!(MonitorConfig::from_yaml(&text).unwrap(), sample());
    }

    #[test]
    fn a_result_backend_is_rendered_only_where_there_is_one() {
        assert!(!sample().to_yaml().unwrap().contains("resultBackend"));
        let mut config = sample();
        config.result_backend = Some(ResultBackend {
            global_key_prefix: "acme".into(),
        });
        assert_eq!(MonitorConfig::from_yaml(&config.to_yaml().unwrap()).unwrap(), config);
    }

    #[test]
    fn passes_over_a_field_of_a_newer_operator() {
        let text = format!("{}surprise: true\n", sample().to_yaml().unwrap());
        assert_eq!(MonitorConfig::from_yaml(&text).unwrap(), sample());
    }
}
