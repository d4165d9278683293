//! The operator's side of the store, under the role that owns the schema.

mod broker;
mod generation;
mod purge;
mod report;
mod role;
mod room;
mod shared;
mod upkeep;

use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};
use sqlx::{Connection, Executor, PgPool, Row};

pub use broker::{BrokerKey, BrokerSpec};
pub use purge::{Purge, Purged};
pub use report::{HourCounts, MonitorReport, TopQueue};
pub use role::RoleMode;
pub use room::Room;
pub use shared::SharedRole;
pub(crate) use shared::grant_migrated;
pub use upkeep::{Expiring, Upkeep};

use crate::connection::{self, within};
use crate::error::{During, Error, ErrorKind, Result};
use crate::migration;
use crate::url::StoreUrl;

const APPLICATION: &str = "kanchi-operator";

/// Reconciles, reports, listening: more would only queue inside Postgres.
const CONNECTIONS: u32 = 4;

/// The owner's connections.
#[derive(Clone, Debug)]
pub struct StoreAdmin {
    url: StoreUrl,
    /// The database's number on its server.
    database: i64,
    pub(crate) pool: PgPool,
    /// For monitors, where this user may not create roles.
    shared: Option<SharedRole>,
}

impl StoreAdmin {
    /// Opens a small pool (at most 4 connections) and checks that Postgres answers.
    pub async fn connect(url: &StoreUrl) -> Result<Self> {
        const OPERATION: &str = "connect to Postgres";
        // The pool reports a refused login as a timeout; a connection of its own says why.
        let mut first = connection::open(url, APPLICATION).await?;
        let query = sqlx::query("select oid::bigint from pg_database where datname = current_database()");
        let database = query.fetch_one(&mut first).await.during(OPERATION)?.get(0);
        connection::close(first).await;
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .min_connections(0)
            .acquire_timeout(Duration::from_secs(10))
            .idle_timeout(Duration::from_mins(5))
            .after_connect(|connection, _| {
                Box::pin(async move { connection.execute(connection::SESSION).await.map(drop) })
            })
            .connect_with(url.connect_options(APPLICATION)?)
            .await
            .during(OPERATION)?;
        Ok(Self {
            url: url.clone(),
            database,
            pool,
            shared: None,
        })
    }

    /// Ends all connections.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Brings the schema to [`SCHEMA_VERSION`](crate::SCHEMA_VERSION); writes nothing when it is there. A database
    /// whose schema is newer is refused with [`ErrorKind::SchemaTooNew`].
    pub async fn migrate(&self) -> Result<()> {
        const OPERATION: &str = "migrate the schema";
        let mut connection = connection::open(&self.url, "kanchi-migrate").await?;
        // A migration takes what it takes.
        connection
            .execute("set statement_timeout = 0; set lock_timeout = '60s'")
            .await
            .during(OPERATION)?;
        let result = migration::run(&mut connection, self.shared.as_ref()).await;
        connection::close(connection).await;
        result
    }

    /// Claims the database for an installation; another one's claim gives [`ErrorKind::ForeignInstallation`].
    pub async fn claim_installation(&self, installation: &str) -> Result<()> {
        const OPERATION: &str = "claim the database";
        let query = sqlx::query(
            "with claimed as (
                insert into kanchi.installation (installation_id) select $1
                where not exists (select from kanchi.installation)
                on conflict do nothing returning installation_id)
             select installation_id from claimed union all select installation_id from kanchi.installation limit 1",
        );
        let row = query
            .bind(installation)
            .fetch_optional(&self.pool)
            .await
            .during(OPERATION)?;
        let holder = match row {
            Some(row) => row.get::<String, _>(0),
            // Somebody else's claim was committed while this statement looked at an older snapshot.
            None => self.installation().await?,
        };
        if holder == installation {
            return Ok(());
        }
        let message = format!(
            "the database {} belongs to installation {holder}, not to {installation}: give each installation a database of its own",
            self.url.endpoint()
        );
        Err(Error::new(ErrorKind::ForeignInstallation, OPERATION, message))
    }

    async fn installation(&self) -> Result<String> {
        let query = sqlx::query("select installation_id from kanchi.installation");
        Ok(query.fetch_one(&self.pool).await.during("claim the database")?.get(0))
    }

    /// Listens for changes of connection state.
    pub async fn listen(&self) -> Result<Hints> {
        const OPERATION: &str = "listen";
        let mut listener = PgListener::connect_with(&self.pool).await.during(OPERATION)?;
        listener.listen("kanchi_status").await.during(OPERATION)?;
        Ok(Hints { listener })
    }

    /// Tells whether Postgres answers.
    pub async fn ping(&self) -> Result<()> {
        const OPERATION: &str = "ping Postgres";
        within(OPERATION, async {
            let mut connection = self.pool.acquire().await.during(OPERATION)?;
            connection.ping().await.during(OPERATION)
        })
        .await
    }
}

/// Hints that something changed; they carry no data, and polling alone also works.
#[derive(Debug)]
pub struct Hints {
    listener: PgListener,
}

impl Hints {
    /// Waits for the next hint. Reconnects by itself; after a lost connection a hint is given, since some may have been
    /// missed. An error means that Postgres is not there: wait, then call again.
    pub async fn next(&mut self) -> Result<()> {
        self.listener.try_recv().await.map(drop).during("listen")
    }
}
