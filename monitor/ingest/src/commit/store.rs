//! The store as the event path sees it: connected again and again, waited for while it is away.
//!
//! Every call that asks ends with an answer, or with `None` when waiting was given up. A COMMIT of unknown outcome is resolved by the
//! batch's id.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use foldhash::HashMap;
use kanchi_store::{BatchHead, Ending, Epoch, Error as StoreError, ErrorKind, StoreWriter, Stored, TaskChanges};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::backoff::Backoff;
use crate::commit::Error;
use crate::commit::archived::{LoadedPiece, PIECE, Piece};
use crate::commit::live::{LoadedIds, MAX_LIVE};
use crate::settings::SettingsWatch;
use crate::shared::Shared;

/// Ids in one look-up; the store takes at most so many.
const MAX_LOOKUP: usize = 10_000;

/// An error that is neither the data's nor the connection's is tried so often before the batch is taken apart.
const TRIES_BEFORE_SIEVE: u32 = 8;

/// Asks until there is an answer; ends the function with `None` when waiting was given up. No function, because whether the
/// future of an async closure may be sent to another thread is more than the compiler can tell yet.
macro_rules! ask {
    ($store:ident, $writer:ident => $call:expr) => {{
        let mut backoff = store_backoff();
        loop {
            let Some($writer) = $store.writer().await? else {
                return Ok(None);
            };
            let error = match $call {
                Ok(answer) => break answer,
                Err(error) => error,
            };
            if !$store.wait_out(error, &mut backoff).await? {
                return Ok(None);
            }
        }
    }};
}

/// How an attempt to store a batch ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It is durable.
    Stored(Stored),
    /// The connection is lost, and was not to be waited for.
    Lost,
    /// The store refused the data, for this reason.
    Refused(String),
    /// Waiting was given up.
    GivenUp,
}

/// A connection that is made again.
pub(crate) struct Store {
    shared: Arc<Shared>,
    settings: SettingsWatch,
    give_up: CancellationToken,
    /// Name of this process, for the epoch.
    instance: String,
    /// The epoch of a take-over; `None`: the first connection begins one.
    taken: Option<Epoch>,
    writer: Option<(StoreWriter, Epoch)>,
    /// A connection that is lost is waited for; else every call ends without an answer.
    pub(crate) is_patient: bool,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Store")
            .field("instance", &self.instance)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Returns a store that is connected to with the first call. `taken`: the epoch, if one has begun already.
    pub(crate) const fn new(
        shared: Arc<Shared>,
        settings: SettingsWatch,
        give_up: CancellationToken,
        instance: String,
        taken: Option<Epoch>,
    ) -> Self {
        Self {
            shared,
            settings,
            give_up,
            instance,
            taken,
            writer: None,
            is_patient: true,
        }
    }

    /// Returns another one like it, not connected yet; of the epoch that has begun, if one has.
    pub(crate) fn another(&self) -> Self {
        Self::new(
            Arc::clone(&self.shared),
            self.settings.clone(),
            self.give_up.clone(),
            self.instance.clone(),
            self.shared.epoch().or(self.taken),
        )
    }

    /// Tries once to connect; `false` when that failed.
    pub(crate) async fn try_to_connect(&mut self) -> bool {
        match self.connect().await {
            Ok(connected) if connected.0.broker_key() == self.settings.borrow().config.broker_key => {
                self.writer = Some(connected);
                true
            }
            Ok(_) => false,
            Err(error) => {
                tracing::info!(error = %crate::error_chain(&error), "no connection for batches that go ahead");
                false
            }
        }
    }

    /// Ends the transaction of a batch that went ahead, if it can; `false`: the connection is lost.
    pub(crate) async fn abandon(&mut self) -> bool {
        match self.writer.as_mut() {
            Some((writer, _)) => writer.abandon_batch().await.is_ok(),
            None => false,
        }
    }

    /// Sends the events of a batch ahead of its end, where that can be done at once; [`Self::commit`] does what was not.
    pub(crate) async fn begin(&mut self, head: &BatchHead) {
        if let Some((writer, _)) = self.writer.as_mut()
            && !head.chunks.is_empty()
            && let Err(error) = writer.begin_batch(head).await
        {
            tracing::debug!(error = %crate::error_chain(&error), "the events of a batch did not go ahead");
        }
    }

