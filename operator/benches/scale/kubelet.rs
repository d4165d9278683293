//! Stands in for the scheduler and the nodes: each new pod's container runs and is ready, although no node has it; or it is
//! said that no node takes it.

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

/// Statuses that are written at the same time.
const AT_ONCE: usize = 8;

/// What becomes of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pods {
    /// They run.
    Ready,
    /// No node takes them.
    Unscheduled,
}

/// Runs until it is dropped.
pub(crate) async fn run(client: Client, pods_are: Pods) {
    let pods: Api<Pod> = Api::all(client.clone());
    let client = &client;
    watcher(pods, watcher::Config::default())
        .default_backoff()
        .applied_objects()
        .try_filter(|pod| std::future::ready(is_new(pod)))
        .filter_map(|pod| std::future::ready(pod.ok()))
        .for_each_concurrent(AT_ONCE, |pod| async move {
            let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
            let status = match pods_are {
                Pods::Ready => started(&pod),
                Pods::Unscheduled => refused(),
            };
            // The pod may be gone by now; the next event says so.
            let _written = api
                .patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(status))
                .await;
        })
        .await;
}

fn is_new(pod: &Pod) -> bool {
    let told = pod.status.as_ref().is_some_and(|status| status.conditions.is_some());
    !told && pod.metadata.deletion_timestamp.is_none()
}

fn refused() -> serde_json::Value {
    json!({ "status": {
        "phase": "Pending",
        "conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available",
            "lastTransitionTime": "2026-01-01T00:00:00Z"
        }]
    } })
}

fn started(pod: &Pod) -> serde_json::Value {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let containers: Vec<_> = containers
        .map(|container| {
            json!({
                "name": container.name, "image": container.image, "imageID": "x", "ready": true, "restartCount": 0,
                "state": { "running": { "startedAt": "2026-01-01T00:00:00Z" } }
            })
        })
        .collect();
    json!({ "status": {
        "phase": "Running",
        "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" }],
        "containerStatuses": containers
    } })
}
