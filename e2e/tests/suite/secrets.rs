//! Secrets: rotated without a restart, missing and healed, and never told to anybody.

use std::time::Duration;

use anyhow::{Context, ensure};
use kanchi_e2e::broker::{BrokerManifest, monitor_name, monitor_pod};
use kanchi_e2e::install::NAMESPACE;
use kanchi_e2e::verbs::{BROKER, POD, SECRET, STATEFUL_SET};
use kanchi_e2e::wait::{holds, seen};
use kanchi_e2e::watched::ORDERS;
use kanchi_e2e::{Scope, Transport, scoped};
use serde_json::json;

const HALF_A_MINUTE: Duration = Duration::from_secs(30);

/// A password that must be seen nowhere.
const CANARY: &str = "canary-9f3b1c7e";

#[tokio::test]
async fn a_rotated_password_is_used_within_thirty_seconds_without_a_restart() -> anyhow::Result<()> {
    for transport in [Transport::RabbitMq, Transport::Redis] {
        scoped("rotation", |scope| async move {
            let (cluster, ns) = (&scope.cluster, scope.namespace.as_str());
            scope.watch(transport).await?;
            let before = identity(&scope).await?;
            match transport {
                Transport::RabbitMq => drop(cluster.rabbitmqctl(ns, "change_password kanchi rotated").await?),
                Transport::Redis => drop(
                    cluster
                        .redis_cli(ns, &["acl", "setuser", "kanchi", "resetpass", ">rotated"])
                        .await?,
                ),
            }
            cluster
                .apply_broker_url(ns, ORDERS, &transport.url("kanchi", "rotated"))
                .await?;
            // The old connection lives on an old password; only a new one proves the new password.
            match transport {
                Transport::RabbitMq => drop(cluster.rabbitmqctl(ns, "close_all_connections rotated").await?),
                Transport::Redis => drop(cluster.redis_cli(ns, &["client", "kill", "user", "kanchi"]).await?),
            }
            let what = "connected with the new password";
            kanchi_e2e::until(what, HALF_A_MINUTE, || async {
                let shown = match transport {
                    Transport::RabbitMq => cluster.rabbitmqctl(ns, "list_connections user state").await?,
                    Transport::Redis => cluster.redis_cli(ns, &["client", "list"]).await?,
                };
                Ok(seen(shown.contains("kanchi"), (), |()| shown.clone()))
            })
            .await?;
            cluster
                .await_condition(ns, ORDERS, ("BrokerReachable", "True", None), HALF_A_MINUTE)
                .await?;
            ensure!(before == identity(&scope).await?, "the pod was restarted or replaced");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_unrelated_key_of_the_secret_changes_nothing() -> anyhow::Result<()> {
    scoped("unrelated-key", |scope| async move {
        let (cluster, ns) = (&scope.cluster, scope.namespace.as_str());
        scope.watch(Transport::Redis).await?;
        let versions = || async {
            let secret = cluster
                .get(SECRET, &monitor_name(ORDERS), ns)
                .await?
                .metadata
                .resource_version;
            let set = cluster
                .get(STATEFUL_SET, &monitor_name(ORDERS), ns)
                .await?
                .metadata
                .generation;
            let pod = cluster.get(POD, &monitor_pod(ORDERS), ns).await?.metadata.annotations;
            anyhow::Ok((secret, set, pod))
        };
        let before = versions().await?;
        let more = json!({ "stringData": { "unrelated": "value" } });
        cluster.merge(SECRET, &format!("{ORDERS}-broker"), ns, more).await?;
        holds("nothing of the monitor changes", Duration::from_secs(10), || async {
            let now = versions().await?;
            Ok(seen(now == before, now, |now| format!("{now:?} instead of {before:?}")).map(drop))
        })
        .await
    })
    .await
}

#[tokio::test]
async fn a_missing_secret_and_a_missing_key_are_named_and_heal() -> anyhow::Result<()> {
    scoped("missing-secret", |scope| async move {
        let (cluster, ns) = (&scope.cluster, scope.namespace.as_str());
        scope.prepare(Transport::Redis).await?;
        cluster.apply(BrokerManifest::new(ORDERS).object(), ns).await?;
        let missing = ("ReferencesResolved", "False", Some("SecretNotFound"));
        let broker = cluster.await_condition(ns, ORDERS, missing, HALF_A_MINUTE).await?;
        ensure!(
            broker.data.to_string().contains("orders-broker"),
            "the condition does not name the Secret"
        );
        let empty =
            json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "orders-broker" }, "stringData": {} });
        cluster.apply(empty, ns).await?;
        let no_key = ("ReferencesResolved", "False", Some("SecretKeyMissing"));
        cluster.await_condition(ns, ORDERS, no_key, HALF_A_MINUTE).await?;
        cluster
            .apply_broker_url(ns, ORDERS, &Transport::Redis.monitor_url())
            .await?;
        cluster.await_ready(ns, ORDERS, Duration::from_secs(60)).await.map(drop)
    })
    .await
}

#[tokio::test]
async fn a_password_is_seen_nowhere() -> anyhow::Result<()> {
    scoped("canary", |scope| async move {
        let (cluster, ns) = (&scope.cluster, scope.namespace.as_str());
        scope.prepare(Transport::RabbitMq).await?;
        cluster
            .rabbitmqctl(ns, &format!("change_password kanchi {CANARY}"))
            .await?;
        cluster
            .apply_broker(
                ns,
                &BrokerManifest::new(ORDERS),
                &Transport::RabbitMq.url("kanchi", CANARY),
            )
            .await?;
        cluster.await_ready(ns, ORDERS, Duration::from_secs(60)).await?;
        // Errors are where passwords leak: one wrong host, one that refuses.
        for host in ["no-such-host", "redis"] {
            cluster
                .apply_broker_url(ns, ORDERS, &format!("amqp://kanchi:{CANARY}@{host}:5672/"))
                .await?;
            cluster
                .await_condition(ns, ORDERS, ("BrokerReachable", "False", None), HALF_A_MINUTE)
                .await?;
        }
        let mut told = vec![
            (
                "the broker",
                serde_json::to_string(&cluster.get(BROKER, ORDERS, ns).await?)?,
            ),
            (
                "the pod",
                serde_json::to_string(&cluster.get(POD, &monitor_pod(ORDERS), ns).await?)?,
            ),
            (
                "the StatefulSet",
                serde_json::to_string(&cluster.get(STATEFUL_SET, &monitor_name(ORDERS), ns).await?)?,
            ),
            (
                "events",
                serde_json::to_string(&cluster.list(("v1", "Event"), ns, "").await?)?,
            ),
            (
                "the monitor's log",
                cluster.logs(ns, &monitor_pod(ORDERS), 10_000, false).await?,
            ),
            (
                "the monitor's metrics",
                cluster.metrics(ns, &monitor_pod(ORDERS)).await?,
            ),
        ];
        for pod in cluster
            .list(POD, NAMESPACE, "app.kubernetes.io/component=operator")
            .await?
        {
            let name = pod.metadata.name.context("a pod without a name")?;
            told.push((
                "the operator's log",
                cluster.logs(NAMESPACE, &name, 10_000, false).await?,
            ));
            told.push(("the operator's metrics", cluster.metrics(NAMESPACE, &name).await?));
        }
        for (where_, text) in told {
            ensure!(!text.contains(CANARY), "the password is in {where_}");
        }
        Ok(())
    })
    .await
}

async fn identity(scope: &Scope) -> anyhow::Result<(Option<String>, String)> {
    let pod = scope.cluster.get(POD, &monitor_pod(ORDERS), &scope.namespace).await?;
    let restarts = pod.data["status"]["containerStatuses"][0]["restartCount"].to_string();
    Ok((pod.metadata.uid, restarts))
}
