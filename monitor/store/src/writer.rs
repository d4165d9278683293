//! The monitor's side of the store, under the database role of its own broker.
//!
//! [`StoreWriter`] has the connection of the event path and does nothing but batches. [`StoreReporter`] has the second
//! connection, for everything that must not wait behind a batch. A role may open no third one.

use std::collections::{HashMap, HashSet};

use kanchi_domain::UnixMicros;
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::model::{Batch, GapRow, Heartbeat, QueueRow, WorkerRow};
use crate::retention::RetentionPolicy;
use crate::url::StoreUrl;

/// Fences writers of one broker: the newest one wins, older ones get [`ErrorKind::StaleEpoch`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(pub i64);

/// What [`StoreReporter::settle`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Final tasks that moved from live to history.
    pub moved: u64,
    /// Of these, tasks that had a row in history already and were merged with it.
    pub merged: u64,
    /// Whether there may be more to move right now: call again.
    pub more: bool,
}

/// The event path: batches, one connection, reconnecting by itself on the call after a failure.
#[derive(Debug)]
pub struct StoreWriter {
    _url: StoreUrl,
}

impl StoreWriter {
    /// Connects and checks the schema's version. `retention` says which classes new rows go to.
    pub async fn connect(url: &StoreUrl, retention: RetentionPolicy) -> Result<Self> {
        let _ = (url, retention);
        Err(Error::new(ErrorKind::Other, "connect", "not built yet"))
    }

    /// Uses another URL (rotated password) or other classes from the next call on.
    pub fn reconfigure(&mut self, url: &StoreUrl, retention: RetentionPolicy) {
        let _ = (url, retention);
    }

    /// Returns the broker key that the store derives from this role; compare with the configuration's.
    pub fn broker_key(&self) -> i32 {
        0
    }

    /// Fences all older writers of this broker; waits for a commit of theirs that is under way.
    pub async fn begin_epoch(&mut self, instance: &str) -> Result<Epoch> {
        let _ = instance;
        Err(Error::new(ErrorKind::Other, "begin an epoch", "not built yet"))
    }

    /// Returns the stored facts of those of these tasks that are live (at most 10,000 ids a call).
    pub async fn load_facts(&mut self, ids: &[&str]) -> Result<HashMap<String, Vec<u8>>> {
        let _ = ids;
        Err(Error::new(ErrorKind::Other, "load the facts of tasks", "not built yet"))
    }

    /// Stores a batch in one transaction. A batch id that was committed before succeeds without effect.
    ///
    /// Kinds that matter: `Data` (bisect), `StaleEpoch` (stop), `Unreachable` (ask [`Self::was_committed`], then retry).
    pub async fn commit(&mut self, batch: &Batch) -> Result<()> {
        let _ = batch;
        Err(Error::new(ErrorKind::Other, "commit a batch", "not built yet"))
    }

    /// Tells whether a batch was committed: resolves a COMMIT of unknown outcome.
    pub async fn was_committed(&mut self, batch_id: Uuid) -> Result<bool> {
        let _ = batch_id;
        Err(Error::new(ErrorKind::Other, "look up a batch", "not built yet"))
    }

    /// Returns the digests of the newest messages stored (some 260,000): needed when a redelivered message shows up.
    pub async fn recent_digests(&mut self) -> Result<HashSet<u128>> {
        Err(Error::new(ErrorKind::Other, "load the digests", "not built yet"))
    }
}

/// Everything of a monitor that must not wait behind a batch: its own connection.
#[derive(Debug)]
pub struct StoreReporter {
    _url: StoreUrl,
}

impl StoreReporter {
    /// Connects and checks the schema's version. `retention` says which classes settled tasks go to.
    pub async fn connect(url: &StoreUrl, retention: RetentionPolicy) -> Result<Self> {
        let _ = (url, retention);
        Err(Error::new(ErrorKind::Other, "connect", "not built yet"))
    }

    /// Uses another URL (rotated password) or other classes from the next call on.
    pub fn reconfigure(&mut self, url: &StoreUrl, retention: RetentionPolicy) {
        let _ = (url, retention);
    }

    /// Stores the heartbeat; when the connection's state or reason changed, the operator is notified (at most once a
    /// second).
    pub async fn heartbeat(&mut self, heartbeat: &Heartbeat) -> Result<()> {
        let _ = heartbeat;
        Err(Error::new(ErrorKind::Other, "write the heartbeat", "not built yet"))
    }

    /// Opens a gap, or changes it when its id is known.
    pub async fn save_gap(&mut self, gap: &GapRow) -> Result<()> {
        let _ = gap;
        Err(Error::new(ErrorKind::Other, "save a gap", "not built yet"))
    }

    /// Returns the gaps that are still open.
    pub async fn open_gaps(&mut self) -> Result<Vec<GapRow>> {
        Err(Error::new(ErrorKind::Other, "load open gaps", "not built yet"))
    }

    /// Stores one sample of each queue.
    pub async fn save_queues(&mut self, at: UnixMicros, queues: &[QueueRow]) -> Result<()> {
        let _ = (at, queues);
        Err(Error::new(ErrorKind::Other, "save queue samples", "not built yet"))
    }

    /// Stores workers whose state changed without an event (offline, lost).
    pub async fn save_workers(&mut self, workers: &[WorkerRow]) -> Result<()> {
        let _ = workers;
        Err(Error::new(ErrorKind::Other, "save workers", "not built yet"))
    }

    /// Returns the workers known, at most 10,000, last heard first.
    pub async fn load_workers(&mut self) -> Result<Vec<WorkerRow>> {
        Err(Error::new(ErrorKind::Other, "load workers", "not built yet"))
    }

    /// Returns when the newest batch was committed, by the server's clock: where a restart's gap begins.
    pub async fn last_commit_at(&mut self) -> Result<Option<UnixMicros>> {
        Err(Error::new(ErrorKind::Other, "look up the last commit", "not built yet"))
    }

    /// Moves up to some thousand final tasks, written `linger_seconds` ago or earlier, from live to history.
    pub async fn settle(&mut self, now: UnixMicros, linger_seconds: u32) -> Result<Settled> {
        let _ = (now, linger_seconds);
        Err(Error::new(ErrorKind::Other, "settle final tasks", "not built yet"))
    }
}
