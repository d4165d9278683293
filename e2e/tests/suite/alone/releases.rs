//! Upgrade, uninstall, install again: monitors and history stay.

use std::time::Duration;

use anyhow::{Context, ensure};
use kanchi_e2e::broker::{monitor_name, monitor_pod};
use kanchi_e2e::cluster::setting;
use kanchi_e2e::verbs::{BROKER, POD, STATEFUL_SET};
use kanchi_e2e::wait::{holds, seen};
use kanchi_e2e::watched::ORDERS;
use kanchi_e2e::{Transport, scoped_alone};
use serde_json::json;

#[tokio::test]
async fn a_new_image_reaches_the_monitor_and_nothing_is_lost() -> anyhow::Result<()> {
    scoped_alone("upgrade", |scope| async move {
        let (cluster, ns) = (&scope.cluster, scope.namespace.as_str());
        scope.watch(Transport::RabbitMq).await?;
        let shop = scope.shop(Transport::RabbitMq).await?;
        scope.publish_and_await(&shop, 20).await?;
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
        let after = scope.publish_and_await(&shop, 40).await;
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
        scope.publish_and_await(&shop, 20).await?;
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
        let broker = scope.history().await?.broker_id;
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
        scope.publish_and_await(&shop, 40).await?;
        cluster.install().await?;
        cluster.await_ready(ns, ORDERS, Duration::from_secs(60)).await?;
        scope.publish_and_await(&shop, 60).await?;
        ensure!(identity().await? == before, "the monitor was replaced");
        ensure!(scope.history().await?.broker_id == broker, "the broker has another key");
        Ok(())
    })
    .await
}
