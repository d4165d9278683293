//! The ingest path beside Postgres's own COPY of the same events, in one run on one server with fsync on.
//!
//! For each transport and each stream: events a second from the first publish (RabbitMQ: from the start of the monitor on a
//! full queue) to the last commit, processor of the monitor per event, its highest memory; and F, the rate at which
//! `psql \copy` loads the same events as plain rows with one index. Publisher, broker, Postgres and monitor share the
//! machine, and nothing is tuned. `KANCHI_BENCH_TASKS` sets the number of tasks of each stream.

#[path = "../tests/run/celery.rs"]
mod celery;
#[expect(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../tests/run/rig.rs"]
mod rig;

use std::io::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use kanchi_test_servers::postgres::{Postgres, PostgresOptions};
use kanchi_test_servers::rabbitmq::Rabbitmq;
use kanchi_test_servers::redis::Redis;

use crate::celery::{Body, Sent, Shape, messages, prelude, stream};
use crate::rig::{AmqpPublisher, MonitorProcess, RedisPublisher, Rig, envelope};

const PATIENCE: Duration = Duration::from_mins(15);

/// What one stream gave.
struct Figures {
    name: String,
    rate: f64,
    /// F, or what else it is compared with.
    against: f64,
    processor: f64,
    peak: u64,
    events: usize,
}

struct Load {
    name: &'static str,
    before: Vec<Sent>,
    events: Vec<Sent>,
    bodies: Vec<Body>,
}

