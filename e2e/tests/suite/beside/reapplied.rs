//! Delete and apply again: the history stays.

use std::time::Duration;

use anyhow::ensure;
use kanchi_e2e::broker::{BrokerManifest, monitor_pod};
use kanchi_e2e::verbs::{BROKER, POD};
use kanchi_e2e::watched::ORDERS;
use kanchi_e2e::{Transport, scoped};

#[tokio::test]
async fn a_broker_deleted_and_applied_again_has_its_history() -> anyhow::Result<()> {
    scoped("reapplied", |scope| async move {
        let (cluster, ns) = (&scope.cluster, scope.namespace.as_str());
        scope.watch(Transport::Redis).await?;
        let shop = scope.shop(Transport::Redis).await?;
        scope.publish_and_await(&shop, 20).await?;
        let before = scope.history().await?;
        cluster.delete(BROKER, ORDERS, ns).await?;
        cluster.await_gone(BROKER, ORDERS, ns, Duration::from_secs(30)).await?;
        cluster
            .await_gone(POD, &monitor_pod(ORDERS), ns, Duration::from_secs(60))
            .await?;
        cluster.apply(BrokerManifest::new(ORDERS).object(), ns).await?;
        cluster.await_ready(ns, ORDERS, Duration::from_secs(60)).await?;
        ensure!(scope.history().await? == before, "another history than {before:?}");
        scope.publish_and_await(&shop, 40).await
    })
    .await
}
