//! The named queries at scale: `make bench-queries`.
//!
//! Loads tasks and events as thirty days of eight brokers would have left them, restarts Postgres, asks each query once
//! (cold), then a mix of all of them from four connections (warm). `docs/adr/0003-queries.md` has the figures.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people who measure"
)]

#[path = "shared/environment.rs"]
mod environment;
#[path = "queries/mix.rs"]
mod mix;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kanchi_domain::{BodyEncoding, Limits, RawMessage, TaskFacts, UnixMicros, decode};
use kanchi_store::statistics::{Histogram, bucket_of};
use kanchi_store::{PackedEvents, StoreAdmin, StoreQuery, StoreUrl};
use kanchi_test_servers::postgres::{Postgres, PostgresOptions};
use sqlx::{Connection as _, Executor as _, PgConnection};

use crate::environment::{now, number};
use crate::mix::{Asked, Mix};

const DAYS: i64 = 30;
const LIVE_TASKS: i64 = 20_000;
const CONNECTIONS: u64 = 4;
const SETTINGS: [(&str, &str); 5] = [
    ("shared_buffers", "1GB"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "30min"),
    ("max_locks_per_transaction", "256"),
    ("synchronous_commit", "off"),
];

fn main() -> anyhow::Result<()> {
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> anyhow::Result<()> {
    let full = std::env::var("FULL").is_ok_and(|value| value == "1");
    let tasks = number("KANCHI_BENCH_TASKS", if full { 10_000_000 } else { 200_000 })?;
    let rounds = number("KANCHI_BENCH_ROUNDS", 1_000)?;
    // A database that an earlier run, or somebody else, has filled; its server is restarted by them.
    let server = match std::env::var("KANCHI_BENCH_STORE") {
        Ok(_) => None,
        Err(_) => Some(filled(tasks).await?),
    };
    let url = match &server {
        Some((_, url)) => url.clone(),
        None => std::env::var("KANCHI_BENCH_STORE")?,
    };
    let owner = StoreUrl::parse(&url)?;
    let mut connection = PgConnection::connect(&url).await?;
    let rows: i64 = sqlx::query_scalar(
        "select (select sum(reltuples)::bigint from pg_class
            where relnamespace = 'kanchi'::regnamespace and relname ~ '^task_[0-9]+_[0-9]+$' and relkind = 'r')",
    )
    .fetch_one(&mut connection)
    .await?;
    let query = StoreQuery::connect(&owner).await?;
    let now = now()?;
    let mut mix = Mix::new(query.clone(), now, 7);
    println!("{rows} settled tasks (estimate of the planner); cold: each query once, first after a restart");
    let mut cold: BTreeMap<&'static str, Asked> = BTreeMap::new();
    for name in mix::NAMES {
        cold.insert(name, mix.ask(name).await?);
    }
    // Every session plans each query once, on its first page of that kind.
    drop(measure(&query, now, 5 * mix::NAMES.len() as u64).await?);
    let warm = measure(&query, now, rounds).await?;
    print(&cold, &warm);
    Ok(())
}

/// Asks the queries in turn from several connections, each beginning elsewhere.
async fn measure(
    query: &StoreQuery,
    now: UnixMicros,
    rounds: u64,
) -> anyhow::Result<BTreeMap<&'static str, Vec<Asked>>> {
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..CONNECTIONS {
        let mut mix = Mix::new(query.clone(), now, worker + 11);
        workers.spawn(async move {
            let mut asked = Vec::new();
            for round in 0..rounds {
                let place = usize::try_from(round + worker * 5)? % mix::NAMES.len();
                let name = mix::NAMES[place];
                asked.push((name, mix.ask(name).await?));
            }
            anyhow::Ok(asked)
        });
    }
    let mut all: BTreeMap<&'static str, Vec<Asked>> = BTreeMap::new();
    while let Some(asked) = workers.join_next().await {
        for (name, asked) in asked?? {
            all.entry(name).or_default().push(asked);
        }
    }
    Ok(all)
}

fn print(cold: &BTreeMap<&'static str, Asked>, warm: &BTreeMap<&'static str, Vec<Asked>>) {
    println!("milliseconds; required: p99 < 100 warm, goal: < 30");
    println!(
        "{:<34} {:>7} {:>7} {:>7} {:>7} {:>6} {:>9}  verdict",
        "query", "cold", "p50", "p95", "p99", "asked", "partial"
    );
    let line = |name: &str, cold: Option<Duration>, asked: &[Asked]| {
        let mut times: Vec<Duration> = asked.iter().map(|asked| asked.took).collect();
        times.sort_unstable();
        let at = |share: f64| {
            let last = times.len().saturating_sub(1);
            times
                .get((last as f64 * share).ceil() as usize)
                .copied()
                .unwrap_or_default()
                .as_secs_f64()
                * 1e3
        };
        let partial = asked.iter().filter(|asked| asked.partial).count();
        let verdict = match at(0.99) {
            p99 if p99 < 30.0 => "goal",
            p99 if p99 < 100.0 => "required",
            _ => "MISSED",
        };
        println!(
            "{name:<34} {:>7} {:>7.1} {:>7.1} {:>7.1} {:>6} {:>8.0}%  {verdict}",
            cold.map_or_else(String::new, |cold| format!("{:.1}", cold.as_secs_f64() * 1e3)),
            at(0.5),
            at(0.95),
            at(0.99),
            times.len(),
            100.0 * partial as f64 / asked.len().max(1) as f64,
        );
    };
    for (name, asked) in warm {
        line(name, cold.get(name).map(|asked| asked.took), asked);
    }
    let all: Vec<Asked> = warm.values().flatten().copied().collect();
    line("all", None, &all);
}

