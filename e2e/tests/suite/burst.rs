//! Nothing is lost and nothing is double, whatever becomes of the monitor's process or the broker.
//!
//! `KANCHI_E2E_EVENTS` is the number of events of a burst, 100,000 by default.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::ensure;
use kanchi_e2e::broker::{BrokerManifest, monitor_pod};
use kanchi_e2e::cluster::number;
use kanchi_e2e::services::Service;
use kanchi_e2e::store::TASKS;
use kanchi_e2e::verbs::POD;
use kanchi_e2e::wait::{Look, seen};
use kanchi_e2e::watched::ORDERS;
use kanchi_e2e::{Scope, Transport, scoped, until};
use serde::Deserialize;
use serde_json::json;

const EVENTS_PER_TASK: usize = 4;

#[derive(Debug, Deserialize)]
struct Totals {
    chunks: i64,
    events: i64,
    tasks: i64,
    successes: i64,
    counted: i64,
    not_rolled_up: i64,
}

#[derive(Deserialize)]
struct Id {
    task_id: String,
}

#[tokio::test]
async fn a_monitor_killed_three_times_during_a_burst_loses_and_doubles_nothing() -> anyhow::Result<()> {
    scoped("burst-kill", |scope| async move {
        let (cluster, ns) = (&scope.cluster, scope.namespace.as_str());
        scope.watch(Transport::RabbitMq).await?;
        let shop = scope.shop(Transport::RabbitMq).await?;
        let tasks = number("KANCHI_E2E_EVENTS", 100_000)? / EVENTS_PER_TASK;
        let publish = async { shop.script(&scope, "burst", &["kill", &tasks.to_string()]).await };
        let kill = async {
            for quarter in 1..=3 {
                let wanted = i64::try_from(tasks * EVENTS_PER_TASK * quarter / 5)?;
                until("a part of the burst stored", Duration::from_secs(120), || async {
                    let stored = totals(&scope).await?;
                    Ok(seen(stored.events >= wanted, (), |()| format!("{stored:?}")))
                })
                .await?;
                let before = cluster.get(POD, &monitor_pod(ORDERS), ns).await?.metadata.uid;
                cluster.kill_pod(&monitor_pod(ORDERS), ns).await?;
                until("another monitor pod", Duration::from_secs(60), || async {
                    let pod = cluster.get(POD, &monitor_pod(ORDERS), ns).await?;
                    Ok(seen(pod.metadata.uid != before, (), |()| "the old one".into()))
                })
                .await?;
            }
            anyhow::Ok(())
        };
        let (published, killed) = tokio::join!(publish, kill);
        killed?;
        exactly(&scope, &published?).await
    })
    .await
}

#[tokio::test]
async fn a_restarted_broker_loses_nothing_of_a_quorum_queue() -> anyhow::Result<()> {
    scoped("restart-quorum", |scope| async move {
        let quorum = BrokerManifest::new(ORDERS).with("celery", json!({ "eventQueue": { "type": "Quorum" } }));
        scope.watch_as(Transport::RabbitMq, quorum).await?;
        let published = restart_behind_a_paused_monitor(&scope, "quorum").await?;
        exactly(&scope, &published).await
    })
    .await
}

#[tokio::test]
async fn a_restarted_broker_shows_a_gap_of_a_classic_queue() -> anyhow::Result<()> {
    scoped("restart-classic", |scope| async move {
        scope.watch(Transport::RabbitMq).await?;
        restart_behind_a_paused_monitor(&scope, "classic").await?;
        until("a gap", Duration::from_secs(60), || async {
            let gaps: Vec<serde_json::Value> = scope
                .cluster
                .query(&format!("select g.* from kanchi.gap g {}", of(&scope, "g")))
                .await?;
            Ok(if gaps.is_empty() {
                Look::NotYet("no gap".into())
            } else {
                Look::Done(())
            })
        })
        .await
    })
    .await
}

