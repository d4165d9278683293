//! The ingest path beside the floor: how fast events become durable, and what that costs, in one run on one machine.
//!
//! Redis: a stream is published in real time, as fast as the monitor stores it; RabbitMQ: a full queue is emptied. F is the
//! rate at which `psql \copy` loads the same events as plain rows with one index. Publisher, broker, Postgres and monitor
//! share the machine; Postgres has its own defaults (fsync, full_page_writes, synchronous_commit on). What is stored is
//! counted after a restart of Postgres. Then other programs get the same stream, two monitors share a Postgres, and many
//! have nothing to do. `docs/performance.md` says how to run it and shows the figures.

mod drive;
mod figures;
mod floor;
mod leader;
mod listener;
mod older;
mod peers;
mod quiet;
mod rabbitmq;
mod redis;
#[expect(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../../tests/run/rig.rs"]
mod rig;
mod server;
mod two;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kanchi_contract::EventQueueType;
use kanchi_test_load::Workload;

use crate::figures::{Figures, medians, say};

/// How much is measured; each has an environment variable, `FULL=1` sets those of the promise.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// How often everything is measured; medians are shown.
    runs: u64,
    /// How long a Redis stream is published at least.
    stream: Duration,
    /// Events that a Redis stream has at least.
    events: u64,
    /// Tasks that are stored before the measurement begins.
    older_tasks: u64,
    /// How old the tasks are at least that stay open over the measurement's beginning.
    open_age: Duration,
    /// Events in a RabbitMQ queue.
    queued: u64,
    /// Monitors of quiet brokers.
    quiet: u64,
}

impl Sizes {
    fn from_environment() -> Result<Self> {
        let full = std::env::var("FULL").is_ok_and(|full| full == "1");
        let size = |name: &str, small: u64, promised: u64| match std::env::var(name) {
            Ok(text) => text
                .parse()
                .with_context(|| format!("{name} must be a number, not {text:?}")),
            Err(_) => Ok(if full { promised } else { small }),
        };
        Ok(Self {
            runs: size("KANCHI_BENCH_RUNS", 1, 5)?,
            stream: Duration::from_secs(size("KANCHI_BENCH_SECONDS", 20, 60)?),
            events: size("KANCHI_BENCH_EVENTS", 0, 10_000_000)?,
            older_tasks: size("KANCHI_BENCH_OLDER_TASKS", 100_000, 10_000_000)?,
            open_age: Duration::from_secs(size("KANCHI_BENCH_OPEN_AGE", 10, 600)?),
            queued: size("KANCHI_BENCH_QUEUED", 500_000, 2_000_000)?,
            quiet: size("KANCHI_BENCH_QUIET", 20, 200)?,
        })
    }
}

/// Measures what is measured in one store, beside the same older tasks.
fn beside_older_tasks(
    runtime: &tokio::runtime::Runtime,
    wanted: &impl Fn(&str) -> bool,
    sizes: Sizes,
    all: &mut Vec<Figures>,
) -> Result<()> {
    let mut names = vec!["short", "realistic"];
    names.retain(|name| wanted("redis") || wanted(&format!("redis-{name}")));
    let mut queues = vec![
        (EventQueueType::Classic, "rabbitmq-classic"),
        (EventQueueType::Quorum, "rabbitmq-quorum"),
    ];
    queues.retain(|(_, name)| wanted("rabbitmq") || wanted(name));
    if names.is_empty() && queues.is_empty() {
        return Ok(());
    }
    let runs = 1..=sizes.runs;
    let redis: Vec<_> = runs
        .clone()
        .flat_map(|run| names.iter().map(move |name| (run, *name)))
        .collect();
    let mut streams: Vec<_> = redis.iter().map(|(run, name)| redis::stream(name, *run)).collect();
    let mut store = older::Store::filled(runtime, &mut streams, sizes)?;
    for ((_, name), stream) in redis.into_iter().zip(streams) {
        all.push(redis::measure(&mut store, name, stream, sizes)?.shown());
    }
    for run in runs {
        for (queue, _) in &queues {
            all.push(rabbitmq::measure(&mut store, runtime, *queue, run, sizes)?.shown());
        }
    }
    Ok(())
}

fn main() -> Result<()> {
    let sizes = Sizes::from_environment()?;
    let only = std::env::var("KANCHI_BENCH").unwrap_or_default();
    let wanted = |name: &str| only.is_empty() || only.split(',').any(|word| word == name);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    say(&format!("{sizes:?}"));
    let mut all: Vec<Figures> = Vec::new();
    beside_older_tasks(&runtime, &wanted, sizes, &mut all)?;
    for run in (1..=sizes.runs).filter(|_| wanted("two")) {
        all.extend(two::measure(&runtime, Workload::realistic(run), sizes)?.map(Figures::shown));
    }
    if !all.is_empty() {
        say(&medians(&all));
    }
    if wanted("peers") {
        peers::measure(&runtime, Workload::realistic(1), sizes)?;
    }
    if wanted("quiet") {
        quiet::measure(&runtime, sizes)?;
    }
    let lost: i64 = all.iter().map(|figures| figures.lost.abs()).sum();
    ensure!(
        lost == 0,
        "{lost} events are missing from the store, or are in it twice"
    );
    Ok(())
}