fn main() -> Result<()> {
    // `cargo bench` passes flags that are of no use here.
    let tasks: usize = std::env::var("KANCHI_BENCH_TASKS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(100_000);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let mut figures = Vec::new();
    for number in 0..2 {
        let load = load(number, tasks);
        say(&format!(
            "{}: {} events in {} messages",
            load.name,
            load.events.len(),
            load.bodies.len()
        ));
        figures.push(runtime.block_on(redis(&load))?);
        show(figures.last());
        figures.push(runtime.block_on(rabbitmq(&load))?);
        show(figures.last());
    }
    say("");
    say("| stream | events | events/s | compared with | ratio | processor per event | × F | peak memory |");
    say("|---|---|---|---|---|---|---|---|");
    for figures in &figures {
        say(&figures.line());
    }
    Ok(())
}

impl Figures {
    fn line(&self) -> String {
        format!(
            "| {} | {} | {:.0} | {:.0}/s | {:.2} | {:.1} µs | {:.2} | {:.0} MiB |",
            self.name,
            self.events,
            self.rate,
            self.against,
            self.rate / self.against,
            self.processor * 1e6,
            self.processor * self.against,
            self.peak as f64 / f64::from(1 << 20)
        )
    }
}

fn show(figures: Option<&Figures>) {
    if let Some(figures) = figures {
        say(&figures.line());
    }
}

#[expect(clippy::print_stdout, reason = "the figures are what this program is for")]
fn say(text: &str) {
    println!("{text}");
}

fn load(number: u64, tasks: usize) -> Load {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64();
    let (name, shape) = if number == 0 {
        ("short", Shape::short(tasks, 1))
    } else {
        ("realistic", Shape::realistic(tasks, 2))
    };
    let events = stream(shape, now);
    let bodies = messages(&events);
    Load {
        name,
        before: prelude(shape, now),
        events,
        bodies,
    }
}

fn postgres() -> Result<Postgres> {
    // The server's own defaults: fsync, full_page_writes and synchronous_commit on.
    Postgres::with(&PostgresOptions {
        fsync: true,
        ..PostgresOptions::default()
    })
}

fn stored(monitor: &MonitorProcess) -> u64 {
    monitor.metric("kanchi_monitor_batch_events_sum").unwrap_or_default() as u64
}

async fn redis(load: &Load) -> Result<Figures> {
    let redis = Redis::start_new()?;
    let rig = Rig::new(postgres()?, &redis.url(0)).await?;
    let mut publisher = RedisPublisher::connect(redis.port())?;
    let before = messages(&load.before);
    let mut monitor = rig.monitor(&[])?;
    monitor.connected()?;
    if !before.is_empty() {
        for body in &before {
            publisher.publish(body.routing_key, &envelope(body))?;
        }
        publisher.flush()?;
        let all = load.before.len() as u64;
        monitor.until("the beginning is stored", PATIENCE, |monitor| stored(monitor) >= all)?;
        // A fresh process: the older tasks are in the store and not in memory.
        monitor.terminate()?;
        monitor = rig.monitor(&[])?;
        monitor.connected()?;
    }
    // Made before the clock starts: making envelopes is Celery's work, not the monitor's.
    let envelopes: Vec<Vec<u8>> = load.bodies.iter().map(envelope).collect();
    let processor = monitor.processor();
    let started = Instant::now();
    for (body, envelope) in load.bodies.iter().zip(&envelopes) {
        publisher.publish(body.routing_key, envelope)?;
    }
    publisher.flush()?;
    drop(envelopes);
    let all = load.events.len() as u64;
    monitor.until("everything is stored", PATIENCE, |monitor| {
        let dropped = monitor
            .metric("kanchi_monitor_dropped_messages_total")
            .unwrap_or_default();
        let cut = gaps(monitor);
        stored(monitor) >= all || dropped > 0.0 || cut > 0.0
    })?;
    let elapsed = started.elapsed().as_secs_f64();
    if stored(&monitor) < all {
        say(&format!(
            "redis {}: only {} of {all} events were stored: {}",
            load.name,
            stored(&monitor),
            monitor.log()
        ));
    }
    let processor = (monitor.processor() - processor) / all as f64;
    let peak = monitor.peak_memory();
    monitor.terminate()?;
    let against = copy_rate(&rig.postgres, &load.events)?;
    Ok(Figures {
        name: format!("Redis, {} (F)", load.name),
        rate: all as f64 / elapsed,
        against,
        processor,
        peak,
        events: load.events.len(),
    })
}

/// Sum of all gaps but the one of a restart, which has been counted before the stream began.
fn gaps(monitor: &MonitorProcess) -> f64 {
    ["SubscriberCut", "SpoolFull"]
        .iter()
        .filter_map(|cause| monitor.metric(&format!("kanchi_monitor_gaps_total{{reason=\"{cause}\"}}")))
        .sum()
}

async fn rabbitmq(load: &Load) -> Result<Figures> {
    let rabbit = Rabbitmq::start_new()?;
    let rig = Rig::new(postgres()?, &rabbit.url()).await?;
    let publisher = AmqpPublisher::connect(&rabbit.url()).await?;
    // The queue is made by a first monitor and stays when it ends.
    let mut monitor = rig.monitor(&[])?;
    monitor.connected()?;
    let before = messages(&load.before);
    for body in &before {
        publisher.publish(body.routing_key, body.json.as_bytes()).await?;
    }
    publisher.flush().await?;
    let first = load.before.len() as u64;
    monitor.until("the beginning is stored", PATIENCE, |monitor| stored(monitor) >= first)?;
    monitor.terminate()?;
    // A second queue gets the same messages, for the consumer that only acknowledges.
    let queue = "bench.only-acknowledged";
    let options = lapin::options::QueueDeclareOptions {
        durable: true,
        ..Default::default()
    };
    publisher
        .channel
        .queue_declare(queue.into(), options, lapin::types::FieldTable::default())
        .await?;
    publisher
        .channel
        .queue_bind(
            queue.into(),
            "celeryev".into(),
            "#".into(),
            lapin::options::QueueBindOptions::default(),
            lapin::types::FieldTable::default(),
        )
        .await?;
    for body in &load.bodies {
        publisher.publish(body.routing_key, body.json.as_bytes()).await?;
    }
    publisher.flush().await?;

    let all = load.events.len() as u64;
    let started = Instant::now();
    let mut monitor = rig.monitor(&[])?;
    monitor.until("everything is stored", PATIENCE, |monitor| stored(monitor) >= all)?;
    let elapsed = started.elapsed().as_secs_f64();
    let processor = monitor.processor() / all as f64;
    let peak = monitor.peak_memory();
    monitor.terminate()?;

    let against = acknowledge_beside_copy(&rabbit, queue, load, &rig.postgres).await?;
    Ok(Figures {
        name: format!("RabbitMQ, {} (acknowledge beside COPY)", load.name),
        rate: all as f64 / elapsed,
        against,
        processor,
        peak,
        events: load.events.len(),
    })
}

/// A consumer that only acknowledges, beside a COPY of the same rows: the rate at which both are done.
async fn acknowledge_beside_copy(rabbit: &Rabbitmq, queue: &str, load: &Load, postgres: &Postgres) -> Result<f64> {
    let file = rows(&load.events)?;
    prepare_copy(postgres)?;
    let connection = lapin::Connection::connect(&rabbit.url(), lapin::ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel
        .basic_qos(2_000, lapin::options::BasicQosOptions::default())
        .await?;
    let mut consumer = channel
        .basic_consume(
            queue.into(),
            "bench".into(),
            lapin::options::BasicConsumeOptions::default(),
            lapin::types::FieldTable::default(),
        )
        .await?;
    let started = Instant::now();
    let mut copy = copy_command(postgres, file.path()).spawn()?;
    for number in 1..=load.bodies.len() {
        let delivery = consumer.next().await.context("the consumer ended")??;
        if number % 500 == 0 || number == load.bodies.len() {
            delivery.ack(lapin::options::BasicAckOptions { multiple: true }).await?;
        }
    }
    anyhow::ensure!(
        tokio::task::spawn_blocking(move || copy.wait()).await??.success(),
        "psql"
    );
    Ok(load.events.len() as f64 / started.elapsed().as_secs_f64())
}

/// F: the rate at which `psql \copy` loads the same events as plain rows.
fn copy_rate(postgres: &Postgres, events: &[Sent]) -> Result<f64> {
    let file = rows(events)?;
    prepare_copy(postgres)?;
    let started = Instant::now();
    anyhow::ensure!(copy_command(postgres, file.path()).status()?.success(), "psql");
    Ok(events.len() as f64 / started.elapsed().as_secs_f64())
}

fn prepare_copy(postgres: &Postgres) -> Result<()> {
    postgres.sql(
        "kanchi",
        "create table public.event_row (broker integer, task_id text, type text, at timestamptz, worker text, payload jsonb);
         create index on public.event_row (broker, task_id)",
    )?;
    // What the run before left dirty is not this one's cost.
    postgres.sql("kanchi", "checkpoint")?;
    Ok(())
}

fn copy_command(postgres: &Postgres, file: &std::path::Path) -> Command {
    // Debian puts it on the path, whatever the version.
    let mut command = Command::new("psql");
    command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &postgres.url("kanchi"), "-c"]);
    command.arg(format!("\\copy public.event_row from '{}'", file.display()));
    command
}

fn rows(events: &[Sent]) -> Result<tempfile::NamedTempFile> {
    let mut file = tempfile::NamedTempFile::new()?;
    {
        let mut writer = std::io::BufWriter::new(&mut file);
        for event in events {
            // COPY's text form: a backslash is doubled.
            let payload = event.json.replace('\\', "\\\\");
            let at = format!("1970-01-01T00:00:00Z\t{}", event.worker);
            let at = at.replace("1970-01-01T00:00:00Z", &timestamp(event.timestamp));
            writeln!(writer, "1\t{}\t{}\t{at}\t{payload}", event.task, event.kind)?;
        }
        writer.flush()?;
    }
    Ok(file)
}

/// Returns a timestamp that Postgres reads, for example `2026-11-21 08:00:00.123456+00`.
fn timestamp(seconds: f64) -> String {
    let whole = seconds.floor() as i64;
    let (days, rest) = (whole.div_euclid(86_400), whole.rem_euclid(86_400));
    // Howard Hinnant's `civil_from_days`.
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    let micros = ((seconds - seconds.floor()) * 1e6) as u32;
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{micros:06}+00",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}
