//! Pages of tasks: live and settled, newest first, within a time budget.
//!
//! History is read backwards in slices of time, so that Postgres opens the partitions of a slice only, and so that it is
//! known how far a page got when its time is over. A slice grows while slices are cheap.

use std::time::Instant;

use kanchi_domain::UnixMicros;
use sqlx::{PgConnection, Postgres, QueryBuilder};

use crate::error::{During, Error, ErrorKind, Result};
use crate::query::cursor::{BEGINNING, Cursor, END, Place};
use crate::query::filter::{TaskFilter, TimeField, Words};
use crate::query::single::StateCounts;
use crate::query::slices::{FIRST_COUNTED, Slices};
use crate::query::summary::{self, Found, TaskSummary};
use crate::query::{Brokers, PageRequest, StoreQuery, live, used_classes};

/// Most tasks of one page.
pub const PAGE_LIMIT: u16 = 500;

const OPERATION: &str = "list tasks";

/// When a task came: see `0005_queries.sql`.
const ARRIVED: &str = "coalesce(t.received_at, t.sent_at, t.started_at, t.finished_at, t.stored_at)";

/// Brokers that are each asked for themselves; a list of more is read by time, and its brokers are a filter.
const SINGLE_BROKERS: usize = 16;

/// A worker's clock may be ahead of the server's by so much before a slice misses its tasks.
const CLOCK_AHEAD: &str = "interval '1 day'";

/// How a list is ordered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TaskOrder {
    /// Newest first, by [`TimeField::Received`].
    #[default]
    Arrived,
    /// Finished last first. Settled tasks only: reruns, and ends without a beginning, settle minutes later. At most 16 brokers.
    Finished,
}

impl TaskOrder {
    pub(super) fn letter(self) -> char {
        match self {
            Self::Arrived => 'a',
            Self::Finished => 'f',
        }
    }

    pub(super) fn of_letter(letter: &str) -> Option<Self> {
        [Self::Arrived, Self::Finished]
            .into_iter()
            .find(|order| letter.len() == 1 && letter.starts_with(order.letter()))
    }
}

/// A page of a list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TaskPage {
    /// The tasks, in order.
    pub tasks: Vec<TaskSummary>,
    /// Where the next page begins; `None`: this was the last.
    pub next: Option<String>,
    /// The time ran out before the page was full; all tasks newer than this are in this page or in those before. A time in the far
    /// future: it ran out before anything was found, and the next page asks for less at once.
    pub partial: Option<UnixMicros>,
}

/// Which index serves a list; each has its time in another form, see `0005_queries.sql`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// `task_arrived`
    Arrived,
    /// `task_unsuccessful`
    Unsuccessful,
    /// `task_arrived_any`
    AnyBroker,
    /// `task_finished`
    Finished,
}

/// What a list is read by.
#[derive(Debug)]
struct Scan<'a> {
    filter: &'a TaskFilter,
    way: Way,
    brokers: Vec<i32>,
    /// Retention classes that have rows.
    classes: Vec<i16>,
    /// Any number of rows may not match.
    is_selective: bool,
    /// Bounds of the time that the list is ordered by, both included.
    from: i64,
    to: i64,
}

impl StoreQuery {
    /// Returns a page of tasks. A filter that no index serves gives what 40 ms found, [`partial`](TaskPage::partial), and
    /// a cursor to go on. A task that settles between two pages may stand elsewhere then, or in both.
    ///
    /// Not in the 40 ms: the wait for a connection, and the planning of what a session has not been asked before.
    pub async fn tasks(
        &self,
        filter: &TaskFilter,
        order: TaskOrder,
        request: &PageRequest,
        now: UnixMicros,
    ) -> Result<TaskPage> {
        filter.check(OPERATION)?;
        let limit = usize::from(request.limit.clamp(1, PAGE_LIMIT));
        let cursor = match &request.cursor {
            Some(text) => Cursor::read(text, order)?,
            None => Cursor {
                order,
                after: Place::ahead_of(END),
                width: None,
            },
        };
        let mut snapshot = self.snapshot(OPERATION).await?;
        let brokers = self.known(&mut snapshot, filter.brokers.as_deref()).await?;
        let classes = used_classes(&mut snapshot, "task").await?;
        let scan = Scan::new(filter, order, brokers, classes)?;
        let page = page(&mut snapshot, &scan, cursor, limit, now).await;
        // Nothing was written; a snapshot that a timeout ended is rolled back.
        snapshot.rollback().await.during(OPERATION)?;
        page
    }
}

