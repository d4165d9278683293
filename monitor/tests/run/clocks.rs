//! Real workers whose clocks are wrong, or are set while they work: silence is told by the monitor's own clock.

use anyhow::{Context, Result};
use kanchi_test_servers::clock::Clock;
use kanchi_test_servers::redis::Redis;

use crate::scene::{OFFLINE_AFTER, PATIENCE, Scene};

const HOUR: i64 = 3_600;

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_clock_is_behind_or_ahead_is_not_lost_while_it_works() -> Result<()> {
    for off in [-HOUR, HOUR] {
        let redis = Redis::start_new()?;
        let mut scene = Scene::new(&redis.url(0), |_| {}).await?;
        let worker = scene.worker_with_clock(&Clock::new(off)?).await?;
        let id = scene.running_task().await?;
        assert_clock_is_off(&scene, &id, off).await?;
        scene.ends_without_a_false_orphan(&id)?;
        worker.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_whose_clock_is_ahead_is_lost_all_the_same() -> Result<()> {
    let redis = Redis::start_new()?;
    let mut scene = Scene::new(&redis.url(0), |_| {}).await?;
    let doomed = scene.worker_with_clock(&Clock::new(HOUR)?).await?;
    let id = scene.running_task().await?;
    scene.loses(doomed, &id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_clock_is_set_while_it_works_is_not_lost() -> Result<()> {
    let redis = Redis::start_new()?;
    let mut scene = Scene::new(&redis.url(0), |_| {}).await?;
    let clock = Clock::new(0)?;
    let worker = scene.worker_with_clock(&clock).await?;
    let id = scene.running_task().await?;
    for off in [-HOUR, HOUR] {
        clock.set(off)?;
        let set_at = scene.rig.sql("select now()")?;
        let judged = format!(
            "select last_heartbeat_at > '{}'::timestamptz + interval '{OFFLINE_AFTER} s' from kanchi.worker",
            set_at.trim()
        );
        let rig = &scene.rig;
        scene.monitor.until("no silence since it was set", PATIENCE, |_| {
            rig.sql(&judged).is_ok_and(|judged| judged.trim() == "t")
        })?;
    }
    clock.set(0)?;
    scene.ends_without_a_false_orphan(&id)?;
    worker.stop().await
}

/// The task tells the time of a clock that is wrong, or nothing was tested.
async fn assert_clock_is_off(scene: &Scene, id: &str, off: i64) -> Result<()> {
    let row = scene.rig.row(id).await?.context("no such task")?;
    let started = row.started_at.context("the task has no start")?.0 / 1_000_000;
    let now: i64 = scene
        .rig
        .sql("select extract(epoch from now())::bigint")?
        .trim()
        .parse()?;
    assert!(
        (started - now - off).abs() < 60,
        "the clock is off by {} s",
        started - now
    );
    Ok(())
}
