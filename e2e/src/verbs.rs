//! Verbs on Kubernetes objects of any kind: apply, get, delete, await.

use std::time::Duration;

use anyhow::Context;
use kube::api::{DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams};
use kube::discovery::{self, Scope as Reach};
use kube::{Api, ResourceExt};
use serde::Deserialize;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::wait::{Look, until};

/// The name under which the tests own fields.
pub const MANAGER: &str = "kanchi-e2e";

/// `apiVersion` and `kind`.
pub type Kind<'a> = (&'a str, &'a str);

/// The resource this is all about.
pub const BROKER: Kind<'static> = ("kanchi.io/v1alpha1", "CeleryBroker");
/// Pods.
pub const POD: Kind<'static> = ("v1", "Pod");
/// Secrets.
pub const SECRET: Kind<'static> = ("v1", "Secret");
/// Services.
pub const SERVICE: Kind<'static> = ("v1", "Service");
/// StatefulSets.
pub const STATEFUL_SET: Kind<'static> = ("apps/v1", "StatefulSet");
/// Deployments.
pub const DEPLOYMENT: Kind<'static> = ("apps/v1", "Deployment");
/// PodDisruptionBudgets.
pub const DISRUPTION_BUDGET: Kind<'static> = ("policy/v1", "PodDisruptionBudget");
/// NetworkPolicies.
pub const NETWORK_POLICY: Kind<'static> = ("networking.k8s.io/v1", "NetworkPolicy");
/// Leases.
pub const LEASE: Kind<'static> = ("coordination.k8s.io/v1", "Lease");

impl Cluster {
    /// Applies a YAML text of one or more objects; those without a namespace go into the given one.
    pub async fn apply_yaml(&self, text: &str, namespace: &str) -> anyhow::Result<Vec<DynamicObject>> {
        let mut applied = Vec::new();
        for document in serde_yaml::Deserializer::from_str(text) {
            let value = Value::deserialize(document).context("failed to parse a manifest")?;
            if !value.is_null() {
                applied.push(self.apply(value, namespace).await?);
            }
        }
        Ok(applied)
    }

    /// Applies one object by server-side apply.
    pub async fn apply(&self, value: Value, namespace: &str) -> anyhow::Result<DynamicObject> {
        let object: DynamicObject = serde_json::from_value(value).context("not an object of Kubernetes")?;
        let types = object.types.clone().context("an object without apiVersion and kind")?;
        let api = self
            .api_of(
                &types.api_version,
                &types.kind,
                object.namespace().as_deref().unwrap_or(namespace),
            )
            .await?;
        let name = object.name_any();
        let params = PatchParams::apply(MANAGER).force();
        let applied = api.patch(&name, &params, &Patch::Apply(&object)).await;
        applied.with_context(|| format!("failed to apply {} {name}", types.kind))
    }

    /// Merges a patch into an object.
    pub async fn merge(
        &self,
        kind: Kind<'_>,
        name: &str,
        namespace: &str,
        patch: Value,
    ) -> anyhow::Result<DynamicObject> {
        let api = self.api(kind, namespace).await?;
        let params = PatchParams {
            field_manager: Some(MANAGER.into()),
            ..Default::default()
        };
        let patched = api.patch(name, &params, &Patch::Merge(patch)).await;
        patched.with_context(|| format!("failed to patch {} {name}", kind.1))
    }

    /// Returns an object, or `None`.
    pub async fn find(&self, kind: Kind<'_>, name: &str, namespace: &str) -> anyhow::Result<Option<DynamicObject>> {
        let found = self.api(kind, namespace).await?.get_opt(name).await;
        found.with_context(|| format!("failed to get {} {name}", kind.1))
    }

    /// Returns an object.
    pub async fn get(&self, kind: Kind<'_>, name: &str, namespace: &str) -> anyhow::Result<DynamicObject> {
        self.find(kind, name, namespace)
            .await?
            .with_context(|| format!("no {} {name} in {namespace}", kind.1))
    }

    /// Lists the objects of a kind in a namespace.
    pub async fn list(&self, kind: Kind<'_>, namespace: &str, labels: &str) -> anyhow::Result<Vec<DynamicObject>> {
        let list = self
            .api(kind, namespace)
            .await?
            .list(&ListParams::default().labels(labels))
            .await;
        Ok(list.with_context(|| format!("failed to list {}", kind.1))?.items)
    }

