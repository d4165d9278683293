//! Live tasks of a page: the newest of each broker, and those that match among so many of them.
//!
//! What a row says is looked at by Postgres, so that those that cannot match are neither sent nor read; their facts, which
//! alone know how a task is now, decide.

use std::collections::BTreeMap;

use kanchi_domain::UnixMicros;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Postgres, QueryBuilder, Row};

use crate::error::{During, Result};
use crate::query::cursor::{BEGINNING, END, Place};
use crate::query::filter::{TaskFilter, TimeField};
use crate::query::summary::{self, Found};

const OPERATION: &str = "list tasks";

/// Live tasks that a page looks at, of all its brokers; of each as many as it shows at least.
const EXAMINED: usize = 4_000;

/// Which live tasks are read.
#[derive(Debug)]
struct Scan<'a> {
    filter: &'a TaskFilter,
    brokers: &'a [i32],
    /// By when they were first seen: those behind this place, and none before this time.
    behind: Place,
    from: i64,
    /// So many of each broker are looked at.
    examined: usize,
    /// So many of each broker are read, of those that may match.
    wanted: usize,
    what: What,
}

/// What is read of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// The newest ones of all brokers together, as many as are read of one: each matches.
    Newest,
    /// All that may match.
    Matches,
    /// Their states: the facts of those alone whose time may have changed it.
    States,
}

/// Returns the live tasks of a page of so many tasks, in no order.
pub(super) async fn page(
    connection: &mut PgConnection,
    filter: &TaskFilter,
    brokers: &[i32],
    (behind, from): (Place, i64),
    limit: usize,
    now: UnixMicros,
) -> Result<Found> {
    let (what, examined) = if filter.is_selective() {
        (What::Matches, (EXAMINED / brokers.len().max(1)).max(limit))
    } else {
        (What::Newest, limit)
    };
    let wanted = if filter.is_told_by_rows() { limit } else { examined };
    let scan = Scan {
        filter,
        brokers,
        behind,
        from,
        examined: examined + 1,
        wanted: wanted + 1,
        what,
    };
    scan.read(connection, now).await
}

/// Returns all live tasks that match among the newest 4,000 of these brokers.
pub(super) async fn all(
    connection: &mut PgConnection,
    filter: &TaskFilter,
    brokers: &[i32],
    now: UnixMicros,
) -> Result<Found> {
    Scan::of_all(filter, brokers, What::Matches).read(connection, now).await
}

/// Counts the states of all live tasks that match among the newest 4,000 of these brokers; returns also the last place up to which
/// all were looked at.
pub(super) async fn states(
    connection: &mut PgConnection,
    filter: &TaskFilter,
    brokers: &[i32],
    now: UnixMicros,
) -> Result<(BTreeMap<String, u64>, Option<Place>)> {
    let mut states = BTreeMap::<_, u64>::new();
    if !filter.is_told_by_columns() {
        let found = all(connection, filter, brokers, now).await?;
        for task in found.tasks {
            *states.entry(task.state.as_str().to_owned()).or_default() += 1;
        }
        return Ok((states, found.covered));
    }
    let scan = Scan::of_all(filter, brokers, What::States);
    let rows = scan.rows(connection).await?;
    for row in &rows {
        let state = if row.get::<Option<&[u8]>, _>(3).is_some() {
            let task = summary::live(row, now)?;
            let matches = filter.matches(&task, UnixMicros(task.place.micros()));
            matches.then(|| task.state.as_str().to_owned())
        } else {
            row.get::<bool, _>(6).then(|| row.get(7))
        };
        if let Some(state) = state {
            *states.entry(state).or_default() += 1;
        }
    }
    Ok((states, scan.covered(&rows)))
}

impl<'a> Scan<'a> {
    /// The newest 4,000 of the time that is asked for.
    fn of_all(filter: &'a TaskFilter, brokers: &'a [i32], what: What) -> Self {
        let examined = EXAMINED / brokers.len().max(1) + 1;
        let bound = |time: Option<UnixMicros>| time.filter(|_| filter.time_field == TimeField::Received);
        Self {
            filter,
            brokers,
            behind: Place::ahead_of(bound(filter.to).map_or(END, |to| to.0.saturating_sub(1).clamp(BEGINNING, END))),
            from: bound(filter.from).map_or(BEGINNING, |from| from.0.clamp(BEGINNING, END)),
            examined,
            wanted: examined,
            what,
        }
    }

    async fn read(&self, connection: &mut PgConnection, now: UnixMicros) -> Result<Found> {
        let rows = self.rows(connection).await?;
        let mut found = Found {
            covered: self.covered(&rows),
            ..Found::default()
        };
        for row in &rows {
            let task = summary::live(row, now)?;
            if self.filter.matches(&task, UnixMicros(task.place.micros())) {
                found.tasks.push(task);
            }
        }
        Ok(found)
    }

    async fn rows(&self, connection: &mut PgConnection) -> Result<Vec<PgRow>> {
        let mut sql = QueryBuilder::new("");
        self.write(&mut sql);
        sql.build().fetch_all(connection).await.during(OPERATION)
    }

