//! What the operator and the monitor found. Unknown is absent, never zero.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::{ConditionType, Transport};

/// What was observed. A count that is absent is unknown, not zero.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CeleryBrokerStatus {
    /// The `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The current state, one condition per type. The reasons are explained in docs/runbooks.md.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
    /// Kind of broker behind the URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
    /// Host, port and virtual host or database of the broker, never credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub endpoint: Option<String>,
    /// Version that the broker reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub broker_version: Option<String>,
    /// Workers online.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers_online: Option<i64>,
    /// Messages that wait in all known queues, rounded to two digits above 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages_queued: Option<i64>,
    /// Events a second over the last minute, rounded to two digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events_per_second: Option<f64>,
    /// Tasks that ended within the last hour, rounded to two digits above 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_hour: Option<HourCounts>,
    /// The fullest queues, fullest first, at most ten.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub top_queues: Vec<QueueStatus>,
    /// Gaps in the stream of events within the last 24 hours: times for which events are missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gaps: Option<i64>,
    /// Image of the monitor that is rolled out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub monitor_image: Option<String>,
    /// Key of this broker's rows in the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_key: Option<i32>,
}

impl CeleryBrokerStatus {
    /// Returns the condition of a type.
    pub fn condition(&self, type_: ConditionType) -> Option<&Condition> {
        self.conditions
            .iter()
            .find(|condition| condition.type_ == type_.as_str())
    }
}

/// Tasks that ended within the last hour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HourCounts {
    /// Tasks that succeeded.
    pub succeeded: i64,
    /// Tasks that failed.
    pub failed: i64,
    /// Retries.
    pub retried: i64,
}

/// One queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueueStatus {
    /// Name of the queue.
    #[schemars(length(max = 255))]
    pub name: String,
    /// Messages that wait.
    pub ready: i64,
    /// Messages that a worker holds without having acknowledged them, where the broker can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unacked: Option<i64>,
    /// Consumers, where the broker can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumers: Option<i64>,
}

/// The standard condition, bounded, as a list-map: field managers own single types without erasing each other's.
fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 32,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
            "properties": {
                "lastTransitionTime": {
                    "type": "string", "format": "date-time",
                    "description": "When the status last changed."
                },
                "message": {
                    "type": "string", "maxLength": 32768,
                    "description": "What is the case and, if something is wrong, what to do."
                },
                "observedGeneration": {
                    "type": "integer", "format": "int64", "minimum": 0,
                    "description": "The metadata.generation that this condition speaks of."
                },
                "reason": {
                    "type": "string", "minLength": 1, "maxLength": 1024, "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                    "description": "One word for programs; docs/runbooks.md explains each."
                },
                "status": {
                    "type": "string", "enum": ["True", "False", "Unknown"],
                    "description": "True, False or Unknown."
                },
                "type": {
                    "type": "string", "maxLength": 316,
                    "pattern": r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$",
                    "description": "What the condition is about."
                }
            }
        }
    })
}
