//! Tasks whose id runs again, as Redis does when a worker keeps a message for longer than its visibility timeout.

use std::time::Duration;

use anyhow::Result;
use kanchi_test_load::{RedisPublisher, envelope, now, task_id};
use kanchi_test_servers::postgres::Postgres;
use kanchi_test_servers::redis::Redis;

use crate::rig::{MonitorProcess, Rig};

const PATIENCE: Duration = Duration::from_mins(2);

/// Tasks of one family; each has three events.
const TASKS: u64 = 2_000;

/// Publishes a run of all tasks of these families while Postgres is away, so that hundreds of them end in one batch, and waits
/// until it is stored.
fn run_all(
    rig: &mut Rig,
    monitor: &mut MonitorProcess,
    publisher: &mut RedisPublisher,
    families: &[u64],
) -> Result<()> {
    let stored = rig.events()? + families.len() as u64 * TASKS * 3;
    rig.postgres.stop()?;
    let began = now() as f64 / 1e6;
    for family in families {
        for first in (0..TASKS).step_by(100) {
            let mut events = Vec::new();
            for number in first..first + 100 {
                let id = task_id(*family, number);
                for (step, kind) in ["received", "started", "succeeded"].iter().enumerate() {
                    let seconds = began + step as f64 / 1e3;
                    events.push(format!(
                        r#"{{"type":"task-{kind}","uuid":"{id}","hostname":"w@h","timestamp":{seconds}}}"#
                    ));
                }
            }
            let list = format!("[{}]", events.join(","));
            publisher.publish_raw("task.multi", &envelope(list.as_bytes(), "task.multi", "w@h"))?;
        }
        publisher.flush()?;
    }
    rig.postgres.start()?;
    monitor.until("the run is stored", PATIENCE, |_| {
        rig.events().is_ok_and(|events| events >= stored)
    })?;
    assert_eq!(rig.events()?, stored);
    let history = rig.sql("select count(*), count(distinct task_id) from kanchi.task")?;
    let (rows, tasks) = history.trim().split_once('|').unwrap_or_default();
    assert_eq!(rows, tasks, "a task has one row, or waits to be merged with it");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_run_again_by_the_hundreds_are_known_also_after_a_restart() -> Result<()> {
    let redis = Redis::start_new()?;
    let mut rig = Rig::new(Postgres::start_new()?, &redis.url(0)).await?;
    let mut publisher = RedisPublisher::connect(redis.port())?;
    let mut monitor = rig.monitor(&[])?;
    monitor.connected()?;
    run_all(&mut rig, &mut monitor, &mut publisher, &[1, 2])?;
    assert_eq!(rig.tasks()?.trim(), format!("SUCCESS:{}", 2 * TASKS));
    run_all(&mut rig, &mut monitor, &mut publisher, &[1])?;
    monitor.terminate()?;

    let mut monitor = rig.monitor(&[])?;
    monitor.connected()?;
    run_all(&mut rig, &mut monitor, &mut publisher, &[1, 2])?;
    let known = rig.sql("select count(distinct task_id) from (select task_id from kanchi.task union all select task_id from kanchi.task_live) t")?;
    assert_eq!(known.trim(), (2 * TASKS).to_string());
    Ok(())
}
