//! The world fails: conditions follow with a reason, memory stays bounded, and everything comes back by itself.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kanchi_e2e::broker::{BrokerManifest, find_condition};
use kanchi_e2e::install::STORE_NAMESPACE;
use kanchi_e2e::services::Service;
use kanchi_e2e::store::TASKS;
use kanchi_e2e::verbs::BROKER;
use kanchi_e2e::wait::{holds, seen};
use kanchi_e2e::watched::ORDERS;
use kanchi_e2e::{Scope, Transport, scoped, scoped_alone, until};
use serde::Deserialize;
use serde_json::json;

const SOON: Duration = Duration::from_secs(10);

#[derive(Debug, Deserialize)]
struct Count {
    count: i64,
}

#[tokio::test]
async fn a_stopped_broker_is_news_within_ten_seconds_and_so_is_its_return() -> anyhow::Result<()> {
    for transport in [Transport::RabbitMq, Transport::Redis] {
        scoped("broker-stopped", |scope| async move {
            let (cluster, ns) = (&scope.cluster, scope.namespace.as_str());
            scope.watch(transport).await?;
            cluster.stop(ns, transport.service()).await?;
            let broker = cluster
                .await_condition(
                    ns,
                    ORDERS,
                    ("BrokerReachable", "False", Some("ConnectionRefused")),
                    SOON,
                )
                .await?;
            let ready = find_condition(&broker, "Ready").context("no Ready")?;
            ensure!(ready["status"] == "True", "an absent broker lowers Ready: {ready}");
            cluster.resume(ns, transport.service()).await?;
            cluster
                .await_condition(ns, ORDERS, ("BrokerReachable", "True", None), SOON)
                .await
                .map(drop)
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn each_way_not_to_reach_a_broker_has_its_reason() -> anyhow::Result<()> {
    scoped("reasons", |scope| async move {
        let (cluster, ns) = (&scope.cluster, scope.namespace.as_str());
        scope.watch(Transport::RabbitMq).await?;
        let cases = [
            (Transport::RabbitMq.url("kanchi", "wrong"), "AuthenticationFailed"),
            ("amqp://kanchi:watching@no-such-host:5672/".to_owned(), "DnsFailed"),
            ("amqps://kanchi:watching@rabbitmq:5672/".to_owned(), "TlsFailed"),
            (
                "amqp://kanchi:watching@rabbitmq:5672/nowhere".to_owned(),
                "VhostNotFound",
            ),
            // A Service without that port: nobody answers.
            ("amqp://kanchi:watching@redis:5672/".to_owned(), "Timeout"),
        ];
        for (url, reason) in cases {
            cluster.apply_broker_url(ns, ORDERS, &url).await?;
            let within = Duration::from_secs(30);
            cluster
                .await_condition(ns, ORDERS, ("BrokerReachable", "False", Some(reason)), within)
                .await?;
        }
        cluster
            .apply_broker_url(ns, ORDERS, &Transport::RabbitMq.monitor_url())
            .await?;
        cluster
            .await_condition(ns, ORDERS, ("BrokerReachable", "True", None), Duration::from_secs(30))
            .await
            .map(drop)
    })
    .await
}

#[tokio::test]
async fn a_minute_without_postgres_under_load_loses_nothing_on_rabbitmq() -> anyhow::Result<()> {
    scoped_alone("no-store-rabbitmq", |scope| async move {
        minute_without_postgres(&scope, Transport::RabbitMq).await
    })
    .await
}

#[tokio::test]
async fn a_minute_without_postgres_under_load_fits_into_the_spool_on_redis() -> anyhow::Result<()> {
    scoped_alone("no-store-redis", |scope| async move {
        minute_without_postgres(&scope, Transport::Redis).await
    })
    .await
}

async fn minute_without_postgres(scope: &Scope, transport: Transport) -> anyhow::Result<()> {
    let (cluster, ns) = (&scope.cluster, scope.namespace.as_str());
    let limited =
        BrokerManifest::new(ORDERS).with("monitor", json!({ "resources": { "limits": { "memory": "128Mi" } } }));
    scope.watch_as(transport, limited).await?;
    let shop = scope.shop(transport).await?;
    cluster.stop(STORE_NAMESPACE, Service::Postgres).await?;
    let begin = Instant::now();
    let mut published = 0;
    let outage = async {
        cluster
            .await_condition(ns, ORDERS, ("StoreReachable", "False", None), Duration::from_secs(45))
            .await?;
        while begin.elapsed() < Duration::from_secs(60) {
            let run = format!("outage-{published}");
            published += shop.script(scope, "burst", &[&run, "2000"]).await?.lines().count();
        }
        anyhow::Ok(())
    }
    .await;
    cluster.resume(STORE_NAMESPACE, Service::Postgres).await?;
    outage?;
    cluster
        .await_condition(ns, ORDERS, ("StoreReachable", "True", None), Duration::from_secs(60))
        .await?;
    until(
        &format!("{published} tasks stored"),
        Duration::from_secs(300),
        || async {
            let sql = format!(
                "select count(*) from {TASKS} t
             join kanchi.broker b using (broker_id)
             where b.namespace = '{ns}' and t.name = 'burst.task' and t.state = 'SUCCESS'"
            );
            let rows: Vec<Count> = cluster.query(&sql).await?;
            Ok(seen(
                rows.first().is_some_and(|row| row.count == published as i64),
                (),
                |()| format!("{rows:?}"),
            ))
        },
    )
    .await?;
    cluster.never_restarted(ns, ORDERS).await
}

#[tokio::test]
async fn a_silent_monitor_makes_reachability_unknown_and_takes_the_counts_away() -> anyhow::Result<()> {
    scoped_alone("stale-report", |scope| async move {
        let (cluster, ns) = (&scope.cluster, scope.namespace.as_str());
        scope.watch(Transport::Redis).await?;
        let within = Duration::from_secs(80);
        cluster
            .await_object(BROKER, ORDERS, ns, ("counts", within), |broker| {
                broker.data["status"]["workersOnline"].is_i64()
            })
            .await?;
        cluster.stop(STORE_NAMESPACE, Service::Postgres).await?;
        let unknown = cluster
            .await_condition(ns, ORDERS, ("BrokerReachable", "Unknown", None), within)
            .await;
        let counts = holds("no counts", Duration::from_secs(1), || async {
            let broker = cluster.get(BROKER, ORDERS, ns).await?;
            let gone = broker.data["status"]["workersOnline"].is_null();
            Ok(seen(gone, (), |()| broker.data["status"].to_string()))
        })
        .await;
        cluster.resume(STORE_NAMESPACE, Service::Postgres).await?;
        unknown?;
        counts?;
        cluster
            .await_condition(ns, ORDERS, ("BrokerReachable", "True", None), Duration::from_secs(60))
            .await
            .map(drop)
    })
    .await
}
