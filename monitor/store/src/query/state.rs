//! Workers, queues and gaps.

use kanchi_domain::UnixMicros;
use sqlx::Row;
use sqlx::postgres::PgRow;

use crate::error::{During, Result};
use crate::model::{GapRepair, GapRow, KnownGap, QueueRow, WorkerRow};
use crate::query::{StoreQuery, used_classes};

/// Most entries of one page.
const LIMIT: u16 = 1_000;

/// A queue as it was sampled last.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueNow {
    /// The broker's key.
    pub broker_key: i32,
    /// Name and depth.
    pub queue: QueueRow,
    /// When that was.
    pub sampled_at: UnixMicros,
}

/// The depth of a queue at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSample {
    /// When.
    pub sampled_at: UnixMicros,
    /// Messages that waited.
    pub ready: u64,
    /// Messages delivered and not acknowledged; `None` where the broker cannot tell.
    pub unacked: Option<u64>,
    /// Consumers; `None` where the broker cannot tell.
    pub consumers: Option<u64>,
}

impl StoreQuery {
    /// Returns workers with their broker's key, by broker and name, behind the one given; at most `limit` and 1,000.
    pub async fn workers(
        &self,
        brokers: Option<&[i32]>,
        after: Option<(i32, &str)>,
        limit: u16,
    ) -> Result<Vec<(i32, WorkerRow)>> {
        const OPERATION: &str = "list workers";
        let mut snapshot = self.snapshot(OPERATION).await?;
        let brokers = self.brokers(&mut snapshot, brokers).await?;
        let (broker_key, hostname) = after.unwrap_or((i32::MIN, ""));
        let rows = sqlx::query(include_str!("../sql/worker_page.sql"))
            .bind(&brokers)
            .bind(broker_key)
            .bind(hostname)
            .bind(i64::from(limit.clamp(1, LIMIT)))
            .fetch_all(&mut *snapshot)
            .await
            .during(OPERATION)?;
        snapshot.rollback().await.during(OPERATION)?;
        Ok(rows.iter().map(|row| (row.get(0), worker(row))).collect())
    }

    /// Returns queues by broker and name, behind the one given; at most `limit` and 1,000.
    pub async fn queues(
        &self,
        brokers: Option<&[i32]>,
        after: Option<(i32, &str)>,
        limit: u16,
    ) -> Result<Vec<QueueNow>> {
        const OPERATION: &str = "list queues";
        let mut snapshot = self.snapshot(OPERATION).await?;
        let brokers = self.brokers(&mut snapshot, brokers).await?;
        let (broker_key, name) = after.unwrap_or((i32::MIN, ""));
        let rows = sqlx::query(include_str!("../sql/queue_page.sql"))
            .bind(&brokers)
            .bind(broker_key)
            .bind(name)
            .bind(i64::from(limit.clamp(1, LIMIT)))
            .fetch_all(&mut *snapshot)
            .await
            .during(OPERATION)?;
        snapshot.rollback().await.during(OPERATION)?;
        let one = |row: &PgRow| QueueNow {
            broker_key: row.get(0),
            queue: QueueRow {
                name: row.get(1),
                ready: row.get::<i64, _>(2).unsigned_abs(),
                unacked: row.get::<Option<i64>, _>(3).map(i64::unsigned_abs),
                consumers: row.get::<Option<i64>, _>(4).map(i64::unsigned_abs),
            },
            sampled_at: UnixMicros(row.get(5)),
        };
        Ok(rows.iter().map(one).collect())
    }