/// Publishes while no monitor runs, so that the events wait in the queue, restarts RabbitMQ, then lets the monitor back.
async fn restart_behind_a_paused_monitor(scope: &Scope, run: &str) -> anyhow::Result<String> {
    let (cluster, ns) = (&scope.cluster, scope.namespace.as_str());
    let shop = scope.shop(Transport::RabbitMq).await?;
    let enabled = |on: bool| json!({ "spec": { "enabled": on } });
    cluster
        .merge(kanchi_e2e::verbs::BROKER, ORDERS, ns, enabled(false))
        .await?;
    cluster
        .await_gone(POD, &monitor_pod(ORDERS), ns, Duration::from_secs(60))
        .await?;
    // Confirmed: what is still on its way when the broker stops was never the broker's to keep.
    let published = shop.script(scope, "burst", &[run, "1000", "confirmed"]).await?;
    cluster.stop(ns, Service::RabbitMq).await?;
    cluster.resume(ns, Service::RabbitMq).await?;
    cluster
        .merge(kanchi_e2e::verbs::BROKER, ORDERS, ns, enabled(true))
        .await?;
    cluster.await_ready(ns, ORDERS, Duration::from_secs(90)).await?;
    Ok(published)
}

/// Waits until everything is stored and compares it with what was published.
async fn exactly(scope: &Scope, published: &str) -> anyhow::Result<()> {
    let ids: BTreeSet<_> = published.lines().map(str::to_owned).collect();
    let (tasks, events) = (i64::try_from(ids.len())?, i64::try_from(ids.len() * EVENTS_PER_TASK)?);
    until("every event stored", Duration::from_secs(180), || async {
        let stored = totals(scope).await?;
        let done = stored.events >= events && stored.successes >= tasks && stored.not_rolled_up == 0;
        Ok(seen(done, (), |()| format!("{stored:?} of {events} events")))
    })
    .await?;
    let stored = totals(scope).await?;
    ensure!(
        stored.events == events,
        "{} events of {events} stored in {} chunks",
        stored.events,
        stored.chunks
    );
    ensure!(
        stored.tasks == tasks && stored.successes == tasks,
        "{stored:?} of {tasks} tasks"
    );
    ensure!(
        stored.counted == tasks,
        "{} successes counted of {tasks}",
        stored.counted
    );
    let found: Vec<Id> = scope
        .cluster
        .query(&format!(
            "select t.task_id from {TASKS} t {} where t.name = 'burst.task'",
            of(scope, "t")
        ))
        .await?;
    let found: BTreeSet<_> = found.into_iter().map(|row| row.task_id).collect();
    ensure!(found == ids, "other tasks are stored than were published");
    Ok(())
}

async fn totals(scope: &Scope) -> anyhow::Result<Totals> {
    // The burst's chunks are those of tasks that the burst has published; other events of its worker have no task.
    let sql = format!(
        "select
           (select count(*) from kanchi.event_chunk g {of} where g.task_id in (select task_id from {TASKS} t where name = 'burst.task')) as chunks,
           (select coalesce(sum(g.event_count), 0) from kanchi.event_chunk g {of} where g.task_id in (select task_id from {TASKS} t where name = 'burst.task')) as events,
           (select count(*) from {TASKS} t {of_t} where t.name = 'burst.task') as tasks,
           (select count(*) from {TASKS} t {of_t} where t.name = 'burst.task' and t.state = 'SUCCESS') as successes,
           (select coalesce(sum(g.succeeded), 0)::bigint from kanchi.statistic g {of} where g.dimension = 'task' and g.key = 'burst.task' and g.step_seconds = 60) as counted,
           (select count(*) from kanchi.statistic_delta g {of}) as not_rolled_up",
        of = of(scope, "g"),
        of_t = of(scope, "t"),
    );
    let rows: Vec<Totals> = scope.cluster.query(&sql).await?;
    rows.into_iter().next().ok_or_else(|| anyhow::anyhow!("no totals"))
}

/// Joins the broker of the test's namespace to a relation of this alias.
fn of(scope: &Scope, alias: &str) -> String {
    let namespace = &scope.namespace;
    format!("join kanchi.broker b on b.broker_id = {alias}.broker_id and b.namespace = '{namespace}'")
}
