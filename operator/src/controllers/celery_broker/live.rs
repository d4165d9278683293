//! The CeleryBroker as the API server has it now, also when its spec cannot be read.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kanchi_crds::{CeleryBroker, CeleryBrokerStatus, PAUSED_ANNOTATION};
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, Client, Resource};
use serde_json::Value;

use crate::api::{self, call};
use crate::context::Context;

/// One CeleryBroker.
#[derive(Clone, Debug)]
pub struct Live {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// Its status; empty when that cannot be read.
    pub status: CeleryBrokerStatus,
    /// The whole, or why it cannot be read.
    pub broker: Result<CeleryBroker, String>,
}

impl Live {
    /// Reads a CeleryBroker; `None`: there is none.
    pub async fn read(client: &Client, namespace: &str, name: &str) -> api::Result<Option<Self>> {
        let kind = ApiResource::erase::<CeleryBroker>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &kind);
        let object = call("read the CeleryBroker", api.get_opt(name)).await?;
        Ok(object.map(Self::of))
    }

    fn of(object: DynamicObject) -> Self {
        let status = object.data.get("status").cloned().unwrap_or_default();
        let metadata = object.metadata.clone();
        let broker = serde_json::to_value(object)
            .and_then(serde_json::from_value::<CeleryBroker>)
            .map_err(|error| error.to_string());
        Self {
            metadata,
            status: serde_json::from_value(status).unwrap_or_default(),
            broker,
        }
    }

    /// Returns the uid.
    pub fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    /// Returns the generation of the spec.
    pub fn generation(&self) -> i64 {
        self.metadata.generation.unwrap_or_default()
    }

    /// Whether the pause annotation is set.
    pub fn is_paused(&self) -> bool {
        let annotations = self.metadata.annotations.as_ref();
        annotations
            .and_then(|all| all.get(PAUSED_ANNOTATION))
            .is_some_and(|value| value == "true")
    }

    /// Whether a finalizer is set.
    pub fn has_finalizer(&self, finalizer: &str) -> bool {
        self.metadata.finalizers.iter().flatten().any(|name| name == finalizer)
    }

    /// Returns the reference that Events carry.
    pub fn reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some(CeleryBroker::api_version(&()).into_owned()),
            kind: Some(CeleryBroker::kind(&()).into_owned()),
            name: self.metadata.name.clone(),
            namespace: self.metadata.namespace.clone(),
            uid: self.metadata.uid.clone(),
            ..ObjectReference::default()
        }
    }
}

/// Applies a status. The answer is not read as a CeleryBroker: its spec may be unreadable.
pub async fn patch_status(
    context: &Context,
    namespace: &str,
    name: &str,
    manager: &str,
    body: &Value,
) -> api::Result<()> {
    let kind = ApiResource::erase::<CeleryBroker>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), namespace, &kind);
    let parameters = PatchParams::apply(manager).force();
    call(
        "write the status",
        api.patch_status(name, &parameters, &Patch::Apply(body)),
    )
    .await
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn live(spec: &Value) -> Live {
        let object = json!({
            "apiVersion": "kanchi.io/v1alpha1", "kind": "CeleryBroker",
            "metadata": { "name": "orders", "namespace": "shop", "uid": "u", "annotations": { "kanchi.io/paused": "true" } },
            "spec": spec,
            "status": { "observedGeneration": 3, "storeKey": 7 }
        });
        Live::of(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn an_unreadable_spec_leaves_metadata_and_status_readable() {
        let good = live(&json!({ "connection": { "url": "redis://cache" } }));
        assert!(good.broker.is_ok() && good.is_paused());
        let bad = live(&json!({ "connection": 7 }));
        assert!(bad.broker.is_err());
        assert_eq!(
            (bad.status.observed_generation, bad.status.store_key, bad.uid()),
            (Some(3), Some(7), "u")
        );
    }
}
