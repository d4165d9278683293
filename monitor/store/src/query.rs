//! Named queries: what pages of the UI and the API ask of the store (docs/adr/0003-queries.md).
//!
//! Each has an index, a limit and a time limit on the server, reads one snapshot and writes nothing. Charts and key
//! figures are beside the statistics (`statistics/read.rs`).

mod cursor;
mod failures;
mod filter;
mod live;
mod names;
mod single;
mod slices;
mod state;
mod summary;
mod tasks;

use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::PgPoolOptions;
use sqlx::{Executor, PgConnection, PgPool, Postgres, Row, Transaction};

pub use failures::{FailureGroup, FailureOrder, FailurePage};
pub use filter::{TaskFilter, TimeField, Words};
pub use names::TaskName;
pub(crate) use single::chunks_of;
pub use single::{EventPage, Family, StateCounts};
pub use state::{QueueNow, QueueSample};
pub use summary::TaskSummary;
pub use tasks::{PAGE_LIMIT, TaskOrder, TaskPage};

use crate::connection;
use crate::error::{During, Error, ErrorKind, Result};
use crate::migration;
use crate::url::StoreUrl;

/// Pages that are read at the same time; more wait for a connection.
const CONNECTIONS: u32 = 4;

/// What the server gives to one statement, unless a query says less.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(2);

/// Plans are made once, whatever the parameters: planning for some ninety partitions takes longer than most queries. With
/// the other ways shut, a plan that was made while the tables were empty is the right one when they are full.
const SESSION: &str = "set default_transaction_read_only = on; set plan_cache_mode = force_generic_plan;
    set enable_seqscan = off; set enable_bitmapscan = off; set enable_hashjoin = off; set enable_mergejoin = off;
    set enable_sort = off; set enable_material = off; set max_parallel_workers_per_gather = 0";

/// Which part of a list is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Most entries, 1 to [`PAGE_LIMIT`].
    pub limit: u16,
    /// [`TaskPage::next`] of the page before, of the same filter and order; another one gives [`ErrorKind::Invalid`].
    pub cursor: Option<String>,
}

impl PageRequest {
    /// Returns a request for the first page.
    pub fn first(limit: u16) -> Self {
        Self { limit, cursor: None }
    }
}

/// Answers the named queries, under the role that owns the schema: it reads all brokers, and who may see which is the
/// caller's to say. Its sessions are read-only.
#[derive(Clone, Debug)]
pub struct StoreQuery {
    pool: PgPool,
}

impl StoreQuery {
    /// Opens a pool of at most 4 connections, of which one stays. A schema older than this build's is refused with
    /// [`ErrorKind::MigrationPending`].
    pub async fn connect(url: &StoreUrl) -> Result<Self> {
        const OPERATION: &str = "connect to Postgres";
        // The pool reports a refused login as a timeout; a connection of its own says why.
        let mut first = connection::open(url, "kanchi-api").await?;
        let version: Option<i32> = sqlx::query("select kanchi.schema_version()")
            .fetch_one(&mut first)
            .await
            .during("check the schema")?
            .get(0);
        connection::close(first).await;
        if version.unwrap_or(0) < migration::LATEST {
            let message = format!(
                "the schema is older than version {}: the operator migrates it",
                migration::LATEST
            );
            return Err(Error::new(ErrorKind::MigrationPending, "check the schema", message));
        }
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .min_connections(1)
            .acquire_timeout(Duration::from_secs(10))
            .idle_timeout(Duration::from_mins(30))
            .after_connect(|connection, _| Box::pin(prepare(connection)))
            .connect_with(url.connect_options("kanchi-api")?)
            .await
            .during(OPERATION)?;
        Ok(Self { pool })
    }

    /// Ends all connections.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Begins a transaction in which all statements see the same: a task that settles meanwhile is seen once.
    pub(crate) async fn snapshot(&self, operation: &'static str) -> Result<Transaction<'static, Postgres>> {
        let begin = "begin isolation level repeatable read read only";
        self.pool.begin_with(begin).await.during(operation)
    }

    async fn acquire(&self, operation: &'static str) -> Result<PoolConnection<Postgres>> {
        self.pool.acquire().await.during(operation)
    }

    /// Returns the keys of these brokers, or of all that have rows, each once.
    pub(crate) async fn brokers(&self, connection: &mut PgConnection, wanted: Option<&[i32]>) -> Result<Vec<i32>> {
        self.known(connection, wanted).await.map(|brokers| brokers.keys)
    }

    /// Returns the same, and whether all rows are theirs.
    async fn known(&self, connection: &mut PgConnection, wanted: Option<&[i32]>) -> Result<Brokers> {
        let mut brokers = if let Some(wanted) = wanted {
            Brokers {
                keys: wanted.to_vec(),
                are_all: false,
            }
        } else {
            let all: Vec<(i32, bool)> =
                sqlx::query_as("select broker_id, purge_ordered_at is not null from kanchi.broker")
                    .fetch_all(connection)
                    .await
                    .during("list brokers")?;
            let stay = all.iter().filter(|(_, goes)| !goes);
            Brokers {
                keys: stay.map(|(key, _)| *key).collect(),
                are_all: all.iter().all(|(_, goes)| !goes),
            }
        };
        brokers.keys.sort_unstable();
        brokers.keys.dedup();
        Ok(brokers)
    }
}

/// Whose rows are read.
#[derive(Clone, Debug)]
struct Brokers {
    keys: Vec<i32>,
    /// There are no rows of others: not of brokers that nobody asked for, nor of those whose purge is under way.
    are_all: bool,
}

/// Returns the retention classes of a table that have rows, shortest first, for `kanchi.stored_in`.
pub(crate) async fn used_classes(connection: &mut PgConnection, table: &str) -> Result<Vec<i16>> {
    sqlx::query_scalar("select kanchi.used_classes($1)")
        .bind(table)
        .fetch_one(connection)
        .await
        .during("list the classes in use")
}

/// Sets a session up, and reads the first page once: a session that has not looked at the partitions yet takes some tenths
/// of a second to plan its first query.
async fn prepare(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    connection.execute(connection::SESSION).await?;
    connection.execute(SESSION).await?;
    tasks::prepare(connection).await?;
    let timeout = format!("set statement_timeout = {}", STATEMENT_TIMEOUT.as_millis());
    connection.execute(timeout.as_str()).await.map(drop)
}

/// Gives the statements of this transaction so much time each.
pub(crate) async fn set_timeout(connection: &mut PgConnection, timeout: Duration) -> Result<()> {
    let statement = format!("set local statement_timeout = {}", timeout.as_millis().max(1));
    connection
        .execute(statement.as_str())
        .await
        .during("set a time limit")
        .map(drop)
}
