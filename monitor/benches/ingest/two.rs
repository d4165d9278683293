//! Two monitors of two brokers store into one Postgres, beside one that has it for itself.

use std::thread;

use anyhow::{Context as _, Result, bail};
use kanchi_store::BrokerKey;
use kanchi_test_load::{RedisPublisher, Stream, Workload, now};
use kanchi_test_servers::redis::Redis;
use tokio::runtime::Runtime;

use crate::Sizes;
use crate::drive::{Until, publish_and_store};
use crate::figures::{Figures, Processor};
use crate::floor;
use crate::leader::Leader;
use crate::older::{postgres, register};
use crate::redis::last_commit;
use crate::rig::{MonitorProcess, Rig};
use crate::server::Written;

/// Tells the seeds of two streams that are published at once.
const SECOND: u64 = 1 << 34;

/// Returns the figures of one monitor beside F, and those of two, whose rates are added, beside the one's.
pub(crate) fn measure(runtime: &Runtime, workload: Workload, sizes: Sizes) -> Result<[Figures; 2]> {
    let (one, postgres) = together(runtime, &["orders"], workload, sizes)?;
    let one = Figures {
        against: floor::copy_rate(&postgres.postgres, workload, one.events)?,
        ..one
    };
    drop(postgres);
    let (two, _postgres) = together(runtime, &["orders", "mail"], workload, sizes)?;
    let two = Figures {
        against: one.rate,
        ..two
    };
    Ok([one, two])
}

/// Measures monitors of so many brokers at once, each with a publisher of its own, on an empty store.
fn together(runtime: &Runtime, names: &[&str], workload: Workload, sizes: Sizes) -> Result<(Figures, Rig)> {
    let redises = names.iter().map(|_| Redis::start_new()).collect::<Result<Vec<_>>>()?;
    let first_url = redises.first().context("no broker")?.url(0);
    let mut rig = runtime.block_on(Rig::new(postgres()?, &first_url))?;
    rig.as_owner(&["upkeep"])?;
    let _leader = Leader::start(rig.owner()?)?;
    let mut others = Vec::new();
    for (name, redis) in names.iter().zip(&redises).skip(1) {
        others.push(runtime.block_on(register(&rig, name, &redis.url(0)))?);
    }
    let mut keys = vec![rig.key];
    keys.extend(others.iter().map(|other| other.key));
    let mut monitors = vec![rig.monitor(&[])?];
    for other in &others {
        monitors.push(other.monitor(&[])?);
    }
    for monitor in &mut monitors {
        monitor.connected()?;
    }

    let written = Written::so_far(&rig)?;
    let used = used(&rig, &monitors, &redises);
    let first = now();
    let published = publish_all(
        &mut monitors,
        &redises,
        workload,
        first + sizes.stream.as_micros() as i64,
    )?;
    let events: u64 = published.iter().sum();
    let processor = self::used(&rig, &monitors, &redises).since(used, events);
    let peak = monitors
        .iter()
        .map(MonitorProcess::peak_memory)
        .max()
        .unwrap_or_default();
    for monitor in &mut monitors {
        monitor.terminate()?;
    }
    let written = Written::so_far(&rig)?.since(written);
    rig.postgres.stop()?;
    rig.postgres.start()?;
    let (mut rate, mut lost) = (0.0, 0);
    for (key, published) in keys.into_iter().zip(published) {
        lost += published as i64 - stored(&rig, key)?;
        rate += published as f64 / ((last_commit(&rig, key)? - first) as f64 / 1e6);
    }
    let figures = Figures {
        name: match names.len() {
            1 => "one monitor on an empty store".into(),
            more => format!("{more} monitors (floor: one)"),
        },
        events,
        lost,
        rate,
        against: 0.0,
        processor,
        peak,
        written,
        required: if names.len() == 1 { 0.5 } else { 1.0 },
    };
    Ok((figures, rig))
}

/// Publishes a stream to each broker at the same time, until then; returns how many events each got.
fn publish_all(monitors: &mut [MonitorProcess], redises: &[Redis], workload: Workload, end: i64) -> Result<Vec<u64>> {
    thread::scope(|scope| {
        let mut publishers = Vec::new();
        for (number, (monitor, redis)) in monitors.iter_mut().zip(redises).enumerate() {
            let seed = workload.seed + number as u64 * SECOND;
            publishers.push(scope.spawn(move || -> Result<u64> {
                let mut stream = Stream::new(Workload { seed, ..workload });
                let mut publisher = RedisPublisher::connect(redis.port())?;
                let until = Until::Time(end);
                publish_and_store(&mut stream, &mut publisher, until, monitor)?;
                Ok(stream.events())
            }));
        }
        let ended = publishers.into_iter().map(thread::ScopedJoinHandle::join);
        ended
            .map(|ended| ended.unwrap_or_else(|_| bail!("a publisher panicked")))
            .collect()
    })
}

fn used(rig: &Rig, monitors: &[MonitorProcess], redises: &[Redis]) -> Processor {
    let mut all = Processor::so_far(0, rig.postgres.pid(), 0);
    for (monitor, redis) in monitors.iter().zip(redises) {
        let more = Processor::so_far(monitor.pid(), 0, redis.pid());
        all.monitor += more.monitor;
        all.broker += more.broker;
    }
    all
}

/// Returns how many events of a broker are stored.
fn stored(rig: &Rig, key: BrokerKey) -> Result<i64> {
    let key = key.0;
    let sql = format!("select coalesce(sum(event_count), 0) from kanchi.event_chunk where broker_id = {key}");
    Ok(rig.sql(&sql)?.trim().parse()?)
}
