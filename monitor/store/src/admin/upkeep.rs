//! Partitions ahead, partitions over, bounded tables.

use std::time::Duration;

use kanchi_domain::UnixMicros;
use sqlx::{Connection, Executor, PgConnection, Row};

use crate::admin::{APPLICATION, StoreAdmin};
use crate::connection;
use crate::error::{During, ErrorKind, Result};
use crate::migration;

const OPERATION: &str = "do the upkeep";

/// Days that partitions are made ahead: an operator may be away for so long before rows fall into the default ones.
const AHEAD_DAYS: i32 = 3;

/// What [`StoreAdmin::upkeep`] did; the last one is kept in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Upkeep {
    /// Partitions created ahead.
    pub created: u64,
    /// Partitions dropped because their retention was over.
    pub dropped: u64,
    /// Rows deleted from tables that are bounded by deleting.
    pub pruned: u64,
    /// Partitions that could not be created or dropped now because something held them; the next upkeep tries again.
    pub postponed: u64,
}

/// A partition whose retention will be over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiring {
    /// Its name.
    pub partition: String,
    /// Bytes that go with it, indexes included.
    pub bytes: u64,
}

impl StoreAdmin {
    /// Returns the partitions that an upkeep at that time would drop.
    pub async fn expiring(&self, at: UnixMicros) -> Result<Vec<Expiring>> {
        let query = sqlx::query(
            "select leaf, pg_total_relation_size(format('kanchi.%I', leaf)) from kanchi.expired_partitions(kanchi.micros($1))",
        );
        let rows = query.bind(at.0).fetch_all(&self.pool).await.during("look ahead")?;
        let one = |row: sqlx::postgres::PgRow| Expiring {
            partition: row.get(0),
            bytes: u64::try_from(row.get::<i64, _>(1)).unwrap_or_default(),
        };
        Ok(rows.into_iter().map(one).collect())
    }

    /// Returns how long ago the last upkeep ended, and what it did.
    pub async fn last_upkeep(&self) -> Result<Option<(Duration, Upkeep)>> {
        let query = sqlx::query(
            "select extract(epoch from now() - ran_at)::double precision, created, dropped, pruned, postponed
             from kanchi.upkeep",
        );
        let row = query.fetch_optional(&self.pool).await.during("read the last upkeep")?;
        Ok(row.map(|row| {
            let count = |index: usize| u64::try_from(row.get::<i64, _>(index)).unwrap_or_default();
            let done = Upkeep {
                created: count(1),
                dropped: count(2),
                pruned: count(3),
                postponed: count(4),
            };
            (Duration::try_from_secs_f64(row.get(0)).unwrap_or_default(), done)
        }))
    }

    /// Creates partitions ahead, drops those whose retention is over, prunes bounded tables. Call every 10 minutes.
    ///
    /// Migration and upkeep exclude each other; a second upkeep waits for the first.
    pub async fn upkeep(&self, now: UnixMicros) -> Result<Upkeep> {
        let mut guard = connection::open(&self.url, APPLICATION).await?;
        let mut worker = connection::open(&self.url, APPLICATION).await?;
        let result = guarded(&mut guard, &mut worker, now).await;
        connection::close(worker).await;
        connection::close(guard).await;
        result
    }
}

/// One connection holds the lock, the other works in short transactions of its own, so that the locks on partitions
/// are held for a moment each.
async fn guarded(guard: &mut PgConnection, worker: &mut PgConnection, now: UnixMicros) -> Result<Upkeep> {
    // Idle in the transaction that holds the lock while the other connection works.
    guard
        .execute("set idle_in_transaction_session_timeout = 0")
        .await
        .during(OPERATION)?;
    let mut lock = guard.begin().await.during(OPERATION)?;
    migration::lock(&mut lock).await?;
    // Writers wait behind a waiting lock: give up soon and try again next time.
    worker
        .execute("set lock_timeout = '2s'; set statement_timeout = '5min'")
        .await
        .during(OPERATION)?;
    let mut done = Upkeep::default();
    create_partitions(worker, now, &mut done).await?;
    drop_partitions(worker, now, &mut done).await?;
    done.pruned = prune(worker).await?;
    record(worker, done).await?;
    lock.commit().await.during(OPERATION)?;
    Ok(done)
}

