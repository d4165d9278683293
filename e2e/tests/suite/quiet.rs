//! A quiet operator, by the API server's audit log.
//!
//! `KANCHI_E2E_BROKERS` is the number of brokers, 50 by default.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::ensure;
use kanchi_e2e::audit::{Mark, Request};
use kanchi_e2e::broker::BrokerManifest;
use kanchi_e2e::cluster::number;
use kanchi_e2e::install::{NAMESPACE, RELEASE};
use kanchi_e2e::verbs::BROKER;
use kanchi_e2e::wait::seen;
use kanchi_e2e::watched::ORDERS;
use kanchi_e2e::{Scope, Transport, scoped, scoped_alone, until};
use serde_json::json;

#[tokio::test]
async fn fifty_idle_brokers_with_heartbeating_workers_cause_no_write_but_the_lease() -> anyhow::Result<()> {
    scoped_alone("quiet", |scope| async move {
        let (cluster, ns) = (&scope.cluster, scope.namespace.as_str());
        let count = number("KANCHI_E2E_BROKERS", 50)?;
        scope.prepare(Transport::Redis).await?;
        let shop = scope.shop(Transport::Redis).await?;
        for index in 0..count {
            // One Redis, a key prefix each: different Celery deployments to Kanchi.
            let broker = BrokerManifest::new(&format!("b{index}"))
                .with("celery", json!({ "globalKeyPrefix": format!("b{index}:") }))
                // Fifty of the default request do not fit onto two processors.
                .with("monitor", json!({ "resources": { "requests": { "cpu": "5m" } } }));
            cluster
                .apply_broker(ns, &broker, &Transport::Redis.monitor_url())
                .await?;
        }
        let brokers = count.to_string();
        let arguments = [brokers.as_str(), "1200"]; // seconds; more than the rest of the test takes
        let beats = shop.script(&scope, "heartbeats", &arguments);
        let watch = async {
            until("every broker with its worker", Duration::from_secs(420), || async {
                let brokers = cluster.list(BROKER, ns, "").await?;
                let settled = brokers
                    .iter()
                    .filter(|broker| broker.data["status"]["workersOnline"] == 1)
                    .count();
                Ok(seen(settled == count, settled, |settled| format!("{settled} of {count}")).map(drop))
            })
            .await?;
            // The last count was written a moment ago; the minute of silence begins once no count is due any more.
            until("a minute without a write", Duration::from_secs(300), || async {
                let mark = Mark::now()?;
                tokio::time::sleep(Duration::from_secs(60)).await; // the condition is a minute long
                let writes = other_than_leases(&mark)?;
                Ok(seen(writes.is_empty(), (), |()| format!("{writes:?}")))
            })
            .await
        };
        tokio::select! {
            ended = beats => { ended?; anyhow::bail!("the heartbeats ended first") }
            watched = watch => watched,
        }
    })
    .await
}

#[tokio::test]
async fn under_load_the_counts_of_a_broker_are_written_at_most_once_a_minute() -> anyhow::Result<()> {
    scoped("counts", |scope| async move {
        scope.watch(Transport::Redis).await?;
        let shop = scope.shop(Transport::Redis).await?;
        let mark = Mark::now()?;
        shop.run(&scope.cluster, &["load", "20", "--seconds", "130"]).await?;
        let writes = other_than_leases(&mark)?;
        let of_ours: Vec<_> = writes.iter().filter(|request| is_about(request, &scope)).collect();
        let mut managers = BTreeMap::<_, usize>::new();
        for request in &of_ours {
            *managers
                .entry(request.uri.split("fieldManager=").nth(1).unwrap_or_default().to_owned())
                .or_default() += 1;
        }
        ensure!(of_ours.len() <= 3, "{} writes in 130 s: {managers:?}", of_ours.len());
        Ok(())
    })
    .await
}

fn is_about(request: &Request, scope: &Scope) -> bool {
    request
        .object_ref
        .as_ref()
        .is_some_and(|object| object.namespace == scope.namespace && object.name == ORDERS)
}

fn other_than_leases(mark: &Mark) -> anyhow::Result<Vec<Request>> {
    let mut writes = mark.writes_of(&format!("{NAMESPACE}:{RELEASE}-operator"))?;
    writes.retain(|request| !request.is_about("leases"));
    Ok(writes)
}
