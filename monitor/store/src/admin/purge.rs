//! The end of histories: ordered at once, carried out a little at a time.
//!
//! No index leads from a broker to its events, and one would cost every batch of every broker. So all tables are read
//! once from front to back, some megabytes a step, for all brokers whose purge is ordered by then. Readers and writers of
//! other brokers meet short transactions and locks on rows that are none of theirs.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use sqlx::Row;

use crate::admin::{BrokerKey, StoreAdmin};
use crate::error::{During, ErrorKind, Result};

const OPERATION: &str = "purge a history";

/// Pages that one step reads: 16 MiB, some ten milliseconds when they are cached.
const PAGES: i64 = 2_048;

/// Brokers that one reading of the tables is for.
const MAX_BROKERS: i64 = 1_000;

/// What [`Purge::step`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purged {
    /// No purge is ordered.
    Nothing,
    /// So many rows went; there is more to read.
    Some {
        /// Rows deleted by this step.
        rows: u64,
    },
    /// Nothing is left of the brokers this reading was for.
    Brokers {
        /// How many they were.
        count: u64,
    },
}

/// Carries out the ordered purges. What it has read so far is forgotten with it: the next one reads from the beginning.
#[derive(Debug)]
pub struct Purge {
    admin: StoreAdmin,
    rest: Duration,
    reading: Option<Reading>,
}

/// One reading of all tables.
#[derive(Debug)]
struct Reading {
    brokers: Vec<i32>,
    tables: VecDeque<String>,
    seen: HashSet<String>,
    /// The next page of the first table.
    page: i64,
    /// Pages that the first table had when its turn came: what others write meanwhile is none of these brokers'.
    end: Option<i64>,
}

impl StoreAdmin {
    /// Orders that everything of a broker is deleted, and fences its monitor. From now on the broker's name is free: a new
    /// resource of this name gets a new key. [`Purge`] does the work.
    pub async fn order_purge(&self, key: BrokerKey) -> Result<()> {
        self.retire_broker(key).await?;
        let query = sqlx::query(
            "update kanchi.broker set purge_ordered_at = now() where broker_id = $1 and purge_ordered_at is null",
        );
        query
            .bind(key.0)
            .execute(&self.pool)
            .await
            .during("order a purge")
            .map(drop)
    }

    /// Returns how many brokers wait for their purge.
    pub async fn purges_pending(&self) -> Result<u64> {
        let query = sqlx::query("select count(*) from kanchi.broker where purge_ordered_at is not null");
        let row = query.fetch_one(&self.pool).await.during(OPERATION)?;
        Ok(u64::try_from(row.get::<i64, _>(0)).unwrap_or_default())
    }
}

impl Purge {
    /// Makes one that has read nothing yet. An order rests for `rest` before it is carried out: longer than a transaction of
    /// the broker's monitor that was under way when the order was given may take.
    pub const fn new(admin: StoreAdmin, rest: Duration) -> Self {
        Self {
            admin,
            rest,
            reading: None,
        }
    }

    /// Does a little: one short transaction. After an error the next call tries the same again.
    pub async fn step(&mut self) -> Result<Purged> {
        let Some(reading) = self.reading.as_mut() else {
            self.reading = self.admin.begin_reading(self.rest).await?;
            let begun = self.reading.is_some();
            return Ok(if begun {
                Purged::Some { rows: 0 }
            } else {
                Purged::Nothing
            });
        };
        if let Some(table) = reading.tables.front() {
            let end = match reading.end {
                Some(end) => end,
                None => *reading.end.insert(self.admin.pages(table).await?),
            };
            if reading.page >= end {
                reading.tables.pop_front();
                (reading.page, reading.end) = (0, None);
                return Ok(Purged::Some { rows: 0 });
            }
            let rows = self.admin.purge_pages(table, reading).await?;
            reading.page += PAGES;
            return Ok(Purged::Some { rows });
        }
        // The upkeep may have moved rows into a partition of their own meanwhile.
        let new = self.admin.leaves().await?;
        reading.tables = new.into_iter().filter(|table| !reading.seen.contains(table)).collect();
        reading.seen.extend(reading.tables.iter().cloned());
        if !reading.tables.is_empty() {
            return Ok(Purged::Some { rows: 0 });
        }
        self.admin.forget_brokers(&reading.brokers).await?;
        let count = reading.brokers.len() as u64;
        self.reading = None;
        Ok(Purged::Brokers { count })
    }
}

impl StoreAdmin {
    async fn begin_reading(&self, rest: Duration) -> Result<Option<Reading>> {
        let query = sqlx::query(
            "select broker_id from kanchi.broker
             where purge_ordered_at <= now() - make_interval(secs => $1) order by purge_ordered_at limit $2",
        );
        let query = query.bind(rest.as_secs_f64()).bind(MAX_BROKERS);
        let rows = query.fetch_all(&self.pool).await.during(OPERATION)?;
        if rows.is_empty() {
            return Ok(None);
        }
        let tables = self.leaves().await?;
        Ok(Some(Reading {
            brokers: rows.iter().map(|row| row.get(0)).collect(),
            seen: tables.iter().cloned().collect(),
            tables: tables.into(),
            page: 0,
            end: None,
        }))
    }

    /// Returns every table whose rows no foreign key deletes with their broker.
    async fn leaves(&self) -> Result<Vec<String>> {
        let query = sqlx::query(
            "select oid::regclass::text from pg_class
             where relkind = 'r' and relnamespace = 'kanchi'::regnamespace
                 and (relispartition or oid in ('kanchi.task_live'::regclass, 'kanchi.statistic_delta'::regclass))
             order by 1",
        );
        let rows = query.fetch_all(&self.pool).await.during(OPERATION)?;
        Ok(rows.into_iter().map(|row| row.get(0)).collect())
    }

    /// Returns the size of a table; zero when it is gone.
    async fn pages(&self, table: &str) -> Result<i64> {
        let query = sqlx::query("select pg_relation_size(to_regclass($1)) / current_setting('block_size')::bigint");
        let row = query.bind(table).fetch_one(&self.pool).await.during(OPERATION)?;
        Ok(row.get::<Option<i64>, _>(0).unwrap_or_default())
    }

    /// Deletes from the reading's next pages.
    async fn purge_pages(&self, table: &str, reading: &Reading) -> Result<u64> {
        // The name is the catalog's own, quoted where it must be.
        let statement = format!(
            "delete from {table} where ctid >= '({},0)' and ctid < '({},0)' and broker_id = any ($1)",
            reading.page,
            reading.page + PAGES
        );
        let deleting = sqlx::query(&statement).bind(&reading.brokers).persistent(false);
        match deleting.execute(&self.pool).await.during(OPERATION) {
            Ok(done) => Ok(done.rows_affected()),
            // Dropped meanwhile: its retention was over.
            Err(_) if self.pages(table).await? == 0 => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Drops the roles, then the rows that hold a broker together; the small tables follow by their foreign keys.
    async fn forget_brokers(&self, brokers: &[i32]) -> Result<()> {
        for broker in brokers {
            match self.drop_role(BrokerKey(*broker)).await {
                Err(error) if error.kind() == ErrorKind::Forbidden => {
                    // It cannot log in, and owns nothing.
                    tracing::warn!(%error, store.key = broker, "the role of a purged broker stays");
                }
                done => done?,
            }
            let query = sqlx::query("delete from kanchi.broker where broker_id = $1");
            query.bind(broker).execute(&self.pool).await.during(OPERATION)?;
        }
        Ok(())
    }
}
