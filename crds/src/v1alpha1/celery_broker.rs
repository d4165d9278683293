//! `CeleryBroker`: watch this broker.

#![expect(unreachable_pub, reason = "the derive copies public types into function bodies")]

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CeleryBrokerStatus, CelerySettings, Connection, MonitorPods, Payloads, Queues, Retention, Workers};

/// What to watch and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "kanchi.io",
    version = "v1alpha1",
    kind = "CeleryBroker",
    plural = "celerybrokers",
    namespaced,
    status = "CeleryBrokerStatus",
    shortname = "cb",
    category = "kanchi",
    derive = "PartialEq",
    doc = "A message broker of a Celery deployment that Kanchi watches. Kanchi runs one monitor for it, next to this resource.",
    validation = Rule::new("self.metadata.name.size() <= 63")
        .message("metadata.name must have at most 63 characters, since it is used in labels: choose a shorter name"),
    printcolumn(name = "Transport", type_ = "string", json_path = ".status.transport", description = "RabbitMQ or Redis"),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint", description = "Host, port and virtual host or database"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status", description = "Whether the operator has done what this resource asks for"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", description = "Why Ready is as it is"),
    printcolumn(name = "Reachable", type_ = "string", json_path = ".status.conditions[?(@.type==\"BrokerReachable\")].status", description = "Whether the monitor is connected to the broker"),
    printcolumn(name = "Workers", type_ = "integer", json_path = ".status.workersOnline", description = "Workers online"),
    printcolumn(name = "Queued", type_ = "integer", json_path = ".status.messagesQueued", description = "Messages that wait in the queues"),
    printcolumn(name = "Events/s", type_ = "number", json_path = ".status.eventsPerSecond", description = "Events a second over the last minute"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "Time since this resource was created"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.brokerVersion", priority = 1, description = "The broker's version"),
    printcolumn(name = "Image", type_ = "string", json_path = ".status.monitorImage", priority = 1, description = "Image of the running monitor"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1, description = "What to do when it is not ready")
)]
#[serde(rename_all = "camelCase")]
pub struct CeleryBrokerSpec {
    /// Name that people see, for example `Orders (RabbitMQ)`. Unset: namespace and name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub display_name: Option<String>,
    /// Words to find and group brokers by. At most 32.
    #[serde(default)]
    #[schemars(length(max = 32), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "set"))]
    pub tags: Vec<String>,
    /// Whether the monitor runs. False scales it to zero and keeps the history.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Never publishes anything to this broker: no remote control, no `enable_events`, no retries.
    #[serde(default)]
    pub read_only: bool,
    /// How to reach the broker.
    pub connection: Connection,
    /// Celery's own settings of this deployment, as in its configuration. The defaults are Celery's.
    #[serde(default)]
    pub celery: CelerySettings,
    /// Which queues are sampled, and how often.
    #[serde(default)]
    pub queues: Queues,
    /// When a worker counts as lost, and what becomes of its tasks.
    #[serde(default)]
    pub workers: Workers,
    /// What is kept of arguments, results and tracebacks.
    #[serde(default)]
    pub payloads: Payloads,
    /// How long rows are kept. A change applies to new rows.
    #[serde(default)]
    pub retention: Retention,
    /// Settings of the monitor's pod.
    #[serde(default)]
    pub monitor: MonitorPods,
    /// What happens to the history when this resource is deleted. Retain keeps it, and a resource of the same name in the
    /// same namespace finds it again; Delete removes it.
    #[serde(default)]
    pub reclaim_policy: ReclaimPolicy,
}

/// What happens to the history of a deleted `CeleryBroker`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ReclaimPolicy {
    /// The history stays until its retention ends.
    #[default]
    Retain,
    /// The history is deleted first.
    Delete,
}

fn yes() -> bool {
    true
}

impl CeleryBrokerSpec {
    /// Returns a spec with every default and this connection.
    pub fn new(connection: Connection) -> Self {
        Self {
            display_name: None,
            tags: Vec::new(),
            enabled: true,
            read_only: false,
            connection,
            celery: CelerySettings::default(),
            queues: Queues::default(),
            workers: Workers::default(),
            payloads: Payloads::default(),
            retention: Retention::default(),
            monitor: MonitorPods::default(),
            reclaim_policy: ReclaimPolicy::default(),
        }
    }
}
