//! One transaction per batch.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use kanchi_domain::UnixMicros;
use sqlx::{Executor, PgConnection, Row};

use crate::connection::within;
use crate::error::{During, ErrorKind, Result};
use crate::model::{BatchHead, EventChunk, FailureDelta, LiveTask, TaskChanges};
use crate::retention::RetentionPolicy;
use crate::statistics::{self, StatisticDelta};
use crate::writer::copy::{Copying, Target, clamped};
use crate::writer::history::{Destination, Entry};
use crate::writer::{Ending, Stored, history, json};

pub(super) const OPERATION: &str = "commit a batch";

/// A task whose whole life lies within this long before the newest event of its batch is newly born.
const NEWLY_BORN_MICROS: i64 = 3_600_000_000;

/// So many tasks are looked up in history whatever the caller remembers: it remembers fewer than the store.
const ALL_ASKED: usize = 256;

/// Tasks that one statement merges.
const MERGED_AT_ONCE: usize = 1_000;

/// How far a batch has come whose transaction is open.
#[derive(Debug)]
pub(super) enum Begun {
    /// Its events are stored.
    Events(Destination),
    /// What [`go_ahead`] does is done, too.
    Ahead(Destination, Known),
}

/// Those tasks of a batch that began and ended within it and that the last hours of history know: their id ran before.
#[derive(Debug)]
pub(super) struct Known(HashSet<String>);

/// Stores the batch; `begun`: how far it has come on this connection. On an error the transaction is left open; the caller
/// rolls back or drops the connection.
pub(super) async fn run(
    connection: &mut PgConnection,
    head: &BatchHead,
    changes: &TaskChanges,
    retention: RetentionPolicy,
    ending: Ending,
    begun: Option<Begun>,
) -> Result<Stored> {
    let (to, known) = match begun {
        Some(Begun::Ahead(to, known)) => (to, Some(known)),
        Some(Begun::Events(to)) => (to, None),
        None => (begin(connection, head, retention).await?, None),
    };
    let known = match known {
        Some(known) => known,
        None => go_ahead(connection, changes, to).await?,
    };
    let (new, maybe_stored): (Vec<&LiveTask>, Vec<&LiveTask>) =
        changes.tasks.iter().partition(|task| !task.maybe_stored);
    let mut end = End {
        head,
        changes,
        to,
        ending,
        known,
    };
    match end.run(connection, &new, &maybe_stored).await {
        // Somebody's promise that a task is new was not kept. The slow way is right in any case.
        Err(error) if error.kind() == ErrorKind::Data && !new.is_empty() => {
            tracing::debug!(%error, "storing a batch again without the fast path");
            connection.execute("rollback").await.during(OPERATION)?;
            end.to = begin(connection, head, retention).await?;
            let all: Vec<&LiveTask> = changes.tasks.iter().collect();
            end.run(connection, &[], &all).await
        }
        result => result,
    }
}

/// Begins the transaction and stores the events: nothing that another transaction could wait for.
pub(super) async fn begin(
    connection: &mut PgConnection,
    head: &BatchHead,
    retention: RetentionPolicy,
) -> Result<Destination> {
    connection.execute("begin").await.during(OPERATION)?;
    let to = Destination::now(connection, retention, OPERATION).await?;
    copy_chunks(connection, &head.chunks, retention).await?;
    Ok(to)
}

/// Stores what depends on no batch before: tasks that began and ended within this one go to history. Nothing that another
/// transaction could wait for, either. Of such a task the batch before knows nothing, nor has it a live row that could settle
/// meanwhile: the caller says so.
pub(super) async fn go_ahead(connection: &mut PgConnection, changes: &TaskChanges, to: Destination) -> Result<Known> {
    let newest = newest_of(changes);
    let mut born: Vec<&LiveTask> = changes
        .tasks
        .iter()
        .filter(|task| is_newly_born(task, newest))
        .collect();
    let known = archived(connection, &born).await?;
    born.retain(|task| !known.contains(&*task.task_id));
    copy_ended(connection, born.into_iter().map(|task| (task, None)), to).await?;
    Ok(Known(known))
}

/// The rest of a transaction.
struct End<'b> {
    head: &'b BatchHead,
    changes: &'b TaskChanges,
    to: Destination,
    ending: Ending,
    known: Known,
}

impl End<'_> {
    /// Stores everything but the events, and ends the transaction.
    async fn run(
        &self,
        connection: &mut PgConnection,
        new: &[&LiveTask],
        maybe_stored: &[&LiveTask],
    ) -> Result<Stored> {
        if !claim(connection, self.head).await? {
            connection.execute("rollback").await.during(OPERATION)?;
            return Ok(Stored::Before);
        }
        copy_statistics(connection, &self.changes.statistics).await?;
        save_failures(connection, &self.changes.failures).await?;
        let (left, stored) = take_ended(connection, maybe_stored).await?;
        let newest = newest_of(self.changes);
        let gone_ahead = |task: &&LiveTask| is_newly_born(task, newest) && !self.known.0.contains(&*task.task_id);
        let live: Vec<&LiveTask> = new.iter().copied().filter(|task| !gone_ahead(task)).collect();
        let ended = left.iter().map(|(task, first_stored)| (*task, Some(*first_stored)));
        copy_ended(connection, ended, self.to).await?;
        copy_live(connection, &live).await?;
        merge(connection, &stored).await?;
        let end = match self.ending {
            Ending::Commit => "commit",
            Ending::Rollback => "rollback",
        };
        connection.execute(end).await.during(OPERATION)?;
        let live = live.iter().chain(&stored).map(|task| Arc::clone(&task.task_id));
        Ok(Stored::Now {
            live: live.collect(),
            left: left.iter().map(|(task, _)| Arc::clone(&task.task_id)).collect(),
        })
    }
}

