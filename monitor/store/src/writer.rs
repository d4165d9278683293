//! The monitor's side of the store, under the database role of its own broker.
//!
//! [`StoreWriter`] has the connection of the event path and does nothing but batches. [`StoreReporter`] has the second
//! connection, for everything that must not wait behind a batch. A monitor that stands by has the second alone. Both
//! open their connection again on the call after a failure; waiting between attempts is the caller's.

mod commit;
mod copy;
mod held;
mod history;
mod json;
mod lease;
mod repair;
mod reporter;
mod settle;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::TryStreamExt as _;
use kanchi_domain::UnixMicros;
use sqlx::{Executor, PgConnection, Row};
use uuid::Uuid;

pub(crate) use copy::head;
pub use held::{Held, HeldPage, HeldTask, Walk};
pub use lease::{Holder, Lease, Renewal, TakenOver};
pub use repair::{OpenPage, OpenTask};
pub use reporter::{Previous, StoreReporter};
pub use settle::Settled;

use crate::connection::{Link, within};
use crate::error::{During, Result};
use crate::model::{Batch, BatchHead, TaskChanges};
use crate::retention::RetentionPolicy;
use crate::url::StoreUrl;
use crate::writer::commit::Begun;

/// Fences writers of one broker: the newest one wins, older ones get
/// [`ErrorKind::StaleEpoch`](crate::ErrorKind::StaleEpoch).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(pub i64);

/// How the transaction of a batch ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It is durable.
    Commit,
    /// It was only tried whether the store takes it.
    Rollback,
}

/// What became of the tasks of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// These have a row in the live table now; all others of the batch are in history.
    Now {
        /// Their ids.
        live: Vec<Arc<str>>,
        /// Ids of those that had one before, and have none any more.
        left: Vec<Arc<str>>,
    },
    /// The batch had been committed before.
    Before,
}

/// The event path: batches, one connection, reconnecting by itself on the call after a failure.
#[derive(Debug)]
pub struct StoreWriter {
    link: Link,
    retention: RetentionPolicy,
    /// The batch whose transaction is open, how far it has come, and the connection that it is open on.
    begun: Option<(Uuid, Begun, PgConnection)>,
}

impl StoreWriter {
    /// Connects and checks the schema's version. `retention` says which classes new rows go to.
    pub async fn connect(url: &StoreUrl, retention: RetentionPolicy) -> Result<Self> {
        Ok(Self {
            link: Link::connect(url, "kanchi-monitor").await?,
            retention,
            begun: None,
        })
    }

    /// Uses another URL (rotated password) or other classes from the next call on.
    pub fn reconfigure(&mut self, url: &StoreUrl, retention: RetentionPolicy) {
        if self.link.set_url(url) {
            self.begun = None;
        }
        self.retention = retention;
    }

    /// Returns the broker key that the store derives from this role; compare with the configuration's.
    pub fn broker_key(&self) -> i32 {
        self.link.broker_key()
    }

    /// Fences all older writers of this broker; waits for a commit of theirs that is under way.
    pub async fn begin_epoch(&mut self, instance: &str) -> Result<Epoch> {
        const OPERATION: &str = "begin an epoch";
        let mut connection = self.take().await?;
        let query = sqlx::query("select kanchi.begin_epoch($1)").bind(instance);
        let call = async { Ok(Epoch(query.fetch_one(&mut connection).await.during(OPERATION)?.get(0))) };
        let result = within(OPERATION, call).await;
        self.link.put(connection, &result);
        result
    }

    /// Returns the stored facts of those of these tasks that are live (at most 10,000 ids a call).
    pub async fn load_facts(&mut self, ids: &[&str]) -> Result<HashMap<String, Vec<u8>>> {
        const OPERATION: &str = "load the facts of tasks";
        let mut connection = self.take().await?;
        let query = sqlx::query("select task_id, facts from kanchi.load_facts($1)").bind(ids);
        let call = async {
            let rows = query.fetch_all(&mut connection).await.during(OPERATION)?;
            Ok(rows.into_iter().map(|row| (row.get(0), row.get(1))).collect())
        };
        let result = within(OPERATION, call).await;
        self.link.put(connection, &result);
        result
    }

    /// Tells `each` of the ids of this broker's live tasks, at most `limit` of them, in no order.
    pub async fn live_ids(&mut self, limit: u32, mut each: impl FnMut(&str)) -> Result<()> {
        const OPERATION: &str = "list the live tasks";
        let mut connection = self.take().await?;
        let limit = i32::try_from(limit).unwrap_or(i32::MAX);
        let call = async {
            let mut rows = sqlx::query("select kanchi.live_ids($1)")
                .bind(limit)
                .fetch(&mut connection);
            while let Some(row) = rows.try_next().await.during(OPERATION)? {
                each(row.get(0));
            }
            Ok(())
        };
        let result = within(OPERATION, call).await;
        self.link.put(connection, &result);
        result
    }

    /// Tells `each` of a piece of the ids of the tasks that ended within the last three hours, and when, by the workers' clocks, of which the
    /// slowest may be an hour behind: those that ended last until `before`, the newest first; `None`: those of which no end is known.
    pub async fn ended_ids(
        &mut self,
        before: Option<UnixMicros>,
        limit: u32,
        mut each: impl FnMut(&str, Option<UnixMicros>),
    ) -> Result<()> {
        const OPERATION: &str = "list the tasks that ended";
        let mut connection = self.take().await?;
        let query = sqlx::query("select task_id, finished_at from kanchi.ended_ids($1, $2)")
            .bind(before.map(copy::clamped))
            .bind(i32::try_from(limit).unwrap_or(i32::MAX));
        let call = async {
            let mut rows = query.fetch(&mut connection);
            while let Some(row) = rows.try_next().await.during(OPERATION)? {
                each(row.get(0), row.get::<Option<i64>, _>(1).map(UnixMicros));
            }
            Ok(())
        };
        let result = within(OPERATION, call).await;
        self.link.put(connection, &result);
        result
    }

