//! One test's part of the cluster: a namespace, a database, and verbs.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kanchi_crds::{CeleryBroker, ConditionType};
use kanchi_store::{Heartbeat, RetentionPolicy, StoreReporter, StoreUrl};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::cluster::Cluster;
use super::eventually;

/// How long anything may take here: two cores may be shared by much.
pub(crate) const PATIENCE: Duration = Duration::from_mins(3);

static NEXT: AtomicUsize = AtomicUsize::new(0);

/// A namespace and a database.
pub(crate) struct World {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) client: Client,
    pub(crate) namespace: String,
    /// Name of the database.
    database: String,
    files: TempDir,
    kubelet: tokio::task::JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.kubelet.abort();
    }
}

impl World {
    /// Makes a namespace and a database for a test.
    pub(crate) async fn new(test: &str) -> Self {
        let cluster = Cluster::shared().await;
        let client = cluster.admin();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("{test}-{number}");
        let object = serde_json::from_value(json!({ "metadata": { "name": namespace } })).unwrap();
        Api::<Namespace>::all(client.clone())
            .create(&PostParams::default(), &object)
            .await
            .expect("a namespace");
        let database = format!("db_{}_{number}", test.replace('-', "_"));
        let url = cluster.postgres.create_installation(&database).expect("a database");
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("url"), url).unwrap();
        let kubelet = tokio::spawn(kubelet(client.clone(), namespace.clone()));
        Self {
            cluster,
            client,
            namespace,
            database,
            files,
            kubelet,
        }
    }

    pub(crate) fn store_url_file(&self) -> PathBuf {
        self.files.path().join("url")
    }

    /// Asks this test's database, or changes it, as Postgres's superuser.
    pub(crate) fn sql(&self, sql: &str) -> String {
        self.cluster.postgres.sql(&self.database, sql).expect("an answer")
    }

    /// Gives a user the rights that the operator documents, by Roles only.
    pub(crate) async fn grant(&self, user: &str) {
        let rule = |group: &str, resources: &[&str], verbs: &[&str]| json!({ "apiGroups": [group], "resources": resources, "verbs": verbs });
        let read = ["get", "list", "watch"];
        let and = |more: &[&'static str]| [&read[..], more].concat();
        let rules = json!([
            rule("kanchi.io", &["celerybrokers"], &and(&["patch"])),
            rule("kanchi.io", &["celerybrokers/status"], &["patch"]),
            rule("kanchi.io", &["celerybrokers/finalizers"], &["update"]),
            rule("", &["secrets", "services"], &and(&["create", "patch"])),
            rule("", &["pods"], &and(&["patch"])),
            rule("", &["namespaces"], &["get"]),
            rule("apps", &["statefulsets"], &and(&["create", "patch", "delete"])),
            rule("policy", &["poddisruptionbudgets"], &and(&["create", "patch"])),
            rule("networking.k8s.io", &["networkpolicies"], &and(&["create", "patch"])),
            rule("events.k8s.io", &["events"], &["create", "patch"]),
            rule("coordination.k8s.io", &["leases"], &["create", "get", "update"]),
        ]);
        let granted: Role = serde_json::from_value(json!({ "metadata": { "name": user }, "rules": rules })).unwrap();
        let binding: RoleBinding = serde_json::from_value(json!({
            "metadata": { "name": user },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": user },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user }]
        }))
        .unwrap();
        self.api::<Role>()
            .create(&PostParams::default(), &granted)
            .await
            .unwrap();
        self.api::<RoleBinding>()
            .create(&PostParams::default(), &binding)
            .await
            .unwrap();
    }

    /// Gives a user those rights that it must not lose with a namespace, as the chart's ClusterRole does.
    pub(crate) async fn grant_everywhere(&self, user: &str) {
        let role: ClusterRole = serde_json::from_value(json!({
            "metadata": { "name": user },
            "rules": [{ "apiGroups": ["kanchi.io"], "resources": ["celerybrokers", "celerybrokers/status"], "verbs": ["get", "patch"] },
                { "apiGroups": ["apps"], "resources": ["statefulsets"], "verbs": ["get", "delete"] }]
        }))
        .unwrap();
        let binding: ClusterRoleBinding = serde_json::from_value(json!({
            "metadata": { "name": user },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": user },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user }]
        }))
        .unwrap();
        Api::<ClusterRole>::all(self.client.clone())
            .create(&PostParams::default(), &role)
            .await
            .unwrap();
        Api::<ClusterRoleBinding>::all(self.client.clone())
            .create(&PostParams::default(), &binding)
            .await
            .unwrap();
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Applies a CeleryBroker.
    pub(crate) async fn apply(&self, name: &str, spec: Value) -> CeleryBroker {
        let body = json!({
            "apiVersion": "kanchi.io/v1alpha1", "kind": "CeleryBroker", "metadata": { "name": name }, "spec": spec
        });
        let parameters = PatchParams::apply("user").force();
        self.api::<CeleryBroker>()
            .patch(name, &parameters, &Patch::Apply(&body))
            .await
            .expect("accepted")
    }

    pub(crate) async fn secret(&self, name: &str, data: Value) {
        let body = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "stringData": data });
        let parameters = PatchParams::apply("user").force();
        self.api::<Secret>()
            .patch(name, &parameters, &Patch::Apply(&body))
            .await
            .expect("a Secret");
    }

    pub(crate) async fn delete<K>(&self, name: &str)
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + serde::de::DeserializeOwned
            + std::fmt::Debug,
    {
        self.api::<K>()
            .delete(name, &DeleteParams::background())
            .await
            .expect("deleted");
    }

    pub(crate) async fn broker(&self, name: &str) -> CeleryBroker {
        self.api::<CeleryBroker>().get(name).await.expect("the CeleryBroker")
    }

    /// Waits for a condition to have a status and a reason; returns its message.
    pub(crate) async fn condition(&self, name: &str, type_: ConditionType, status: &str, reason: &str) -> String {
        eventually(&format!("{name}: {type_}={status}/{reason}"), PATIENCE, || async {
            let broker = self
                .api::<CeleryBroker>()
                .get(name)
                .await
                .map_err(|error| error.to_string())?;
            let known = broker.status.unwrap_or_default();
            let condition = known
                .condition(type_)
                .ok_or_else(|| format!("{:#?}", known.conditions))?;
            if condition.status == status && condition.reason == reason {
                Ok(condition.message.clone())
            } else {
                Err(format!("{:#?}", known.conditions))
            }
        })
        .await
    }

    /// Waits for an object to be there, or to be as wanted.
    pub(crate) async fn await_object<K>(&self, name: &str, is_wanted: impl Fn(&K) -> bool) -> K
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + serde::de::DeserializeOwned
            + std::fmt::Debug,
    {
        eventually(&format!("{} {name}", std::any::type_name::<K>()), PATIENCE, || async {
            match self.api::<K>().get_opt(name).await {
                Ok(Some(object)) if is_wanted(&object) => Ok(object),
                other => Err(format!("{other:#?}")),
            }
        })
        .await
    }

    pub(crate) async fn await_gone<K>(&self, name: &str)
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + serde::de::DeserializeOwned
            + std::fmt::Debug,
    {
        eventually(&format!("{name} is gone"), PATIENCE, || async {
            match self.api::<K>().get_opt(name).await {
                Ok(None) => Ok(()),
                other => Err(format!("{other:#?}")),
            }
        })
        .await;
    }

    /// Returns a file of the Secret that a broker's monitor mounts.
    pub(crate) async fn mounted(&self, broker: &str, file: &str) -> String {
        let secret = self
            .api::<Secret>()
            .get(&kanchi_operator::names::child(broker))
            .await
            .expect("the monitor's Secret");
        let data = secret.data.unwrap_or_default();
        String::from_utf8(data.get(file).unwrap_or_else(|| panic!("no {file}")).0.clone()).unwrap()
    }

    /// Logs in to the store as a broker's monitor does.
    pub(crate) async fn reporter(&self, broker: &str) -> StoreReporter {
        let url = StoreUrl::parse(&self.mounted(broker, "store-url").await).unwrap();
        StoreReporter::connect(&url, RetentionPolicy::default())
            .await
            .expect("the monitor's role can log in")
    }
}

