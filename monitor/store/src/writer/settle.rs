//! Settling: what lies in the live table and belongs to history.
//!
//! A task leaves the live table with the batch that says that it ended. Left to this are those that may have a row in history
//! already (late events, reruns), and those whose deadline passes without a word.

use std::time::{Duration, Instant};

use kanchi_domain::{TaskFacts, TaskRow, UnixMicros};
use sqlx::postgres::PgRow;
use sqlx::{Executor, PgConnection, Row};

use crate::error::{During, Result};
use crate::model;
use crate::retention::RetentionPolicy;
use crate::writer::Epoch;
use crate::writer::copy::Copying;
use crate::writer::history::{self, Destination, Entry};

/// Tasks that one call moves at most: some 10 MB, some tens of milliseconds.
const SETTLE_AT_ONCE: usize = 2_000;
/// Probes that one call makes at most, for each task one into each generation of the time in question: a second or two.
const PROBES: usize = 100_000;
/// When a task that was due and stays is due again.
const LATER: &str = "now() + interval '10 minutes'";
/// Live tasks are looked up in history from the oldest on, at a start and this often: some are missed on the way, because the
/// transaction that brought them was open for as long as they linger, or because they had a deadline then.
const SWEEP_EVERY: Duration = Duration::from_hours(24);

/// How far live tasks were looked up in history, so that each is looked up once and millions that are open are not read again
/// and again.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sweep {
    begun: Option<Instant>,
    /// All that came until then, microseconds since 1970.
    through: i64,
}

impl Sweep {
    /// Returns where to go on.
    pub(super) fn at(self, now: Instant) -> Self {
        match self.begun {
            Some(begun) if now.duration_since(begun) < SWEEP_EVERY => self,
            _ => Self {
                begun: Some(now),
                through: 0,
            },
        }
    }
}

/// How many tasks one call looks for in history, by how far back.
#[derive(Clone, Copy, Debug)]
struct Reach {
    /// Whose beginning was seen.
    young: usize,
    /// The others.
    late: usize,
}

impl Reach {
    async fn now(connection: &mut PgConnection) -> Result<Self> {
        let sql = format!("select kanchi.generations_since({YOUNG_SINCE}), kanchi.generations_since({LATE_SINCE})");
        let generations = sqlx::query(&sql).fetch_one(connection).await;
        let generations = generations.during("count the generations of history")?;
        Ok(Self {
            young: Self::of(generations.get(0)),
            late: Self::of(generations.get(1)),
        })
    }

    fn of(generations: i64) -> usize {
        (PROBES / usize::try_from(generations).unwrap_or(1).max(1)).clamp(1, SETTLE_AT_ONCE)
    }

    /// Keeps the first ones, so that each call gets on however many generations there are.
    fn bound(self, leaving: &mut Vec<Leaving>) {
        let (mut young, mut late) = (0, 0);
        leaving.retain(|task| {
            let (count, most) = if task.has_a_beginning() {
                (&mut young, self.young)
            } else {
                (&mut late, self.late)
            };
            *count += 1;
            *count <= most
        });
    }
}

/// How far back history is searched for a task whose beginning was seen.
const YOUNG_SINCE: &str = "now() - interval '2 days'";

/// And for one of which it was not: a late event.
const LATE_SINCE: &str = "'-infinity'::timestamptz";

/// What [`StoreReporter::settle`](crate::StoreReporter::settle) did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Final tasks that moved from live to history.
    pub moved: u64,
    /// Of these, tasks that had a row in history already and were merged with it.
    pub merged: u64,
    /// Whether there may be more to move right now: call again.
    pub more: bool,
}

/// A task on its way to history.
struct Leaving {
    task_id: String,
    /// Those of its rows in history included.
    facts: TaskFacts,
    /// As stored; facts that cannot be read are kept like this.
    encoded: Vec<u8>,
    readable: bool,
    queue: Option<String>,
    /// When the first of its events was stored, those of its rows in history included.
    first_stored: UnixMicros,
    /// Its time has come; otherwise history knows it.
    is_due: bool,
    /// Its rows in history, of which there is more than one only if it ran again hours later.
    old: Vec<Self>,
}

impl Leaving {
    fn has_a_beginning(&self) -> bool {
        model::has_a_beginning(&self.facts.project())
    }

