//! Stands in for the monitors: their heartbeats in the store.
//!
//! A monitor calls `kanchi.beat` under its own role every five seconds. Here one statement of the superuser does that for
//! all brokers, so that Postgres has the rows to read, without a thousand connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;

use crate::cluster::Cluster;

/// How often a new broker's monitor is looked for.
const STARTED: Duration = Duration::from_secs(1);

/// Heartbeats come with each so many looks.
const BEAT: u32 = 5;

/// A monitor that starts tells of its connection.
const START: &str = "
    with started as (
        insert into kanchi.heartbeat (broker_id, beat_at, instance, version, connection, broker_version, events_per_second,
            workers_online, messages_queued)
        select broker_id, clock_timestamp(), 'simulated', '0.1.0', 'Connected', 'Redis 7.2', 12, 4, 60
        from kanchi.broker where retired_at is null
        on conflict do nothing returning broker_id
    ), queues as (
        insert into kanchi.queue (broker_id, name, ready, consumers, sampled_at)
        select broker_id, 'queue-' || number, 10 * number, 2, clock_timestamp()
        from started, generate_series(1, 3) as number
    )
    select pg_notify('kanchi_status', '') where exists (select from started)";

const STEADY: &str = "update kanchi.heartbeat set beat_at = clock_timestamp()";

const CHANGING: &str = "
    update kanchi.heartbeat set beat_at = clock_timestamp(), workers_online = 1 + floor(random() * 90),
        messages_queued = floor(random() * 90), events_per_second = 1 + random() * 1000";

/// What the heartbeats say.
#[derive(Debug, Default)]
pub(crate) struct Monitors {
    /// Every figure is another with each heartbeat.
    pub(crate) change: AtomicBool,
}

/// Beats until it is dropped.
pub(crate) async fn run(cluster: Arc<Cluster>, database: &'static str, monitors: Arc<Monitors>) -> Result<()> {
    let mut tick = tokio::time::interval(STARTED);
    let mut looks = 0_u32;
    loop {
        tick.tick().await;
        looks = looks.wrapping_add(1);
        let mut sql = START.to_owned();
        if looks.is_multiple_of(BEAT) {
            let changes = monitors.change.load(Ordering::Relaxed);
            sql = format!("{sql}; {}", if changes { CHANGING } else { STEADY });
        }
        let cluster = Arc::clone(&cluster);
        tokio::task::spawn_blocking(move || cluster.postgres.sql(database, &sql)).await??;
    }
}
