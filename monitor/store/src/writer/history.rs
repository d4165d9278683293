//! Rows of history, and what decides when a task goes there.

use std::collections::HashSet;
use std::sync::Arc;

use kanchi_domain::{OutcomeClass, TaskRow, UnixMicros};
use sqlx::{PgConnection, Row};

use crate::error::{During, Result};
use crate::retention::RetentionPolicy;
use crate::writer::copy::{Rows, Target, head};

/// Bytes kept of each payload beside the facts, for lists and search.
const PAYLOAD_HEAD: usize = 1024;

/// Probes that one look into recent history makes at most, unless it looks into four generations: some hundred milliseconds.
const PROBES: usize = 10_000;

/// The columns of [`push`].
pub(super) const fn target(operation: &'static str) -> Target {
    Target {
        statement: COPY,
        columns: 25,
        operation,
    }
}

const COPY: &str =
    "copy kanchi.task (retention_days, first_stored_at, generation, task_id, state, mark, name, queue, queue_inferred,
    worker, retries, root_id, parent_id, sent_at, received_at, started_at, finished_at, eta, expires, runtime, args,
    kwargs, result, exception, facts) from stdin (format binary)";

/// Where a transaction's rows go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Destination {
    pub(super) retention: RetentionPolicy,
    /// The generation of history when the transaction began: rows of it are looked for by that time.
    generation: i32,
}

impl Destination {
    /// The first statement of a transaction that stores rows of history.
    pub(super) async fn now(
        connection: &mut PgConnection,
        retention: RetentionPolicy,
        operation: &'static str,
    ) -> Result<Self> {
        let query = sqlx::query("select kanchi.current_generation()");
        Ok(Self {
            retention,
            generation: query.fetch_one(connection).await.during(operation)?.get(0),
        })
    }
}

/// A task on its way to history.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'t> {
    pub(super) task_id: &'t str,
    pub(super) facts: &'t [u8],
    pub(super) row: &'t TaskRow,
    /// When the first of its events was stored, by the server's clock; `None`: all of them by this transaction.
    pub(super) first_stored: Option<UnixMicros>,
}

/// Fills one row.
pub(super) fn push(row_of: &mut Rows, entry: &Entry<'_>, to: Destination) {
    let row = entry.row;
    let class = match row.outcome() {
        Some(OutcomeClass::Succeeded) => to.retention.succeeded,
        Some(OutcomeClass::Failed) | None => to.retention.failed,
    };
    row_of
        .int2(i16::try_from(class.days()).unwrap_or(i16::MAX))
        .maybe_time(entry.first_stored)
        .int4(to.generation)
        .text(entry.task_id)
        .text(row.state.as_str())
        .maybe_text(row.mark.map(kanchi_domain::TaskMark::as_str))
        .maybe_text(row.name.as_deref())
        .maybe_text(row.queue.as_deref())
        .bool(row.queue_inferred)
        .maybe_text(row.worker.as_deref())
        .int4(i32::try_from(row.retries).unwrap_or(i32::MAX))
        .maybe_text(row.root_id.as_ref().map(kanchi_domain::TaskId::as_str))
        .maybe_text(row.parent_id.as_ref().map(kanchi_domain::TaskId::as_str))
        .maybe_time(row.sent_at)
        .maybe_time(row.received_at)
        .maybe_time(row.started_at)
        .maybe_time(row.finished_at)
        .maybe_time(row.eta)
        .maybe_time(row.expires)
        .maybe_float8(row.runtime)
        .maybe_text(payload(row.args.as_ref()))
        .maybe_text(payload(row.kwargs.as_ref()))
        .maybe_text(payload(row.result.as_ref()))
        .maybe_text(payload(row.exception.as_ref()))
        .bytes(entry.facts);
}

/// Returns what lists and search see of a payload.
fn payload(text: Option<&Arc<str>>) -> Option<&str> {
    text.map(|text| head(text, PAYLOAD_HEAD))
}

/// Returns those of these ids that ended within the last three hours, for Redis delivers again after one by default: each day more
/// would be a read in no order for each task. For many ids at once that is bounded further, by generations, of which the last four
/// have some two million tasks at least, unless one ended early because its day did.
pub(super) async fn archived(
    connection: &mut PgConnection,
    ids: &[&str],
    operation: &'static str,
) -> Result<HashSet<String>> {
    let generations = (PROBES / ids.len().max(1)).max(4);
    let query = sqlx::query("select kanchi.archived($1, now() - interval '3 hours', $2)")
        .bind(ids)
        .bind(i32::try_from(generations).unwrap_or(i32::MAX));
    let rows = query.fetch_all(connection).await.during(operation)?;
    Ok(rows.into_iter().map(|row| row.get(0)).collect())
}
