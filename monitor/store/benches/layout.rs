//! Measures storage layouts side by side on one server in one run: `cargo bench -p kanchi-store --bench layout`.
//!
//! fsync, full_page_writes and synchronous_commit are on. Besides the wall clock, the processor time of the Postgres
//! backend and the bytes of write-ahead log are shown: they hold still on a busy machine, the wall clock does not.
//! `F` is the rate of design.md section 7: COPY of plain event rows with one index.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program for people who measure"
)]

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use kanchi_test_servers::postgres::{Postgres, PostgresOptions};
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _};

const TASKS: usize = 50_000;
const EVENTS_PER_TASK: usize = 4;
/// Half of the tasks outlive a batch: two events of a task meet in one chunk.
const EVENTS_PER_CHUNK: usize = 2;
const TASKS_PER_BATCH: usize = 2_500;
const SETTINGS: [(&str, &str); 4] = [
    ("shared_buffers", "256MB"),
    ("max_wal_size", "4GB"),
    ("checkpoint_timeout", "30min"),
    ("wal_compression", "off"),
];

struct Bench {
    connection: PgConnection,
    pid: i32,
    plain_event_cpu: f64,
}

struct Figures {
    wall: Duration,
    cpu: Duration,
    wal: i64,
}

fn main() -> anyhow::Result<()> {
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> anyhow::Result<()> {
    let settings = SETTINGS
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
    let server = Postgres::with(&PostgresOptions {
        fsync: true,
        settings,
        ..PostgresOptions::default()
    })?;
    let url = server.create_installation("layout")?;
    let mut connection = PgConnection::connect(&url).await?;
    let pid = sqlx::query("select pg_backend_pid()")
        .fetch_one(&mut connection)
        .await?
        .get(0);
    let mut bench = Bench {
        connection,
        pid,
        plain_event_cpu: 0.0,
    };
    println!(
        "{:<58} {:>9} {:>9} {:>9} {:>7}",
        "case", "events/s", "cpu µs/ev", "wal B/ev", "x F"
    );
    events(&mut bench).await?;
    live(&mut bench).await
}

impl Bench {
    async fn sql(&mut self, sql: &str) -> anyhow::Result<()> {
        self.connection.execute(sql).await?;
        Ok(())
    }

    async fn copy(&mut self, statement: &str, batch: &[u8]) -> anyhow::Result<()> {
        let mut copy = self.connection.copy_in_raw(statement).await?;
        copy.send(batch).await?;
        copy.finish().await?;
        Ok(())
    }

    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap();
        let fields: Vec<u64> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .map(|f| f.parse().unwrap_or(0))
            .collect();
        Duration::from_millis((fields[11] + fields[12]) * 10)
    }

    async fn wal(&mut self) -> anyhow::Result<i64> {
        let query = "select (pg_current_wal_insert_lsn() - '0/0')::int8";
        Ok(sqlx::query(query).fetch_one(&mut self.connection).await?.get(0))
    }

    async fn start(&mut self) -> anyhow::Result<(Instant, Duration, i64)> {
        self.sql("checkpoint").await.ok();
        let wal = self.wal().await?;
        Ok((Instant::now(), self.cpu(), wal))
    }

    async fn stop(&mut self, start: (Instant, Duration, i64)) -> anyhow::Result<Figures> {
        Ok(Figures {
            wall: start.0.elapsed(),
            cpu: self.cpu().saturating_sub(start.1),
            wal: self.wal().await? - start.2,
        })
    }

    fn print(&mut self, name: &str, figures: &Figures, events: usize) {
        let events = events as f64;
        let cpu = figures.cpu.as_secs_f64() * 1e6 / events;
        if name.starts_with("F:") {
            self.plain_event_cpu = cpu;
        }
        println!(
            "{name:<58} {:>9.0} {cpu:>9.2} {:>9.0} {:>7.2}",
            events / figures.wall.as_secs_f64(),
            figures.wal as f64 / events,
            self.plain_event_cpu / cpu,
        );
    }
}

// === The same events, stored in several shapes ===

