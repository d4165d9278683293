//! A store, a monitor that judges soon, and real workers of one broker.

use std::time::Duration;

use anyhow::{Context, Result};
use kanchi_contract::MonitorConfig;
use kanchi_test_servers::celery::{Celery, NEWEST, Worker, WorkerOptions};
use kanchi_test_servers::clock::Clock;
use kanchi_test_servers::postgres::Postgres;

use crate::rig::{MonitorProcess, Rig};

pub(crate) const PATIENCE: Duration = Duration::from_mins(2);

/// Twice a worker's heartbeat interval: no silence is too short to be judged.
pub(crate) const OFFLINE_AFTER: u64 = 4;

/// Seconds that a task runs which is to outlast the judgement: silence, question, grace and some more.
const BUSY: &str = "25";

/// Short times, so that a judgement is made while a test waits for it.
fn impatient(config: &mut MonitorConfig) {
    config.workers.offline_after_seconds = OFFLINE_AFTER;
    config.workers.orphan_grace_seconds = 1;
}

/// A store, a monitor and an application on one broker.
pub(crate) struct Scene {
    pub(crate) rig: Rig,
    pub(crate) monitor: MonitorProcess,
    pub(crate) celery: Celery,
}

impl Scene {
    pub(crate) async fn new(broker_url: &str, change: impl FnOnce(&mut MonitorConfig)) -> Result<Self> {
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
    pub(crate) async fn busy_worker(&mut self, arguments: &[&str]) -> Result<(Worker, String)> {
        let worker = self.worker(arguments).await?;
        Ok((worker, self.running_task().await?))
    }

    /// Publishes a task that runs for long; returns once it is known to run.
    pub(crate) async fn running_task(&mut self) -> Result<String> {
        let published = self.celery.publish("busy", 1).await?;
        let id = published.first().context("nothing was published")?.id.clone();
        self.until_state(&id, "STARTED")?;
        Ok(id)
    }

    pub(crate) async fn worker(&self, arguments: &[&str]) -> Result<Worker> {
        self.celery.start_worker(&one_slot(arguments)).await
    }

    /// Starts a worker that runs by a clock of its own.
    pub(crate) async fn worker_with_clock(&self, clock: &Clock) -> Result<Worker> {
        let options = WorkerOptions {
            clock: Some(clock.clone()),
            ..one_slot(&[])
        };
        self.celery.start_worker(&options).await
    }

    pub(crate) fn until_state(&mut self, id: &str, state: &str) -> Result<()> {
        let rig = &self.rig;
        self.monitor.until(&format!("{id} is {state}"), PATIENCE, |_| {
            task(rig, id).is_ok_and(|(found, _)| found == state)
        })
    }

    /// Kills a worker, and waits until its task is orphaned: it was found lost, once.
    pub(crate) async fn loses(&mut self, doomed: Worker, id: &str) -> Result<()> {
        doomed.kill().await?;
        self.until_state(id, "ORPHANED")?;
        assert_eq!(self.findings()?, (1, 0));
        Ok(())
    }

    /// Waits until a task has succeeded and asserts that nobody ever took its worker for lost.
    pub(crate) fn ends_without_a_false_orphan(&mut self, id: &str) -> Result<()> {
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
    pub(crate) fn findings(&self) -> Result<(usize, usize)> {
        let chunks = self.rig.chunks("true")?;
        let count = |kind: &str| -> usize {
            let said = format!("\"type\":\"{kind}\"");
            chunks.iter().map(|(_, events)| events.matches(&said).count()).sum()
        };
        Ok((count("kanchi-worker-lost"), count("kanchi-worker-back")))
    }

    /// Waits for some seconds that nothing else marks the end of: a silence.
    pub(crate) fn let_pass(&mut self, seconds: u64) -> Result<()> {
        let began = std::time::Instant::now();
        self.monitor.until("some seconds have passed", PATIENCE, |_| {
            began.elapsed() > Duration::from_secs(seconds)
        })
    }

    pub(crate) fn workers(&self) -> Result<String> {
        self.rig
            .sql("select string_agg(state, ' ' order by state) from kanchi.worker")
    }
}

fn one_slot(arguments: &[&str]) -> WorkerOptions {
    WorkerOptions {
        concurrency: 1,
        queues: "orders".into(),
        arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        ..WorkerOptions::default()
    }
}

/// Returns state and mark of a task.
pub(crate) fn task(rig: &Rig, id: &str) -> Result<(String, String)> {
    let row = rig.sql(&format!(
        "select state, '' from kanchi.task_live where task_id = '{id}'
         union all select state, coalesce(mark, '') from kanchi.task where task_id = '{id}' limit 1"
    ))?;
    let (state, mark) = row.trim().split_once('|').context("no such task")?;
    Ok((state.to_owned(), mark.to_owned()))
}
