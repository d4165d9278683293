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
use crate::rig::Rig;

/// Tasks a second that are opened beforehand, to end within the stream; more than a stream can end.
const OLDER_A_SECOND: u64 = 1_000;

/// Tells the seeds of what is stored beforehand from those of what is measured.
const BEFORE: u64 = 1 << 32;

pub(crate) fn measure(
    runtime: &tokio::runtime::Runtime,
    name: &str,
    workload: Workload,
    sizes: Sizes,
) -> Result<Figures> {
    let redis = Redis::start_new()?;
    let rig = runtime.block_on(Rig::new(postgres()?, &redis.url(0)))?;
    rig.as_owner(&["upkeep"])?;
    let mut publisher = RedisPublisher::connect(redis.port())?;
    let mut monitor = rig.monitor(&[])?;
    monitor.connected()?;

    let mut stream = Stream::new(workload);
    let opened = now();
    if workload.older_in > 0 {
        stream.begin_older(OLDER_A_SECOND * sizes.stream.as_secs(), opened);
        let all = Until::Tasks(stream.tasks());
        publish_and_store(&mut stream, workload.workers, &mut publisher, all, &mut monitor)?;
    }
    let mut before = Stream::new(Workload::realistic(workload.seed + BEFORE));
    publish_and_store(
        &mut before,
        workload.workers,
        &mut publisher,
        Until::Tasks(sizes.older_tasks),
        &mut monitor,
    )?;
    say(&format!(
        "{name}: {} older tasks stored after {} s",
        sizes.older_tasks,
        (now() - opened) / 1_000_000
    ));
    let age = Duration::from_micros((now() - opened) as u64);
    std::thread::sleep(if workload.older_in > 0 {
        sizes.open_age.saturating_sub(age)
    } else {
        Duration::ZERO
    });
    // A fresh process: what is older is in the store and not in memory.
    monitor.terminate()?;
    monitor = rig.monitor(&[])?;
    monitor.connected()?;

    let (published_before, stored_before, checkpoints) = (stream.events(), rig.events()?, checkpoints(&rig.postgres)?);
    let so_far = |rig: &Rig, monitor: u32| Processor::so_far(monitor, rig.postgres.pid(), redis.pid());
    let used = so_far(&rig, monitor.pid());
    let first = now();
    let until = Until::Time(first + sizes.stream.as_micros() as i64);
    publish_and_store(&mut stream, workload.workers, &mut publisher, until, &mut monitor)?;
    let events = stream.events() - published_before;
    let processor = so_far(&rig, monitor.pid()).since(used, events);
    let peak = monitor.peak_memory();
    monitor.terminate()?;
    let end = last_commit(&rig, rig.key)?;
    let checkpoints = self::checkpoints(&rig.postgres)? - checkpoints;

    let mut rig = rig;
    rig.postgres.stop()?;
    rig.postgres.start()?;
    let lost = events as i64 - (rig.events()? - stored_before) as i64;
    Ok(Figures {
        name: format!("Redis, {name}"),
        events,
        lost,
        rate: events as f64 / ((end - first) as f64 / 1e6),
        against: floor::copy_rate(&rig.postgres, workload, events)?,
        processor,
        peak,
        checkpoints,
    })
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

fn checkpoints(postgres: &Postgres) -> Result<u64> {
    let sql = "select checkpoints_timed + checkpoints_req from pg_stat_bgwriter";
    Ok(postgres.sql("kanchi", sql)?.trim().parse()?)
}
