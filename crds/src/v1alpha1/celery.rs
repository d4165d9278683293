//! Celery's own settings of one deployment, with Celery's own defaults.

#![expect(unreachable_pub, reason = "the derive copies public types into function bodies")]

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SecretKeyRef;
use crate::Period;
use crate::quantity::{ByteSize, period_between, size_between};

/// Celery's settings that shape what is on the broker. The defaults are Celery's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CelerySettings {
    /// Celery's `event_exchange`: where workers publish their events.
    #[serde(default = "event_exchange")]
    #[schemars(length(min = 1, max = 200))]
    pub event_exchange: String,
    /// Celery's `control_exchange`: where workers listen for remote control (`<name>.pidbox`).
    #[serde(default = "control_exchange")]
    #[schemars(length(min = 1, max = 200))]
    pub control_exchange: String,
    /// Asks workers that do not send task events to start doing so, as `celery control enable_events` does. Never under
    /// `readOnly`.
    #[serde(default = "yes")]
    pub enable_events: bool,
    /// Redis only: `broker_transport_options["global_keyprefix"]`. Empty: none.
    #[serde(default)]
    #[schemars(length(max = 200))]
    pub global_key_prefix: String,
    /// RabbitMQ only: the queue in which events wait for the monitor.
    #[serde(default)]
    pub event_queue: EventQueue,
    /// Where Celery keeps the results of tasks. Kanchi reads there what became of tasks whose events it missed. Unset: only
    /// the workers are asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_backend: Option<ResultBackend>,
}

impl Default for CelerySettings {
    fn default() -> Self {
        Self {
            event_exchange: event_exchange(),
            control_exchange: control_exchange(),
            enable_events: yes(),
            global_key_prefix: String::new(),
            event_queue: EventQueue::default(),
            result_backend: None,
        }
    }
}

/// Celery's result backend, on Redis. Kanchi only reads there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResultBackend {
    /// Key of a Secret in the same namespace that holds the whole URL with its credentials, as Celery's `result_backend`.
    /// Schemes: redis, rediss. A rediss URL is verified as `connection.tls` says.
    pub url_secret_ref: SecretKeyRef,
    /// `result_backend_transport_options["global_keyprefix"]`. Empty: none.
    #[serde(default)]
    #[schemars(length(max = 200))]
    pub global_key_prefix: String,
}

/// Kanchi's own event queue on RabbitMQ: durable, bounded, and deleted by the broker when it is no longer used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EventQueue {
    /// Kind of queue. Classic is light, but loses its events when the broker restarts; Quorum keeps them on disk.
    #[serde(rename = "type", default)]
    pub queue_type: EventQueueType,
    /// Most bytes of events that wait, for example `1Gi`. Beyond it the oldest are dropped, and a gap is recorded. From
    /// 1Mi to 1Ti.
    #[serde(default = "one_gibibyte")]
    #[x_kube(validation = size_between("celery.eventQueue.maxLengthBytes", "1Mi", "1Ti"))]
    pub max_length_bytes: ByteSize,
    /// How long the queue outlives a monitor that is away, for example `24h`. From 1m to 28d.
    #[serde(default = "one_day")]
    #[x_kube(validation = period_between("celery.eventQueue.expires", "1m", "28d"))]
    pub expires: Period,
}

impl Default for EventQueue {
    fn default() -> Self {
        Self {
            queue_type: EventQueueType::default(),
            max_length_bytes: one_gibibyte(),
            expires: one_day(),
        }
    }
}

/// Kind of the event queue on RabbitMQ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum EventQueueType {
    /// Fast; its (transient) messages do not survive a restart of the broker.
    #[default]
    Classic,
    /// Replicated and written to disk; survives a restart of the broker.
    Quorum,
}

fn yes() -> bool {
    true
}

fn event_exchange() -> String {
    "celeryev".into()
}

fn control_exchange() -> String {
    "celery".into()
}

#[expect(clippy::expect_used, reason = "a constant that a test parses")]
fn one_gibibyte() -> ByteSize {
    "1Gi".parse().expect("constant")
}

#[expect(clippy::expect_used, reason = "a constant that a test parses")]
fn one_day() -> Period {
    "24h".parse().expect("constant")
}
