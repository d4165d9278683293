//! One task: itself, its events, its workflow; and how many there are.

use std::collections::BTreeMap;

use kanchi_domain::UnixMicros;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use crate::error::{During, Error, ErrorKind, Result};
use crate::packed::PackedEvents;
use crate::query::filter::TaskFilter;
use crate::query::summary::{self, TaskSummary};
use crate::query::{StoreQuery, live, tasks, used_classes};
use crate::reader::{StoredTask, join, stored};

/// Most chunks of events of one page.
const CHUNKS: u16 = 200;
/// Most tasks of a workflow.
const FAMILY: u16 = 2_000;

/// Events of a task, in the order in which they were stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventPage {
    /// JSON arrays of events, UTF-8.
    pub chunks: Vec<Vec<u8>>,
    /// Chunks that are damaged, or of a newer version of Kanchi; the log says which.
    pub unreadable: usize,
    /// Give it to ask for the page behind; `None`: this was the last.
    pub next: Option<String>,
}

/// Tasks of a workflow.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Family {
    /// The tasks, newest first; of a workflow that is too large, any of them.
    pub tasks: Vec<TaskSummary>,
    /// There may be more.
    pub truncated: bool,
}

/// How many tasks are in each state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateCounts {
    /// Tasks by state.
    pub by_state: BTreeMap<String, u64>,
    /// Time ran out: these are the tasks since then, and there are at least so many. A time in the far future: nothing was counted
    /// but, at most, live tasks.
    pub at_least_since: Option<UnixMicros>,
}

/// Reads chunks of a task's events stored after a moment (microseconds). Where they may be is asked first: only a plan that is
/// told times before it begins leaves the other days' partitions alone.
pub(crate) async fn chunks_of(
    connection: &mut PgConnection,
    (broker_key, task_id): (i32, &str),
    after: i64,
    limit: u16,
) -> Result<Vec<PgRow>> {
    const OPERATION: &str = "load the events of a task";
    let classes = used_classes(connection, "task").await?;
    let chunk_classes = used_classes(connection, "event_chunk").await?;
    let stored = sqlx::query(include_str!("../sql/task_stored.sql"))
        .bind(broker_key)
        .bind(task_id)
        .bind(classes)
        .bind(&chunk_classes)
        .fetch_one(&mut *connection)
        .await
        .during(OPERATION)?;
    sqlx::query(include_str!("../sql/task_events.sql"))
        .bind(broker_key)
        .bind(task_id)
        .bind(after)
        .bind(i64::from(limit))
        .bind(stored.get::<i64, _>(0))
        .bind(stored.get::<i64, _>(1))
        .bind(chunk_classes)
        .fetch_all(connection)
        .await
        .during(OPERATION)
}

impl StoreQuery {
    /// Returns the tasks of this id as they are `now`, one per broker that knows it, with the facts of all their rows.
    pub async fn task(&self, brokers: Option<&[i32]>, task_id: &str, now: UnixMicros) -> Result<Vec<StoredTask>> {
        const OPERATION: &str = "load a task";
        let mut snapshot = self.snapshot(OPERATION).await?;
        let brokers = self.brokers(&mut snapshot, brokers).await?;
        let classes = used_classes(&mut snapshot, "task").await?;
        let rows = sqlx::query(include_str!("../sql/task_by_id.sql"))
            .bind(&brokers)
            .bind(task_id)
            .bind(classes)
            .fetch_all(&mut *snapshot)
            .await
            .during(OPERATION)?;
        snapshot.rollback().await.during(OPERATION)?;
        let mut tasks: Vec<StoredTask> = Vec::new();
        for row in &rows {
            let next = stored(row, now)?;
            match tasks.pop() {
                Some(last) if last.broker_key == next.broker_key => tasks.push(join(last, &next, now)),
                Some(last) => tasks.extend([last, next]),
                None => tasks.push(next),
            }
        }
        Ok(tasks)
    }

