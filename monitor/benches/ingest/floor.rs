//! F: the rate at which `psql \copy` loads the events of a stream as plain rows with one index.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};
use kanchi_test_load::{Event, Stream, Workload, now};
use kanchi_test_servers::postgres::Postgres;

/// Returns F in events a second, for so many events of a workload.
pub(crate) fn copy_rate(postgres: &Postgres, workload: Workload, events: u64) -> Result<f64> {
    let file = rows(workload, events)?;
    prepare(postgres)?;
    let started = Instant::now();
    ensure!(command(postgres, file.path()).status()?.success(), "psql");
    let elapsed = started.elapsed().as_secs_f64();
    // What is measured next has the server for itself.
    postgres.sql("kanchi", "drop table public.event_row")?;
    postgres.sql("kanchi", "checkpoint")?;
    Ok(events as f64 / elapsed)
}

/// Makes an empty table. What was left dirty before is not this one's cost.
pub(crate) fn prepare(postgres: &Postgres) -> Result<()> {
    postgres.sql(
        "kanchi",
        "drop table if exists public.event_row;
         create table public.event_row (broker integer, task_id text, type text, at timestamptz, worker text, payload jsonb);
         create index on public.event_row (broker, task_id)",
    )?;
    postgres.sql("kanchi", "checkpoint")?;
    Ok(())
}

/// Returns the command that loads the rows.
pub(crate) fn command(postgres: &Postgres, file: &Path) -> Command {
    // Debian puts it on the path, whatever the version.
    let mut command = Command::new("psql");
    command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &postgres.url("kanchi"), "-c"]);
    command.arg(format!("\\copy public.event_row from '{}'", file.display()));
    command
}

/// Writes the rows of the first events of a workload.
pub(crate) fn rows(workload: Workload, events: u64) -> Result<tempfile::NamedTempFile> {
    let mut file = tempfile::NamedTempFile::new()?;
    let mut writer = std::io::BufWriter::with_capacity(1 << 20, &mut file);
    let (mut stream, mut time) = (Stream::new(workload), now());
    let mut result = Ok(());
    while stream.events() < events && result.is_ok() {
        // On a clock of its own: the rows are what counts here, not when they came.
        time += 100;
        stream.begin(1, time);
        let left = events - stream.events();
        let mut taken = 0;
        stream.take_due(time, |event| {
            taken += 1;
            if taken <= left && result.is_ok() {
                result = row(&mut writer, event);
            }
        });
    }
    result?;
    writer.flush()?;
    drop(writer);
    Ok(file)
}

fn row(writer: &mut impl std::io::Write, event: &Event<'_>) -> std::io::Result<()> {
    // COPY's text form: a backslash is doubled.
    let payload = event.json.replace('\\', "\\\\");
    let Event { task, kind, worker, .. } = event;
    writeln!(
        writer,
        "1\t{task}\t{kind}\t{}\tcelery@worker-{worker:02}\t{payload}",
        timestamp(event.at)
    )
}

/// Returns a timestamp that Postgres reads, for example `2026-11-21 08:00:00.123456+00`.
fn timestamp(micros: i64) -> String {
    let (whole, micros) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
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
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{micros:06}+00",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}