    /// Returns the samples of one queue from `from` to before `to`, newest first; at most `limit` and 1,000. Samples are
    /// found by their time among those of all queues of the broker.
    pub async fn queue_samples(
        &self,
        broker_key: i32,
        queue: &str,
        from: UnixMicros,
        to: UnixMicros,
        limit: u16,
    ) -> Result<Vec<QueueSample>> {
        const OPERATION: &str = "load the samples of a queue";
        let mut connection = self.acquire(OPERATION).await?;
        let classes = used_classes(&mut connection, "queue_sample").await?;
        let query = sqlx::query(
            "select kanchi.unix_micros(sampled_at), ready, unacked, consumers from kanchi.queue_sample
             where broker_id = $1 and queue_name = $2 and sampled_at >= kanchi.micros($3) and sampled_at < kanchi.micros($4)
                and stored_at >= kanchi.micros($3) - interval '1 day'
                and kanchi.stored_in($6, retention_days, stored_at)
             order by sampled_at desc limit $5",
        );
        let rows = query
            .bind(broker_key)
            .bind(queue)
            .bind(from.0)
            .bind(to.0)
            .bind(i64::from(limit.clamp(1, LIMIT)))
            .bind(classes)
            .fetch_all(&mut *connection)
            .await
            .during(OPERATION)?;
        let one = |row: &PgRow| QueueSample {
            sampled_at: UnixMicros(row.get(0)),
            ready: row.get::<i64, _>(1).unsigned_abs(),
            unacked: row.get::<Option<i64>, _>(2).map(i64::unsigned_abs),
            consumers: row.get::<Option<i64>, _>(3).map(i64::unsigned_abs),
        };
        Ok(rows.iter().map(one).collect())
    }

    /// Returns the gaps of a broker, and what their repair came to, that began before `before`, newest first; at most `limit` and 1,000.
    pub async fn gaps(&self, broker_key: i32, before: UnixMicros, limit: u16) -> Result<Vec<KnownGap>> {
        const OPERATION: &str = "list gaps";
        let mut connection = self.acquire(OPERATION).await?;
        let query = sqlx::query(
            "select gap_id, kanchi.unix_micros(from_at), kanchi.unix_micros(to_at), cause, estimated_events,
                kanchi.unix_micros(repaired_at), repair_outcome, tasks_repaired, tasks_found, tasks_unknown, repair_note
             from kanchi.gap
             where broker_id = $1 and from_at < kanchi.micros($2)
             order by from_at desc limit $3",
        );
        let rows = query
            .bind(broker_key)
            .bind(before.0)
            .bind(i64::from(limit.clamp(1, LIMIT)))
            .fetch_all(&mut *connection)
            .await
            .during(OPERATION)?;
        Ok(rows.iter().map(known_gap).collect())
    }
}

fn known_gap(row: &PgRow) -> KnownGap {
    let number = |column: usize| row.get::<Option<i64>, _>(column).map(i64::unsigned_abs);
    let repair = |at: i64| {
        let repair = GapRepair {
            outcome: row.get::<Option<String>, _>(6).unwrap_or_default(),
            repaired: number(7).unwrap_or(0),
            found: number(8).unwrap_or(0),
            unknown: number(9).unwrap_or(0),
            note: row.get(10),
        };
        (UnixMicros(at), repair)
    };
    KnownGap {
        gap: GapRow {
            id: row.get(0),
            from: UnixMicros(row.get(1)),
            to: row.get::<Option<i64>, _>(2).map(UnixMicros),
            cause: row.get(3),
            estimated_events: number(4),
        },
        repair: row.get::<Option<i64>, _>(5).map(repair),
    }
}

fn worker(row: &PgRow) -> WorkerRow {
    let time = |column: usize| row.get::<Option<i64>, _>(column).map(UnixMicros);
    WorkerRow {
        hostname: row.get(1),
        state: row.get(2),
        pid: row.get(3),
        freq: row.get(4),
        active: row.get(5),
        processed: row.get(6),
        loadavg: row.get::<Option<Vec<f64>>, _>(7).and_then(|load| load.try_into().ok()),
        sw_ident: row.get(8),
        sw_ver: row.get(9),
        sw_sys: row.get(10),
        started_at: time(11),
        last_event_at: UnixMicros(row.get(12)),
        last_heartbeat_at: time(13),
        pool: row.get(14),
    }
}