async fn create_partitions(connection: &mut PgConnection, now: UnixMicros, done: &mut Upkeep) -> Result<()> {
    let missing = sqlx::query(
        "select parent, leaf, from_at::text, to_at::text from kanchi.missing_partitions(kanchi.micros($1), $2)",
    )
    .bind(now.0)
    .bind(AHEAD_DAYS)
    .fetch_all(&mut *connection)
    .await
    .during(OPERATION)?;
    for row in missing {
        let created = sqlx::query("select kanchi.create_partition($1, $2, $3::timestamptz, $4::timestamptz)")
            .bind(row.get::<&str, _>(0))
            .bind(row.get::<&str, _>(1))
            .bind(row.get::<&str, _>(2))
            .bind(row.get::<&str, _>(3))
            .execute(&mut *connection)
            .await
            .during(OPERATION);
        count(created.map(drop), &mut done.created, &mut done.postponed)?;
    }
    Ok(())
}

async fn drop_partitions(connection: &mut PgConnection, now: UnixMicros, done: &mut Upkeep) -> Result<()> {
    let expired = sqlx::query("select leaf from kanchi.expired_partitions(kanchi.micros($1))")
        .bind(now.0)
        .fetch_all(&mut *connection)
        .await
        .during(OPERATION)?;
    for row in expired {
        // The name comes from the catalog and matched a strict pattern there.
        let statement = format!("drop table kanchi.\"{}\"", row.get::<&str, _>(0));
        let dropped = connection.execute(statement.as_str()).await.during(OPERATION);
        count(dropped.map(drop), &mut done.dropped, &mut done.postponed)?;
    }
    Ok(())
}

fn count(result: Result<()>, done: &mut u64, postponed: &mut u64) -> Result<()> {
    match result {
        Ok(()) => *done += 1,
        Err(error) if error.kind() == ErrorKind::Timeout => {
            tracing::info!(%error, "a partition is in use; the next upkeep tries again");
            *postponed += 1;
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

async fn prune(connection: &mut PgConnection) -> Result<u64> {
    let mut pruned = 0;
    for statement in PRUNE {
        pruned += connection.execute(statement).await.during(OPERATION)?.rows_affected();
    }
    Ok(pruned)
}

async fn record(connection: &mut PgConnection, done: Upkeep) -> Result<()> {
    let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let query = sqlx::query(
        "insert into kanchi.upkeep (ran_at, created, dropped, pruned, postponed) values (now(), $1, $2, $3, $4)
         on conflict (singleton) do update set ran_at = excluded.ran_at, created = excluded.created,
            dropped = excluded.dropped, pruned = excluded.pruned, postponed = excluded.postponed",
    );
    query
        .bind(count(done.created))
        .bind(count(done.dropped))
        .bind(count(done.pruned))
        .bind(count(done.postponed))
        .execute(connection)
        .await
        .during(OPERATION)
        .map(drop)
}

/// Bounded by deleting: few rows each. The batches of running monitors are pruned by these themselves.
const PRUNE: [&str; 8] = [
    "delete from kanchi.batch where committed_at < now() - interval '35 days'
        and broker_id in (select broker_id from kanchi.broker where retired_at is not null)",
    "delete from kanchi.dead_letter where noted_at < now() - interval '30 days'",
    "delete from kanchi.gap where noted_at < now() - interval '365 days' and to_at is not null",
    // Its tasks are gone by then.
    "delete from kanchi.failure_group g using kanchi.broker b
     where b.broker_id = g.broker_id and g.last_seen_at < now() - make_interval(days => b.failed_days)",
    "delete from kanchi.task_name n using kanchi.broker b
     where b.broker_id = n.broker_id and n.last_seen_at < now() - make_interval(days => b.statistics_days)",
    "delete from kanchi.worker where last_event_at < now() - interval '30 days'",
    // A hostile stream could invent host names: the ten thousand heard last are kept.
    "delete from kanchi.worker w using (
        select broker_id, hostname, row_number() over (partition by broker_id order by last_event_at desc) as number
        from kanchi.worker) as ranked
     where ranked.number > 10000 and w.broker_id = ranked.broker_id and w.hostname = ranked.hostname",
    "delete from kanchi.task_generation g where exists (
        select from kanchi.task_generation n
        where n.generation = g.generation + 1 and n.began_at < coalesce((
            select min(to_date(right(relname, 8), 'YYYYMMDD')::timestamp at time zone 'UTC') from pg_class
            where relnamespace = 'kanchi'::regnamespace and relkind = 'r' and relispartition
                and relname ~ '^task_\\d+_\\d{8}$' and pg_relation_size(oid) > 0), now()) - interval '1 day')",
];
