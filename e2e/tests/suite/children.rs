//! What the operator owns stays as it should be, and goes when it should go.

use std::time::Duration;

use anyhow::ensure;
use kanchi_e2e::broker::{BrokerManifest, monitor_name, monitor_pod};
use kanchi_e2e::scope::delete_namespace;
use kanchi_e2e::verbs::{BROKER, DISRUPTION_BUDGET, NETWORK_POLICY, POD, SECRET, SERVICE, STATEFUL_SET};
use kanchi_e2e::wait::seen;
use kanchi_e2e::watched::ORDERS;
use kanchi_e2e::{Transport, scoped, until};
use serde_json::json;

#[tokio::test]
async fn a_deleted_child_is_back_within_ten_seconds() -> anyhow::Result<()> {
    scoped("deleted-child", |scope| async move {
        let (cluster, ns) = (&scope.cluster, scope.namespace.as_str());
        scope.watch(Transport::Redis).await?;
        let name = monitor_name(ORDERS);
        for kind in [SECRET, SERVICE, DISRUPTION_BUDGET, NETWORK_POLICY, STATEFUL_SET] {
            let before = cluster.get(kind, &name, ns).await?.metadata.uid;
            cluster.delete(kind, &name, ns).await?;
            until(&format!("{} back", kind.1), Duration::from_secs(10), || async {
                let uid = cluster.get(kind, &name, ns).await?.metadata.uid;
                Ok(seen(uid != before, (), |()| "still the old one".into()))
            })
            .await?;
        }
        cluster.await_ready(ns, ORDERS, Duration::from_secs(60)).await.map(drop)
    })
    .await
}

#[tokio::test]
async fn a_foreign_edit_of_an_owned_field_is_reverted() -> anyhow::Result<()> {
    scoped("foreign-edit", |scope| async move {
        let (cluster, ns) = (&scope.cluster, scope.namespace.as_str());
        scope.watch(Transport::Redis).await?;
        let name = monitor_name(ORDERS);
        let target = |object: &kube::api::DynamicObject| object.data["spec"]["ports"][0]["targetPort"].clone();
        let service = cluster.get(SERVICE, &name, ns).await?;
        let (before, mut ports) = (target(&service), service.data["spec"]["ports"].clone());
        ports[0]["targetPort"] = json!(1);
        cluster
            .merge(SERVICE, &name, ns, json!({ "spec": { "ports": ports } }))
            .await?;
        let what = ("the port as it was", Duration::from_secs(10));
        cluster
            .await_object(SERVICE, &name, ns, what, |service| target(service) == before)
            .await?;
        let edit = json!({ "spec": { "replicas": 0 } });
        cluster.merge(STATEFUL_SET, &name, ns, edit).await?;
        let what = ("one replica", Duration::from_secs(10));
        cluster
            .await_object(STATEFUL_SET, &name, ns, what, |set| set.data["spec"]["replicas"] == 1)
            .await
            .map(drop)
    })
    .await
}

#[tokio::test]
async fn a_paused_broker_is_left_alone() -> anyhow::Result<()> {
    scoped("paused", |scope| async move {
        let (cluster, ns) = (&scope.cluster, scope.namespace.as_str());
        scope.watch(Transport::Redis).await?;
        let pause = |on: serde_json::Value| json!({ "metadata": { "annotations": { "kanchi.io/paused": on } } });
        cluster.merge(BROKER, ORDERS, ns, pause(json!("true"))).await?;
        cluster
            .await_condition(ns, ORDERS, ("Paused", "True", None), Duration::from_secs(10))
            .await?;
        cluster.delete(SERVICE, &monitor_name(ORDERS), ns).await?;
        kanchi_e2e::wait::holds("no Service while paused", Duration::from_secs(5), || async {
            let service = cluster.find(SERVICE, &monitor_name(ORDERS), ns).await?;
            Ok(seen(service.is_none(), (), |()| "it is back".into()))
        })
        .await?;
        cluster
            .merge(BROKER, ORDERS, ns, pause(serde_json::Value::Null))
            .await?;
        let what = ("back", Duration::from_secs(10));
        cluster
            .await_object(SERVICE, &monitor_name(ORDERS), ns, what, |_| true)
            .await
            .map(drop)
    })
    .await
}

#[tokio::test]
async fn a_disabled_broker_has_no_monitor_and_a_duplicate_is_refused() -> anyhow::Result<()> {
    scoped("disabled", |scope| async move {
        let (cluster, ns) = (&scope.cluster, scope.namespace.as_str());
        scope.watch(Transport::Redis).await?;
        let within = Duration::from_secs(30);
        cluster
            .apply_broker(ns, &BrokerManifest::new("copy"), &Transport::Redis.monitor_url())
            .await?;
        cluster
            .await_condition(ns, "copy", ("Accepted", "False", Some("DuplicateBroker")), within)
            .await?;
        cluster
            .merge(BROKER, ORDERS, ns, json!({ "spec": { "enabled": false } }))
            .await?;
        cluster
            .await_condition(ns, ORDERS, ("Ready", "True", Some("Disabled")), within)
            .await?;
        cluster
            .await_gone(POD, &monitor_pod(ORDERS), ns, Duration::from_secs(60))
            .await
    })
    .await
}

#[tokio::test]
async fn a_namespace_with_everything_in_it_is_gone_within_a_minute() -> anyhow::Result<()> {
    scoped("gone", |scope| async move {
        let (cluster, ns) = (&scope.cluster, scope.namespace.as_str());
        let deleting = BrokerManifest::new(ORDERS).with("reclaimPolicy", json!("Delete"));
        scope.watch_as(Transport::Redis, deleting).await?;
        let begin = std::time::Instant::now();
        delete_namespace(cluster, ns).await?;
        ensure!(
            begin.elapsed() < Duration::from_secs(60),
            "gone after {} s only",
            begin.elapsed().as_secs()
        );
        Ok(())
    })
    .await
}