    const fn entry<'t>(&'t self, row: &'t TaskRow, facts: &'t [u8]) -> Entry<'t> {
        Entry {
            task_id: self.task_id.as_str(),
            facts,
            row,
            first_stored: Some(self.first_stored),
        }
    }

    /// Returns its row, and the facts that this is of.
    fn project(&self, now: UnixMicros) -> (TaskRow, Vec<u8>) {
        let mut row = self.facts.project_at(now);
        let queue = self
            .queue
            .as_ref()
            .or_else(|| self.old.iter().find_map(|old| old.queue.as_ref()));
        if row.queue.is_none()
            && let Some(queue) = queue
        {
            row.queue = Some(queue.as_str().into());
            row.queue_inferred = true;
        }
        let joined = self.old.iter().any(|old| old.readable);
        let facts = if joined {
            self.facts.encode()
        } else {
            self.encoded.clone()
        };
        (row, facts)
    }
}

/// Who settles, and how.
pub(super) struct Settling {
    pub(super) now: UnixMicros,
    pub(super) linger_seconds: u32,
    pub(super) retention: RetentionPolicy,
    /// An epoch that is over is refused; `None`: nobody else writes.
    pub(super) epoch: Option<Epoch>,
}

/// Moves what is due, and with `sweep` what history knows; the transaction is left open on an error. `leave` is told of the
/// tasks that will be in history before they are.
pub(super) async fn run(
    connection: &mut PgConnection,
    settling: Settling,
    sweep: Option<&mut Sweep>,
    leave: impl FnOnce(&[&str]) + Send,
) -> Result<Settled> {
    const OPERATION: &str = "settle final tasks";
    let (now, linger_seconds) = (settling.now, settling.linger_seconds);
    connection.execute("begin").await.during(OPERATION)?;
    let to = Destination::now(connection, settling.retention, OPERATION).await?;
    let reach = Reach::now(connection).await?;
    let mut leaving = due(connection, linger_seconds).await?;
    let found = leaving.len();
    reach.bound(&mut leaving);
    let mut settled = Settled {
        more: found == SETTLE_AT_ONCE || leaving.len() < found,
        ..Settled::default()
    };
    let checked_all = match sweep {
        Some(sweep) => archived_live(connection, linger_seconds, reach, sweep, &mut leaving).await?,
        None => true,
    };
    join_history(connection, reach, &mut leaving).await?;
    let mut copying = Copying::new(connection, history::target(OPERATION));
    let (mut moved, mut later, mut broken) = (Vec::new(), Vec::new(), Vec::new());
    for task in &leaving {
        let (row, facts) = task.project(now);
        if row.is_final() {
            moved.push(task.task_id.as_str());
            settled.merged += u64::from(!task.old.is_empty());
            history::push(copying.row().await?, &task.entry(&row, &facts), to);
            continue;
        }
        // It is running again, and whoever writes the live row need not know of the run before: that stays in history until
        // this one ends, too. Or this clock is behind the server's. The live row stays, and makes room for others that are due.
        if task.is_due {
            let stay = if task.readable { &mut later } else { &mut broken };
            stay.push(task.task_id.as_str());
        }
        for old in &task.old {
            let (row, facts) = old.project(now);
            history::push(copying.row().await?, &old.entry(&row, &facts), to);
        }
    }
    copying.finish().await?;
    let query = sqlx::query("select count(*) from kanchi.take_ended($1)").bind(&moved);
    query.execute(&mut *connection).await.during(OPERATION)?;
    for (stay, until) in [(later, LATER), (broken, "null")] {
        if !stay.is_empty() {
            let sql = format!("select kanchi.postpone($1, {until})");
            let query = sqlx::query(&sql).bind(stay);
            query.execute(&mut *connection).await.during(OPERATION)?;
        }
    }
    leave(&moved);
    if let Some(epoch) = settling.epoch {
        let query = sqlx::query("select kanchi.hold_epoch($1)").bind(epoch.0);
        query.execute(&mut *connection).await.during(OPERATION)?;
    }
    connection.execute("commit").await.during(OPERATION)?;
    settled.moved = moved.len() as u64;
    settled.more = (settled.more && settled.moved > 0) || !checked_all;
    Ok(settled)
}

/// Locks tasks that are due.
async fn due(connection: &mut PgConnection, linger_seconds: u32) -> Result<Vec<Leaving>> {
    const OPERATION: &str = "find due tasks";
    let query =
        sqlx::query("select task_id, facts, queue, first_seen_at from kanchi.due(make_interval(secs => $1), $2)")
            .bind(f64::from(linger_seconds))
            .bind(i32::try_from(SETTLE_AT_ONCE).unwrap_or(i32::MAX));
    let rows = query.fetch_all(connection).await.during(OPERATION)?;
    let due = |row| Leaving {
        is_due: true,
        ..leaving(row)
    };
    Ok(rows.iter().map(due).collect())
}

