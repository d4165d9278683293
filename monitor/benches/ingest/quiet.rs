//! Many monitors of quiet brokers, in one Postgres that has the roles of five times as many: what they cost while nothing
//! happens but heartbeats of workers.

use std::time::{Duration, Instant};

use anyhow::Result;
use kanchi_store::StoreAdmin;
use kanchi_test_load::{Message, RedisPublisher, now};
use kanchi_test_servers::postgres::{Postgres, PostgresOptions};
use kanchi_test_servers::redis::{Redis, RedisOptions};
use kanchi_test_servers::{Memory, memory, memory_of_all, own_processor_seconds, processor_seconds};
use tokio::runtime::Runtime;

use crate::Sizes;
use crate::figures::say;
use crate::rig::{MonitorProcess, Registered, Rig};

/// Roles of brokers for each one that has a monitor here.
const ROLES: u64 = 5;

/// Workers of each broker.
const WORKERS: usize = 3;

/// How often a worker sends a heartbeat, as Celery does by default.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// How long nothing but heartbeats happens before it is measured.
const SETTLE: Duration = Duration::from_secs(10);

/// Connections of each monitor that Postgres has room for, and those of everything else.
const CONNECTIONS: (u64, u64) = (3, 50);

pub(crate) fn measure(runtime: &Runtime, sizes: Sizes) -> Result<()> {
    let count = sizes.quiet;
    let redis = Redis::with(RedisOptions {
        settings: vec![format!("databases {count}")],
        ..RedisOptions::default()
    })?;
    let rig = runtime.block_on(Rig::new(postgres(count)?, &redis.url(0)))?;
    rig.as_owner(&["upkeep"])?;
    let began = Instant::now();
    let brokers = runtime.block_on(register(&rig, &redis, count))?;
    say(&format!(
        "{} roles made in {:.1} s",
        count * ROLES,
        began.elapsed().as_secs_f64()
    ));
    let before = memory_of_all(rig.postgres.pid());
    let began = Instant::now();
    let monitors = start(&brokers)?;
    say(&format!(
        "{count} monitors connected after {:.1} s",
        began.elapsed().as_secs_f64()
    ));

    let mut publisher = RedisPublisher::connect(redis.port())?;
    send_heartbeats(&mut publisher, count, SETTLE)?;
    let (used, began) = (Used::so_far(&rig, &monitors, &redis), Instant::now());
    send_heartbeats(&mut publisher, count, sizes.stream)?;
    let used = Used::so_far(&rig, &monitors, &redis).since(used, began.elapsed());
    say(&table(&rig, &monitors, used, before)?);
    Ok(())
}

/// A server with its own defaults, but for the number of connections.
fn postgres(monitors: u64) -> Result<Postgres> {
    let (each, more) = CONNECTIONS;
    let connections = (monitors * each + more).max(100);
    Postgres::with(&PostgresOptions {
        fsync: true,
        settings: vec![("max_connections".into(), connections.to_string())],
        ..PostgresOptions::default()
    })
}

/// Makes all roles, and the directories of those brokers that get a monitor, each in a database of one Redis.
async fn register(rig: &Rig, redis: &Redis, monitors: u64) -> Result<Vec<Registered>> {
    let admin = StoreAdmin::connect(&rig.owner()?).await?;
    let mut brokers = Vec::new();
    // One is there already.
    for number in 1..monitors * ROLES {
        let url = redis.url((number - 1) as u32);
        let broker = Registered::new(&admin, &format!("quiet-{number:04}"), &url).await?;
        if number <= monitors {
            // The operator's default.
            broker.write_config(|config| config.queues.sample_interval_seconds = 15)?;
            brokers.push(broker);
        }
    }
    admin.close().await;
    Ok(brokers)
}

fn start(brokers: &[Registered]) -> Result<Vec<MonitorProcess>> {
    let mut monitors = Vec::new();
    for broker in brokers {
        monitors.push(broker.monitor(&[])?);
    }
    for monitor in &mut monitors {
        monitor.connected()?;
    }
    Ok(monitors)
}