async fn page(
    snapshot: &mut PgConnection,
    scan: &Scan<'_>,
    cursor: Cursor,
    limit: usize,
    now: UnixMicros,
) -> Result<TaskPage> {
    if scan.is_selective {
        // Planned within its time, a slice would be given up, and planned anew by the next page.
        scan.slice(&nowhere(), END, 1, snapshot).await?;
    }
    let began = Instant::now();
    let live = match scan.way {
        Way::Finished => Found::default(),
        Way::Arrived | Way::Unsuccessful | Way::AnyBroker => {
            let behind = cursor.after.clone().max(Place::ahead_of(scan.to));
            live::page(snapshot, scan.filter, &scan.brokers, (behind, scan.from), limit, now).await?
        }
    };
    let (settled, width) = scan.settled(snapshot, &cursor, limit, now, began).await?;
    let covered = Place::first(live.covered, settled.covered);
    let mut tasks = live.tasks;
    tasks.extend(settled.tasks);
    tasks.sort_by(|a, b| a.place.cmp(&b.place));
    if let Some(end) = &covered {
        tasks.retain(|task| task.place <= *end);
    }
    let cut = tasks.len() > limit;
    tasks.truncate(limit);
    let after = if cut {
        tasks.last().map(|task| task.place.clone())
    } else {
        covered
    };
    let partial = after
        .as_ref()
        .filter(|_| tasks.len() < limit)
        .map(|place| UnixMicros(place.micros()));
    let next = after.map(|after| {
        Cursor {
            after,
            width: Some(width),
            ..cursor
        }
        .write()
    });
    Ok(TaskPage { tasks, next, partial })
}

impl<'a> Scan<'a> {
    fn new(filter: &'a TaskFilter, order: TaskOrder, brokers: Brokers, classes: Vec<i16>) -> Result<Self> {
        let Brokers { keys: brokers, are_all } = brokers;
        let way = match order {
            TaskOrder::Finished if brokers.len() > SINGLE_BROKERS => {
                let message = format!("a list in the order of the end takes at most {SINGLE_BROKERS} brokers");
                return Err(Error::new(ErrorKind::Invalid, OPERATION, message));
            }
            TaskOrder::Finished => Way::Finished,
            TaskOrder::Arrived if brokers.len() > SINGLE_BROKERS => Way::AnyBroker,
            // All of all brokers: one look into each partition.
            TaskOrder::Arrived if brokers.len() > 1 && are_all && !filter.is_selective() => Way::AnyBroker,
            TaskOrder::Arrived if filter.is_unsuccessful() => Way::Unsuccessful,
            TaskOrder::Arrived => Way::Arrived,
        };
        let bounded = match order {
            TaskOrder::Arrived => filter.time_field == TimeField::Received,
            TaskOrder::Finished => filter.time_field == TimeField::Finished,
        };
        let bound = |time: Option<UnixMicros>, other: i64| time.filter(|_| bounded).map_or(other, |time| time.0);
        Ok(Self {
            filter,
            way,
            classes,
            is_selective: filter.is_selective() || (way == Way::AnyBroker && !are_all),
            brokers,
            from: bound(filter.from, BEGINNING).clamp(BEGINNING, END),
            to: bound(filter.to, END).saturating_sub(1).clamp(BEGINNING, END),
        })
    }