/// Returns a heartbeat of a connected monitor.
pub(crate) fn connected() -> Heartbeat {
    Heartbeat {
        instance: "test".into(),
        version: "1".into(),
        connection: "Connected".into(),
        broker_version: Some("Redis 7.2".into()),
        events_per_second: Some(0.5),
        workers_online: Some(2),
        messages_queued: Some(7),
        ..Heartbeat::default()
    }
}

/// Stands in for the kubelet: pods run and are ready, but for those whose image says otherwise.
async fn kubelet(client: Client, namespace: String) {
    let pods: Api<Pod> = Api::namespaced(client, &namespace);
    loop {
        for pod in pods
            .list(&ListParams::default())
            .await
            .map(|list| list.items)
            .unwrap_or_default()
        {
            let started = pod
                .status
                .as_ref()
                .is_some_and(|status| status.container_statuses.is_some());
            if started || pod.metadata.deletion_timestamp.is_some() {
                continue;
            }
            let image = pod
                .spec
                .as_ref()
                .map(|spec| spec.containers[0].image.clone())
                .unwrap_or_default()
                .unwrap_or_default();
            let status = pod_status(&image);
            let patch = Patch::Merge(json!({ "status": status }));
            // The pod may be gone by now.
            let _written = pods
                .patch_status(&pod.name_any(), &PatchParams::default(), &patch)
                .await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn pod_status(image: &str) -> Value {
    let crashes = image.starts_with("broken");
    let ready = if crashes { "False" } else { "True" };
    let state = if crashes {
        json!({ "waiting": { "reason": "CrashLoopBackOff" } })
    } else {
        json!({ "running": { "startedAt": "2026-01-01T00:00:00Z" } })
    };
    json!({
        "phase": "Running",
        "conditions": [
            { "type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z" },
            { "type": "PodScheduled", "status": "True" }
        ],
        "containerStatuses": [{
            "name": "monitor", "image": image, "imageID": "x", "ready": !crashes, "restartCount": i32::from(crashes) * 3,
            "state": state, "lastState": { "terminated": { "exitCode": 64, "reason": "Error" } }
        }]
    })
}
