//! The CeleryBrokers, their Secrets and namespaces, and the rights of the operator.

use anyhow::{Context as _, Result};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kanchi_crds::CeleryBroker;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde::Deserialize;
use serde_json::{Value, json};

/// Namespace of the operator in `manifests/`.
pub(crate) const OPERATOR_NAMESPACE: &str = "kanchi-system";

/// Objects that are created at the same time.
const AT_ONCE: usize = 16;

/// Returns namespace and name of a CeleryBroker.
pub(crate) fn name_of(number: usize, namespaces: usize) -> (String, String) {
    (format!("tenant-{}", number % namespaces), format!("broker-{number:04}"))
}

/// Makes the namespaces, and gives a user the rights that `manifests/` gives the operator.
pub(crate) async fn prepare(client: &Client, user: &str, namespaces: usize) -> Result<()> {
    let api: Api<Namespace> = Api::all(client.clone());
    let tenants = (0..namespaces).map(|number| format!("tenant-{number}"));
    for name in tenants.chain([OPERATOR_NAMESPACE.to_owned()]) {
        let namespace: Namespace = serde_json::from_value(json!({ "metadata": { "name": name } }))?;
        api.create(&PostParams::default(), &namespace).await?;
    }
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/install.yaml");
    let text = std::fs::read_to_string(manifests).with_context(|| format!("no {manifests}"))?;
    for document in serde_yaml::Deserializer::from_str(&text) {
        let mut object = Value::deserialize(document)?;
        let group = object["apiVersion"].as_str().unwrap_or_default();
        if group != "rbac.authorization.k8s.io/v1" {
            continue;
        }
        if let Some(subjects) = object.get_mut("subjects") {
            *subjects = json!([{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user }]);
        }
        let kind = object["kind"].as_str().unwrap_or_default();
        let kind = GroupVersionKind::gvk("rbac.authorization.k8s.io", "v1", kind);
        let resource = ApiResource::from_gvk(&kind);
        let object: DynamicObject = serde_json::from_value(object)?;
        let api: Api<DynamicObject> = match object.namespace() {
            Some(namespace) => Api::namespaced_with(client.clone(), &namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        };
        let parameters = PatchParams::apply("bench").force();
        api.patch(&object.name_any(), &parameters, &Patch::Apply(&object))
            .await?;
    }
    Ok(())
}

/// Creates the Secrets with the brokers' URLs.
pub(crate) async fn create_secrets(client: &Client, brokers: usize, namespaces: usize) -> Result<()> {
    create(brokers, |number| async move {
        let (namespace, name) = name_of(number, namespaces);
        let url = match number % 2 {
            0 => format!("redis://:password@{name}.{namespace}.svc:6379/0"),
            _ => format!("amqp://user:password@{name}.{namespace}.svc:5672/celery"),
        };
        let secret: Secret =
            serde_json::from_value(json!({ "metadata": { "name": name }, "stringData": { "url": url } }))?;
        let api = Api::namespaced(client.clone(), &namespace);
        api.create(&PostParams::default(), &secret).await.map(drop)?;
        Ok(())
    })
    .await
}

/// Creates the CeleryBrokers.
pub(crate) async fn create_brokers(client: &Client, brokers: usize, namespaces: usize) -> Result<()> {
    create(brokers, |number| async move {
        let (namespace, name) = name_of(number, namespaces);
        let broker: CeleryBroker = serde_json::from_value(json!({
            "apiVersion": "kanchi.io/v1alpha1", "kind": "CeleryBroker",
            "metadata": { "name": name, "labels": { "env": "bench" } },
            "spec": {
                "displayName": format!("Broker {number}"),
                "connection": { "urlSecretRef": { "name": name, "key": "url" } }
            }
        }))?;
        let api = Api::namespaced(client.clone(), &namespace);
        api.create(&PostParams::default(), &broker).await.map(drop)?;
        Ok(())
    })
    .await
}

/// Changes one CeleryBroker in a way that reaches its monitor's configuration.
pub(crate) async fn change(client: &Client, (namespace, name): &(String, String), offline_after: u32) -> Result<i64> {
    let api: Api<CeleryBroker> = Api::namespaced(client.clone(), namespace);
    let patch = Patch::Merge(json!({ "spec": { "workers": { "offlineAfter": format!("{offline_after}s") } } }));
    let changed = api.patch(name, &PatchParams::default(), &patch).await?;
    Ok(changed.metadata.generation.unwrap_or_default())
}

async fn create<F, Fut>(count: usize, one: F) -> Result<()>
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = Result<()>>,
{
    futures::stream::iter((0..count).map(one))
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}