/// Reads task id, facts, queue and the moment of its first event.
fn leaving(row: &PgRow) -> Leaving {
    let (task_id, encoded): (String, Vec<u8>) = (row.get(0), row.get(1));
    let facts = TaskFacts::decode(&encoded);
    if let Err(error) = &facts {
        tracing::error!(%error, task.id = task_id, "the facts of a task are kept as they are");
    }
    Leaving {
        task_id,
        readable: facts.is_ok(),
        facts: facts.unwrap_or_default(),
        encoded,
        queue: row.get(2),
        first_stored: UnixMicros(row.get(3)),
        is_due: false,
        old: Vec::new(),
    }
}

/// Takes rows of the same ids out of history and adds their facts: recent history for tasks whose beginning was seen,
/// all of it for the others, which are late events of tasks that were archived.
async fn join_history(connection: &mut PgConnection, reach: Reach, leaving: &mut [Leaving]) -> Result<()> {
    const OPERATION: &str = "merge with history";
    leaving.sort_by(|a, b| a.task_id.cmp(&b.task_id));
    for (ids, since) in by_age(leaving, reach) {
        let sql = format!(
            "select task_id, facts, case when queue_inferred then queue end, first_stored_at from kanchi.take_history($1, {since})"
        );
        let taken = sqlx::query(&sql).bind(ids).fetch_all(&mut *connection).await;
        for row in taken.during(OPERATION)? {
            let old = self::leaving(&row);
            let Ok(index) = leaving.binary_search_by(|task| task.task_id.as_str().cmp(&old.task_id)) else {
                continue;
            };
            if let Some(task) = leaving.get_mut(index) {
                task.facts.merge(&old.facts);
                task.first_stored = task.first_stored.min(old.first_stored);
                task.old.push(old);
            }
        }
    }
    Ok(())
}

/// Ids by how far back history is searched for them: recent history for tasks whose beginning was seen, all of it for
/// the others. As many together as a statement is made for.
fn by_age(tasks: &[Leaving], reach: Reach) -> Vec<(Vec<String>, &'static str)> {
    let (young, late): (Vec<&Leaving>, Vec<&Leaving>) = tasks.iter().partition(|task| task.has_a_beginning());
    let searched = [(young, YOUNG_SINCE, reach.young), (late, LATE_SINCE, reach.late)];
    let mut all = Vec::new();
    for (tasks, since, at_once) in searched {
        let parts = tasks.chunks(at_once);
        all.extend(parts.map(|part| (part.iter().map(|task| task.task_id.clone()).collect(), since)));
    }
    all
}

/// Locks live tasks that are not final but whose id history knows, among those that came after the ones that were looked up before.
/// Returns whether these were all.
async fn archived_live(
    connection: &mut PgConnection,
    linger_seconds: u32,
    reach: Reach,
    sweep: &mut Sweep,
    leaving: &mut Vec<Leaving>,
) -> Result<bool> {
    const OPERATION: &str = "look for live tasks in history";
    let unchecked =
        "select task_id, facts, queue, first_seen_at from kanchi.unchecked($1, make_interval(secs => $2), $3)";
    let query = sqlx::query(unchecked)
        .bind(sweep.through)
        .bind(f64::from(linger_seconds))
        .bind(i32::try_from(reach.late).unwrap_or(i32::MAX));
    let rows = query.fetch_all(&mut *connection).await.during(OPERATION)?;
    let unchecked: Vec<Leaving> = rows.iter().map(self::leaving).collect();
    let newest = unchecked.last().map(|task| task.first_stored.0);
    let mut archived: Vec<String> = Vec::new();
    for (ids, since) in by_age(&unchecked, reach) {
        let sql = format!("select kanchi.archived($1, {since}, null)");
        let found = sqlx::query(&sql).bind(ids).fetch_all(&mut *connection).await;
        archived.extend(found.during(OPERATION)?.iter().map(|row| row.get::<String, _>(0)));
    }
    let mut left = 0;
    if !archived.is_empty() {
        let locked = "select task_id, facts, queue, first_seen_at from kanchi.lock_live($1)";
        let locked = sqlx::query(locked).bind(&archived).fetch_all(connection).await;
        let locked = locked.during(OPERATION)?;
        left = archived.len().saturating_sub(locked.len());
        leaving.extend(locked.iter().map(self::leaving));
    }
    if left > 0 {
        // A commit is writing one: all are looked up again, the next time.
        return Ok(true);
    }
    sweep.through = newest.unwrap_or(sweep.through);
    Ok(unchecked.len() < reach.late)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_goes_on_for_a_day_and_begins_anew() {
        let now = Instant::now();
        let sweep = Sweep {
            through: 7,
            ..Sweep::default().at(now)
        };
        assert_eq!(sweep.at(now + SWEEP_EVERY / 2).through, 7);
        assert_eq!(sweep.at(now + SWEEP_EVERY).through, 0);
    }
}