/// Sends the heartbeats of all workers for a time, spread evenly.
fn send_heartbeats(publisher: &mut RedisPublisher, brokers: u64, length: Duration) -> Result<()> {
    let (began, pause) = (Instant::now(), HEARTBEAT / brokers.max(1) as u32);
    for turn in 0_u32.. {
        let due = began + pause * turn;
        if due >= began + length {
            break;
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        publisher.choose_database((u64::from(turn) % brokers) as u32);
        for worker in 0..WORKERS {
            heartbeat(publisher, worker, u64::from(turn) / brokers)?;
        }
        publisher.flush()?;
    }
    Ok(())
}

fn heartbeat(publisher: &mut RedisPublisher, worker: usize, clock: u64) -> Result<()> {
    let (hostname, time) = (format!("celery@worker-{worker:02}"), now());
    let body = format!(
        r#"{{"hostname": "{hostname}", "utcoffset": 0, "pid": {}, "clock": {clock}, "freq": 2.0, "active": 0, "processed": 0, "loadavg": [0.1, 0.1, 0.1], "sw_ident": "py-celery", "sw_ver": "5.5.3", "sw_sys": "Linux", "timestamp": {}.{:06}, "type": "worker-heartbeat"}}"#,
        1000 + worker,
        time / 1_000_000,
        time % 1_000_000,
    );
    publisher.publish(&Message {
        routing_key: "worker.heartbeat",
        hostname: &hostname,
        body: &body,
        events: 1,
    })
}

/// Processor seconds so far; after [`Self::since`], shares of one processor.
#[derive(Clone, Copy)]
struct Used {
    postgres: f64,
    monitors: f64,
    redis: f64,
}

impl Used {
    fn so_far(rig: &Rig, monitors: &[MonitorProcess], redis: &Redis) -> Self {
        let own = monitors.iter().map(|monitor| own_processor_seconds(monitor.pid()));
        Self {
            postgres: processor_seconds(rig.postgres.pid()),
            monitors: own.sum(),
            redis: processor_seconds(redis.pid()),
        }
    }

    fn since(self, before: Self, time: Duration) -> Self {
        let share = |now: f64, before: f64| (now - before) / time.as_secs_f64();
        Self {
            postgres: share(self.postgres, before.postgres),
            monitors: share(self.monitors, before.monitors),
            redis: share(self.redis, before.redis),
        }
    }
}

fn table(rig: &Rig, monitors: &[MonitorProcess], used: Used, before: Memory) -> Result<String> {
    let connections = rig.sql(
        "select sum(n) || ', ' || min(n) || ' to ' || max(n) || ' a monitor'
         from (select count(*) n from pg_stat_activity where usename like 'kanchi\\_m\\_%' group by usename) each",
    )?;
    let settings = rig.sql(
        "select count(*) || ', max_connections ' || current_setting('max_connections')
         from pg_roles where rolname like 'kanchi\\_m\\_%'",
    )?;
    let workers = rig.sql("select count(*) from kanchi.worker where state = 'online'")?;
    let each: Vec<Memory> = monitors.iter().map(|monitor| memory(monitor.pid())).collect();
    let count = monitors.len() as f64;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let all = each.iter().copied().fold(Memory::default(), |all, one| all + one);
    let most = each.iter().map(|one| one.proportional).max().unwrap_or_default();
    let after = memory_of_all(rig.postgres.pid());
    Ok(format!(
        "\n| {} quiet monitors | |\n|---|---|\n\
         | roles of monitors | {} |\n\
         | workers online | {} |\n\
         | connections | {} |\n\
         | processor, Postgres | {:.1} % |\n\
         | processor, monitors together; each | {:.1} %; {:.2} % |\n\
         | processor, Redis | {:.1} % |\n\
         | memory of a monitor, shared pages divided (PSS): mean; most | {:.1} MiB; {:.1} MiB |\n\
         | of it heap and stacks (anonymous), mean; resident with shared pages, mean | {:.1} MiB; {:.1} MiB |\n\
         | memory of Postgres (PSS): before the monitors; with them | {:.0} MiB; {:.0} MiB |",
        monitors.len(),
        settings.trim(),
        workers.trim(),
        connections.trim(),
        used.postgres * 100.0,
        used.monitors * 100.0,
        used.monitors * 100.0 / count,
        used.redis * 100.0,
        mib(all.proportional) / count,
        mib(most),
        mib(all.anonymous) / count,
        mib(all.resident) / count,
        mib(before.proportional),
        mib(after.proportional),
    ))
}
