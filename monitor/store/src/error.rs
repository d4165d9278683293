//! What can go wrong with the store, in kinds that conditions and metrics can name.

use std::error::Error as StdError;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed call, with the operation that failed and what kind of failure it was.
#[derive(Debug, thiserror::Error)]
#[error("failed to {operation}: {message}")]
pub struct Error {
    kind: ErrorKind,
    operation: &'static str,
    message: String,
    #[source]
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// Kinds of failure; a fixed set, used as condition reason and metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// No connection, or it broke; the outcome of a COMMIT may be unknown.
    Unreachable,
    /// Postgres refused the role or its password.
    AuthenticationFailed,
    /// The server or the role has no connection left.
    ConnectionLimit,
    /// TLS could not be agreed on, or the server's certificate was not accepted.
    TlsFailed,
    /// The database's schema is older than this build needs: the operator has not migrated it yet.
    MigrationPending,
    /// The database's schema is newer than this build knows and says so.
    SchemaTooNew,
    /// The server's disk is full.
    DiskFull,
    /// The server is a standby or was set read-only.
    ReadOnly,
    /// A newer writer of the same broker has begun; this one must stop.
    StaleEpoch,
    /// Postgres refused the rows themselves: sending them again cannot help, sending fewer finds the bad one.
    Data,
    /// A statement ran into its timeout, or the server ended it for a deadlock or serialisation failure; retry.
    Timeout,
    /// The role lacks a right it should have, or tried what it must not.
    Forbidden,
    /// The database belongs to another installation of Kanchi.
    ForeignInstallation,
    /// The store URL or an argument cannot be used.
    Invalid,
    /// Anything else; the message says more.
    Other,
}

impl ErrorKind {
    /// Returns the name used as condition reason and metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "Unreachable",
            Self::AuthenticationFailed => "AuthenticationFailed",
            Self::ConnectionLimit => "ConnectionLimit",
            Self::TlsFailed => "TlsFailed",
            Self::MigrationPending => "MigrationPending",
            Self::SchemaTooNew => "SchemaTooNew",
            Self::DiskFull => "DiskFull",
            Self::ReadOnly => "ReadOnly",
            Self::StaleEpoch => "StaleEpoch",
            Self::Data => "Data",
            Self::Timeout => "Timeout",
            Self::Forbidden => "Forbidden",
            Self::ForeignInstallation => "ForeignInstallation",
            Self::Invalid => "Invalid",
            Self::Other => "Other",
        }
    }

    /// Returns the kind of this [name](Self::as_str); an unknown one is [`Other`](Self::Other).
    pub fn from_name(name: &str) -> Self {
        let known = [
            Self::Unreachable,
            Self::AuthenticationFailed,
            Self::ConnectionLimit,
            Self::TlsFailed,
            Self::MigrationPending,
            Self::SchemaTooNew,
            Self::DiskFull,
            Self::ReadOnly,
            Self::StaleEpoch,
            Self::Data,
            Self::Timeout,
            Self::Forbidden,
            Self::ForeignInstallation,
            Self::Invalid,
        ];
        known
            .into_iter()
            .find(|kind| kind.as_str() == name)
            .unwrap_or(Self::Other)
    }

    /// Whether waiting and trying the same call again can help.
    pub fn is_transient(self) -> bool {
        match self {
            Self::Unreachable
            | Self::AuthenticationFailed
            | Self::ConnectionLimit
            | Self::TlsFailed
            | Self::MigrationPending
            | Self::DiskFull
            | Self::ReadOnly
            | Self::Timeout
            | Self::Forbidden
            | Self::Other => true,
            Self::SchemaTooNew | Self::StaleEpoch | Self::Data | Self::ForeignInstallation | Self::Invalid => false,
        }
    }
}

impl Error {
    /// Returns the kind of failure.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns the operation that failed, a fixed text usable as metric label.
    pub fn operation(&self) -> &'static str {
        self.operation
    }

    /// Whether the outcome of a COMMIT is unknown; ask [`StoreWriter::was_committed`](crate::StoreWriter::was_committed).
    pub fn is_outcome_unknown(&self) -> bool {
        matches!(self.kind, ErrorKind::Unreachable)
    }

    pub(crate) fn new(kind: ErrorKind, operation: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind,
            operation,
            message: message.into(),
            source: None,
        }
    }

    /// Classifies an error of the driver.
    pub(crate) fn sql(operation: &'static str, source: sqlx::Error) -> Self {
        let kind = classify(&source);
        let message = describe(&source);
        Self {
            kind,
            operation,
            message,
            source: Some(Box::new(source)),
        }
    }
}

/// Adds the operation to a driver error: `query.await.during("load the workers")?`.
pub(crate) trait During<T> {
    /// Turns a driver error into the crate's error.
    fn during(self, operation: &'static str) -> Result<T>;
}

impl<T> During<T> for Result<T, sqlx::Error> {
    fn during(self, operation: &'static str) -> Result<T> {
        self.map_err(|source| Error::sql(operation, source))
    }
}

fn describe(error: &sqlx::Error) -> String {
    match error.as_database_error() {
        Some(db) => match db.code() {
            Some(code) => format!("{} (SQLSTATE {code})", db.message()),
            None => db.message().to_owned(),
        },
        None => error.to_string(),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "another crate's enum, which may grow")]
fn classify(error: &sqlx::Error) -> ErrorKind {
    if let Some(db) = error.as_database_error() {
        return db.code().map_or(ErrorKind::Other, |code| classify_sqlstate(&code));
    }
    match error {
        sqlx::Error::Tls(_) => ErrorKind::TlsFailed,
        sqlx::Error::Io(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => ErrorKind::Unreachable,
        sqlx::Error::Configuration(_) => ErrorKind::Invalid,
        // The driver encodes before it sends: what cannot be encoded can never be stored.
        sqlx::Error::Encode(_) => ErrorKind::Data,
        _ => ErrorKind::Other,
    }
}

/// SQLSTATEs of Kanchi's own functions: class `KN` is free for applications.
pub(crate) const STALE_EPOCH: &str = "KN001";
/// No row for this broker: the operator has not made it, or deleted it.
pub(crate) const NO_BROKER: &str = "KN002";

fn classify_sqlstate(code: &str) -> ErrorKind {
    match code {
        STALE_EPOCH => ErrorKind::StaleEpoch,
        "53300" => ErrorKind::ConnectionLimit,
        "53100" => ErrorKind::DiskFull,
        "25006" => ErrorKind::ReadOnly,
        // Shutting down, crashed, starting up.
        "57P01" | "57P02" | "57P03" | "57P05" => ErrorKind::Unreachable,
        // Statement or lock timeout, serialisation failure, deadlock.
        "57014" | "55P03" | "40001" | "40P01" | "25P03" => ErrorKind::Timeout,
        // Unknown function, table, column or schema: this database was not migrated as far as this build needs.
        "42883" | "42P01" | "42703" | "3F000" => ErrorKind::MigrationPending,
        // 23503: the broker's row is gone, so nothing of it can be stored any more.
        NO_BROKER | "42501" | "23503" => ErrorKind::Forbidden,
        // A row wider than a page or an index entry, a value out of range, text that is not UTF-8, a check or key refused.
        "54000" | "54001" => ErrorKind::Data,
        _ => match code.get(..2) {
            Some("08") => ErrorKind::Unreachable,
            Some("28") => ErrorKind::AuthenticationFailed,
            Some("3D") => ErrorKind::Invalid,
            Some("22" | "23" | "21") => ErrorKind::Data,
            Some("53") => ErrorKind::DiskFull,
            _ => ErrorKind::Other,
        },
    }
}
