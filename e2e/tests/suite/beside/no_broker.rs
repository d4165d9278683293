//! The broker is away: a condition follows with a reason, and everything comes back by itself.

use std::time::Duration;

use anyhow::{Context, ensure};
use kanchi_e2e::broker::find_condition;
use kanchi_e2e::watched::ORDERS;
use kanchi_e2e::{Transport, scoped};

const SOON: Duration = Duration::from_secs(10);

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