    /// Does what else can be done ahead of a batch's end, once its changes are made.
    pub(crate) async fn go_ahead(&mut self, head: &BatchHead, changes: &TaskChanges) {
        if let Some((writer, _)) = self.writer.as_mut()
            && let Err(error) = writer.go_ahead(head.id, changes).await
        {
            tracing::debug!(error = %crate::error_chain(&error), "the changes of a batch did not go ahead");
        }
    }

    /// Stores one batch, waiting out a store that is away. `ending`: of its transaction.
    pub(crate) async fn commit(
        &mut self,
        head: &BatchHead,
        changes: &TaskChanges,
        ending: Ending,
    ) -> Result<Outcome, Error> {
        let mut backoff = store_backoff();
        let mut odd = 0;
        loop {
            let Some(epoch) = self.connected().await? else {
                return Ok(self.without_answer());
            };
            // After a reconnect within the same process the epoch is the same: nobody else took over.
            if epoch != head.epoch {
                return Err(Error::Fenced);
            }
            let Some((writer, _)) = self.writer.as_mut() else {
                continue;
            };
            let error = match writer.end_batch(head, changes, ending).await {
                Ok(stored) => {
                    self.shared.store_works();
                    return Ok(Outcome::Stored(stored));
                }
                Err(error) => error,
            };
            odd += u32::from(error.kind() == ErrorKind::Other);
            if error.kind() == ErrorKind::Data || odd >= TRIES_BEFORE_SIEVE {
                self.shared.metrics.store_failed(error.kind());
                return Ok(Outcome::Refused(crate::error_chain(&error)));
            }
            let unknown = error.is_outcome_unknown();
            if !self.wait_out(error, &mut backoff).await? {
                return Ok(self.without_answer());
            }
            if unknown {
                match self.was_committed(head.id).await? {
                    Some(true) => {
                        self.shared.store_works();
                        return Ok(Outcome::Stored(Stored::Before));
                    }
                    Some(false) => {}
                    None => return Ok(self.without_answer()),
                }
            }
        }
    }

    const fn without_answer(&self) -> Outcome {
        if self.is_patient {
            Outcome::GivenUp
        } else {
            Outcome::Lost
        }
    }

    async fn was_committed(&mut self, id: Uuid) -> Result<Option<bool>, Error> {
        let known = ask!(self, writer => writer.was_committed(id).await);
        Ok(Some(known))
    }

    /// Returns the ids of the tasks that are live, or of more than fit.
    pub(crate) async fn live_ids(&mut self) -> Result<Option<LoadedIds>, Error> {
        let loaded = ask!(self, writer => {
            let mut loaded = LoadedIds::default();
            let done = writer.live_ids(MAX_LIVE + 1, |id| loaded.push(id)).await;
            done.map(|()| loaded)
        });
        Ok(Some(loaded))
    }

    /// Returns a piece of the ids that recent history has; `None` in it: that takes the store too long.
    pub(crate) async fn archived_ids(&mut self, piece: Piece) -> Result<Option<Option<LoadedPiece>>, Error> {
        let before = match piece {
            Piece::WithoutEnd => None,
            Piece::EndedBefore(moment) => Some(moment),
        };
        let loaded = ask!(self, writer => {
            let mut loaded = LoadedPiece::default();
            match writer.ended_ids(before, PIECE, |id, ended| loaded.push(id, ended)).await {
                Ok(()) => Ok(Some(loaded)),
                // Nothing depends on it: tasks that end are looked up one by one instead.
                Err(error) if error.kind() == ErrorKind::Timeout => {
                    tracing::warn!(%error, "each task that ends is looked up in history from now on, which takes longer");
                    Ok(None)
                }
                Err(error) => Err(error),
            }
        });
        Ok(Some(loaded))
    }