    /// Settled tasks after a place, slice by slice, and how wide the next slice may be.
    async fn settled(
        &self,
        connection: &mut PgConnection,
        cursor: &Cursor,
        limit: usize,
        now: UnixMicros,
        began: Instant,
    ) -> Result<(Found, i64)> {
        let mut found = Found::default();
        let first = cursor.after.clone().max(Place::ahead_of(self.to));
        let mut slices = Slices::new((first, self.from), self.is_selective, now, began);
        slices.width = cursor.width.unwrap_or(slices.width);
        while let Some(low) = slices.begin(connection).await? {
            let wanted = limit + 1 - found.tasks.len();
            match self.slice(&slices.first, low, wanted, connection).await {
                Ok(rows) => found.tasks.extend(rows),
                Err(error) => {
                    slices.give_up(error)?;
                    break;
                }
            }
            if found.tasks.len() > limit {
                found.covered = found.tasks.last().map(|task| task.place.clone());
                return Ok((found, slices.width));
            }
            slices.next(low);
        }
        found.covered = slices.end;
        Ok((found, slices.width))
    }

    async fn slice(
        &self,
        first: &Place,
        low: i64,
        limit: usize,
        connection: &mut PgConnection,
    ) -> Result<Vec<TaskSummary>> {
        let mut sql = QueryBuilder::new("");
        self.write_slice(&mut sql, first, low, limit);
        let rows = sql.build().fetch_all(connection).await.during(OPERATION)?;
        Ok(rows.iter().map(summary::settled).collect())
    }

    /// Counts the settled tasks of one slice by state. In the order of the list, without which another index of the broker would
    /// serve as well while partitions are empty, and read all of its tasks for ever after.
    async fn count_slice(&self, first: &Place, low: i64, connection: &mut PgConnection) -> Result<Vec<(String, i64)>> {
        let mut sql = QueryBuilder::new("select x.state, sum(x.tasks)::bigint from ");
        if self.way != Way::AnyBroker {
            sql.push("unnest(").push_bind(self.brokers.clone());
            sql.push("::integer[]) as b (broker_id) cross join lateral ");
        }
        sql.push("(select r.state, count(*) as tasks from (select t.state");
        self.write_rows(&mut sql, first, low);
        let (time, _) = self.way.time();
        sql.push(" order by ").push(time);
        sql.push(" desc offset 0) as r group by r.state offset 0) as x group by x.state");
        sql.build_query_as().fetch_all(connection).await.during(OPERATION)
    }

    /// Writes the query of one slice. Its text depends on which filters are set alone, so that its plan is kept.
    fn write_slice(&self, sql: &mut QueryBuilder<'_, Postgres>, first: &Place, low: i64, limit: usize) {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let single = self.way != Way::AnyBroker;
        if single {
            sql.push("select x.* from unnest(").push_bind(self.brokers.clone());
            sql.push("::integer[]) as b (broker_id) cross join lateral (");
        }
        sql.push("select kanchi.unix_micros(")
            .push(self.way.plain_time())
            .push(") as place, ");
        sql.push(summary::COLUMNS);
        self.write_rows(sql, first, low);
        let (time, _) = self.way.time();
        sql.push(" order by ")
            .push(time)
            .push(" desc, t.broker_id, t.task_id collate \"C\" limit ")
            .push_bind(limit);
        if single {
            sql.push(") as x order by x.place desc, x.broker_id, x.task_id collate \"C\" limit ")
                .push_bind(limit);
        }
    }

    /// Writes from where the rows of one slice come, and which.
    fn write_rows(&self, sql: &mut QueryBuilder<'_, Postgres>, first: &Place, low: i64) {
        let (time, moment) = self.way.time();
        sql.push(" from kanchi.task t where ").push(self.way.broker());
        if self.way == Way::AnyBroker {
            sql.push_bind(self.brokers.clone()).push(")");
        }
        let bound = |sql: &mut QueryBuilder<'_, Postgres>, comparison: &str, micros: i64| {
            sql.push(" and ")
                .push(time)
                .push(comparison)
                .push("kanchi.micros(")
                .push_bind(micros)
                .push(")")
                .push(moment);
        };
        bound(sql, " <= ", first.micros());
        bound(sql, " >= ", low);
        sql.push(" and t.stored_at >= kanchi.micros(")
            .push_bind(low)
            .push(") - ")
            .push(CLOCK_AHEAD);
        sql.push(" and kanchi.stored_in(")
            .push_bind(self.classes.clone())
            .push(", t.retention_days, t.stored_at)");
        sql.push(" and (")
            .push(time)
            .push(" < kanchi.micros(")
            .push_bind(first.micros())
            .push(")")
            .push(moment);
        sql.push(" or (t.broker_id, t.task_id collate \"C\") > (")
            .push_bind(first.broker_key);
        sql.push(", ").push_bind(first.task_id.clone()).push("))");
        self.filter.push(sql);
        // The live row of a task wins.
        sql.push(" and not exists (select from kanchi.task_live l where l.broker_id = t.broker_id and l.task_id = t.task_id)");
    }
}