/// Takes tasks that have ended out of the live table: they go to history with the batch that says so. Returns those that were
/// there with the moment since when they were, and those that stay and are merged when they settle: still open, without a beginning (late events of an archived
/// task, for which all of history is searched), or in history already. That is asked last: what was settled until then is
/// known, also if the batch before has made a live row of it again.
async fn take_ended<'a>(
    connection: &mut PgConnection,
    stored: &[&'a LiveTask],
) -> Result<(Vec<(&'a LiveTask, UnixMicros)>, Vec<&'a LiveTask>)> {
    let mut ended: Vec<&LiveTask> = stored.to_vec();
    // Not those that were thought to be new and are not: nobody knows what else was stored of them.
    ended.retain(|task| task.ended.is_some() && task.maybe_stored);
    ended.sort_unstable_by(|left, right| left.task_id.cmp(&right.task_id));
    let mut there: HashMap<String, UnixMicros> = HashMap::new();
    for some in ended.chunks(MERGED_AT_ONCE) {
        let query = sqlx::query("select task_id, first_seen_at from kanchi.take_ended($1)").bind(ids_of(some));
        let rows = query.fetch_all(&mut *connection).await.during(OPERATION)?;
        there.extend(rows.iter().map(|row| (row.get(0), UnixMicros(row.get(1)))));
    }
    ended.retain(|task| there.contains_key(&*task.task_id));
    for known in archived(connection, &ended).await? {
        there.remove(&known);
    }
    let (mut left, mut stay) = (Vec::with_capacity(there.len()), Vec::new());
    for task in stored {
        match there.get(&*task.task_id) {
            Some(first_stored) => left.push((*task, *first_stored)),
            None => stay.push(*task),
        }
    }
    Ok((left, stay))
}

/// Returns those of these tasks that recent history knows. Few are all looked up, of many those that the caller is not sure of.
async fn archived(connection: &mut PgConnection, tasks: &[&LiveTask]) -> Result<HashSet<String>> {
    let are_few = tasks.len() <= ALL_ASKED;
    let mut asked = tasks.to_vec();
    asked.retain(|task| are_few || task.maybe_archived);
    if asked.is_empty() {
        return Ok(HashSet::new());
    }
    history::archived(connection, &ids_of(&asked), OPERATION).await
}

fn ids_of<'a>(tasks: &[&'a LiveTask]) -> Vec<&'a str> {
    tasks.iter().map(|task| &*task.task_id).collect()
}

/// The newest event of the tasks that are new.
fn newest_of(changes: &TaskChanges) -> Option<UnixMicros> {
    let new = changes.tasks.iter().filter(|task| !task.maybe_stored);
    new.filter_map(|task| task.last_event_at).max()
}

/// Tasks that began and ended within the batch go to history at once: the live table would only be passed through. Not those
/// that do not look newly born (a late event of an old task).
fn is_newly_born(task: &LiveTask, newest: Option<UnixMicros>) -> bool {
    if task.maybe_stored {
        return false;
    }
    let first = task.ended.as_deref().and_then(|row| row.first_event_at).zip(newest);
    first.is_some_and(|(first, newest)| first.0 >= newest.0 - NEWLY_BORN_MICROS)
}

/// Claims batch id and epoch, and writes everything small. False: this batch was committed before.
async fn claim(connection: &mut PgConnection, head: &BatchHead) -> Result<bool> {
    let digests: Option<Vec<u8>> =
        (!head.digests.is_empty()).then(|| head.digests.iter().flat_map(|digest| digest.to_be_bytes()).collect());
    let row = sqlx::query("select kanchi.commit_batch($1, $2, $3, $4, $5, $6)")
        .bind(head.id)
        .bind(head.epoch.0)
        .bind(digests)
        .bind(json::workers(&head.workers))
        .bind(json::dead_letters(&head.dead_letters))
        .bind(json::gaps(&head.gaps))
        .fetch_one(connection)
        .await
        .during(OPERATION)?;
    Ok(row.get(0))
}

/// Appends what the batch adds to each minute.
async fn copy_statistics(connection: &mut PgConnection, deltas: &[StatisticDelta]) -> Result<()> {
    let mut copying = Copying::new(connection, STATISTICS);
    for (minute, payload) in statistics::encode(deltas) {
        copying.row().await?.time(minute).bytes(&payload);
    }
    copying.finish().await
}

