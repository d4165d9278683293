//! Real workers that die, stop, fall silent or come back: who is lost, whose tasks are orphaned, and who only looks like it.

use std::time::Duration;

use anyhow::{Context, Result};
use kanchi_contract::MonitorConfig;
use kanchi_test_servers::rabbitmq::Rabbitmq;
use kanchi_test_servers::redis::Redis;

use crate::scene::{OFFLINE_AFTER, PATIENCE, Scene, task};

#[tokio::test(flavor = "multi_thread")]
async fn the_task_of_a_killed_worker_is_orphaned_and_stays_so_beside_its_successor() -> Result<()> {
    let redis = Redis::start_new()?;
    let mut scene = Scene::new(&redis.url(0), |_| {}).await?;
    let (doomed, id) = scene.busy_worker(&[]).await?;
    scene.loses(doomed, &id).await?;
    let successor = scene.worker(&[]).await?;
    let done = scene.celery.publish("success", 1).await?;
    scene.until_state(&done.first().context("nothing was published")?.id, "SUCCESS")?;
    assert_eq!(
        task(&scene.rig, &id)?.0,
        "ORPHANED",
        "another process cannot know what became of it"
    );
    successor.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_only_stopped_heals_its_task_and_the_task_recovers() -> Result<()> {
    let redis = Redis::start_new()?;
    let mut scene = Scene::new(&redis.url(0), |_| {}).await?;
    let (worker, id) = scene.busy_worker(&[]).await?;
    worker.signal("STOP").await?;
    scene.until_state(&id, "ORPHANED")?;
    assert_eq!(scene.workers()?.trim(), "lost");
    worker.signal("CONT").await?;
    scene.until_state(&id, "SUCCESS")?;
    let rig = &scene.rig;
    scene.monitor.until("the worker is online again", PATIENCE, |_| {
        rig.sql("select state from kanchi.worker")
            .is_ok_and(|state| state.trim() == "online")
    })?;
    drop(worker);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_solo_worker_cannot_answer_and_is_not_lost() -> Result<()> {
    let redis = Redis::start_new()?;
    let mut scene = Scene::new(&redis.url(0), |_| {}).await?;
    // While it works it says nothing at all: the start of its task comes with the end.
    let worker = scene.worker(&["--pool", "solo"]).await?;
    let rig = &scene.rig;
    scene.monitor.until("the worker is online", PATIENCE, |_| {
        rig.sql("select state from kanchi.worker")
            .is_ok_and(|state| state.trim() == "online")
    })?;
    let published = scene.celery.publish("busy", 1).await?;
    let id = published.first().context("nothing was published")?.id.clone();
    scene.monitor.until("the worker is unknown", PATIENCE, |_| {
        rig.sql("select state from kanchi.worker")
            .is_ok_and(|state| state.trim() == "unknown")
    })?;
    scene.ends_without_a_false_orphan(&id)?;
    worker.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_solo_worker_is_not_lost_to_a_monitor_that_never_heard_of_it() -> Result<()> {
    let redis = Redis::start_new()?;
    let mut scene = Scene::new(&redis.url(0), |_| {}).await?;
    let worker = scene.worker(&["--pool", "solo"]).await?;
    let rig = &scene.rig;
    let stored = |expected: &str| {
        let row = rig.sql("select state, pool from kanchi.worker");
        row.is_ok_and(|row| row.trim() == expected)
    };
    scene
        .monitor
        .until("the pool is known", PATIENCE, |_| stored("online|solo"))?;
    let published = scene.celery.publish("busy", 1).await?;
    let id = published.first().context("nothing was published")?.id.clone();
    scene.monitor.until("the worker has the task", PATIENCE, |_| {
        redis
            .cli(&["llen", "orders"])
            .is_ok_and(|waiting| waiting.trim() == "0")
    })?;
    // As a crash or a take-over: the next one hears nothing of the worker before it judges it.
    scene.monitor.kill()?;
    assert!(stored("online|solo"), "it has not been judged yet");
    scene.monitor = rig.monitor(&[])?;
    scene
        .monitor
        .until("the worker is unknown", PATIENCE, |_| stored("unknown|solo"))?;
    scene.ends_without_a_false_orphan(&id)?;
    worker.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_heartbeats_is_unknown_and_never_lost() -> Result<()> {
    let redis = Redis::start_new()?;
    let mut scene = Scene::new(&redis.url(0), |_| {}).await?;
    let (worker, id) = scene.busy_worker(&["--without-heartbeat"]).await?;
    scene.ends_without_a_false_orphan(&id)?;
    assert_eq!(scene.workers()?.trim(), "unknown");
    worker.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_reconnect_after_a_restart_of_the_broker_are_not_lost() -> Result<()> {
    let mut redis = Redis::start_new()?;
    let mut scene = Scene::new(&redis.url(0), |_| {}).await?;
    let (worker, id) = scene.busy_worker(&[]).await?;
    redis.stop();
    redis.start()?;
    scene.ends_without_a_false_orphan(&id)?;
    drop(worker);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_come_back_some_seconds_after_the_broker_are_not_lost() -> Result<()> {
    let mut redis = Redis::start_new()?;
    // A worker tries again after two, four, six and eight seconds; the monitor is back as soon as the broker is.
    let patience = 12;
    let mut scene = Scene::new(&redis.url(0), |config| config.workers.offline_after_seconds = patience).await?;
    let (worker, id) = scene.busy_worker(&[]).await?;
    redis.stop();
    scene.let_pass(patience + 2)?;
    redis.start()?;
    scene.ends_without_a_false_orphan(&id)?;
    drop(worker);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_of_old_heartbeats_says_nothing_of_now() -> Result<()> {
    let rabbit = Rabbitmq::start_new()?;
    let mut scene = Scene::new(&rabbit.url(), |_| {}).await?;
    let (worker, id) = scene.busy_worker(&[]).await?;
    assert!(scene.monitor.terminate()?.success());
    // The queue fills with heartbeats; when the monitor is back, all of them are older than its patience.
    let waiting = || -> Result<u64> {
        let queues = rabbit.ctl(&["list_queues", "--quiet", "--no-table-headers", "name", "messages_ready"])?;
        let of_kanchi = queues.lines().filter(|line| line.contains("kanchi"));
        Ok(of_kanchi
            .filter_map(|line| line.split_whitespace().last()?.parse::<u64>().ok())
            .sum())
    };
    let deadline = std::time::Instant::now() + PATIENCE;
    while waiting()? < OFFLINE_AFTER {
        anyhow::ensure!(std::time::Instant::now() < deadline, "no heartbeats wait");
        tokio::time::sleep(Duration::from_millis(200)).await; // polls a condition with a deadline
    }
    scene.monitor = scene.rig.monitor(&[])?;
    scene.ends_without_a_false_orphan(&id)?;
    worker.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_read_only_broker_silence_alone_decides() -> Result<()> {
    let redis = Redis::start_new()?;
    let mut scene = Scene::new(&redis.url(0), |config| config.read_only = true).await?;
    let (doomed, id) = scene.busy_worker(&[]).await?;
    scene.loses(doomed, &id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_read_only_broker_silence_must_last_twice_as_long() -> Result<()> {
    let redis = Redis::start_new()?;
    let patience = 10;
    let read_only = |config: &mut MonitorConfig| {
        config.read_only = true;
        config.workers.offline_after_seconds = patience;
    };
    let mut scene = Scene::new(&redis.url(0), read_only).await?;
    let (worker, id) = scene.busy_worker(&[]).await?;
    // Its pool process goes on with the task.
    worker.signal("STOP").await?;
    scene.let_pass(patience + patience / 3)?;
    worker.signal("CONT").await?;
    scene.ends_without_a_false_orphan(&id)?;
    worker.stop().await
}