fn task_id(task: usize) -> String {
    let mut x = (task as u128 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
    x ^= x >> 61;
    x = x.wrapping_mul(0xD6E8_FEB8_6659_FD93_A5A5_1234_9876_1111);
    uuid::Uuid::from_u128(x ^ (x >> 59)).to_string()
}

fn event(task: usize, number: usize) -> String {
    let kind = ["task-sent", "task-received", "task-started", "task-succeeded"][number];
    let id = task_id(task);
    let more = match number {
        0 | 1 => format!(
            r#","name":"shop.tasks.charge","args":"({task}, 'EUR')","kwargs":"{{'retry': False}}","root_id":"{id}","parent_id":null,"retries":0,"eta":null,"expires":null"#
        ),
        2 => String::new(),
        _ => format!(r#","result":"{{'charged': {task}}}","runtime":0.0123{task}"#),
    };
    format!(
        r#"{{"hostname":"celery@worker-7d9f8b6c5-x2x{}","utcoffset":0,"pid":{},"clock":{},"uuid":"{id}","timestamp":1795219789.{task},"type":"{kind}"{more}}}"#,
        task % 8,
        task % 90,
        task * 4 + number,
    )
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
}

fn batches(line: impl Fn(usize, &mut String)) -> Vec<String> {
    (0..TASKS / TASKS_PER_BATCH)
        .map(|batch| {
            let mut out = String::new();
            for task in batch * TASKS_PER_BATCH..(batch + 1) * TASKS_PER_BATCH {
                line(task, &mut out);
            }
            out
        })
        .collect()
}

fn plain_line(task: usize, out: &mut String) {
    for number in 0..EVENTS_PER_TASK {
        let json = escaped(&event(task, number));
        let id = task_id(task);
        writeln!(
            out,
            "42\t{id}\ttask-received\t2026-11-21 00:09:52.763659+00\tcelery@worker-7d9f8b6c5-x2x\t{json}"
        )
        .unwrap();
    }
}

fn chunk_line(task: usize, out: &mut String, shape: &str) {
    for half in 0..EVENTS_PER_TASK / EVENTS_PER_CHUNK {
        let numbers = half * EVENTS_PER_CHUNK..(half + 1) * EVENTS_PER_CHUNK;
        let events: Vec<String> = numbers.map(|number| event(task, number)).collect();
        let array = format!("[{}]", events.join(","));
        let value = match shape {
            "text[]" => {
                let quoted: Vec<String> = events
                    .iter()
                    .map(|e| format!("\"{}\"", e.replace('\\', "\\\\").replace('"', "\\\"")))
                    .collect();
                escaped(&format!("{{{}}}", quoted.join(",")))
            }
            "bytea" => format!(
                "\\\\x{}",
                array.bytes().fold(String::new(), |mut hex, byte| {
                    write!(hex, "{byte:02x}").unwrap();
                    hex
                })
            ),
            _ => escaped(&array),
        };
        writeln!(
            out,
            "{}\t2026-11-21 00:09:52.763659+00\t{EVENTS_PER_CHUNK}\t{value}",
            task_id(task)
        )
        .unwrap();
    }
}

async fn events(bench: &mut Bench) -> anyhow::Result<()> {
    let plain = batches(plain_line);
    bench
        .sql("create table plain (broker_id int, task_id text, type text, at timestamptz, worker text, payload jsonb)")
        .await?;
    bench.sql("create index on plain (broker_id, task_id)").await?;
    copy_case(
        bench,
        "F: one row an event, jsonb, index (broker, task)",
        "copy plain from stdin",
        &plain,
    )
    .await?;
    for (shape, index) in [
        ("jsonb", "(broker_id, task_id)"),
        ("json", "(broker_id, task_id)"),
        ("text[]", "(broker_id, task_id)"),
        ("bytea", "(broker_id, task_id)"),
        ("bytea", "(hashtextextended(task_id, 0))"),
        ("bytea", "using brin (stored_at)"),
    ] {
        let lines = batches(|task, out| chunk_line(task, out, shape));
        bench.sql("drop table if exists chunk").await?;
        bench
            .sql(&format!(
                "create table chunk (broker_id int not null default 42, stored_at timestamptz not null default now(), class int2 default 7,
                 task_id text, first_at timestamptz, count int2, events {shape}) partition by list (class);
                 create table chunk_7 partition of chunk for values in (7) partition by range (stored_at);
                 create table chunk_7_a partition of chunk_7 for values from (minvalue) to (maxvalue);
                 create index on chunk_7_a {index}"
            ))
            .await?;
        copy_case(
            bench,
            &format!("chunk of {EVENTS_PER_CHUNK}, {shape}, partitioned, index {index}"),
            "copy chunk (task_id, first_at, count, events) from stdin",
            &lines,
        )
        .await?;
    }
    // Binary COPY saves the hexadecimal digits of bytea.
    let binary: Vec<Vec<u8>> = (0..TASKS / TASKS_PER_BATCH).map(binary_batch).collect();
    bench.sql("truncate chunk; drop index chunk_7_a_stored_at_idx; create index on chunk_7_a (hashtextextended(task_id, 0))").await?;
    let start = bench.start().await?;
    for batch in &binary {
        bench
            .copy(
                "copy chunk (task_id, first_at, count, events) from stdin (format binary)",
                batch,
            )
            .await?;
    }
    let figures = bench.stop(start).await?;
    bench.print(
        "chunk of 2, bytea, index (hash), binary COPY",
        &figures,
        TASKS * EVENTS_PER_TASK,
    );
    Ok(())
}

fn binary_batch(batch: usize) -> Vec<u8> {
    let mut out = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
    let field = |out: &mut Vec<u8>, bytes: &[u8]| {
        out.extend((bytes.len() as i32).to_be_bytes());
        out.extend(bytes);
    };
    for task in batch * TASKS_PER_BATCH..(batch + 1) * TASKS_PER_BATCH {
        for half in 0..EVENTS_PER_TASK / EVENTS_PER_CHUNK {
            let events: Vec<String> = (half * 2..half * 2 + 2).map(|number| event(task, number)).collect();
            out.extend(4i16.to_be_bytes());
            field(&mut out, task_id(task).as_bytes());
            field(&mut out, &848_534_992_763_659i64.to_be_bytes());
            field(&mut out, &2i16.to_be_bytes());
            field(&mut out, format!("[{}]", events.join(",")).as_bytes());
        }
    }
    out.extend((-1i16).to_be_bytes());
    out
}

async fn copy_case(bench: &mut Bench, name: &str, statement: &str, batches: &[String]) -> anyhow::Result<()> {
    let start = bench.start().await?;
    for batch in batches {
        bench.copy(statement, batch.as_bytes()).await?;
    }
    let figures = bench.stop(start).await?;
    bench.print(name, &figures, TASKS * EVENTS_PER_TASK);
    Ok(())
}

// === Live rows: insert, then update once ===

const COLUMNS: [(&str, &str); 22] = [
    ("task_id", "text"),
    ("facts", "bytea"),
    ("state", "text"),
    ("name", "text"),
    ("queue", "text"),
    ("worker", "text"),
    ("received_at", "timestamptz"),
    ("started_at", "timestamptz"),
    ("sent_at", "timestamptz"),
    ("finished_at", "timestamptz"),
    ("eta", "timestamptz"),
    ("expires", "timestamptz"),
    ("runtime", "float8"),
    ("attempts", "int4"),
    ("root_id", "text"),
    ("parent_id", "text"),
    ("args", "text"),
    ("kwargs", "text"),
    ("result", "text"),
    ("exception", "text"),
    ("traceback", "text"),
    ("final", "bool"),
];

fn value(column: usize, task: usize, update: bool) -> Option<String> {
    Some(match COLUMNS[column].0 {
        "facts" => format!("\\x{}", "5a".repeat(if update { 320 } else { 220 })),
        "state" => if update { "SUCCESS" } else { "STARTED" }.into(),
        "name" => "shop.tasks.charge".into(),
        "worker" => format!("celery@worker-7d9f8b6c5-x2x{}", task % 8),
        "received_at" | "started_at" | "sent_at" => "2026-11-21 00:09:52.763659+00".into(),
        "finished_at" if update => "2026-11-21 00:09:53.763659+00".into(),
        "runtime" if update => "0.01231".into(),
        "attempts" => "0".into(),
        "task_id" | "root_id" => task_id(task),
        "args" => format!("({task}, 'EUR')"),
        "kwargs" => "{'retry': False}".into(),
        "result" if update => format!("{{'charged': {task}}}"),
        "final" => update.to_string(),
        _ => return None,
    })
}

fn row_line(task: usize, columns: &[usize], update: bool, out: &mut String) {
    let fields: Vec<String> = columns
        .iter()
        .map(|c| value(*c, task, update).map_or_else(|| "\\N".into(), |v| escaped(&v)))
        .collect();
    writeln!(out, "{}", fields.join("\t")).unwrap();
}

async fn live(bench: &mut Bench) -> anyhow::Result<()> {
    let wide: Vec<usize> = (0..COLUMNS.len()).collect();
    let narrow: Vec<usize> = [0, 1, 2, 3, 4, 5, 11, 21].to_vec();
    for (label, columns) in [("wide (22 columns)", wide), ("narrow (8 columns)", narrow)] {
        println!("-- live rows, {label}: per task");
        for variant in ["unnest", "jsonb", "staging"] {
            live_case(bench, label, &columns, variant, 8).await?;
        }
    }
    let wide: Vec<usize> = (0..COLUMNS.len()).collect();
    live_case(bench, "wide, 1 table", &wide, "unnest", 1).await
}

async fn live_case(
    bench: &mut Bench,
    label: &str,
    columns: &[usize],
    variant: &str,
    parts: usize,
) -> anyhow::Result<()> {
    let definition: Vec<String> = columns
        .iter()
        .map(|c| format!("{} {}", COLUMNS[*c].0, COLUMNS[*c].1))
        .collect();
    let names: Vec<&str> = columns.iter().map(|c| COLUMNS[*c].0).collect();
    let names = names.join(", ");
    bench
        .sql(&format!(
            "drop table if exists live; drop table if exists stage;
             create table live (broker_id int not null default 42, first_seen timestamptz default now(), {},
               primary key (broker_id, task_id)) partition by hash (broker_id, task_id);
             create unlogged table stage ({})",
            definition.join(", "),
            definition.join(", ")
        ))
        .await?;
    for part in 0..parts {
        bench
            .sql(&format!("create table live_{part} partition of live for values with (modulus {parts}, remainder {part}) with (fillfactor = 50)"))
            .await?;
    }
    bench.sql("create index on live (broker_id, first_seen)").await?;
    let lines = batches(|task, out| row_line(task, columns, false, out));
    let start = bench.start().await?;
    for batch in &lines {
        bench
            .copy(&format!("copy live ({names}) from stdin"), batch.as_bytes())
            .await?;
    }
    let figures = bench.stop(start).await?;
    bench.print(&format!("{label}, {parts} parts: COPY new rows"), &figures, TASKS);
    let sets: Vec<String> = columns
        .iter()
        .skip(1)
        .map(|c| format!("{0} = excluded.{0}", COLUMNS[*c].0))
        .collect();
    let conflict = format!("on conflict (broker_id, task_id) do update set {}", sets.join(", "));
    let select = match variant {
        "unnest" => {
            let arrays: Vec<String> = columns
                .iter()
                .enumerate()
                .map(|(i, c)| format!("${}::text[]::{}[]", i + 1, COLUMNS[*c].1))
                .collect();
            format!("select * from unnest({})", arrays.join(", "))
        }
        "jsonb" => format!(
            "select * from jsonb_to_recordset($1::jsonb) as r({})",
            definition.join(", ")
        ),
        _ => "select * from stage".to_owned(),
    };
    let insert = format!("insert into live ({names}) {select} {conflict}");
    let prepared: Vec<Vec<Vec<Option<String>>>> = (0..TASKS / TASKS_PER_BATCH)
        .map(|batch| {
            let range = batch * TASKS_PER_BATCH..(batch + 1) * TASKS_PER_BATCH;
            columns
                .iter()
                .map(|c| range.clone().map(|task| value(*c, task, true)).collect())
                .collect()
        })
        .collect();
    let lines = batches(|task, out| row_line(task, columns, true, out));
    let start = bench.start().await?;
    for (batch, line) in prepared.iter().zip(&lines) {
        match variant {
            "unnest" => {
                let mut query = sqlx::query(&insert);
                for array in batch {
                    query = query.bind(array);
                }
                query.execute(&mut bench.connection).await?;
            }
            "jsonb" => {
                let rows: Vec<serde_json::Value> = (0..TASKS_PER_BATCH)
                    .map(|i| {
                        columns
                            .iter()
                            .zip(batch)
                            .map(|(c, array)| (COLUMNS[*c].0.to_owned(), array[i].clone().into()))
                            .collect::<serde_json::Map<_, _>>()
                            .into()
                    })
                    .collect();
                sqlx::query(&insert)
                    .bind(serde_json::Value::from(rows))
                    .execute(&mut bench.connection)
                    .await?;
            }
            _ => {
                bench.sql("begin").await?;
                bench
                    .copy(&format!("copy stage ({names}) from stdin"), line.as_bytes())
                    .await?;
                bench.sql(&insert).await?;
                bench.sql("delete from stage").await?;
                bench.sql("commit").await?;
            }
        }
    }
    let figures = bench.stop(start).await?;
    bench.sql("analyze live").await?;
    bench.print(&format!("{label}, {parts} parts: update by {variant}"), &figures, TASKS);
    Ok(())
}