    /// Returns a page of a task's events. A batch stores the events of a task together: such a chunk is never split.
    pub async fn task_events(
        &self,
        broker_key: i32,
        task_id: &str,
        after: Option<&str>,
        limit: u16,
    ) -> Result<EventPage> {
        const OPERATION: &str = "load the events of a task";
        let limit = limit.clamp(1, CHUNKS);
        let after: i64 = match after {
            Some(text) => text
                .parse()
                .map_err(|error| Error::new(ErrorKind::Invalid, OPERATION, format!("no cursor of events: {error}")))?,
            None => 0,
        };
        let mut connection = self.acquire(OPERATION).await?;
        let rows = chunks_of(&mut connection, (broker_key, task_id), after, limit + 1).await?;
        let shown = rows.iter().take(usize::from(limit));
        let next = (rows.len() > usize::from(limit))
            .then(|| shown.clone().last().map(|row| row.get::<i64, _>(0).to_string()))
            .flatten();
        let mut page = EventPage {
            next,
            ..EventPage::default()
        };
        for row in shown {
            match PackedEvents::from_stored(row.get(1)).unpack(Some(task_id)) {
                Ok(json) => page.chunks.push(json),
                Err(error) => {
                    tracing::error!(broker = broker_key, task = task_id, %error, "events cannot be read");
                    page.unreadable += 1;
                }
            }
        }
        Ok(page)
    }

    /// Returns the tasks of a workflow, or those of them that one of its tasks has called: at most `limit` and 2,000.
    ///
    /// Settled ones are found by an index, live ones among the 4,000 newest live tasks of the broker.
    pub async fn family(
        &self,
        broker_key: i32,
        root_id: &str,
        parent_id: Option<&str>,
        limit: u16,
        now: UnixMicros,
    ) -> Result<Family> {
        const OPERATION: &str = "load a workflow";
        let limit = usize::from(limit.clamp(1, FAMILY));
        let mut snapshot = self.snapshot(OPERATION).await?;
        let statement = match parent_id {
            Some(_) => include_str!("../sql/children.sql"),
            None => include_str!("../sql/family.sql"),
        };
        let statement = statement.replace("{columns}", summary::COLUMNS);
        let mut query = sqlx::query(&statement)
            .bind(broker_key)
            .bind(root_id)
            .bind(i64::try_from(limit).unwrap_or(i64::MAX) + 1)
            .bind(used_classes(&mut snapshot, "task").await?);
        if let Some(parent_id) = parent_id {
            query = query.bind(parent_id);
        }
        let rows = query.fetch_all(&mut *snapshot).await.during(OPERATION)?;
        let filter = TaskFilter {
            root_id: Some(root_id.to_owned()),
            parent_id: parent_id.map(str::to_owned),
            ..TaskFilter::default()
        };
        let live = live::all(&mut snapshot, &filter, &[broker_key], now).await?;
        snapshot.rollback().await.during(OPERATION)?;
        let mut tasks: Vec<TaskSummary> = rows.iter().map(summary::settled).chain(live.tasks).collect();
        tasks.sort_by(|a, b| a.place.cmp(&b.place));
        let truncated = live.covered.is_some() || tasks.len() > limit;
        tasks.truncate(limit);
        Ok(Family { tasks, truncated })
    }

    /// Counts tasks by state, as far back as 40 ms reach: dashboards ask the statistics instead.
    pub async fn count_by_state(&self, filter: &TaskFilter, now: UnixMicros) -> Result<StateCounts> {
        const OPERATION: &str = "count tasks";
        filter.check(OPERATION)?;
        let mut snapshot = self.snapshot(OPERATION).await?;
        let brokers = self.known(&mut snapshot, filter.brokers.as_deref()).await?;
        let counts = tasks::count(&mut snapshot, filter, brokers, now).await;
        snapshot.rollback().await.during(OPERATION)?;
        counts
    }
}
