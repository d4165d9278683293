//! Gaps with a real Celery: tasks that end, or live and end, while no monitor listens, and what is found out about them.

use std::time::Duration;

use anyhow::{Context, Result};
use kanchi_contract::{ResultBackend, file};
use kanchi_domain::TaskMark;
use kanchi_test_servers::celery::{Celery, NEWEST, Worker, WorkerOptions};
use kanchi_test_servers::postgres::Postgres;
use kanchi_test_servers::rabbitmq::Rabbitmq;
use kanchi_test_servers::redis::{Redis, RedisOptions};

use crate::rig::{MonitorProcess, Rig};

const PATIENCE: Duration = Duration::from_mins(2);

/// In the backend's URL; must appear nowhere.
const CANARY: &str = "canary-of-the-backend";

/// A store, a monitor, an application with a result backend, and a worker with two slots.
struct Scene {
    rig: Rig,
    monitor: MonitorProcess,
    celery: Celery,
    worker: Worker,
}

impl Scene {
    /// `told`: the monitor knows the backend.
    async fn new(broker_url: &str, backend: &str, busy_seconds: &str, told: bool) -> Result<Self> {
        let rig = Rig::new(Postgres::start_new()?, broker_url).await?;
        if told {
            rig.write(file::RESULT_BACKEND_URL, backend)?;
            rig.write_config(|config| config.result_backend = Some(ResultBackend::default()))?;
        }
        let mut monitor = rig.monitor(&[])?;
        monitor.connected()?;
        let celery = Celery::install(NEWEST, broker_url)
            .await?
            .with("BUSY_SECONDS", busy_seconds)
            .with("RESULT_BACKEND", backend);
        let options = WorkerOptions {
            queues: "orders".into(),
            ..WorkerOptions::default()
        };
        let worker = celery.start_worker(&options).await?;
        let mut scene = Self {
            rig,
            monitor,
            celery,
            worker,
        };
        let rig = &scene.rig;
        scene.monitor.until("the worker is online", PATIENCE, |_| {
            rig.sql("select state from kanchi.worker")
                .is_ok_and(|state| state.trim() == "online")
        })?;
        Ok(scene)
    }

    async fn publish(&self, kind: &str) -> Result<String> {
        let published = self.celery.publish(kind, 1).await?;
        Ok(published.first().context("nothing was published")?.id.clone())
    }

    fn until_state(&mut self, id: &str, wanted: &str) -> Result<()> {
        let rig = &self.rig;
        self.monitor
            .until(&format!("{id} is {wanted}"), PATIENCE, |_| state(rig, id) == wanted)
    }

    /// Waits until the application says that a task has ended.
    async fn until_done(&self, id: &str) -> Result<()> {
        let deadline = std::time::Instant::now() + PATIENCE;
        while !self.celery.shop(&["results"]).await?.contains(id) {
            anyhow::ensure!(std::time::Instant::now() < deadline, "{id} does not end");
        }
        Ok(())
    }

    fn until_repaired(&mut self) -> Result<String> {
        let rig = &self.rig;
        let sql = "select concat_ws(' ', repair_outcome, tasks_repaired, tasks_found, tasks_unknown, repair_note)
            from kanchi.gap where cause = 'MonitorRestart' and repaired_at is not null";
        let told = || rig.sql(sql).unwrap_or_default().trim().to_owned();
        self.monitor
            .until("the gap is repaired", PATIENCE, |_| !told().is_empty())?;
        Ok(told())
    }
}

fn state(rig: &Rig, id: &str) -> String {
    let row = rig.sql(&format!(
        "select state from kanchi.task_live where task_id = '{id}' union all select state from kanchi.task where task_id = '{id}' limit 1"
    ));
    row.unwrap_or_default().trim().to_owned()
}

