//! The monitor's second connection: reports, samples, and settling.

use std::time::{Duration, Instant};

use kanchi_domain::UnixMicros;
use sqlx::{Executor, Row};
use uuid::Uuid;

use crate::connection::{Link, within};
use crate::error::{During, Result};
use crate::model::{GapRow, Heartbeat, QueueRow, WorkerRow};
use crate::retention::RetentionPolicy;
use crate::url::StoreUrl;
use crate::writer::copy::clamped;
use crate::writer::settle::{self, Settled, Settling, Sweep};
use crate::writer::{Epoch, json};

/// One sample of each queue is kept in this time; the newest is always known.
const SAMPLE_EVERY: Duration = Duration::from_mins(1);
/// Changes of the connection's state are told at most this often; the operator polls as well.
const NOTIFY_EVERY: Duration = Duration::from_secs(1);
/// A call of settle that took so long has met many live tasks; it must not become a load of its own.
const LONG_SETTLE: Duration = Duration::from_millis(200);
/// Batches are pruned, and tasks that stay live looked up in history, this often.
const PRUNE_EVERY: Duration = Duration::from_mins(1);

/// What the process before this one left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Previous {
    /// Everything that arrived before is stored: where a restart's gap begins. `None`: the very first start.
    pub complete_until: Option<UnixMicros>,
    /// RabbitMQ: the event queue it used.
    pub event_queue: Option<String>,
}

/// Everything of a monitor that must not wait behind a batch: its own connection.
#[derive(Debug)]
pub struct StoreReporter {
    pub(super) link: Link,
    retention: RetentionPolicy,
    sampled: Option<Instant>,
    sampled_workers: Option<Instant>,
    notified: Option<Instant>,
    pruned: Option<Instant>,
    checked: Option<Instant>,
    sweep: Sweep,
    rest_until: Option<Instant>,
    owes_hint: bool,
    /// For whom it speaks: heartbeats of an epoch that is over are refused.
    pub(super) epoch: Option<Epoch>,
    /// Number of the last renewal that was answered.
    pub(super) answered: i64,
}

impl StoreReporter {
    /// Connects and checks the schema's version. `retention` says which classes settled tasks go to.
    pub async fn connect(url: &StoreUrl, retention: RetentionPolicy) -> Result<Self> {
        let link = Link::connect(url, "kanchi-monitor-reports").await?;
        Ok(Self {
            link,
            retention,
            sampled: None,
            sampled_workers: None,
            notified: None,
            pruned: None,
            checked: None,
            sweep: Sweep::default(),
            rest_until: None,
            owes_hint: false,
            epoch: None,
            answered: 0,
        })
    }

    /// Uses another URL (rotated password) or other classes from the next call on.
    pub fn reconfigure(&mut self, url: &StoreUrl, retention: RetentionPolicy) {
        self.link.set_url(url);
        self.retention = retention;
    }

    /// Stores the heartbeat; when the connection's state or reason changed, the operator is notified (at most once a
    /// second; a hint held back is sent with a later heartbeat).
    pub async fn heartbeat(&mut self, heartbeat: &Heartbeat) -> Result<()> {
        const OPERATION: &str = "write the heartbeat";
        let mut connection = self.link.take().await?;
        let query = sqlx::query("select kanchi.beat($1)").bind(json::heartbeat(heartbeat, self.epoch));
        let call = async {
            Ok(query
                .fetch_one(&mut connection)
                .await
                .during(OPERATION)?
                .get::<bool, _>(0))
        };
        let mut result = within(OPERATION, call).await;
        if let Ok(changed) = result {
            self.owes_hint |= changed;
            if self.owes_hint && self.notified.is_none_or(|at| at.elapsed() >= NOTIFY_EVERY) {
                // Outside any data transaction: NOTIFY takes a lock that ends group commit.
                let call = async {
                    connection
                        .execute("select pg_notify('kanchi_status', '')")
                        .await
                        .during(OPERATION)
                };
                result = within(OPERATION, call).await.map(|_| changed);
                self.owes_hint = result.is_err();
                self.notified = Some(Instant::now());
            }
        }
        self.link.put(connection, &result);
        result.map(drop)
    }

