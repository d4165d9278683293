//! The few pod settings of a monitor that a user may choose; a whole pod spec would hand over the operator's power.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, ResourceRequirements, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Settings of the monitor's pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MonitorPods {
    /// Monitors: one writes, a second one stands by and takes over when the first ends (within about two seconds) or is gone
    /// (within about fifteen). On Redis the second one hears what the first one misses; RabbitMQ keeps it in any case. Both
    /// need the memory of one.
    #[schemars(range(min = 1, max = 2))]
    pub replicas: u8,
    /// Processor and memory. What is unset comes from the operator: requests of 50m and 64Mi, a memory limit of 128Mi.
    pub resources: Resources,
    /// Labels a node must carry. Empty: any node.
    #[schemars(extend("maxProperties" = 32))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that the pod tolerates, as in a pod's `spec.tolerations`.
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub tolerations: Vec<Toleration>,
    /// Rules about which nodes, and near which pods, the pod may run, as in a pod's `spec.affinity`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// What the monitor logs: error, warn, info, debug or trace, or a filter such as `info,kanchi_broker=debug`.
    #[schemars(length(min = 1, max = 256), pattern(r"^[A-Za-z0-9_:=,]+$"))]
    pub log_level: String,
}

impl Default for MonitorPods {
    fn default() -> Self {
        Self {
            replicas: 1,
            resources: Resources::default(),
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            affinity: None,
            log_level: "info".into(),
        }
    }
}

/// Processor and memory of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    /// What the scheduler sets aside, for example `{cpu: 50m, memory: 64Mi}`.
    #[schemars(schema_with = "resource_list")]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: BTreeMap<String, Quantity>,
    /// What the container may use at most, for example `{memory: 128Mi}`.
    #[schemars(schema_with = "resource_list")]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, Quantity>,
}

impl Resources {
    /// Returns these resources as a container wants them, with `defaults` for what is unset.
    ///
    /// A default request above a limit that the user set is lowered to the limit, since the API server refuses the pod else.
    pub fn or(&self, defaults: &Self) -> ResourceRequirements {
        let filled = |own: &BTreeMap<String, Quantity>, default: &BTreeMap<String, Quantity>| {
            let mut all = default.clone();
            all.extend(own.iter().map(|(name, quantity)| (name.clone(), quantity.clone())));
            all
        };
        let mut requests = filled(&self.requests, &defaults.requests);
        let mut limits = filled(&self.limits, &defaults.limits);
        for name in self.limits.keys().filter(|name| !self.requests.contains_key(*name)) {
            if let Some(limit) = self.limits.get(name) {
                // Equal to the limit is Kubernetes' own rule for a request that is unset.
                requests.insert(name.clone(), limit.clone());
            }
        }
        for name in self.requests.keys().filter(|name| !self.limits.contains_key(*name)) {
            // A default limit below the user's own request would be refused.
            limits.remove(name);
        }
        ResourceRequirements {
            claims: None,
            limits: Some(limits),
            requests: Some(requests),
        }
    }
}

fn resource_list(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 8,
        "additionalProperties": {
            "anyOf": [{ "type": "integer" }, { "type": "string" }],
            "x-kubernetes-int-or-string": true,
            "maxLength": 32,
            "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$"
        }
    })
}