    /// Returns the stored facts of those of these tasks that are live.
    pub(crate) async fn load_facts(&mut self, ids: &[&str]) -> Result<Option<HashMap<String, Vec<u8>>>, Error> {
        let mut loaded = HashMap::default();
        for ids in ids.chunks(MAX_LOOKUP) {
            loaded.extend(ask!(self, writer => writer.load_facts(ids).await));
        }
        Ok(Some(loaded))
    }

    /// Returns the digests of the newest messages stored.
    pub(crate) async fn recent_digests(&mut self) -> Result<Option<HashSet<u128>>, Error> {
        let digests = ask!(self, writer => writer.recent_digests().await);
        Ok(Some(digests))
    }

    async fn writer(&mut self) -> Result<Option<&mut StoreWriter>, Error> {
        self.connected().await?;
        Ok(self.writer.as_mut().map(|(writer, _)| writer))
    }

    /// Returns the epoch once the store is connected; `None` when waiting was given up.
    pub(crate) async fn connected(&mut self) -> Result<Option<Epoch>, Error> {
        let mut backoff = store_backoff();
        loop {
            if let Some((writer, epoch)) = self.writer.as_mut() {
                if self.settings.has_changed().unwrap_or(false) {
                    let settings = self.settings.borrow_and_update();
                    writer.reconfigure(&settings.store, settings.retention);
                }
                return Ok(Some(*epoch));
            }
            match self.connect().await {
                Ok((writer, _)) if writer.broker_key() != self.settings.borrow().config.broker_key => {
                    // Half of a changed Secret, or a mistake: nothing may be written under another broker's key.
                    tracing::error!(
                        store.broker_key = writer.broker_key(),
                        config.broker_key = self.settings.borrow().config.broker_key,
                        "the store's role belongs to another broker than the configuration"
                    );
                    if !self.pause(&mut backoff).await {
                        return Ok(None);
                    }
                }
                Ok(connected) => self.writer = Some(connected),
                Err(error) => {
                    if !self.wait_out(error, &mut backoff).await? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    async fn connect(&mut self) -> Result<(StoreWriter, Epoch), StoreError> {
        let settings = Arc::clone(&self.settings.borrow_and_update());
        let mut writer = StoreWriter::connect(&settings.store, settings.retention).await?;
        let epoch = match self.taken {
            Some(epoch) => epoch,
            None => writer.begin_epoch(&self.instance).await?,
        };
        self.shared.begin_epoch(epoch);
        self.shared.store_works();
        tracing::info!(store.endpoint = %settings.store.endpoint(), store.epoch = epoch.0, "connected to the store");
        Ok((writer, epoch))
    }

    /// Waits before the next try, or until the configuration changes; `false` when waiting was given up.
    async fn wait_out(&mut self, error: StoreError, backoff: &mut Backoff) -> Result<bool, Error> {
        if error.kind() == ErrorKind::StaleEpoch {
            return Err(Error::Fenced);
        }
        self.shared.metrics.store_failed(error.kind());
        if !self.is_patient {
            tracing::info!(error = %crate::error_chain(&error), "one of two connections to the store is lost");
            return Ok(false);
        }
        self.shared.store_failing(error.kind());
        // A database of a newer schema may be followed by a newer monitor; one of a wrong URL by a corrected one.
        if backoff.failures().is_power_of_two() || backoff.failures() == 0 {
            tracing::warn!(
                reason = error.kind().as_str(),
                error = %crate::error_chain(&error),
                tries = backoff.failures() + 1,
                "the store cannot be used; keeping the batch and trying again"
            );
        }
        Ok(self.pause(backoff).await)
    }

    /// Waits before something is tried again; `false` when waiting was given up.
    pub(crate) async fn wait_a_moment(&mut self) -> bool {
        self.pause(&mut store_backoff()).await
    }

    async fn pause(&mut self, backoff: &mut Backoff) -> bool {
        let pause = backoff.pause();
        tokio::select! {
            () = self.give_up.cancelled() => false,
            () = tokio::time::sleep(pause) => true,
            changed = self.settings.changed() => {
                if changed.is_ok() {
                    self.settings.mark_changed();
                    backoff.reset();
                }
                true
            }
        }
    }
}

const fn store_backoff() -> Backoff {
    Backoff::new(Duration::from_millis(100), Duration::from_secs(5))
}