    /// Opens a gap, or changes it when its id is known.
    pub async fn save_gap(&mut self, gap: &GapRow) -> Result<()> {
        self.send(
            "save a gap",
            sqlx::query("select kanchi.save_gaps($1)").bind(json::gaps(std::slice::from_ref(gap))),
        )
        .await
    }

    /// Returns the gaps that are still open, at most 1,000.
    pub async fn open_gaps(&mut self) -> Result<Vec<GapRow>> {
        const OPERATION: &str = "load open gaps";
        let mut connection = self.link.take().await?;
        let query = sqlx::query(
            "select gap_id, (extract(epoch from from_at) * 1000000)::bigint, cause, estimated_events
             from kanchi.own_gap where to_at is null order by from_at limit 1000",
        );
        let call = async { query.fetch_all(&mut connection).await.during(OPERATION) };
        let result = within(OPERATION, call).await;
        self.link.put(connection, &result);
        let gap = |row: &sqlx::postgres::PgRow| GapRow {
            id: row.get::<Uuid, _>(0),
            from: UnixMicros(row.get(1)),
            to: None,
            cause: row.get(2),
            estimated_events: row
                .get::<Option<i64>, _>(3)
                .and_then(|events| u64::try_from(events).ok()),
        };
        Ok(result?.iter().map(gap).collect())
    }

    /// Stores one sample of each queue; queues that are sampled no more are forgotten after a quarter of an hour.
    pub async fn save_queues(&mut self, at: UnixMicros, queues: &[QueueRow]) -> Result<()> {
        let Some(rows) = json::queues(queues) else {
            return Ok(());
        };
        let keep = self.sampled.is_none_or(|sampled| sampled.elapsed() >= SAMPLE_EVERY);
        let query = sqlx::query("select kanchi.save_queues($1, $2, $3)")
            .bind(clamped(at))
            .bind(rows)
            .bind(keep);
        self.send("save queue samples", query).await?;
        if keep {
            self.sampled = Some(Instant::now());
        }
        Ok(())
    }

    /// Stores workers, and once a minute a sample of each.
    pub async fn save_workers(&mut self, workers: &[WorkerRow]) -> Result<()> {
        let Some(rows) = json::workers(workers) else {
            return Ok(());
        };
        let keep = self
            .sampled_workers
            .is_none_or(|sampled| sampled.elapsed() >= SAMPLE_EVERY);
        self.send(
            "save workers",
            sqlx::query("select kanchi.save_workers($1, $2)").bind(rows).bind(keep),
        )
        .await?;
        if keep {
            self.sampled_workers = Some(Instant::now());
        }
        Ok(())
    }

    /// Returns the workers known, at most 10,000, last heard first.
    pub async fn load_workers(&mut self) -> Result<Vec<WorkerRow>> {
        const OPERATION: &str = "load workers";
        let mut connection = self.link.take().await?;
        let query = sqlx::query(include_str!("../sql/own_workers.sql"));
        let call = async { query.fetch_all(&mut connection).await.during(OPERATION) };
        let result = within(OPERATION, call).await;
        self.link.put(connection, &result);
        Ok(result?.iter().map(worker).collect())
    }

    /// Returns when the newest batch was committed, by the server's clock.
    pub async fn last_commit_at(&mut self) -> Result<Option<UnixMicros>> {
        const OPERATION: &str = "look up the last commit";
        let mut connection = self.link.take().await?;
        let query = sqlx::query("select (extract(epoch from kanchi.last_commit_at()) * 1000000)::bigint");
        let call = async {
            Ok(query
                .fetch_one(&mut connection)
                .await
                .during(OPERATION)?
                .get::<Option<i64>, _>(0))
        };
        let result = within(OPERATION, call).await;
        self.link.put(connection, &result);
        Ok(result?.map(UnixMicros))
    }

