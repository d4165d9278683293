//! A task as a list shows it.

use std::sync::Arc;

use kanchi_domain::{TaskFacts, TaskId, TaskMark, TaskRow, TaskState, UnixMicros};
use sqlx::Row;
use sqlx::postgres::PgRow;

use crate::error::{Error, ErrorKind, Result};
use crate::query::cursor::Place;

/// A task as a list shows it; [`task`](crate::StoreQuery::task) knows the rest.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskSummary {
    /// The broker's key.
    pub broker_key: i32,
    /// The task.
    pub task_id: String,
    /// Whether it is not settled yet.
    pub live: bool,
    /// The state; of a live task at the time asked for.
    pub state: TaskState,
    /// Name of the mark, if it has one.
    pub mark: Option<String>,
    /// Task name.
    pub name: Option<String>,
    /// Queue.
    pub queue: Option<String>,
    /// The queue was not told but inferred from the worker.
    pub queue_inferred: bool,
    /// Node name of the worker.
    pub worker: Option<String>,
    /// Retries before the current attempt.
    pub retries: u32,
    /// Root of the workflow.
    pub root_id: Option<String>,
    /// Parent task.
    pub parent_id: Option<String>,
    /// Sent.
    pub sent_at: Option<UnixMicros>,
    /// Received.
    pub received_at: Option<UnixMicros>,
    /// Started.
    pub started_at: Option<UnixMicros>,
    /// Finished.
    pub finished_at: Option<UnixMicros>,
    /// Not to run before.
    pub eta: Option<UnixMicros>,
    /// Not to run after.
    pub expires: Option<UnixMicros>,
    /// Seconds it ran.
    pub runtime: Option<f64>,
    /// Positional arguments; of settled tasks the first kilobyte, as the three below.
    pub args: Option<String>,
    /// Keyword arguments.
    pub kwargs: Option<String>,
    /// Result.
    pub result: Option<String>,
    /// Exception.
    pub exception: Option<String>,
    /// Percent done as the task told last; only of live tasks.
    pub percent: Option<f64>,
    /// Where it stands in the list that it was read for.
    pub(super) place: Place,
}

/// What one source gave.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) tasks: Vec<TaskSummary>,
    /// The last place up to which nothing is missing; `None`: nothing is missing at all.
    pub(super) covered: Option<Place>,
}

/// Columns of [`settled`], after the place.
pub(super) const COLUMNS: &str = "t.broker_id, t.task_id, t.state, t.mark, t.name, t.queue, t.queue_inferred, t.worker,
    t.retries, t.root_id, t.parent_id, kanchi.unix_micros(t.sent_at), kanchi.unix_micros(t.received_at),
    kanchi.unix_micros(t.started_at), kanchi.unix_micros(t.finished_at), kanchi.unix_micros(t.eta),
    kanchi.unix_micros(t.expires), t.runtime, t.args, t.kwargs, t.result, t.exception";

/// Reads a row of history: its time in the list, then [`COLUMNS`].
pub(super) fn settled(row: &PgRow) -> TaskSummary {
    let time = |column: usize| row.get::<Option<i64>, _>(column).map(UnixMicros);
    let (broker_key, task_id): (i32, String) = (row.get(1), row.get(2));
    TaskSummary {
        broker_key,
        live: false,
        state: TaskState::from_name(row.get(3)),
        mark: row.get(4),
        name: row.get(5),
        queue: row.get(6),
        queue_inferred: row.get(7),
        worker: row.get(8),
        retries: row.get::<i32, _>(9).unsigned_abs(),
        root_id: row.get(10),
        parent_id: row.get(11),
        sent_at: time(12),
        received_at: time(13),
        started_at: time(14),
        finished_at: time(15),
        eta: time(16),
        expires: time(17),
        runtime: row.get(18),
        args: row.get(19),
        kwargs: row.get(20),
        result: row.get(21),
        exception: row.get(22),
        percent: None,
        place: Place::new(row.get(0), broker_key, &task_id),
        task_id,
    }
}

/// Reads a live row: broker, task, when it was first seen, facts, queue.
pub(super) fn live(row: &PgRow, now: UnixMicros) -> Result<TaskSummary> {
    let facts = TaskFacts::decode(row.get(3))
        .map_err(|error| Error::new(ErrorKind::Other, "read the facts of a task", error.to_string()))?;
    let place = Place::new(row.get(2), row.get(0), row.get(1));
    let mut summary = projected(row.get(0), row.get(1), &facts.project_at(now), place);
    if summary.queue.is_none() {
        // The monitor inferred it from the worker; the facts do not know it.
        summary.queue = row.get(4);
        summary.queue_inferred = summary.queue.is_some();
    }
    Ok(summary)
}

fn projected(broker_key: i32, task_id: String, row: &TaskRow, place: Place) -> TaskSummary {
    let text = |value: &Option<Arc<str>>| value.as_deref().map(str::to_owned);
    let id = |value: &Option<TaskId>| value.as_ref().map(|id| id.as_str().to_owned());
    TaskSummary {
        broker_key,
        task_id,
        live: true,
        state: row.state.clone(),
        mark: row.mark.map(TaskMark::as_str).map(str::to_owned),
        name: text(&row.name),
        queue: text(&row.queue),
        queue_inferred: row.queue_inferred,
        worker: text(&row.worker),
        retries: row.retries,
        root_id: id(&row.root_id),
        parent_id: id(&row.parent_id),
        sent_at: row.sent_at,
        received_at: row.received_at,
        started_at: row.started_at,
        finished_at: row.finished_at,
        eta: row.eta,
        expires: row.expires,
        runtime: row.runtime,
        args: text(&row.args),
        kwargs: text(&row.kwargs),
        result: text(&row.result),
        exception: text(&row.exception),
        percent: row.progress.as_ref().and_then(|progress| progress.percent),
        place,
    }
}
