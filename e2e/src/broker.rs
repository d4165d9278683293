//! Verbs on `CeleryBroker`: apply one, look at its conditions, its children and its monitor.

use std::time::Duration;

use kube::api::DynamicObject;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::verbs::{BROKER, POD};
use crate::wait::{Look, until};

/// A `CeleryBroker` that is about to be applied.
#[derive(Clone, Debug)]
pub struct BrokerManifest {
    name: String,
    spec: Value,
}

impl BrokerManifest {
    /// Names the broker whose URL is in key `url` of Secret `<name>-broker`.
    pub fn new(name: &str) -> Self {
        let secret = json!({ "name": format!("{name}-broker"), "key": "url" });
        Self {
            name: name.to_owned(),
            spec: json!({ "connection": { "urlSecretRef": secret } }),
        }
    }

    /// Sets a field of the spec, for example `with("celery", json!({…}))`.
    #[must_use]
    pub fn with(mut self, field: &str, value: Value) -> Self {
        if let Some(fields) = self.spec.as_object_mut() {
            fields.insert(field.to_owned(), value);
        }
        self
    }

    /// Returns the object.
    pub fn object(&self) -> Value {
        json!({ "apiVersion": BROKER.0, "kind": BROKER.1, "metadata": { "name": self.name }, "spec": self.spec })
    }
}

impl Cluster {
    /// Applies the Secret `<name>-broker` with a URL, and the broker.
    pub async fn apply_broker(&self, namespace: &str, broker: &BrokerManifest, url: &str) -> anyhow::Result<()> {
        self.apply_broker_url(namespace, &broker.name, url).await?;
        self.apply(broker.object(), namespace).await.map(drop)
    }

    /// Applies the Secret `<name>-broker` with a URL.
    pub async fn apply_broker_url(&self, namespace: &str, name: &str, url: &str) -> anyhow::Result<()> {
        let metadata = json!({ "name": format!("{name}-broker") });
        let secret =
            json!({ "apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": { "url": url } });
        self.apply(secret, namespace).await.map(drop)
    }

    /// Waits until a condition of a broker has a status (and a reason, if one is given); returns the broker.
    pub async fn await_condition(
        &self,
        namespace: &str,
        name: &str,
        (condition, status, reason): (&str, &str, Option<&str>),
        within: Duration,
    ) -> anyhow::Result<DynamicObject> {
        let what = format!(
            "CeleryBroker {namespace}/{name}: {condition}={status} {}",
            reason.unwrap_or_default()
        );
        until(&what, within, || async {
            let broker = self.get(BROKER, name, namespace).await?;
            let generation = broker.metadata.generation;
            let found = find_condition(&broker, condition);
            let holds = found.is_some_and(|found| {
                found["status"] == status
                    && reason.is_none_or(|reason| found["reason"] == reason)
                    && found["observedGeneration"]
                        .as_i64()
                        .is_none_or(|seen| Some(seen) == generation)
            });
            Ok(if holds {
                Look::Done(broker)
            } else {
                Look::NotYet(broker.data["status"].to_string())
            })
        })
        .await
    }

    /// Waits until a broker is both ready and reachable.
    pub async fn await_ready(&self, namespace: &str, name: &str, within: Duration) -> anyhow::Result<DynamicObject> {
        self.await_condition(namespace, name, ("Ready", "True", None), within)
            .await?;
        self.await_condition(namespace, name, ("BrokerReachable", "True", None), within)
            .await
    }
}

impl Cluster {
    /// Fails if a broker's monitor was ever restarted: it passed its memory limit, or ended.
    pub async fn never_restarted(&self, namespace: &str, broker: &str) -> anyhow::Result<()> {
        let pod = self.get(POD, &monitor_pod(broker), namespace).await?;
        let restarts = &pod.data["status"]["containerStatuses"][0]["restartCount"];
        anyhow::ensure!(
            restarts == 0,
            "the monitor was restarted {restarts} times: {}",
            pod.data["status"]
        );
        Ok(())
    }
}

/// Returns a condition of an object's status.
pub fn find_condition<'a>(object: &'a DynamicObject, name: &str) -> Option<&'a Value> {
    object.data["status"]["conditions"]
        .as_array()?
        .iter()
        .find(|condition| condition["type"] == name)
}

/// Returns the name of a broker's monitor: of its StatefulSet, Secret, Service, PodDisruptionBudget and NetworkPolicy.
pub fn monitor_name(broker: &str) -> String {
    format!("{broker}-monitor")
}

/// Returns the name of a broker's monitor pod.
pub fn monitor_pod(broker: &str) -> String {
    format!("{}-0", monitor_name(broker))
}