/// Adds failures to their groups: one statement, and none for a batch without.
async fn save_failures(connection: &mut PgConnection, failures: &[FailureDelta]) -> Result<()> {
    let Some(failures) = json::failures(failures) else {
        return Ok(());
    };
    let query = sqlx::query("select kanchi.save_failures($1)").bind(failures);
    query.execute(connection).await.during(OPERATION).map(drop)
}

/// Returns the digests of the newest messages stored.
pub(super) async fn recent_digests(connection: &mut PgConnection) -> Result<HashSet<u128>> {
    const OPERATION: &str = "load the digests";
    let call = async {
        let query = sqlx::query("select kanchi.recent_digests()");
        let rows = query.fetch_all(connection).await.during(OPERATION)?;
        Ok(rows.iter().flat_map(|row| digests(row.get(0))).collect())
    };
    within(OPERATION, call).await
}

/// Reads the 16-byte digests that [`claim`] wrote.
fn digests(bytes: &[u8]) -> impl Iterator<Item = u128> + use<'_> {
    bytes
        .chunks_exact(16)
        .filter_map(|chunk| Some(u128::from_be_bytes(chunk.try_into().ok()?)))
}

const CHUNKS: Target = Target {
    statement: "copy kanchi.event_chunk (retention_days, task_id, first_at, event_count, events)
        from stdin (format binary)",
    columns: 5,
    operation: OPERATION,
};

const LIVE: Target = Target {
    statement: "copy kanchi.task_live (task_id, facts, state, name, queue, worker, due_at)
        from stdin (format binary)",
    columns: 7,
    operation: OPERATION,
};

const STATISTICS: Target = Target {
    statement: "copy kanchi.statistic_delta (minute, payload) from stdin (format binary)",
    columns: 2,
    operation: OPERATION,
};

async fn copy_chunks(connection: &mut PgConnection, chunks: &[EventChunk], retention: RetentionPolicy) -> Result<()> {
    let class = i16::try_from(retention.events.days()).unwrap_or(i16::MAX);
    let mut copying = Copying::new(connection, CHUNKS);
    for chunk in chunks {
        copying
            .row()
            .await?
            .int2(class)
            .maybe_text(chunk.task_id.as_deref())
            .time(chunk.first_at)
            .int2(i16::try_from(chunk.count).unwrap_or(i16::MAX))
            .bytes(chunk.events.as_bytes());
    }
    copying.finish().await
}

/// Tasks, each with the moment when the first of its events was stored; `None`: by this transaction.
async fn copy_ended<'t>(
    connection: &mut PgConnection,
    tasks: impl Iterator<Item = (&'t LiveTask, Option<UnixMicros>)>,
    to: Destination,
) -> Result<()> {
    let mut copying = Copying::new(connection, history::target(OPERATION));
    for (task, first_stored) in tasks {
        if let Some(row) = &task.ended {
            let entry = Entry {
                task_id: &task.task_id,
                facts: &task.facts,
                row,
                first_stored,
            };
            history::push(copying.row().await?, &entry, to);
        }
    }
    copying.finish().await
}

async fn copy_live(connection: &mut PgConnection, tasks: &[&LiveTask]) -> Result<()> {
    let mut copying = Copying::new(connection, LIVE);
    for task in tasks {
        copying
            .row()
            .await?
            .text(&task.task_id)
            .bytes(&task.facts)
            .text(task.state.as_str())
            .maybe_text(task.name.as_deref())
            .maybe_text(task.queue.as_deref())
            .maybe_text(task.worker.as_deref())
            .maybe_time(task.due_at);
    }
    copying.finish().await
}

/// Writes tasks that may have a live row: arrays, because a staging table costs more and must be emptied. A statement's
/// parameters are in memory twice, so there are several; in the order in which each of them locks its rows.
async fn merge(connection: &mut PgConnection, tasks: &[&LiveTask]) -> Result<()> {
    let mut tasks = tasks.to_vec();
    tasks.sort_unstable_by(|left, right| left.task_id.cmp(&right.task_id));
    for some in tasks.chunks(MERGED_AT_ONCE) {
        merge_some(connection, some).await?;
    }
    Ok(())
}

async fn merge_some(connection: &mut PgConnection, tasks: &[&LiveTask]) -> Result<()> {
    let column =
        |get: fn(&LiveTask) -> Option<&str>| -> Vec<Option<&str>> { tasks.iter().map(|task| get(task)).collect() };
    let due: Vec<Option<i64>> = tasks.iter().map(|task| task.due_at.map(clamped)).collect();
    sqlx::query("select kanchi.merge_tasks($1, $2, $3, $4, $5, $6, $7)")
        .bind(tasks.iter().map(|task| &*task.task_id).collect::<Vec<_>>())
        .bind(tasks.iter().map(|task| &*task.facts).collect::<Vec<_>>())
        .bind(column(|task| Some(task.state.as_str())))
        .bind(column(|task| task.name.as_deref()))
        .bind(column(|task| task.queue.as_deref()))
        .bind(column(|task| task.worker.as_deref()))
        .bind(due)
        .execute(connection)
        .await
        .during(OPERATION)?;
    Ok(())
}