    /// Returns what the process before this one left.
    pub async fn previous(&mut self) -> Result<Previous> {
        const OPERATION: &str = "look up the last process";
        let mut connection = self.link.take().await?;
        let query = sqlx::query(
            "select (extract(epoch from complete_until) * 1000000)::bigint, event_queue from kanchi.previous()",
        );
        let call = async {
            let row = query.fetch_one(&mut connection).await.during(OPERATION)?;
            let complete_until = row.get::<Option<i64>, _>(0).map(UnixMicros);
            Ok(Previous {
                complete_until,
                event_queue: row.get(1),
            })
        };
        let result = within(OPERATION, call).await;
        self.link.put(connection, &result);
        result
    }

    /// Moves up to 2,000 final tasks, written `linger_seconds` ago or earlier, from live to history. `now` decides
    /// whether a task past its `expires` is EXPIRED.
    ///
    /// A task whose id is in history already ends in one row there, with the facts of both. A call that took long makes the
    /// next ones do nothing for twenty times as long. `leave` is told of the tasks before history has them, whatever becomes of the call.
    pub async fn settle(
        &mut self,
        now: UnixMicros,
        linger_seconds: u32,
        leave: impl FnOnce(&[&str]) + Send,
    ) -> Result<Settled> {
        const OPERATION: &str = "settle final tasks";
        let begun = Instant::now();
        if self.rest_until.is_some_and(|until| begun < until) {
            return Ok(Settled::default());
        }
        let mut connection = self.link.take().await?;
        let due = |last: Option<Instant>| last.is_none_or(|at| begun.duration_since(at) >= PRUNE_EVERY);
        let (prune, check) = (due(self.pruned), due(self.checked));
        let mut sweep = self.sweep.at(begun);
        let call = async {
            let swept = check.then_some(&mut sweep);
            let settling = Settling {
                now,
                linger_seconds,
                retention: self.retention,
                epoch: self.epoch,
            };
            let settled = settle::run(&mut connection, settling, swept, leave).await?;
            if prune && !settled.more {
                connection
                    .execute("select kanchi.prune_batches()")
                    .await
                    .during(OPERATION)?;
            }
            Ok(settled)
        };
        let mut result = within(OPERATION, call).await;
        match result {
            Err(error) => result = Err(super::rolled_back(&mut connection, error).await),
            Ok(settled) if settled.more => self.sweep = sweep,
            Ok(_) => {
                self.sweep = sweep;
                self.pruned = if prune { Some(begun) } else { self.pruned };
                self.checked = if check { Some(begun) } else { self.checked };
                let took = begun.elapsed();
                self.rest_until = (took >= LONG_SETTLE).then(|| begun + took * 20);
            }
        }
        self.link.put(connection, &result);
        result
    }

    pub(super) async fn send(
        &mut self,
        operation: &'static str,
        query: sqlx::query::Query<'_, sqlx::Postgres, sqlx::postgres::PgArguments>,
    ) -> Result<()> {
        let mut connection = self.link.take().await?;
        let call = async { query.execute(&mut connection).await.map(drop).during(operation) };
        let result = within(operation, call).await;
        self.link.put(connection, &result);
        result
    }
}

fn worker(row: &sqlx::postgres::PgRow) -> WorkerRow {
    WorkerRow {
        hostname: row.get(0),
        state: row.get(1),
        pid: row.get(2),
        freq: row.get(3),
        active: row.get(4),
        processed: row.get(5),
        loadavg: row.get::<Option<Vec<f64>>, _>(6).and_then(|load| load.try_into().ok()),
        sw_ident: row.get(7),
        sw_ver: row.get(8),
        sw_sys: row.get(9),
        started_at: row.get::<Option<i64>, _>(10).map(UnixMicros),
        last_event_at: UnixMicros(row.get(11)),
        last_heartbeat_at: row.get::<Option<i64>, _>(12).map(UnixMicros),
        pool: row.get(13),
    }
}