/// Returns state, mark, name, queue and worker of a task.
async fn shown(rig: &Rig, id: &str) -> Result<String> {
    let row = rig.row(id).await?.context("no such task")?;
    let mark = row.mark.map(TaskMark::as_str);
    let texts = [row.name, row.queue, row.worker.map(|_| "a worker".into())].map(Option::unwrap_or_default);
    Ok(format!("{} {} {}", row.state, mark.unwrap_or("-"), texts.join(" ")))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ended_while_nobody_listened_is_read_from_the_result_backend() -> Result<()> {
    let redis = Redis::start_new()?;
    let cache = Redis::with(RedisOptions {
        password: Some(CANARY.into()),
        ..RedisOptions::default()
    })?;
    let mut scene = Scene::new(&redis.url(0), &cache.url(3), "8", true).await?;
    let busy = scene.publish("busy").await?;
    scene.until_state(&busy, "STARTED")?;
    scene.monitor.kill()?;
    // One that lies wholly inside the gap, and the end of the other.
    let inside = scene.publish("success").await?;
    scene.until_done(&inside).await?;
    scene.until_done(&busy).await?;
    scene.monitor = scene.rig.monitor(&[])?;
    assert_eq!(scene.until_repaired()?, "Done 1 1 0");
    let inside = shown(&scene.rig, &inside).await?;
    assert_eq!(inside, "SUCCESS INCOMPLETE shop.tasks.add orders a worker");
    let ended = shown(&scene.rig, &busy).await?;
    assert_eq!(ended, "SUCCESS REPAIRED shop.tasks.hang orders a worker");
    let mut found = Vec::new();
    for (_, events) in scene.rig.chunks(&format!("task_id = '{busy}'"))? {
        found.extend(serde_json::from_str::<Vec<serde_json::Value>>(&events)?);
    }
    found.retain(|event| event["told_by"] == "kanchi");
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0]["type"], "kanchi-task-succeeded");
    assert!(found[0]["result"].is_string(), "{found:?}");
    let metric = |series: &str| scene.monitor.metric(&format!("kanchi_monitor_gap_{series}"));
    assert_eq!(metric("repairs_total{outcome=\"Done\"}"), Some(1.0));
    assert_eq!(metric("tasks_total{outcome=\"repaired\"}"), Some(1.0));
    assert_eq!(metric("tasks_total{outcome=\"found\"}"), Some(1.0));
    let shown = [
        scene.monitor.whole_log(),
        scene.monitor.metrics()?,
        scene.rig.sql("select * from kanchi.gap")?,
    ];
    assert!(shown.iter().all(|text| !text.contains(CANARY)), "a secret is shown");
    scene.worker.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_is_away_is_asked_again() -> Result<()> {
    let redis = Redis::start_new()?;
    let mut cache = Redis::with(RedisOptions {
        password: Some(CANARY.into()),
        ..RedisOptions::default()
    })?;
    let mut scene = Scene::new(&redis.url(0), &cache.url(0), "1", true).await?;
    scene.monitor.kill()?;
    let inside = scene.publish("busy").await?;
    scene.until_done(&inside).await?;
    cache.stop();
    scene.monitor = scene.rig.monitor(&[])?;
    scene.monitor.until("the repair has failed", PATIENCE, |monitor| {
        monitor
            .metric("kanchi_monitor_gap_repair_failures_total")
            .unwrap_or_default()
            > 0.0
    })?;
    cache.start()?;
    assert_eq!(scene.until_repaired()?, "Done 0 1 0");
    assert_eq!(state(&scene.rig, &inside), "SUCCESS");
    assert!(!scene.monitor.whole_log().contains(CANARY), "a secret in the log");
    scene.worker.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_event_queue_is_repaired_from_a_redis_backend() -> Result<()> {
    let rabbit = Rabbitmq::start_new()?;
    let cache = Redis::start_new()?;
    let mut scene = Scene::new(&rabbit.url(), &cache.url(0), "8", true).await?;
    let busy = scene.publish("busy").await?;
    scene.until_state(&busy, "STARTED")?;
    scene.monitor.kill()?;
    scene.until_done(&busy).await?;
    let queue = scene.rig.sql("select event_queue from kanchi.heartbeat")?;
    rabbit.ctl(&["delete_queue", queue.trim()])?;
    scene.monitor = scene.rig.monitor(&[])?;
    scene.until_state(&busy, "SUCCESS")?;
    let rig = &scene.rig;
    scene.monitor.until("the gap is repaired", PATIENCE, |_| {
        let sql = "select count(*) from kanchi.gap where repair_outcome = 'Done' and tasks_repaired = 1";
        rig.sql(sql).is_ok_and(|count| count.trim() == "1")
    })?;
    scene.worker.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_result_backend_the_workers_say_what_runs() -> Result<()> {
    let redis = Redis::start_new()?;
    let mut scene = Scene::new(&redis.url(0), &redis.url(3), "25", false).await?;
    // Both slots are taken, so that the third task is received and no more. While nobody listens the others end, and it begins.
    let (first, second) = (scene.publish("busy").await?, scene.publish("busy").await?);
    scene.until_state(&first, "STARTED")?;
    scene.until_state(&second, "STARTED")?;
    let third = scene.publish("busy").await?;
    scene.until_state(&third, "RECEIVED")?;
    scene.monitor.kill()?;
    scene.until_done(&first).await?;
    scene.until_done(&second).await?;
    scene.monitor = scene.rig.monitor(&[])?;
    let repaired = scene.until_repaired()?;
    assert_eq!(
        repaired,
        "Partial 0 0 2 there is no result backend: only the workers were asked"
    );
    let third_found = shown(&scene.rig, &third).await?;
    assert_eq!(third_found, "STARTED REPAIRED shop.tasks.hang orders a worker");
    assert_eq!(state(&scene.rig, &first), "STARTED", "nobody knows what became of it");
    // Its true end is told, and takes the finding back.
    scene.until_state(&third, "SUCCESS")?;
    let third = shown(&scene.rig, &third).await?;
    assert_eq!(third, "SUCCESS - shop.tasks.hang orders a worker");
    scene.worker.stop().await
}