    /// Deletes an object; it may be gone already.
    pub async fn delete(&self, kind: Kind<'_>, name: &str, namespace: &str) -> anyhow::Result<()> {
        self.delete_with(kind, name, namespace, &DeleteParams::default()).await
    }

    /// Deletes a pod without asking it: the container gets SIGKILL.
    pub async fn kill_pod(&self, name: &str, namespace: &str) -> anyhow::Result<()> {
        self.delete_with(POD, name, namespace, &DeleteParams::default().grace_period(0))
            .await
    }

    async fn delete_with(&self, kind: Kind<'_>, name: &str, namespace: &str, how: &DeleteParams) -> anyhow::Result<()> {
        match self.api(kind, namespace).await?.delete(name, how).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error).with_context(|| format!("failed to delete {} {name}", kind.1)),
        }
    }

    /// Waits until an object satisfies a condition and returns it.
    pub async fn await_object<F>(
        &self,
        kind: Kind<'_>,
        name: &str,
        namespace: &str,
        (what, within): (&str, Duration),
        condition: F,
    ) -> anyhow::Result<DynamicObject>
    where
        F: Fn(&DynamicObject) -> bool,
    {
        let what = format!("{} {namespace}/{name}: {what}", kind.1);
        until(&what, within, || async {
            Ok(match self.find(kind, name, namespace).await? {
                None => Look::NotYet("it does not exist".into()),
                Some(object) if condition(&object) => Look::Done(object),
                Some(object) => Look::NotYet(object.data.get("status").unwrap_or(&Value::Null).to_string()),
            })
        })
        .await
    }

    /// Waits until an object is gone.
    pub async fn await_gone(
        &self,
        kind: Kind<'_>,
        name: &str,
        namespace: &str,
        within: Duration,
    ) -> anyhow::Result<()> {
        until(&format!("{} {namespace}/{name} gone", kind.1), within, || async {
            Ok(match self.find(kind, name, namespace).await? {
                None => Look::Done(()),
                Some(object) => Look::NotYet(format!("finalizers {:?}", object.finalizers())),
            })
        })
        .await
    }

    /// Scales a StatefulSet or Deployment and waits until just so many pods are ready.
    pub async fn scale(
        &self,
        kind: Kind<'_>,
        name: &str,
        namespace: &str,
        replicas: u32,
        within: Duration,
    ) -> anyhow::Result<()> {
        self.merge(
            kind,
            name,
            namespace,
            serde_json::json!({ "spec": { "replicas": replicas } }),
        )
        .await?;
        self.await_object(
            kind,
            name,
            namespace,
            (&format!("{replicas} replicas"), within),
            |object| {
                let count = |field: &str| object.data["status"][field].as_u64().unwrap_or(0);
                count("replicas") == u64::from(replicas) && count("readyReplicas") == u64::from(replicas)
            },
        )
        .await
        .map(drop)
    }

    /// Waits until every pod that a Deployment or StatefulSet asks for is ready at its newest generation.
    pub async fn await_rollout(
        &self,
        kind: Kind<'_>,
        name: &str,
        namespace: &str,
        within: Duration,
    ) -> anyhow::Result<()> {
        self.await_object(kind, name, namespace, ("rolled out", within), |object| {
            let count = |field: &str| object.data["status"][field].as_u64().unwrap_or(0);
            let wanted = object.data["spec"]["replicas"].as_u64().unwrap_or(1);
            Some(count("observedGeneration") as i64) == object.metadata.generation
                && count("readyReplicas") == wanted
                && count("updatedReplicas") == wanted
                && count("replicas") == wanted
        })
        .await
        .map(drop)
    }

    /// Returns an interface to the objects of a kind in a namespace.
    pub async fn api(&self, kind: Kind<'_>, namespace: &str) -> anyhow::Result<Api<DynamicObject>> {
        self.api_of(kind.0, kind.1, namespace).await
    }

    async fn api_of(&self, version: &str, kind: &str, namespace: &str) -> anyhow::Result<Api<DynamicObject>> {
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let found = discovery::pinned_kind(&self.client, &GroupVersionKind::gvk(group, version, kind)).await;
        let (resource, capabilities) =
            found.with_context(|| format!("the cluster does not know {group}/{version} {kind}"))?;
        Ok(match capabilities.scope {
            Reach::Cluster => Api::all_with(self.client.clone(), &resource),
            Reach::Namespaced => Api::namespaced_with(self.client.clone(), namespace, &resource),
        })
    }
}
