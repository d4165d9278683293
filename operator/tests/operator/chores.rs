//! What the leader does to the store by itself: partitions that are over go, and histories whose end was ordered.

use std::time::Duration;

use kanchi_crds::{CeleryBroker, ConditionType};
use serde_json::json;

use crate::support::eventually;
use crate::support::operator::{CLUSTER_ROLE, Operator};
use crate::support::world::{PATIENCE, World};

/// Waits for a metric of the operator.
async fn metric(operator: &Operator, line: &str) {
    eventually(line, PATIENCE, || async {
        let metrics = operator.metrics();
        let found = metrics.lines().any(|known| known == line);
        found.then_some(()).ok_or(metrics)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_drops_what_is_over_and_makes_what_will_be_needed() {
    let world = World::new("upkeep").await;
    let operator = Operator::start(&world, "one", &[]).await;
    metric(&operator, "kanchi_operator_store_up 1").await;
    operator.stop().await.unwrap();
    let partitions = || {
        world.sql("select string_agg(relname, ' ' order by relname) from pg_class where relname ~ '^task_1_[0-9]{8}$'")
    };
    let before = partitions();
    world.sql(
        "select kanchi.create_partition('task_1', 'task_1_20200101', '2020-01-01 00:00+00', '2020-01-02 00:00+00');
         do $$ declare leaf text; begin
            select max(relname) into leaf from pg_class where relname ~ '^task_1_[0-9]{8}$';
            execute format('drop table kanchi.%I', leaf);
         end $$",
    );
    assert_ne!(partitions(), before);
    let operator = Operator::start(&world, "two", &[]).await;
    eventually(
        "the partitions are as they were, and that is told",
        PATIENCE,
        || async {
            let found = (partitions(), world.sql("select dropped, postponed from kanchi.upkeep"));
            (found == (before.clone(), "1|0".to_owned()))
                .then_some(())
                .ok_or(format!("{found:?}"))
        },
    )
    .await;
    eventually("the metrics tell how old that is", PATIENCE, || async {
        let metrics = operator.metrics();
        let age = metrics
            .lines()
            .find_map(|line| line.strip_prefix("kanchi_operator_store_upkeep_age_seconds "));
        let age = age.and_then(|age| age.parse::<f64>().ok()).unwrap_or_default();
        (age > 0.0).then_some(()).ok_or(metrics)
    })
    .await;
    operator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rows_of_a_deleted_broker_go_later_and_no_others() {
    let world = World::new("purge").await;
    let operator = Operator::start(&world, "one", &[CLUSTER_ROLE]).await;
    world.secret("cache", json!({ "url": "redis://cache/0" })).await;
    let mut keys = Vec::new();
    for name in ["orders", "stays"] {
        let spec = json!({
            "connection": { "urlSecretRef": { "name": "cache", "key": "url" } }, "reclaimPolicy": "Delete",
            "celery": { "globalKeyPrefix": name }
        });
        world.apply(name, spec).await;
        world.condition(name, ConditionType::Ready, "True", "AsExpected").await;
        let key = world.broker(name).await.status.unwrap().store_key.unwrap();
        world.sql(&format!(
            "insert into kanchi.task (broker_id, retention_days, task_id, state, queue_inferred, retries, finished_at, facts)
             select {key}, 14, 'task-' || n, 'SUCCESS', false, 0, now(), '' from generate_series(1, 1000) as n;
             insert into kanchi.event_chunk (broker_id, retention_days, task_id, first_at, event_count, events)
             select {key}, 7, 'task-' || n, now(), 1, '' from generate_series(1, 1000) as n;
             insert into kanchi.queue (broker_id, name, ready, sampled_at) values ({key}, 'celery', 0, now())"
        ));
        keys.push(key);
    }
    let rows = |key: i32| {
        let count = |table: &str| format!("(select count(*) from kanchi.{table} where broker_id = {key})");
        let tables = ["task", "event_chunk", "queue", "broker"].map(count);
        world.sql(&format!("select {}", tables.join(", ")))
    };
    let (orders, stays) = (keys[0], keys[1]);
    world.delete::<CeleryBroker>("orders").await;
    world.await_gone::<CeleryBroker>("orders").await;
    metric(&operator, "kanchi_operator_store_purges_pending 1").await;
    // A statement of its monitor may still be under way.
    assert_eq!(rows(orders), "1000|1000|1|1");
    world.sql(&format!(
        "update kanchi.broker set purge_ordered_at = now() - interval '{} seconds' where broker_id = {orders}",
        Duration::from_mins(3).as_secs()
    ));
    eventually("the rows are gone", PATIENCE, || async {
        let found = rows(orders);
        (found == "0|0|0|0").then_some(()).ok_or(found)
    })
    .await;
    assert_eq!(rows(stays), "1000|1000|1|1");
    metric(&operator, "kanchi_operator_store_purges_pending 0").await;
    operator.stop().await.unwrap();
}
