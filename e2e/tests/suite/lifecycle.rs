//! Upgrade, uninstall, install again, delete and apply again: monitors and history stay.

use std::time::Duration;

use anyhow::{Context, ensure};
use kanchi_e2e::broker::{BrokerManifest, monitor_name, monitor_pod};
use kanchi_e2e::cluster::setting;
use kanchi_e2e::shop::Shop;
use kanchi_e2e::store::TASKS;
use kanchi_e2e::verbs::{BROKER, POD, STATEFUL_SET};
use kanchi_e2e::wait::{holds, seen};
use kanchi_e2e::watched::ORDERS;
use kanchi_e2e::{Scope, Transport, scoped, scoped_alone, until};
use serde::Deserialize;
use serde_json::json;

#[derive(Debug, Deserialize, PartialEq)]
struct History {
    broker_id: i32,
    tasks: i64,
}

#[tokio::test]
async fn a_new_image_reaches_the_monitor_and_nothing_is_lost() -> anyhow::Result<()> {
    scoped_alone("upgrade", |scope| async move {
        let (cluster, ns) = (&scope.cluster, scope.namespace.as_str());
        scope.watch(Transport::RabbitMq).await?;
        let shop = scope.shop(Transport::RabbitMq).await?;
        publish_and_await(&scope, &shop, 20).await?;
        // The same program under another name: to Kubernetes and to the operator a new image.
        let image = setting("KANCHI_MONITOR_IMAGE")?;
        let (repository, _) = image.rsplit_once(':').context("an image without a tag")?;
        let new = json!({ "monitor": { "image": { "repository": repository, "tag": "latest-lab" } } });
        cluster.install_with(new).await?;
        let what = ("the new image", Duration::from_secs(60));
        let wanted = format!("{repository}:latest-lab");
        let upgraded = cluster
            .await_object(POD, &monitor_pod(ORDERS), ns, what, |pod| {
                pod.data["spec"]["containers"][0]["image"] == wanted.as_str()
                    && pod.data["status"]["containerStatuses"][0]["ready"] == true
            })
            .await;
        let after = publish_and_await(&scope, &shop, 40).await;
        cluster.install().await?;
        upgraded?;
        after
    })
    .await
}

#[tokio::test]
async fn monitors_outlive_an_uninstalled_operator_and_are_adopted_again() -> anyhow::Result<()> {
    scoped_alone("uninstall", |scope| async move {
        let (cluster, ns) = (&scope.cluster, scope.namespace.as_str());
        scope.watch(Transport::RabbitMq).await?;
        let shop = scope.shop(Transport::RabbitMq).await?;
        publish_and_await(&scope, &shop, 20).await?;
        let identity = || async {
            let set = cluster.get(STATEFUL_SET, &monitor_name(ORDERS), ns).await?.metadata.uid;
            let pod = cluster.get(POD, &monitor_pod(ORDERS), ns).await?;
            anyhow::Ok((
                set,
                pod.metadata.uid,
                pod.data["status"]["containerStatuses"][0]["restartCount"].to_string(),
            ))
        };
        let before = identity().await?;
        let broker = history(&scope).await?.broker_id;
        cluster.uninstall().await?;
        holds(
            "broker and monitor without an operator",
            Duration::from_secs(5),
            || async {
                let there = cluster.find(BROKER, ORDERS, ns).await?.is_some() && identity().await? == before;
                Ok(seen(there, (), |()| "something went".into()))
            },
        )
        .await?;
        publish_and_await(&scope, &shop, 40).await?;
        cluster.install().await?;
        cluster.await_ready(ns, ORDERS, Duration::from_secs(60)).await?;
        publish_and_await(&scope, &shop, 60).await?;
        ensure!(identity().await? == before, "the monitor was replaced");
        ensure!(history(&scope).await?.broker_id == broker, "the broker has another key");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_broker_deleted_and_applied_again_has_its_history() -> anyhow::Result<()> {
    scoped("reapplied", |scope| async move {
        let (cluster, ns) = (&scope.cluster, scope.namespace.as_str());
        scope.watch(Transport::Redis).await?;
        let shop = scope.shop(Transport::Redis).await?;
        publish_and_await(&scope, &shop, 20).await?;
        let before = history(&scope).await?;
        cluster.delete(BROKER, ORDERS, ns).await?;
        cluster.await_gone(BROKER, ORDERS, ns, Duration::from_secs(30)).await?;
        cluster
            .await_gone(POD, &monitor_pod(ORDERS), ns, Duration::from_secs(60))
            .await?;
        cluster.apply(BrokerManifest::new(ORDERS).object(), ns).await?;
        cluster.await_ready(ns, ORDERS, Duration::from_secs(60)).await?;
        ensure!(history(&scope).await? == before, "another history than {before:?}");
        publish_and_await(&scope, &shop, 40).await
    })
    .await
}

async fn publish_and_await(scope: &Scope, shop: &Shop, total: i64) -> anyhow::Result<()> {
    shop.publish(&scope.cluster, "success", 20).await?;
    until(
        &format!("{total} tasks in the history"),
        Duration::from_secs(60),
        || async {
            let history = history(scope).await?;
            Ok(seen(history.tasks == total, (), |()| format!("{history:?}")))
        },
    )
    .await
}

async fn history(scope: &Scope) -> anyhow::Result<History> {
    let sql = format!(
        "select b.broker_id, count(t.task_id) as tasks from kanchi.broker b
         left join {TASKS} t
           on t.broker_id = b.broker_id and t.state = 'SUCCESS'
         where b.namespace = '{}' and b.name = '{ORDERS}' group by b.broker_id",
        scope.namespace
    );
    let rows: Vec<History> = scope.cluster.query(&sql).await?;
    rows.into_iter().next().context("the store does not know the broker")
}