// === Filling a database ===

async fn filled(tasks: u64) -> anyhow::Result<(Postgres, String)> {
    let settings = SETTINGS
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
    let mut server = Postgres::with(&PostgresOptions {
        settings,
        ..PostgresOptions::default()
    })?;
    let url = server.create_installation("kanchi")?;
    let admin = StoreAdmin::connect(&StoreUrl::parse(&url)?).await?;
    admin.migrate().await?;
    admin.close().await;
    let began = Instant::now();
    let mut connection = PgConnection::connect(&url).await?;
    connection.execute(include_str!("queries/prepare.sql")).await?;
    let (settled, open, events) = samples()?;
    let each = i64::try_from(tasks)? / DAYS;
    for day in (0..DAYS).rev() {
        for (statement, sample) in [
            (include_str!("queries/tasks.sql"), &settled),
            (include_str!("queries/events.sql"), &events),
        ] {
            let query = sqlx::query(statement).bind(i32::try_from(day)?).bind(each).bind(sample);
            query.execute(&mut connection).await?;
        }
        eprintln!("loaded {} days in {:.0?}", DAYS - day, began.elapsed());
    }
    connection.execute(include_str!("queries/state.sql")).await?;
    fill_statistics(&mut connection, tasks).await?;
    eprintln!("loaded statistics in {:.0?}", began.elapsed());
    let query = sqlx::query(include_str!("queries/live.sql"))
        .bind(LIVE_TASKS)
        .bind(&open);
    query.execute(&mut connection).await?;
    connection.execute("vacuum (analyze)").await?;
    connection.close().await?;
    server.stop()?;
    if let Err(error) = std::fs::write("/proc/sys/vm/drop_caches", "3") {
        eprintln!("the page cache stays warm, cold is cold for Postgres alone: {error}");
    }
    server.start()?;
    Ok((server, url))
}

/// Minutes for two weeks, hours and days for a month; fewer where few tasks are asked for.
async fn fill_statistics(connection: &mut PgConnection, tasks: u64) -> anyhow::Result<()> {
    let histogram = Histogram::of(
        (0..40)
            .map(|bucket| (bucket_of(2_000 << (bucket / 4)) + bucket % 4, 3))
            .collect(),
    );
    let minutes = if tasks >= 1_000_000 { 13 } else { 1 };
    for (seconds, class, days, names) in [(60, 14_i16, minutes, 8), (3_600, 90, 30, 200), (86_400, 365, 30, 200)] {
        let query = sqlx::query(include_str!("queries/statistics.sql"))
            .bind(seconds)
            .bind(class)
            .bind(days)
            .bind(names)
            .bind(histogram.to_stored());
        query.execute(&mut *connection).await?;
    }
    Ok(())
}

/// Facts of a settled and of an open task, and two of its events, as a monitor would store them.
fn samples() -> anyhow::Result<(Vec<u8>, Vec<u8>, Vec<u8>)> {
    let sent = r#","name":"shop.orders.task_4","queue":"queue-4","routing_key":"queue-4","args":"(17, 'EUR')",
        "kwargs":"{'retry': False}","retries":0,"eta":null,"expires":null,"parent_id":null,
        "root_id":"6b2c9f5e-0000-4000-8000-000000000001""#;
    let kinds = [
        ("task-sent", sent),
        ("task-received", sent),
        ("task-started", ""),
        ("task-succeeded", r#","result":"{'charged': 17}","runtime":0.25"#),
    ];
    let (mut open, mut settled, mut texts) = (TaskFacts::new(), TaskFacts::new(), Vec::new());
    for (clock, (kind, more)) in kinds.iter().enumerate() {
        let text = format!(
            r#"{{"type":"{kind}","uuid":"6b2c9f5e-0000-4000-8000-000000000001","hostname":"celery@worker-4-0","pid":7,
                "clock":{clock},"utcoffset":0,"timestamp":{}.5{more}}}"#,
            1_795_219_200 + clock,
        );
        let message = RawMessage {
            body: text.as_bytes(),
            content_type: Some("application/json"),
            content_encoding: Some("utf-8"),
            compression: None,
            body_encoding: BodyEncoding::Raw,
        };
        let decoded = decode(&message, UnixMicros(0), &Limits::default());
        let event = decoded.events.first().context("the sample is no event")?;
        settled.absorb(event);
        if clock < 3 {
            open.absorb(event);
        }
        texts.push(event.to_json());
    }
    // All tasks have the same events: an id as long as theirs.
    let events = PackedEvents::pack(
        &format!("[{},{}]", texts[1], texts[3]),
        Some("b00000000000001-0000-4000-8000-000000000001"),
    );
    Ok((settled.encode(), open.encode(), events.as_bytes().to_vec()))
}