/// Where no task is: a slice of it is planned, and reads nothing.
fn nowhere() -> Place {
    Place::ahead_of(END)
}

/// Counts tasks by state, newest first, until the time is over.
pub(super) async fn count(
    connection: &mut PgConnection,
    filter: &TaskFilter,
    brokers: Brokers,
    now: UnixMicros,
) -> Result<StateCounts> {
    let classes = used_classes(connection, "task").await?;
    let scan = Scan::new(filter, TaskOrder::Arrived, brokers, classes)?;
    scan.count_slice(&nowhere(), END, connection).await?;
    let began = Instant::now();
    let (by_state, covered) = live::states(connection, filter, &scan.brokers, now).await?;
    let mut counts = StateCounts {
        by_state,
        ..StateCounts::default()
    };
    let mut slices = Slices::new((Place::ahead_of(scan.to), scan.from), false, now, began);
    slices.width = FIRST_COUNTED;
    while let Some(low) = slices.begin(connection).await? {
        match scan.count_slice(&slices.first, low, connection).await {
            Ok(rows) => {
                for (state, tasks) in rows {
                    *counts.by_state.entry(state).or_default() += tasks.unsigned_abs();
                }
            }
            Err(error) => {
                slices.give_up(error)?;
                break;
            }
        }
        slices.next(low);
    }
    let covered = Place::first(covered, slices.end);
    counts.at_least_since = covered.map(|place| UnixMicros(place.micros()));
    Ok(counts)
}

/// Reads a page of each way, so that a session's first page finds the catalog read.
pub(super) async fn prepare(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let failed = TaskFilter {
        state: Words::one("FAILURE"),
        ..TaskFilter::default()
    };
    for (filter, way) in [
        (&TaskFilter::default(), Way::Arrived),
        (&TaskFilter::default(), Way::AnyBroker),
        (&failed, Way::Unsuccessful),
    ] {
        let scan = Scan {
            filter,
            way,
            brokers: vec![0],
            classes: vec![1],
            is_selective: false,
            from: END,
            to: END,
        };
        let mut sql = QueryBuilder::new("");
        scan.write_slice(&mut sql, &Place::ahead_of(END), END, 1);
        sql.build().fetch_all(&mut *connection).await?;
    }
    Ok(())
}

impl Way {
    /// The time as the index has it, and what makes a moment comparable with it.
    fn time(self) -> (&'static str, &'static str) {
        match self {
            Self::Arrived | Self::Unsuccessful => (ARRIVED, ""),
            Self::AnyBroker => (
                "(coalesce(t.received_at, t.sent_at, t.started_at, t.finished_at, t.stored_at) at time zone 'UTC')",
                " at time zone 'UTC'",
            ),
            Self::Finished => ("t.finished_at", ""),
        }
    }

    fn plain_time(self) -> &'static str {
        match self {
            Self::Arrived | Self::Unsuccessful | Self::AnyBroker => ARRIVED,
            Self::Finished => "t.finished_at",
        }
    }

    fn broker(self) -> &'static str {
        match self {
            Self::Arrived | Self::Finished => "t.broker_id = b.broker_id",
            Self::Unsuccessful => "t.broker_id::bigint = b.broker_id and t.state <> 'SUCCESS'",
            Self::AnyBroker => "t.broker_id = any (",
        }
    }
}