    /// Returns the last place up to which nothing is missing, since no more was looked at, or read, of one broker or of all.
    fn covered(&self, rows: &[PgRow]) -> Option<Place> {
        let place = |row: &PgRow| Place::new(row.get(2), row.get(0), row.get(1));
        if self.what == What::Newest {
            let last = rows.iter().map(place).max();
            return last.filter(|_| rows.len() == self.wanted);
        }
        let (mut covered, mut read, mut broker) = (None, 0, None);
        for row in rows {
            let of: i32 = row.get(0);
            read = if broker == Some(of) { read + 1 } else { 1 };
            broker = Some(of);
            let examined: i64 = row.get(5);
            if read == self.wanted || usize::try_from(examined) == Ok(self.examined) {
                covered = Place::first(covered, Some(place(row)));
            }
        }
        covered
    }

    /// Writes the query. The last row that is looked at is read whatever it says: it tells how far the page reaches. Facts are read
    /// last, of what is left.
    fn write(&self, sql: &mut QueryBuilder<'_, Postgres>) {
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        sql.push(
            "select l.broker_id, l.task_id, kanchi.unix_micros(l.first_seen_at), f.facts, f.queue, l.number, l.may_match, l.state
            from (select m.* from unnest(",
        );
        sql.push_bind(self.brokers.to_vec()).push(
            "::integer[]) as b (broker_id) cross join lateral (
                select r.* from (
                    select n.*, row_number() over () as number from (
                        select k.broker_id, k.task_id, k.first_seen_at, k.state, k.due_at is not null as may_change, (true",
        );
        self.filter.push_live(sql);
        sql.push(
            ") as may_match from kanchi.task_live k
                        where k.broker_id::bigint = b.broker_id and k.first_seen_at <= kanchi.micros(",
        );
        sql.push_bind(self.behind.micros())
            .push(") and k.first_seen_at >= kanchi.micros(");
        sql.push_bind(self.from).push(") and (k.first_seen_at < kanchi.micros(");
        sql.push_bind(self.behind.micros())
            .push(") or (k.broker_id, k.task_id collate \"C\") > (");
        sql.push_bind(self.behind.broker_key).push(", ");
        sql.push_bind(self.behind.task_id.clone())
            .push(")) order by k.first_seen_at desc, k.task_id collate \"C\" limit ");
        sql.push_bind(count(self.examined))
            .push(") as n) as r where r.may_match or r.number = ");
        sql.push_bind(count(self.examined)).push(" limit ");
        sql.push_bind(count(self.wanted)).push(") as m");
        if self.what == What::Newest {
            sql.push(" order by m.first_seen_at desc, m.broker_id, m.task_id collate \"C\" limit ");
            sql.push_bind(count(self.wanted));
        }
        // Joined, they might be read first, all of them: on an empty table that costs the same.
        sql.push(
            " offset 0) as l left join lateral (
                select a.facts, a.queue from kanchi.task_live a where a.broker_id = l.broker_id and a.task_id = l.task_id",
        );
        if self.what == What::States {
            sql.push(" and l.may_change");
        }
        sql.push(" offset 0) as f on true");
    }
}

impl TaskFilter {
    /// Whether a live row matches if Postgres says that it may: texts within its facts may be those of another field.
    fn is_told_by_columns(&self) -> bool {
        let texts = [&self.root_id, &self.parent_id, &self.text];
        self.is_told_by_rows() && texts.iter().all(|text| text.is_none())
    }

    /// Whether what Postgres can tell of a live row says if its task matches, but for few of them.
    fn is_told_by_rows(&self) -> bool {
        let by_rows = Self {
            brokers: self.brokers.clone(),
            state: self.state.clone(),
            name: self.name.clone(),
            queue: self.queue.clone(),
            worker: self.worker.clone(),
            root_id: self.root_id.clone(),
            parent_id: self.parent_id.clone(),
            text: self.text.clone(),
            from: self.from,
            to: self.to,
            ..Self::default()
        };
        self.time_field == TimeField::Received && *self == by_rows
    }

    /// Adds what a live row, `k`, must be like for its task to match.
    fn push_live(&self, sql: &mut QueryBuilder<'_, Postgres>) {
        for (words, column) in [
            (&self.name, "k.name"),
            (&self.queue, "k.queue"),
            (&self.worker, "k.worker"),
            (&self.task_id, "k.task_id"),
        ] {
            words.push(sql, column);
        }
        if !self.state.is_empty() {
            // What has a deadline may be in another state by now.
            sql.push(" and (k.due_at is not null or true");
            self.state.push(sql, "k.state");
            sql.push(")");
        }
        // Facts have texts as they are.
        for id in [&self.root_id, &self.parent_id].into_iter().flatten() {
            sql.push(" and position(").push_bind(id.as_bytes().to_vec());
            sql.push(" in k.facts) > 0");
        }
        if let Some(text) = &self.text {
            sql.push(" and (position(").push_bind(text.as_bytes().to_vec());
            sql.push(" in k.facts) > 0 or position(").push_bind(text.clone());
            sql.push(" in k.task_id) > 0)");
        }
    }
}
