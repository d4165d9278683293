//! Redis: published in real time, as fast as the monitor makes it durable.

use std::time::Duration;

use anyhow::Result;
use kanchi_store::BrokerKey;
use kanchi_test_load::{RedisPublisher, Stream, Workload, now};
use kanchi_test_servers::postgres::{Postgres, PostgresOptions};
use kanchi_test_servers::redis::Redis;

use crate::Sizes;
use crate::drive::{Until, publish_and_store};
use crate::figures::{Figures, Processor, say};
use crate::floor;
use crate::leader::Leader;
use crate::rig::{MonitorProcess, Rig};
use crate::server::Written;

/// Tasks a second that are opened beforehand, to end within the stream; more than a stream can end.
const OLDER_A_SECOND: u64 = 500;

/// Tells the seeds of what is stored beforehand from those of what is measured.
const BEFORE: u64 = 1 << 32;

/// Measures the streams of these names, in turn and each so often, all beside the same older tasks.
pub(crate) fn measure(runtime: &tokio::runtime::Runtime, names: &[&'static str], sizes: Sizes) -> Result<Vec<Figures>> {
    let redis = Redis::start_new()?;
    let rig = runtime.block_on(Rig::new(postgres()?, &redis.url(0)))?;
    rig.as_owner(&["upkeep"])?;
    let publisher = RedisPublisher::connect(redis.port())?;
    let _leader = Leader::start(rig.owner()?)?;
    let mut store = Store { redis, rig, publisher };
    let streams = store.prepared(names, sizes)?;
    streams
        .into_iter()
        .map(|(name, stream)| Ok(store.measure(name, stream, sizes)?.shown()))
        .collect()
}

/// Where all streams are stored, and who publishes them.
struct Store {
    redis: Redis,
    rig: Rig,
    publisher: RedisPublisher,
}

impl Store {
    /// Stores the older tasks, and opens for each stream those that end in it.
    fn prepared(&mut self, names: &[&'static str], sizes: Sizes) -> Result<Vec<(&'static str, Stream)>> {
        let mut monitor = self.rig.monitor(&[])?;
        monitor.connected()?;
        let opened = now();
        let mut streams = Vec::new();
        for run in 1..=sizes.runs {
            for name in names {
                // No two streams have a task in common.
                let workload = match *name {
                    "short" => Workload::short(2 * run),
                    _ => Workload::realistic(2 * run + 1),
                };
                let mut stream = Stream::new(workload);
                if workload.older_in > 0 {
                    stream.begin_older(OLDER_A_SECOND * sizes.stream.as_secs(), opened);
                    let all = Until::Tasks(stream.tasks());
                    publish_and_store(&mut stream, &mut self.publisher, all, &mut monitor)?;
                }
                streams.push((*name, stream));
            }
        }
        let mut before = Stream::new(Workload::realistic(BEFORE));
        let all = Until::Tasks(sizes.older_tasks);
        publish_and_store(&mut before, &mut self.publisher, all, &mut monitor)?;
        monitor.terminate()?;
        let age = Duration::from_micros((now() - opened) as u64);
        say(&format!(
            "{} older tasks stored after {} s",
            sizes.older_tasks,
            age.as_secs()
        ));
        if streams.iter().any(|(_, stream)| stream.tasks() > 0) {
            std::thread::sleep(sizes.open_age.saturating_sub(age));
        }
        Ok(streams)
    }

    fn measure(&mut self, name: &str, mut stream: Stream, sizes: Sizes) -> Result<Figures> {
        // A fresh process: what is older is in the store and not in memory.
        let mut monitor = self.rig.monitor(&[])?;
        monitor.connected()?;
        let (before, stored, written) = (stream.events(), self.rig.events()?, Written::so_far(&self.rig)?);
        let used = self.used(&monitor);
        let first = now();
        let until = Until::TimeAndEvents(first + sizes.stream.as_micros() as i64, before + sizes.events);
        publish_and_store(&mut stream, &mut self.publisher, until, &mut monitor)?;
        let events = stream.events() - before;
        let processor = self.used(&monitor).since(used, events);
        let peak = monitor.peak_memory();
        monitor.terminate()?;
        let end = last_commit(&self.rig, self.rig.key)?;
        let written = Written::so_far(&self.rig)?.since(written);
        self.rig.postgres.stop()?;
        self.rig.postgres.start()?;
        Ok(Figures {
            name: format!("Redis, {name}"),
            events,
            lost: events as i64 - (self.rig.events()? - stored) as i64,
            rate: events as f64 / ((end - first) as f64 / 1e6),
            against: floor::copy_rate(&self.rig.postgres, stream.workload(), events)?,
            processor,
            peak,
            written,
            required: if name == "short" { 0.9 } else { 0.5 },
        })
    }

    fn used(&self, monitor: &MonitorProcess) -> Processor {
        Processor::so_far(monitor.pid(), self.rig.postgres.pid(), self.redis.pid())
    }
}

/// Returns when the newest batch of a broker was committed, in microseconds since 1970.
pub(crate) fn last_commit(rig: &Rig, key: BrokerKey) -> Result<i64> {
    let key = key.0;
    let sql = format!(
        "select (extract(epoch from max(committed_at)) * 1000000)::bigint from kanchi.batch where broker_id = {key}"
    );
    Ok(rig.sql(&sql)?.trim().parse()?)
}

/// A server with its own defaults.
pub(crate) fn postgres() -> Result<Postgres> {
    Postgres::with(&PostgresOptions {
        fsync: true,
        ..PostgresOptions::default()
    })
}
