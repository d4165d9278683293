//! Reading tasks back: by id, by list, by count.

use std::sync::Arc;

use kanchi_domain::{TaskFacts, TaskRow, UnixMicros};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use crate::connection::{self, within};
use crate::error::{During, Error, ErrorKind, Result};
use crate::packed::PackedEvents;
use crate::query;
use crate::url::StoreUrl;

/// Reads what monitors stored, under the role that owns the schema.
#[derive(Debug)]
pub struct StoreReader {
    pub(crate) connection: PgConnection,
}

/// A task as stored.
#[derive(Clone, Debug)]
pub struct StoredTask {
    /// The broker's key.
    pub broker_key: i32,
    /// The task.
    pub task_id: String,
    /// Whether a row is in the live table.
    pub live: bool,
    /// Rows in history; more than one where it ran again hours later, or until a rerun or a late event is settled.
    pub settled_rows: usize,
    /// Everything known of it. [`TaskFacts::attempts`] lists its attempts, of which the row shows the last; their older
    /// exceptions are in [`StoreReader::events`] alone.
    pub facts: TaskFacts,
    /// The projection of the facts at the time asked for.
    pub row: TaskRow,
}

impl StoreReader {
    /// Connects.
    pub async fn connect(url: &StoreUrl) -> Result<Self> {
        Ok(Self {
            connection: connection::open(url, "kanchi-reader").await?,
        })
    }

    /// Returns one task as it is `now`, live or settled, with the facts of all its rows.
    pub async fn task(&mut self, broker_key: i32, task_id: &str, now: UnixMicros) -> Result<Option<StoredTask>> {
        const OPERATION: &str = "load a task";
        let query = sqlx::query(include_str!("sql/task.sql")).bind(broker_key).bind(task_id);
        let rows = within(OPERATION, async {
            query.fetch_all(&mut self.connection).await.during(OPERATION)
        })
        .await?;
        let mut joined: Option<StoredTask> = None;
        for row in &rows {
            let next = stored(row, now)?;
            joined = Some(match joined {
                Some(task) => join(task, &next, now),
                None => next,
            });
        }
        Ok(joined)
    }

    /// Returns up to `limit` tasks of a broker as they are `now`, by id after `after`: a walk over all of them, for
    /// comparisons and exports. Slow on large histories; lists of a page have indexes of their own.
    pub async fn tasks(
        &mut self,
        broker_key: i32,
        after: &str,
        limit: u16,
        now: UnixMicros,
    ) -> Result<Vec<StoredTask>> {
        const OPERATION: &str = "load tasks";
        let query = sqlx::query(include_str!("sql/tasks.sql"))
            .bind(broker_key)
            .bind(after)
            .bind(i64::from(limit));
        let rows = within(OPERATION, async {
            query.fetch_all(&mut self.connection).await.during(OPERATION)
        })
        .await?;
        let mut tasks: Vec<StoredTask> = Vec::new();
        for row in &rows {
            let next = stored(row, now)?;
            match tasks.pop() {
                Some(last) if last.task_id == next.task_id => tasks.push(join(last, &next, now)),
                Some(last) => tasks.extend([last, next]),
                None => tasks.push(next),
            }
        }
        Ok(tasks)
    }

    /// Returns the stored event arrays (JSON) of one task, in order of storage, at most 1,000.
    pub async fn events(&mut self, broker_key: i32, task_id: &str) -> Result<Vec<Vec<u8>>> {
        const OPERATION: &str = "load the events of a task";
        let chunks = query::chunks_of(&mut self.connection, (broker_key, task_id), 0, 1_000);
        let rows = within(OPERATION, chunks).await?;
        rows.iter()
            .map(|row| {
                let events = PackedEvents::from_stored(row.get(1)).unpack(Some(task_id));
                events.map_err(|error| Error::new(ErrorKind::Other, OPERATION, error.to_string()))
            })
            .collect()
    }

    /// Counts the rows of a broker by state as written, live and settled: for tests and small databases. A live row
    /// past its `expires` still counts by its last event; a task with two rows counts twice until it is settled.
    pub async fn count_by_state(&mut self, broker_key: i32) -> Result<Vec<(String, u64)>> {
        const OPERATION: &str = "count tasks";
        let query = sqlx::query(
            "select state, count(*) from (
                select state from kanchi.task_live where broker_id = $1
                union all select state from kanchi.task where broker_id = $1) as t
             group by state order by state",
        );
        let query = query.bind(broker_key);
        let rows = within(OPERATION, async {
            query.fetch_all(&mut self.connection).await.during(OPERATION)
        })
        .await?;
        Ok(rows
            .iter()
            .map(|row| (row.get(0), row.get::<i64, _>(1).unsigned_abs()))
            .collect())
    }
}

pub(crate) fn stored(row: &PgRow, now: UnixMicros) -> Result<StoredTask> {
    let facts = TaskFacts::decode(row.get(2))
        .map_err(|error| Error::new(ErrorKind::Other, "read the facts of a task", error.to_string()))?;
    let live: bool = row.get(3);
    let queue: Option<String> = row.get(4);
    let projected = with_queue(facts.project_at(now), queue.map(Arc::from));
    Ok(StoredTask {
        broker_key: row.get(0),
        task_id: row.get(1),
        live,
        settled_rows: usize::from(!live),
        facts,
        row: projected,
    })
}

pub(crate) fn join(mut task: StoredTask, other: &StoredTask, now: UnixMicros) -> StoredTask {
    task.facts.merge(&other.facts);
    let queue = task.row.queue.take().or_else(|| other.row.queue.clone());
    task.row = with_queue(task.facts.project_at(now), queue);
    task.live |= other.live;
    task.settled_rows += other.settled_rows;
    task
}

/// The queue may be inferred from the worker; then only the row knows it, not the facts.
fn with_queue(mut row: TaskRow, stored: Option<Arc<str>>) -> TaskRow {
    if row.queue.is_none() && stored.is_some() {
        row.queue = stored;
        row.queue_inferred = true;
    }
    row
}
