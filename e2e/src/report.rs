//! What is printed when a test fails: objects with their states, warnings, logs.
#![expect(
    clippy::print_stderr,
    reason = "the report of a failed test goes where the test's output goes"
)]

use kube::ResourceExt;
use kube::api::DynamicObject;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::install;
use crate::scope::Scope;
use crate::verbs::{BROKER, Kind, POD};

/// Prints the state of the test's namespace and of Kanchi's own.
pub async fn print(scope: &Scope) {
    eprintln!(
        "\n=== after {:.0} s, in {} ===",
        scope.began.elapsed().as_secs_f64(),
        scope.namespace
    );
    for broker in list(&scope.cluster, BROKER, &scope.namespace).await {
        eprintln!("--- CeleryBroker {}\n{}", broker.name_any(), pretty(&broker.data));
    }
    for namespace in [scope.namespace.as_str(), install::NAMESPACE, install::STORE_NAMESPACE] {
        pods(&scope.cluster, namespace).await;
        warnings(&scope.cluster, namespace).await;
    }
}

async fn pods(cluster: &Cluster, namespace: &str) {
    for pod in list(cluster, POD, namespace).await {
        let name = pod.name_any();
        let status = &pod.data["status"];
        eprintln!(
            "--- pod {namespace}/{name}: {} {}",
            status["phase"], status["containerStatuses"]
        );
        match cluster.logs(namespace, &name, 40, false).await {
            Ok(log) => eprintln!("{log}"),
            Err(error) => eprintln!("{error:#}"),
        }
        let restarted = status["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(0) > 0;
        if restarted && let Ok(log) = cluster.logs(namespace, &name, 20, true).await {
            eprintln!("--- before its last restart\n{log}");
        }
    }
}

async fn warnings(cluster: &Cluster, namespace: &str) {
    for event in list(cluster, ("v1", "Event"), namespace).await {
        let data = &event.data;
        if data["type"] == "Warning" {
            let about = &data["involvedObject"];
            eprintln!(
                "--- warning {}/{}: {} {}",
                about["kind"], about["name"], data["reason"], data["message"]
            );
        }
    }
}

async fn list(cluster: &Cluster, kind: Kind<'_>, namespace: &str) -> Vec<DynamicObject> {
    match cluster.list(kind, namespace, "").await {
        Ok(objects) => objects,
        Err(error) => {
            eprintln!("{error:#}");
            Vec::new()
        }
    }
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}
