//! The chain as a user meets it: `examples/`, applied as they are, on RabbitMQ and Redis.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use kanchi_e2e::cluster::{checkout, setting};
use kanchi_e2e::scope::{delete_namespace, ensure_namespace};
use kanchi_e2e::services::Service;
use kanchi_e2e::shop::Shop;
use kanchi_e2e::verbs::{BROKER, DEPLOYMENT};
use kanchi_e2e::wait::seen;
use kanchi_e2e::{Cluster, scoped_alone, until};
use serde::Deserialize;

/// The namespace that the examples name.
const SHOP: &str = "shop";

#[derive(Debug, Deserialize)]
struct Queue {
    ready: i64,
}

#[tokio::test]
async fn the_examples_become_ready_within_thirty_seconds_with_workers_and_queue_depths() -> anyhow::Result<()> {
    scoped_alone("chain", |scope| async move {
        let cluster = &scope.cluster;
        cluster.install().await?;
        delete_namespace(cluster, SHOP).await?;
        ensure_namespace(cluster, SHOP, &[]).await?;
        cluster.start(SHOP, &[Service::RabbitMq, Service::Redis]).await?;
        let outcome = examples(cluster).await;
        if outcome.is_err() {
            let in_shop = kanchi_e2e::Scope {
                namespace: SHOP.into(),
                ..scope.clone()
            };
            kanchi_e2e::report::print("chain", &in_shop).await;
        }
        delete_namespace(cluster, SHOP).await?;
        outcome
    })
    .await
}

async fn examples(cluster: &Cluster) -> anyhow::Result<()> {
    for file in ["00-namespace", "10-orders-rabbitmq", "20-mail-redis"] {
        let text = fs::read_to_string(checkout(&format!("examples/{file}.yaml")))?;
        cluster
            .apply_yaml(
                &text.replace("kanchi.lab/celery-app:1", &setting("KANCHI_CELERY_IMAGE")?),
                SHOP,
            )
            .await?;
    }
    let (orders, mail) = tokio::join!(
        cluster.await_ready(SHOP, "orders", Duration::from_secs(30)),
        cluster.await_ready(SHOP, "mail", Duration::from_secs(30))
    );
    orders?;
    mail?;

    for (broker, workers) in [("orders", 2), ("mail", 1)] {
        let worker = format!("{broker}-worker");
        cluster
            .await_rollout(DEPLOYMENT, &worker, SHOP, Duration::from_secs(90))
            .await?;
        Shop::existing(SHOP, &worker).publish(cluster, "backlog", 7).await?;
        until(&format!("{broker}: backlog of 7"), Duration::from_secs(30), || async {
            let sql = format!(
                "select q.ready from kanchi.queue q join kanchi.broker b using (broker_id)
                 where b.namespace = '{SHOP}' and b.name = '{broker}' and q.name = 'backlog'"
            );
            let rows: Vec<Queue> = cluster.query(&sql).await?;
            Ok(seen(rows.first().is_some_and(|row| row.ready == 7), (), |()| {
                format!("{rows:?}")
            }))
        })
        .await?;
        // Counts in the status are written at most once a minute.
        let wanted = |object: &kube::api::DynamicObject| {
            let status = &object.data["status"];
            status["workersOnline"] == workers && status["messagesQueued"].as_i64().is_some_and(|queued| queued >= 7)
        };
        let what = format!("{workers} workers and the backlog in its status");
        let found = cluster
            .await_object(BROKER, broker, SHOP, (&what, Duration::from_secs(100)), wanted)
            .await?;
        let rate = found.data["status"]["eventsPerSecond"]
            .as_f64()
            .context("events a second in the status")?;
        ensure!(rate > 0.0, "{broker} shows {rate} events a second under load");
    }
    Ok(())
}
