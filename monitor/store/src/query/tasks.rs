//! Pages of tasks: live and settled, newest first, within a time budget.
//!
//! History is read backwards in slices of time, so that Postgres opens the partitions of a slice only, and so that it is
//! known how far a page got when its time is over. A slice grows while slices are cheap.

use std::time::{Duration, Instant};

use kanchi_domain::UnixMicros;
use sqlx::{PgConnection, Postgres, QueryBuilder};

use crate::error::{During, Error, ErrorKind, Result};
use crate::query::cursor::{Cursor, Place};
use crate::query::filter::{TaskFilter, TimeField, Words};
use crate::query::single::StateCounts;
use crate::query::summary::{self, TaskSummary};
use crate::query::{PageRequest, STATEMENT_TIMEOUT, StoreQuery, set_timeout};

/// Most tasks of one page.
pub const PAGE_LIMIT: u16 = 500;

const OPERATION: &str = "list tasks";

/// When a task came: see `0005_queries.sql`.
const ARRIVED: &str = "coalesce(t.received_at, t.sent_at, t.started_at, t.finished_at, t.stored_at)";

/// Beyond it no further slice is read: the page ends where the slices did.
const BUDGET: Duration = Duration::from_millis(60);
/// A statement that takes so much longer than the budget is given up.
const GRACE: Duration = Duration::from_millis(25);
/// So often the time of the narrowest first slice is doubled, see [`allowed`].
const MOST_PATIENCE: u8 = 5;

/// Brokers that are each asked for themselves; a list of more is read by time, and its brokers are a filter.
const SINGLE_BROKERS: usize = 16;

/// Live tasks that a page looks at, of all its brokers, besides those that it shows.
const LIVE_EXAMINED: usize = 4_000;

/// The first slice: where every row matches, and where most rows may not.
const FIRST_SLICE: i64 = 3_600_000_000;
const FIRST_SELECTIVE_SLICE: i64 = 10_000_000;
/// A slice is at most so many times as wide as the one before.
const GROWTH: i64 = 8;
const NARROWEST: i64 = 100_000;
/// The longest retention and its widest partition; what is older is read in one last slice.
const LONGEST: i64 = 400 * 86_400 * 1_000_000;

/// A worker's clock may be ahead of the server's by so much before a slice misses its tasks.
const CLOCK_AHEAD: &str = "interval '1 day'";

/// Earlier than any task.
const BEGINNING: i64 = 0;
/// The year 9999.
const END: i64 = 253_402_300_799_999_999;

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
    /// The time ran out before the page was full; all tasks newer than this are in this page or in those before. It may be empty, and
    /// say so of no task at all yet, a time in the far future.
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
    selective: bool,
    /// Bounds of the time that the list is ordered by, both included.
    from: i64,
    to: i64,
}

impl StoreQuery {
    /// Returns a page of tasks. A filter that no index serves gives what 60 ms found, [`partial`](TaskPage::partial), and
    /// a cursor to go on. A task that settles between two pages may stand elsewhere then, or in both.
    ///
    /// Not in the 60 ms: the wait for a connection, and the planning of what a session has not been asked before.
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
                patience: 0,
            },
        };
        let mut snapshot = self.snapshot(OPERATION).await?;
        let brokers = self.brokers(&mut snapshot, filter.brokers.as_deref()).await?;
        let scan = Scan::new(filter, order, brokers)?;
        scan.plan(&mut snapshot).await?;
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
    let (live, settled) = match read(snapshot, scan, &cursor, limit, now).await {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::Timeout => {
            let Some(next) = scan.narrower(cursor) else {
                return Err(error);
            };
            return Ok(TaskPage {
                tasks: Vec::new(),
                partial: Some(UnixMicros(next.after.micros())),
                next: Some(next.write()),
            });
        }
        Err(error) => return Err(error),
    };
    let covered = first(live.covered, settled.covered);
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
    let next = after.map(|after| Cursor {
        order: cursor.order,
        after,
        width: settled.width,
        patience: settled.patience,
    });
    let next = next.map(|next| next.write());
    Ok(TaskPage { tasks, next, partial })
}

