//! The operator's side of the store, under the role that owns the schema.

use std::collections::HashMap;
use std::time::Duration;

use kanchi_domain::UnixMicros;

use crate::error::{Error, ErrorKind, Result};
use crate::model::Heartbeat;
use crate::retention::RetentionPolicy;
use crate::url::StoreUrl;

/// A broker's key in the store; part of its role's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BrokerKey(pub i32);

/// Which broker: its key belongs to (installation, namespace uid, name).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerSpec {
    /// UID of the namespace: another tenant's namespace of the same name is another broker.
    pub namespace_uid: String,
    /// Namespace, for reading.
    pub namespace: String,
    /// Name of the resource.
    pub name: String,
    /// Name for people.
    pub display_name: Option<String>,
    /// Classes of its rows.
    pub retention: RetentionPolicy,
}

/// How monitors log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleMode {
    /// Each broker has a role of its own: the Secret in a tenant's namespace opens that tenant's rows only.
    Own,
    /// The owner may not create roles: monitors share one, and so do tenants.
    Shared,
}

/// What [`StoreAdmin::upkeep`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Upkeep {
    /// Partitions created ahead.
    pub created: u64,
    /// Partitions dropped because their retention was over.
    pub dropped: u64,
    /// Rows deleted (batches, dead letters, samples).
    pub pruned: u64,
}

/// Progress of [`StoreAdmin::delete_broker_history`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deleted {
    /// Nothing of the broker is left, its role included.
    All,
    /// The deadline passed first; call again.
    Partly,
}

/// A queue and its depth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopQueue {
    /// Queue name.
    pub name: String,
    /// Messages that wait.
    pub ready: u64,
    /// Consumers; `None` where the broker cannot tell.
    pub consumers: Option<u64>,
}

/// What a monitor last said, and how long ago.
#[derive(Clone, Debug, PartialEq)]
pub struct MonitorReport {
    /// The broker.
    pub key: BrokerKey,
    /// Age of the heartbeat by the server's clock; `None`: no monitor has ever reported.
    pub heartbeat_age: Option<Duration>,
    /// The heartbeat itself.
    pub heartbeat: Option<Heartbeat>,
    /// The fullest queues of the newest sample, at most five, fullest first.
    pub top_queues: Vec<TopQueue>,
    /// Gaps that began within the last 24 hours.
    pub gaps_last_day: u64,
    /// Gaps that are still open.
    pub gaps_open: u64,
}

/// Tasks that ended in the last hour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HourCounts {
    /// Succeeded.
    pub succeeded: u64,
    /// Failed.
    pub failed: u64,
    /// Retried.
    pub retried: u64,
}

/// Hints that something changed; they carry no data, and polling alone also works.
#[derive(Debug)]
pub struct Hints {
    _private: (),
}

impl Hints {
    /// Waits for the next hint. Reconnects by itself; an error is returned once per lost connection.
    pub async fn next(&mut self) -> Result<()> {
        Err(Error::new(ErrorKind::Other, "listen", "not built yet"))
    }
}

/// The owner's connection.
#[derive(Clone, Debug)]
pub struct StoreAdmin {
    _url: StoreUrl,
}

impl StoreAdmin {
    /// Opens a small pool (at most 4 connections) and checks that Postgres answers.
    pub async fn connect(url: &StoreUrl) -> Result<Self> {
        let _ = url;
        Err(Error::new(ErrorKind::Other, "connect", "not built yet"))
    }

    /// Brings the schema to [`SCHEMA_VERSION`](crate::SCHEMA_VERSION); does nothing when it is there.
    pub async fn migrate(&self) -> Result<()> {
        Err(Error::new(ErrorKind::Other, "migrate", "not built yet"))
    }

    /// Claims the database for an installation; another one's claim gives [`ErrorKind::ForeignInstallation`].
    pub async fn claim_installation(&self, installation: &str) -> Result<()> {
        let _ = installation;
        Err(Error::new(ErrorKind::Other, "claim the database", "not built yet"))
    }

    /// Creates partitions ahead, drops those whose retention is over, prunes bounded tables. Call every 10 minutes.
    pub async fn upkeep(&self, now: UnixMicros) -> Result<Upkeep> {
        let _ = now;
        Err(Error::new(ErrorKind::Other, "do the upkeep", "not built yet"))
    }

    /// Returns the broker's key, adopting its history; makes one for a new broker.
    pub async fn ensure_broker(&self, broker: &BrokerSpec) -> Result<BrokerKey> {
        let _ = broker;
        Err(Error::new(ErrorKind::Other, "ensure a broker", "not built yet"))
    }

    /// Changes the classes that new rows of a broker go to.
    pub async fn set_retention(&self, key: BrokerKey, retention: RetentionPolicy) -> Result<()> {
        let _ = (key, retention);
        Err(Error::new(ErrorKind::Other, "set the retention", "not built yet"))
    }

    /// Makes the broker's role, or sets its password; the server and its log never see the password itself.
    pub async fn ensure_role(&self, key: BrokerKey, password: &str) -> Result<RoleMode> {
        let _ = (key, password);
        Err(Error::new(ErrorKind::Other, "ensure a role", "not built yet"))
    }

    /// Returns the URL that a broker's monitor uses.
    pub fn monitor_url(&self, key: BrokerKey, mode: RoleMode, password: &str) -> Result<StoreUrl> {
        let _ = (key, mode, password);
        Err(Error::new(ErrorKind::Other, "write a store URL", "not built yet"))
    }

    /// Takes the right to log in from a broker's role and ends its sessions; history stays.
    pub async fn retire_broker(&self, key: BrokerKey) -> Result<()> {
        let _ = key;
        Err(Error::new(ErrorKind::Other, "retire a broker", "not built yet"))
    }

    /// Deletes everything of a broker in bounded chunks, until `within` is over.
    pub async fn delete_broker_history(&self, key: BrokerKey, within: Duration) -> Result<Deleted> {
        let _ = (key, within);
        Err(Error::new(ErrorKind::Other, "delete a broker's history", "not built yet"))
    }

    /// Returns what every monitor last said; one cheap query, for a poll every few seconds.
    pub async fn reports(&self) -> Result<Vec<MonitorReport>> {
        Err(Error::new(ErrorKind::Other, "read the reports", "not built yet"))
    }

    /// Returns the last hour's counts of every broker that had any; for a poll every minute.
    pub async fn last_hour(&self, now: UnixMicros) -> Result<HashMap<BrokerKey, HourCounts>> {
        let _ = now;
        Err(Error::new(ErrorKind::Other, "count the last hour", "not built yet"))
    }

    /// Listens for changes of connection state.
    pub async fn listen(&self) -> Result<Hints> {
        Err(Error::new(ErrorKind::Other, "listen", "not built yet"))
    }
}
