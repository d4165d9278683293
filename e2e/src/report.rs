//! What is printed when a test fails: objects with their states, warnings, logs.

use kube::ResourceExt;
use kube::api::DynamicObject;

use crate::cluster::Cluster;
use crate::install;
use crate::scope::Scope;
use crate::verbs::{BROKER, Kind, POD};

/// Prints the state of the test's namespace and of Kanchi's own, in one piece: another test may be printing, too.
#[expect(
    clippy::print_stderr,
    reason = "the report of a failed test goes where the test's output goes"
)]
pub async fn print(test: &str, scope: &Scope) {
    let mut report = format!(
        "\n=== {test} failed after {:.0} s, in {} ===\n",
        scope.began.elapsed().as_secs_f64(),
        scope.namespace
    );
    for broker in list(&scope.cluster, BROKER, &scope.namespace, &mut report).await {
        let status = serde_json::to_string_pretty(&broker.data).unwrap_or_default();
        say(
            &mut report,
            format_args!("--- CeleryBroker {}\n{status}", broker.name_any()),
        );
    }
    for namespace in [scope.namespace.as_str(), install::NAMESPACE, install::STORE_NAMESPACE] {
        pods(&scope.cluster, namespace, &mut report).await;
        warnings(&scope.cluster, namespace, &mut report).await;
    }
    eprintln!("{report}=== end of {test} ===\n");
}

async fn pods(cluster: &Cluster, namespace: &str, report: &mut String) {
    for pod in list(cluster, POD, namespace, report).await {
        let name = pod.name_any();
        let status = &pod.data["status"];
        let (phase, containers) = (&status["phase"], &status["containerStatuses"]);
        say(report, format_args!("--- pod {namespace}/{name}: {phase} {containers}"));
        match cluster.logs(namespace, &name, 40, false).await {
            Ok(log) => say(report, format_args!("{log}")),
            Err(error) => say(report, format_args!("{error:#}")),
        }
        let restarted = containers[0]["restartCount"].as_u64().unwrap_or(0) > 0;
        if restarted && let Ok(log) = cluster.logs(namespace, &name, 20, true).await {
            say(report, format_args!("--- before its last restart\n{log}"));
        }
    }
}

async fn warnings(cluster: &Cluster, namespace: &str, report: &mut String) {
    for event in list(cluster, ("v1", "Event"), namespace, report).await {
        let data = &event.data;
        if data["type"] == "Warning" {
            let about = &data["involvedObject"];
            let (kind, name, reason, message) = (&about["kind"], &about["name"], &data["reason"], &data["message"]);
            say(report, format_args!("--- warning {kind}/{name}: {reason} {message}"));
        }
    }
}

async fn list(cluster: &Cluster, kind: Kind<'_>, namespace: &str, report: &mut String) -> Vec<DynamicObject> {
    match cluster.list(kind, namespace, "").await {
        Ok(objects) => objects,
        Err(error) => {
            say(report, format_args!("{error:#}"));
            Vec::new()
        }
    }
}

fn say(report: &mut String, line: std::fmt::Arguments<'_>) {
    report.push_str(&line.to_string());
    report.push('\n');
}