/// Reads what is live and what is settled. [`ErrorKind::Timeout`]: the live tasks or the first slice took too long, and
/// nothing is known.
async fn read(
    snapshot: &mut PgConnection,
    scan: &Scan<'_>,
    cursor: &Cursor,
    limit: usize,
    now: UnixMicros,
) -> Result<(Found, Found)> {
    let began = Instant::now();
    let live = match scan.way {
        Way::Finished => Found::default(),
        Way::Arrived | Way::Unsuccessful | Way::AnyBroker => {
            let each = if scan.selective {
                scan.live_examined(cursor.width.unwrap_or(scan.first_width()))
                    .max(limit)
            } else {
                limit
            };
            set_timeout(snapshot, allowed(BUDGET, cursor.patience)).await?;
            scan.live(snapshot, &cursor.after, each + 1, now).await?
        }
    };
    let settled = scan.settled(snapshot, cursor, limit, now, began).await?;
    Ok((live, settled))
}

/// Returns how long a statement may take without which a page gets nowhere: the live tasks, the first slice.
///
/// One that takes longer makes an empty page, whose cursor asks for an eighth of it. The narrowest slice, a tenth of a second, is
/// given twice the time with each such page, at last what the server gives to any statement. So this ends: at a microsecond a task
/// (docs/adr/0003-queries.md) that is time for two million tasks that came within a tenth of a second. Where Postgres is slow in
/// itself, a slice takes its time however narrow it is: then the next ones keep the time that one needed, each twice as wide.
fn allowed(left: Duration, patience: u8) -> Duration {
    if patience >= MOST_PATIENCE {
        return STATEMENT_TIMEOUT;
    }
    ((left + GRACE) * (1 << patience)).min(STATEMENT_TIMEOUT)
}

/// What one source gave.
#[derive(Debug, Default)]
struct Found {
    tasks: Vec<TaskSummary>,
    /// The last place up to which nothing is missing; `None`: nothing is missing at all.
    covered: Option<Place>,
    /// How wide the next slice of history may be.
    width: Option<i64>,
    /// How patient the next page has to be.
    patience: u8,
}

/// Returns the place that comes first; `None` comes last.
fn first(a: Option<Place>, b: Option<Place>) -> Option<Place> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

