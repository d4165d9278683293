//! One connection that comes back: opened at need, checked, dropped when a call left it in doubt.

use std::future::Future;
use std::time::Duration;

use sqlx::{ConnectOptions, Connection, Executor, PgConnection, Row};

use crate::error::{During, Error, ErrorKind, Result};
use crate::migration;
use crate::url::StoreUrl;

/// Longest wait for a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// Longest wait for a call; longer than the server's own statement timeout, so that the server speaks first.
const ANSWER_WITHIN: Duration = Duration::from_secs(45);

/// No JIT and no parallel workers: many partitions look expensive to the planner, and compiling, or starting and ending
/// processes, then takes longer than the query. Statement
/// timeouts by the server; keep-alives end sessions of pods that vanished, which hold a role's few slots.
pub(crate) const SESSION: &str =
    "select set_config('statement_timeout', '30s', false), set_config('lock_timeout', '20s', false),
    set_config('idle_in_transaction_session_timeout', '60s', false), set_config('tcp_keepalives_idle', '15', false),
    set_config('tcp_keepalives_interval', '5', false), set_config('tcp_keepalives_count', '3', false),
    set_config('tcp_user_timeout', '30000', false), set_config('timezone', 'UTC', false),
    set_config('client_min_messages', 'warning', false),
    set_config('jit', 'off', false), set_config('max_parallel_workers_per_gather', '0', false)";

/// A monitor's connection.
#[derive(Debug)]
pub(crate) struct Link {
    url: StoreUrl,
    application: &'static str,
    idle: Option<PgConnection>,
    broker_key: i32,
}

impl Link {
    pub(crate) async fn connect(url: &StoreUrl, application: &'static str) -> Result<Self> {
        let mut link = Self {
            url: url.clone(),
            application,
            idle: None,
            broker_key: 0,
        };
        link.idle = Some(link.take().await?);
        Ok(link)
    }

    /// Uses another URL from the next call on; says whether it is another one.
    pub(crate) fn set_url(&mut self, url: &StoreUrl) -> bool {
        let changed = self.url != *url;
        if changed {
            self.url = url.clone();
            self.idle = None;
        }
        changed
    }

    pub(crate) fn broker_key(&self) -> i32 {
        self.broker_key
    }

    /// Takes the connection, or opens one. A caller that is cancelled never gives it back: what it was doing on it
    /// is unknown.
    pub(crate) async fn take(&mut self) -> Result<PgConnection> {
        if let Some(connection) = self.idle.take() {
            return Ok(connection);
        }
        let mut connection = open(&self.url, self.application).await?;
        let checked = check_monitor(&mut connection, self.application);
        self.broker_key = within("check the schema", checked).await?;
        Ok(connection)
    }

    /// Gives the connection back after a call, unless the call left it in doubt.
    pub(crate) fn put<T>(&mut self, connection: PgConnection, result: &Result<T>) {
        let sound = match result {
            Ok(_) => true,
            // The transaction was refused and is rolled back before the next statement.
            Err(error) => matches!(error.kind(), ErrorKind::Data | ErrorKind::StaleEpoch),
        };
        if sound {
            self.idle = Some(connection);
        }
    }
}

/// Opens a connection with the session's settings.
pub(crate) async fn open(url: &StoreUrl, application: &str) -> Result<PgConnection> {
    const OPERATION: &str = "connect to Postgres";
    let options = url.connect_options(application)?;
    let connected = async {
        let mut connection = options.connect().await.during(OPERATION)?;
        connection.execute(SESSION).await.during(OPERATION)?;
        Ok(connection)
    };
    match tokio::time::timeout(CONNECT_WITHIN, connected).await {
        Ok(result) => result,
        Err(elapsed) => Err(Error::new(
            ErrorKind::Unreachable,
            OPERATION,
            format!("no answer: {elapsed}"),
        )),
    }
}

/// Bounds a call: a server behind a broken network never answers.
pub(crate) async fn within<T>(operation: &'static str, call: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(ANSWER_WITHIN, call).await {
        Ok(result) => result,
        Err(elapsed) => Err(Error::new(
            ErrorKind::Unreachable,
            operation,
            format!("no answer: {elapsed}"),
        )),
    }
}

/// Returns the broker's key, which the session's name ends with from here on: brokers may share a role.
async fn check_monitor(connection: &mut PgConnection, application: &str) -> Result<i32> {
    const OPERATION: &str = "check the schema";
    let version: Option<i32> = sqlx::query("select kanchi.schema_version()")
        .fetch_one(&mut *connection)
        .await
        .during(OPERATION)?
        .get(0);
    let version = version.unwrap_or(0);
    if version < migration::LATEST {
        let message = format!(
            "the schema is version {version}, {} is needed: the operator migrates it",
            migration::LATEST
        );
        return Err(Error::new(ErrorKind::MigrationPending, OPERATION, message));
    }
    let query = sqlx::query(
        "select b, set_config('application_name', $1 || '/' || b, false) from kanchi.current_broker() as b",
    );
    let row = query.bind(application).fetch_one(connection).await.during(OPERATION)?;
    Ok(row.get(0))
}

/// Ends a connection politely; what comes of it does not matter any more.
pub(crate) async fn close(connection: PgConnection) {
    if let Err(error) = connection.close().await {
        tracing::debug!(%error, "a connection was not closed cleanly");
    }
}
