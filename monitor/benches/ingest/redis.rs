//! Redis: published in real time, as fast as the monitor makes it durable.

use anyhow::Result;
use kanchi_store::BrokerKey;
use kanchi_test_load::{Stream, Workload, now};

use crate::Sizes;
use crate::drive::{Until, publish_and_store};
use crate::figures::{Figures, Processor};
use crate::floor;
use crate::older::Store;
use crate::rig::{MonitorProcess, Rig};
use crate::server::Written;

/// Returns a stream of this name for a run. No two streams have a task in common.
pub(crate) fn stream(name: &str, run: u64) -> Stream {
    Stream::new(match name {
        "short" => Workload::short(2 * run),
        _ => Workload::realistic(2 * run + 1),
    })
}

/// Measures a stream.
pub(crate) fn measure(store: &mut Store, name: &str, mut stream: Stream, sizes: Sizes) -> Result<Figures> {
    // A fresh process: what is older is in the store and not in memory.
    let mut monitor = store.rig.monitor(&[])?;
    monitor.connected()?;
    let (before, stored, written) = (stream.events(), store.rig.events()?, Written::so_far(&store.rig)?);
    let used = used(store, &monitor);
    let first = now();
    let until = Until::TimeAndEvents(first + sizes.stream.as_micros() as i64, before + sizes.events);
    publish_and_store(&mut stream, &mut store.publisher, until, &mut monitor)?;
    let events = stream.events() - before;
    let processor = self::used(store, &monitor).since(used, events);
    let peak = monitor.peak_memory();
    monitor.terminate()?;
    let end = last_commit(&store.rig, store.rig.key)?;
    let written = Written::so_far(&store.rig)?.since(written);
    store.rig.postgres.stop()?;
    store.rig.postgres.start()?;
    Ok(Figures {
        name: format!("Redis, {name}"),
        events,
        lost: events as i64 - (store.rig.events()? - stored) as i64,
        rate: events as f64 / ((end - first) as f64 / 1e6),
        against: floor::copy_rate(&store.rig.postgres, stream.workload(), events)?,
        processor,
        peak,
        written,
        required: if name == "short" { 0.9 } else { 0.5 },
    })
}

fn used(store: &Store, monitor: &MonitorProcess) -> Processor {
    Processor::so_far(monitor.pid(), store.rig.postgres.pid(), store.redis.pid())
}

/// Returns when the newest batch of a broker was committed, in microseconds since 1970.
pub(crate) fn last_commit(rig: &Rig, key: BrokerKey) -> Result<i64> {
    let key = key.0;
    let sql = format!(
        "select (extract(epoch from max(committed_at)) * 1000000)::bigint from kanchi.batch where broker_id = {key}"
    );
    Ok(rig.sql(&sql)?.trim().parse()?)
}