impl<'a> Scan<'a> {
    fn new(filter: &'a TaskFilter, order: TaskOrder, brokers: Vec<i32>) -> Result<Self> {
        let way = match order {
            TaskOrder::Finished if brokers.len() > SINGLE_BROKERS => {
                let message = format!("a list in the order of the end takes at most {SINGLE_BROKERS} brokers");
                return Err(Error::new(ErrorKind::Invalid, OPERATION, message));
            }
            TaskOrder::Finished => Way::Finished,
            TaskOrder::Arrived if brokers.len() > SINGLE_BROKERS => Way::AnyBroker,
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
            brokers,
            selective: filter.is_selective(),
            from: bound(filter.from, BEGINNING).clamp(BEGINNING, END),
            to: bound(filter.to, END).saturating_sub(1).clamp(BEGINNING, END),
        })
    }

    /// Live tasks of each broker that are looked at for the few that match.
    /// Fewer where a slice is narrow: the page ends where either of them does.
    fn live_examined(&self, width: i64) -> usize {
        let width = usize::try_from(width.clamp(NARROWEST, FIRST_SELECTIVE_SLICE)).unwrap_or_default();
        let whole = usize::try_from(FIRST_SELECTIVE_SLICE).unwrap_or(usize::MAX);
        LIVE_EXAMINED * width / whole / self.brokers.len().max(1)
    }

    fn first_width(&self) -> i64 {
        if self.selective {
            FIRST_SELECTIVE_SLICE
        } else {
            FIRST_SLICE
        }
    }

    /// Returns the cursor of a page that got nowhere; `None`: it had all the time there is, for the least there is.
    fn narrower(&self, cursor: Cursor) -> Option<Cursor> {
        let width = cursor.width.unwrap_or(self.first_width());
        if width > NARROWEST {
            let width = Some((width / GROWTH).max(NARROWEST));
            return Some(Cursor { width, ..cursor });
        }
        (cursor.patience < MOST_PATIENCE).then(|| Cursor {
            patience: cursor.patience + 1,
            ..cursor
        })
    }

    /// Has a session plan the query of a slice, if it has no plan of it, or none any more since a partition was made or analysed.
    /// That takes longer than a page may, and would begin anew with each page that is given up meanwhile. It is asked for a time
    /// that no task has.
    async fn plan(&self, connection: &mut PgConnection) -> Result<()> {
        self.slice(&Place::ahead_of(END), END, 1, connection).await.map(drop)
    }

    /// Live tasks after a place, by when they were first seen: those that match among so many of each broker.
    async fn live(&self, connection: &mut PgConnection, after: &Place, each: usize, now: UnixMicros) -> Result<Found> {
        let start = after.clone().max(Place::ahead_of(self.to));
        let rows = sqlx::query(include_str!("../sql/live_page.sql"))
            .bind(&self.brokers)
            .bind(start.micros())
            .bind(start.broker_key)
            .bind(&start.task_id)
            .bind(self.from)
            .bind(i64::try_from(each).unwrap_or(i64::MAX))
            .fetch_all(connection)
            .await
            .during(OPERATION)?;
        let mut found = Found::default();
        let (mut examined, mut broker) = (0, None);
        for row in &rows {
            let task = summary::live(row, now)?;
            examined = if broker == Some(task.broker_key) {
                examined + 1
            } else {
                1
            };
            broker = Some(task.broker_key);
            if examined == each {
                found.covered = first(found.covered, Some(task.place.clone()));
            }
            if self.filter.matches(&task, UnixMicros(task.place.micros())) {
                found.tasks.push(task);
            }
        }
        Ok(found)
    }

    /// Settled tasks after a place, slice by slice.
    async fn settled(
        &self,
        connection: &mut PgConnection,
        cursor: &Cursor,
        limit: usize,
        now: UnixMicros,
        began: Instant,
    ) -> Result<Found> {
        let mut found = Found {
            patience: cursor.patience,
            ..Found::default()
        };
        let mut slices = Slices::new(self, cursor.after.clone(), now, began);
        slices.width = cursor.width.unwrap_or(slices.width);
        set_timeout(connection, allowed(slices.left(), cursor.patience)).await?;
        while let Some(low) = slices.low() {
            let wanted = limit + 1 - found.tasks.len();
            let rows = match self.slice(&slices.first, low, wanted, connection).await {
                Ok(rows) => rows,
                Err(error) if error.kind() == ErrorKind::Timeout && slices.has_moved => {
                    slices.give_up();
                    break;
                }
                Err(error) => return Err(error),
            };
            if began.elapsed() < BUDGET + GRACE {
                found.patience = 0;
            }
            found.tasks.extend(rows);
            if found.tasks.len() > limit {
                found.covered = found.tasks.last().map(|task| task.place.clone());
                found.width = Some(slices.width);
                return Ok(found);
            }
            slices.next(low, connection).await?;
        }
        found.covered = slices.end;
        found.width = Some(slices.width);
        Ok(found)
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

/// Returns the live tasks that match, among those that a page looks at, and whether there are more than these.
pub(super) async fn live_matching(
    connection: &mut PgConnection,
    filter: &TaskFilter,
    brokers: Vec<i32>,
    now: UnixMicros,
) -> Result<(Vec<TaskSummary>, bool)> {
    let scan = Scan::new(filter, TaskOrder::Arrived, brokers)?;
    let each = scan.live_examined(FIRST_SELECTIVE_SLICE) + 1;
    let live = scan.live(connection, &Place::ahead_of(END), each, now).await?;
    Ok((live.tasks, live.covered.is_some()))
}

/// Counts tasks by state, newest first, until the time is over.
pub(super) async fn count(
    connection: &mut PgConnection,
    filter: &TaskFilter,
    brokers: Vec<i32>,
    now: UnixMicros,
) -> Result<StateCounts> {
    let scan = Scan::new(filter, TaskOrder::Arrived, brokers)?;
    // Planned before the clock runs, as a page is: see Scan::plan.
    scan.count_slice(&Place::ahead_of(END), END, connection).await?;
    let mut slices = Slices::new(&scan, Place::ahead_of(END), now, Instant::now());
    slices.width = FIRST_SELECTIVE_SLICE;
    let mut counts = StateCounts::default();
    let each = scan.live_examined(FIRST_SELECTIVE_SLICE) + 1;
    set_timeout(connection, BUDGET + GRACE).await?;
    let live = match scan.live(connection, &Place::ahead_of(END), each, now).await {
        Ok(live) => live,
        Err(error) if error.kind() == ErrorKind::Timeout => {
            counts.at_least_since = Some(UnixMicros(slices.first.micros()));
            return Ok(counts);
        }
        Err(error) => return Err(error),
    };
    for task in &live.tasks {
        *counts.by_state.entry(task.state.as_str().to_owned()).or_default() += 1;
    }
    set_timeout(connection, slices.left() + GRACE).await?;
    while let Some(low) = slices.low() {
        let rows = match scan.count_slice(&slices.first, low, connection).await {
            Ok(rows) => rows,
            Err(error) if error.kind() == ErrorKind::Timeout => {
                slices.give_up();
                break;
            }
            Err(error) => return Err(error),
        };
        for (state, tasks) in rows {
            *counts.by_state.entry(state).or_default() += tasks.unsigned_abs();
        }
        slices.next(low, connection).await?;
    }
    let covered = first(live.covered, slices.end);
    counts.at_least_since = covered.map(|place| UnixMicros(place.micros()));
    Ok(counts)
}

/// How far history has been read.
#[derive(Debug)]
struct Slices {
    first: Place,
    width: i64,
    from: i64,
    now: UnixMicros,
    began: Instant,
    slice_began: Instant,
    has_moved: bool,
    is_over: bool,
    /// Where it ended for want of time.
    end: Option<Place>,
}

impl Slices {
    fn new(scan: &Scan<'_>, after: Place, now: UnixMicros, began: Instant) -> Self {
        Self {
            first: after.max(Place::ahead_of(scan.to)),
            width: scan.first_width(),
            from: scan.from,
            now,
            began,
            slice_began: Instant::now(),
            has_moved: false,
            is_over: false,
            end: None,
        }
    }

    /// Begins a slice: how far back it goes. `None`: there is nothing to read, or no time for it.
    fn low(&mut self) -> Option<i64> {
        self.slice_began = Instant::now();
        let first = self.first.micros();
        // Few tasks are of the future: the first slice has them all.
        let low = first.min(self.now.0).saturating_sub(self.width).max(self.from);
        // Nothing is kept for so long.
        let low = if low < self.now.0 - LONGEST { self.from } else { low };
        (!self.is_over && self.end.is_none() && first >= self.from).then_some(low)
    }

    fn left(&self) -> Duration {
        BUDGET.saturating_sub(self.began.elapsed())
    }

    /// Ends before a slice that took too long; the next page tries a narrower one.
    fn give_up(&mut self) {
        self.end = Some(self.first.clone());
        self.width = (self.width / GROWTH).max(NARROWEST);
    }

    /// Ends a slice.
    async fn next(&mut self, low: i64, connection: &mut PgConnection) -> Result<()> {
        self.first = Place::behind(low);
        self.has_moved = true;
        self.is_over = low <= self.from;
        let left = self.left();
        if self.is_over {
            return Ok(());
        }
        self.width = grown(self.width, self.slice_began.elapsed(), left);
        if left.is_zero() {
            self.end = Some(self.first.clone());
            return Ok(());
        }
        set_timeout(connection, left + GRACE).await
    }
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
            selective: false,
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

/// Returns the width of the next slice, twice as wide at least: where Postgres is slow in itself, narrow slices get nowhere.
/// One that turns out too wide runs into its time limit.
fn grown(width: i64, took: Duration, left: Duration) -> i64 {
    let factor = i64::try_from(left.as_micros() / 2 / took.as_micros().max(1)).unwrap_or(GROWTH);
    width.saturating_mul(factor.clamp(2, GROWTH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_gets_nowhere_is_asked_again_for_less_and_with_more_time() {
        let filter = TaskFilter::default();
        let scan = Scan::new(&filter, TaskOrder::Arrived, vec![1]).unwrap();
        let beginning = Cursor {
            order: TaskOrder::Arrived,
            after: Place::ahead_of(END),
            width: Some(LONGEST),
            patience: 0,
        };
        let mut last = beginning.clone();
        let mut pages = 0;
        while let Some(next) = scan.narrower(last.clone()) {
            assert!(next.width < last.width || allowed(BUDGET, next.patience) > allowed(BUDGET, last.patience));
            (last, pages) = (next, pages + 1);
        }
        assert_eq!(pages, 10 + MOST_PATIENCE);
        assert_eq!((last.after, last.width), (beginning.after, Some(NARROWEST)));
        assert_eq!(allowed(Duration::ZERO, last.patience), STATEMENT_TIMEOUT);
    }
}
