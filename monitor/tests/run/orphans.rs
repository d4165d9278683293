//! Real workers that die, stop, fall silent or come back: who is lost, whose tasks are orphaned, and who only looks like it.

use std::time::Duration;

use anyhow::{Context, Result};
use kanchi_contract::MonitorConfig;
use kanchi_test_servers::celery::{Celery, NEWEST, Worker, WorkerOptions};
use kanchi_test_servers::postgres::Postgres;
use kanchi_test_servers::rabbitmq::Rabbitmq;
use kanchi_test_servers::redis::Redis;

use crate::rig::{MonitorProcess, Rig};

const PATIENCE: Duration = Duration::from_mins(2);

/// Twice a worker's heartbeat interval: no silence is too short to be judged.
const OFFLINE_AFTER: u64 = 4;

/// Seconds that a task runs which is to outlast the judgement: silence, question, grace and some more.
const BUSY: &str = "25";

/// Short times, so that a judgement is made while a test waits for it.
fn impatient(config: &mut MonitorConfig) {
    config.workers.offline_after_seconds = OFFLINE_AFTER;
    config.workers.orphan_grace_seconds = 1;
}

/// A store, a monitor and an application on one broker.
struct Scene {
    rig: Rig,
    monitor: MonitorProcess,
    celery: Celery,
}

impl Scene {
    async fn new(broker_url: &str, change: impl FnOnce(&mut MonitorConfig)) -> Result<Self> {
        let rig = Rig::new(Postgres::start_new()?, broker_url).await?;
        rig.write_config(|config| {
            impatient(config);
            change(config);
        })?;
        let mut monitor = rig.monitor(&[])?;
        monitor.connected()?;
        let celery = Celery::install(NEWEST, broker_url).await?.with("BUSY_SECONDS", BUSY);
        Ok(Self { rig, monitor, celery })
    }

    /// Starts a worker with one slot and gives it a task; returns once the task is known to run.
    async fn busy_worker(&mut self, arguments: &[&str]) -> Result<(Worker, String)> {
        let worker = self.worker(arguments).await?;
        let published = self.celery.publish("busy", 1).await?;
        let id = published.first().context("nothing was published")?.id.clone();
        self.until_state(&id, "STARTED")?;
        Ok((worker, id))
    }

    async fn worker(&self, arguments: &[&str]) -> Result<Worker> {
        let options = WorkerOptions {
            concurrency: 1,
            queues: "orders".into(),
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            ..WorkerOptions::default()
        };
        self.celery.start_worker(&options).await
    }

    fn until_state(&mut self, id: &str, state: &str) -> Result<()> {
        let rig = &self.rig;
        self.monitor.until(&format!("{id} is {state}"), PATIENCE, |_| {
            task(rig, id).is_ok_and(|(found, _)| found == state)
        })
    }

    /// Waits until a task has succeeded and asserts that nobody ever took its worker for lost.
    fn ends_without_a_false_orphan(&mut self, id: &str) -> Result<()> {
        self.until_state(id, "SUCCESS")?;
        assert_eq!(self.findings()?, (0, 0), "{}", self.monitor.log());
        assert_eq!(
            task(&self.rig, id)?.1,
            "",
            "a task that was never lost has not recovered"
        );
        Ok(())
    }

    /// Counts what the monitor said of its own: losses and returns.
    fn findings(&self) -> Result<(usize, usize)> {
        let chunks = self.rig.chunks("true")?;
        let count = |kind: &str| -> usize {
            let said = format!("\"type\":\"{kind}\"");
            chunks.iter().map(|(_, events)| events.matches(&said).count()).sum()
        };
        Ok((count("kanchi-worker-lost"), count("kanchi-worker-back")))
    }

    fn workers(&self) -> Result<String> {
        self.rig
            .sql("select string_agg(state, ' ' order by state) from kanchi.worker")
    }
}

/// Returns state and mark of a task.
fn task(rig: &Rig, id: &str) -> Result<(String, String)> {
    let row = rig.sql(&format!(
        "select state, '' from kanchi.task_live where task_id = '{id}'
         union all select state, coalesce(mark, '') from kanchi.task where task_id = '{id}' limit 1"
    ))?;
    let (state, mark) = row.trim().split_once('|').context("no such task")?;
    Ok((state.to_owned(), mark.to_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_task_of_a_killed_worker_is_orphaned_and_stays_so_beside_its_successor() -> Result<()> {
    let redis = Redis::start_new()?;
    let mut scene = Scene::new(&redis.url(0), |_| {}).await?;
    let (doomed, id) = scene.busy_worker(&[]).await?;
    doomed.kill().await?;
    scene.until_state(&id, "ORPHANED")?;
    assert_eq!(scene.findings()?, (1, 0));
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
    doomed.kill().await?;
    scene.until_state(&id, "ORPHANED")?;
    assert_eq!(scene.findings()?, (1, 0));
    Ok(())
}