    /// Stores a batch in one transaction and returns which of its tasks have a live row now. A batch id that was committed before succeeds without effect.
    ///
    /// Kinds that matter: `Data` (sift), `StaleEpoch` (stop), `Unreachable` (ask [`Self::was_committed`], then retry).
    pub async fn commit(&mut self, batch: &Batch) -> Result<Stored> {
        self.end_batch(&batch.head, &batch.changes, Ending::Commit).await
    }

    /// Begins the transaction of a batch and stores its events in it: [`Self::end_batch`] of the same batch goes on there, so
    /// that this part of the work can be done while the batch before is still on its way by another connection. Any other
    /// call ends that transaction, and so does an error: the batch is then stored from its beginning.
    pub async fn begin_batch(&mut self, head: &BatchHead) -> Result<()> {
        const OPERATION: &str = commit::OPERATION;
        let mut connection = self.take().await?;
        let begin = commit::begin(&mut connection, head, self.retention);
        match within(OPERATION, begin).await {
            Ok(to) => {
                self.begun = Some((head.id, Begun::Events(to), connection));
                Ok(())
            }
            Err(error) => {
                let result = Err(rolled_back(&mut connection, error).await);
                self.link.put(connection, &result);
                result
            }
        }
    }

    /// Goes on with the transaction that is open for this batch, if there is one: does what depends on no batch before it.
    pub async fn go_ahead(&mut self, batch_id: Uuid, changes: &TaskChanges) -> Result<()> {
        const OPERATION: &str = commit::OPERATION;
        let Some((_, Begun::Events(to) | Begun::Ahead(to, _), mut connection)) =
            self.begun.take_if(|(id, ..)| *id == batch_id)
        else {
            return Ok(());
        };
        let going = commit::go_ahead(&mut connection, changes, to);
        match within(OPERATION, going).await {
            Ok(known) => {
                self.begun = Some((batch_id, Begun::Ahead(to, known), connection));
                Ok(())
            }
            Err(error) => {
                let result = Err(rolled_back(&mut connection, error).await);
                self.link.put(connection, &result);
                result
            }
        }
    }

    /// Tells whether the transaction of this batch is open.
    pub fn has_begun(&self, batch_id: Uuid) -> bool {
        self.begun.as_ref().is_some_and(|(id, ..)| *id == batch_id)
    }

    /// Ends a transaction that was begun and is not gone on with.
    pub async fn abandon_batch(&mut self) -> Result<()> {
        let connection = self.take().await?;
        self.link.put(connection, &Ok(()));
        Ok(())
    }

    /// Stores a batch as [`Self::commit`] does, going on where [`Self::begin_batch`] ended.
    pub async fn end_batch(&mut self, head: &BatchHead, changes: &TaskChanges, ending: Ending) -> Result<Stored> {
        const OPERATION: &str = commit::OPERATION;
        let (mut connection, begun) = match self.begun.take_if(|(id, ..)| *id == head.id) {
            Some((_, begun, connection)) => (connection, Some(begun)),
            None => (self.take().await?, None),
        };
        let run = commit::run(&mut connection, head, changes, self.retention, ending, begun);
        let result = within(OPERATION, run).await;
        let result = match result {
            Ok(stored) => Ok(stored),
            Err(error) => Err(rolled_back(&mut connection, error).await),
        };
        self.link.put(connection, &result);
        result
    }

    /// Tells whether a batch was committed: resolves a COMMIT of unknown outcome.
    pub async fn was_committed(&mut self, batch_id: Uuid) -> Result<bool> {
        const OPERATION: &str = "look up a batch";
        let mut connection = self.take().await?;
        let query = sqlx::query("select kanchi.was_committed($1)").bind(batch_id);
        let call = async { Ok(query.fetch_one(&mut connection).await.during(OPERATION)?.get(0)) };
        let result = within(OPERATION, call).await;
        self.link.put(connection, &result);
        result
    }

    /// Returns the digests of the newest messages stored (some 260,000): needed when a redelivered message shows up.
    pub async fn recent_digests(&mut self) -> Result<HashSet<u128>> {
        let mut connection = self.take().await?;
        let result = commit::recent_digests(&mut connection).await;
        self.link.put(connection, &result);
        result
    }

    /// Takes the connection, without a transaction.
    async fn take(&mut self) -> Result<PgConnection> {
        const OPERATION: &str = "roll back";
        if let Some((.., mut connection)) = self.begun.take() {
            let done = within(OPERATION, async {
                connection.execute("rollback").await.during(OPERATION)
            })
            .await;
            self.link.put(connection, &done);
        }
        self.link.take().await
    }
}

/// Ends a refused transaction, so that the connection can serve the next call; the first error is the one to tell.
async fn rolled_back(connection: &mut PgConnection, error: crate::Error) -> crate::Error {
    use crate::error::ErrorKind;
    if matches!(error.kind(), ErrorKind::Data | ErrorKind::StaleEpoch) {
        let done = within("roll back", async {
            connection.execute("rollback").await.during("roll back")
        });
        if let Err(second) = done.await {
            // The connection is gone as well: say so by a kind that drops it; the batch stays refused next time.
            return second;
        }
    }
    error
}
