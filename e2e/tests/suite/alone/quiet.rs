//! A quiet operator, by the API server's audit log.
//!
//! `KANCHI_E2E_BROKERS` is the number of brokers, 50 by default.

use std::time::Duration;

use kanchi_e2e::audit::Mark;
use kanchi_e2e::broker::BrokerManifest;
use kanchi_e2e::cluster::number;
use kanchi_e2e::verbs::BROKER;
use kanchi_e2e::wait::seen;
use kanchi_e2e::{Transport, scoped_alone, until};
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
                let writes = mark.operator_writes()?;
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
