//! A hostile stream stops nothing, fits into the memory limit, and can be looked at afterwards.
//!
//! `KANCHI_E2E_BIG` is the number of consecutive messages of 10 MB, 1,000 by default.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::ensure;
use kanchi_e2e::broker::{BrokerManifest, monitor_pod};
use kanchi_e2e::cluster::number;
use kanchi_e2e::store::TASKS;
use kanchi_e2e::wait::seen;
use kanchi_e2e::watched::ORDERS;
use kanchi_e2e::{Scope, Transport, scoped_alone, until};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct Id {
    task_id: String,
}

#[derive(Debug, Deserialize)]
struct Letters {
    reason: String,
    count: i64,
    longest: i64,
}

#[tokio::test]
async fn a_hostile_stream_on_rabbitmq_stops_nothing_and_is_kept_for_a_look() -> anyhow::Result<()> {
    scoped_alone("hostile-rabbitmq", |scope| async move {
        hostile(&scope, Transport::RabbitMq).await
    })
    .await
}

#[tokio::test]
async fn a_hostile_stream_on_redis_stops_nothing_and_is_kept_for_a_look() -> anyhow::Result<()> {
    scoped_alone("hostile-redis", |scope| async move {
        hostile(&scope, Transport::Redis).await
    })
    .await
}

async fn hostile(scope: &Scope, transport: Transport) -> anyhow::Result<()> {
    let (cluster, ns) = (&scope.cluster, scope.namespace.as_str());
    let limited =
        BrokerManifest::new(ORDERS).with("monitor", json!({ "resources": { "limits": { "memory": "128Mi" } } }));
    scope.watch_as(transport, limited).await?;
    let shop = scope.shop(transport).await?;
    let big = number("KANCHI_E2E_BIG", 1000)?;
    let good: BTreeSet<_> = shop
        .script(scope, "hostile", &[&big.to_string()])
        .await?
        .lines()
        .map(str::to_owned)
        .collect();
    until("every good task", Duration::from_secs(240), || async {
        let sql = format!(
            "select t.task_id from {TASKS} t
             join kanchi.broker b using (broker_id) where b.namespace = '{ns}' and t.state = 'SUCCESS'"
        );
        let rows: Vec<Id> = cluster.query(&sql).await?;
        let found: BTreeSet<_> = rows.into_iter().map(|row| row.task_id).collect();
        let missing = good.difference(&found).count();
        Ok(seen(missing == 0, (), |()| {
            format!("{missing} of {} missing", good.len())
        }))
    })
    .await?;
    cluster.never_restarted(ns, ORDERS).await?;

    let sql = format!(
        "select d.reason, count(*) as count, max(octet_length(d.sample)) as longest
         from kanchi.dead_letter d join kanchi.broker b using (broker_id) where b.namespace = '{ns}' group by d.reason"
    );
    let letters: Vec<Letters> = cluster.query(&sql).await?;
    let metrics = cluster.metrics(ns, &monitor_pod(ORDERS)).await?;
    for kind in &letters {
        ensure!(kind.longest <= 4096, "a sample is not bounded: {kind:?}");
        let label = format!("reason=\"{}\"", kind.reason);
        ensure!(metrics.contains(&label), "no metric counts {kind:?}");
    }
    ensure!(letters.len() >= 8, "too few reasons: {letters:?}");
    ensure!(letters.iter().all(|kind| kind.count > 0), "{letters:?}");
    Ok(())
}
