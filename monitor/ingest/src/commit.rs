//! The second half of the event path: what a batch changes, one transaction a batch, then the acknowledgement.
//!
//! A store that is away keeps the batch waiting; nothing is acknowledged before its commit. What the store refuses for its
//! data is sifted down to the single event, which becomes a dead letter. A newer writer ends this one.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use std::{collections, mem, panic};

use foldhash::HashSet;
use futures::FutureExt as _;
use kanchi_contract::Transport;
use kanchi_domain::{Event, Limits};
use kanchi_store::{BatchHead, DeadLetter, Ending, Epoch, Stored};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::{join, select, try_join};
use tokio_util::sync::CancellationToken;

use crate::commit::connections::Connections;
use crate::commit::digests::Digests;
use crate::commit::ready::{About, Ready, Told};
use crate::commit::reduce::{Loaded, Reducer, Touched};
use crate::commit::sieve::Sieve;
use crate::commit::store::{Outcome, Store};
use crate::intake::decoder::Turn;
use crate::intake::gather::{Gathered, Kept, Receipt};
use crate::settings::SettingsWatch;
use crate::shared::Shared;

pub mod archived;
pub mod cache;
mod connections;
pub mod digests;
pub mod failures;
pub mod live;
mod ready;
pub mod reduce;
pub mod sieve;
pub mod statistics;
mod store;

/// Why the event path ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process writes for this broker now.
    #[error("failed to write: another monitor has taken over this broker")]
    Fenced,
    /// A defect of ours.
    #[error("failed to go on: the event path ended by a panic")]
    Panicked,
}

/// What the event path begins with.
#[derive(Debug)]
pub struct Begin {
    /// Name of this process, for the epoch.
    pub instance: String,
    /// The epoch of a take-over; `None`: the first connection begins one.
    pub taken: Option<Epoch>,
    /// Digests of the newest messages stored, where they are known already.
    pub digests: Option<collections::HashSet<u128>>,
}

/// A full batch of fewer events, of large messages, waits for the one before it: three such in memory are enough.
const GOES_AHEAD: u64 = 1_000;

/// Writes batches and acknowledges them, one after the other. While one is brought to its end the next one goes ahead as far
/// as it can: its events are sent and its changes made, by a connection of its own.
#[derive(Debug)]
pub struct Committer {
    told: Told,
    settings: SettingsWatch,
    /// What is read of a message, should it be read again.
    limits: Limits,
    connections: Connections,
    reducer: Reducer,
    digests: Digests,
    epoch: Epoch,
    /// Tasks of the newest batch of which the reducer knows nothing until that batch is durable.
    unknown: HashSet<Arc<str>>,
}

/// What became of a batch while the one before it was brought to its end.
#[derive(Debug)]
enum Ahead {
    Ready(Box<Ready>),
    /// It has to wait for that one.
    Waits(Box<Gathered>),
}

/// A batch that is not ready yet.
type Waiting = (Gathered, Turn);

impl Committer {
    /// Makes a committer; it connects when it runs. `give_up` ends waiting for a store that is away: what is not committed
    /// stays with the broker.
    pub fn new(
        shared: Arc<Shared>,
        settings: SettingsWatch,
        acknowledge: watch::Sender<u64>,
        give_up: CancellationToken,
        begin: Begin,
        limits: Limits,
        cache_bytes: usize,
    ) -> Self {
        let mut digests = Digests::default();
        if let Some(known) = begin.digests {
            digests.load(known, Instant::now());
        }
        Self {
            connections: Connections::new(Store::new(
                Arc::clone(&shared),
                settings.clone(),
                give_up,
                begin.instance,
                begin.taken,
            )),
            told: Told { shared, acknowledge },
            settings,
            limits,
            reducer: Reducer::new(cache_bytes),
            digests,
            epoch: Epoch::default(),
            unknown: HashSet::default(),
        }
    }

    /// Stores what comes in until the channel closes or waiting is given up.
    pub async fn run(mut self, batches: mpsc::Receiver<Waiting>) -> Result<(), Error> {
        // The epoch is taken at once: an older process must not go on beside us until our first event.
        let mut store = self.connections.take();
        let Some(epoch) = store.connected().await? else {
            return Ok(());
        };
        self.epoch = epoch;
        self.connections.give_back(store);
        if !self.store_all(batches).await? {
            tracing::warn!("the store was away until the end: what is not stored stays with the broker");
        }
        Ok(())
    }

    /// Stores what comes in; `false` when waiting was given up.
    async fn store_all(&mut self, mut batches: mpsc::Receiver<Waiting>) -> Result<bool, Error> {
        let mut ready: Option<(Ready, Turn)> = None;
        let mut waiting: Option<Waiting> = None;
        loop {
            let Some((mut batch, turn)) = ready.take() else {
                let next = match waiting.take() {
                    Some(next) => Some(next),
                    None => batches.recv().await,
                };
                let Some((gathered, turn)) = next else {
                    return Ok(true);
                };
                match self.prepare(gathered).await? {
                    Some(made) => ready = Some((made, turn)),
                    None => return Ok(false),
                }
                continue;
            };
            // One that is lost is not waited for where there is another one.
            batch.store.is_patient = !self.connections.has_other();
            let (outcome, ahead) = {
                let ended = AtomicBool::new(false);
                let end = batch
                    .end(self.told.clone())
                    .inspect(|_| ended.store(true, Ordering::Relaxed));
                let mut end = pin!(end);
                select! {
                    biased;
                    outcome = &mut end => (outcome?, None),
                    Some((gathered, turn)) = batches.recv(), if waiting.is_none() => {
                        let (outcome, ahead) = try_join!(end, self.go_ahead(gathered, &ended))?;
                        (outcome, Some((ahead, turn)))
                    }
                }
            };
            match outcome {
                Outcome::GivenUp => return Ok(false),
                Outcome::Stored(stored) => {
                    self.settle(batch, &stored);
                    drop(turn);
                    match ahead {
                        Some((Ahead::Ready(next), turn)) => ready = Some((*next, turn)),
                        Some((Ahead::Waits(gathered), turn)) => waiting = Some((*gathered, turn)),
                        None => {}
                    }
                }
                Outcome::Lost => {
                    waiting = self.undo(ahead).await.or(waiting);
                    self.connections.lost();
                    batch.store = self.connections.take();
                    ready = Some((batch, turn));
                }
                Outcome::Refused(reason) => {
                    tracing::warn!(events = batch.about.events, error = %reason, "the store refused a batch; taking it apart");
                    waiting = self.undo(ahead).await.or(waiting);
                    // It was counted on.
                    self.reducer.forget();
                    if !self.store_sifted(batch).await? {
                        return Ok(false);
                    }
                }
            }
        }
    }

    /// Does what can be done of a batch beside the end of the one before it. Once that one has `ended`, what is left is done
    /// beside the beginning of the next.
    async fn go_ahead(&mut self, mut gathered: Gathered, ended: &AtomicBool) -> Result<Ahead, Error> {
        // What may be stored already may be stored by the batch before.
        let depends = gathered.kept.iter().any(Kept::maybe_stored)
            || gathered.tasks.iter().any(|task| self.unknown.contains(&task.id));
        if depends || gathered.events < GOES_AHEAD {
            return Ok(Ahead::Waits(Box::new(gathered)));
        }
        let Some(mut store) = self.connections.other().await else {
            return Ok(Ahead::Waits(Box::new(gathered)));
        };
        store.is_patient = false;
        let Some((mut ready, touched)) = self.make(store, &mut gathered).await? else {
            self.connections.lost();
            return Ok(Ahead::Waits(Box::new(gathered)));
        };
        self.count_on(touched);
        if !ended.load(Ordering::Relaxed) {
            ready.go_ahead().await;
        }
        Ok(Ahead::Ready(Box::new(ready)))
    }

    /// Takes back what went ahead of a batch that is not stored as it was. It was counted on: everything is looked up again.
    async fn undo(&mut self, ahead: Option<(Ahead, Turn)>) -> Option<Waiting> {
        Some(match ahead? {
            (Ahead::Waits(gathered), turn) => (*gathered, turn),
            (Ahead::Ready(next), turn) => {
                self.reducer.forget();
                let (mut store, gathered) = next.undo();
                if store.abandon().await {
                    self.connections.give_back(store);
                } else {
                    self.connections.lost();
                }
                (gathered, turn)
            }
        })
    }

    /// Makes a batch ready that nothing is under way beside; `None` when waiting was given up.
    async fn prepare(&mut self, mut gathered: Gathered) -> Result<Option<Ready>, Error> {
        let mut store = self.connections.take();
        store.is_patient = true;
        if !self.drop_duplicates(&mut store, &mut gathered).await? {
            return Ok(None);
        }
        let Some((ready, touched)) = self.make(store, &mut gathered).await? else {
            return Ok(None);
        };
        self.count_on(touched);
        Ok(Some(ready))
    }

    /// Makes a batch, or a part of one that was refused, ready: sends its events and makes its changes meanwhile. Nothing counts
    /// on it yet. `None` where the store has no answer; nothing is taken out of `gathered` then.
    async fn make(&mut self, mut store: Store, gathered: &mut Gathered) -> Result<Option<(Ready, Touched)>, Error> {
        let began = Instant::now();
        let Some(loaded) = self.look_up(&mut store, gathered).await? else {
            return Ok(None);
        };
        let mut about = About::new(gathered);
        let head = gathered.take_head(self.epoch);
        let (mut lent, tasks) = (self.reducer.lend(), mem::take(&mut gathered.tasks));
        let making = spawn_blocking(move || (lent.reduce(tasks, loaded), lent));
        let ((), made) = join!(store.begin(&head), making);
        let (mut reduced, lent) = made.unwrap_or_else(|error| panic::resume_unwind(error.into_panic()));
        self.reducer = lent;
        self.told.shared.archived().mark(&mut reduced.changes.tasks);
        about.took = began.elapsed();
        let ready = Ready {
            store,
            head,
            changes: reduced.changes,
            about,
        };
        Ok(Some((ready, reduced.touched)))
    }

    /// From now on what the batch says of its tasks is what is known.
    fn count_on(&mut self, touched: Touched) {
        self.told.shared.archived().add(touched.ended());
        self.unknown = self.reducer.keep(touched);
        let (bytes, tasks) = self.reducer.size();
        let metrics = &self.told.shared.metrics;
        metrics.cache_bytes.set(bytes as i64);
        metrics.cache_tasks.set(tasks as i64);
    }

    /// Follows up on a batch that is durable.
    fn settle(&mut self, batch: Ready, stored: &Stored) {
        let Ready {
            store, head, changes, ..
        } = batch;
        match stored {
            Stored::Now { live, left } => {
                self.reducer.live.add(live.iter().map(|id| &**id));
                self.reducer.live.remove(left.iter().map(|id| &**id));
            }
            Stored::Before => self.reducer.live.forget(),
        }
        if self.settings.borrow().broker.url.transport() == Transport::Amqp {
            self.digests.remember(&head.digests);
        }
        self.digests.tidy(Instant::now());
        self.connections.give_back(store);
        // Thousands of small pieces of memory: given back beside the next batch.
        drop(spawn_blocking(move || drop((head, changes))));
    }

    /// Stores what of a refused batch the store takes, and the rest as dead letters; `false` when waiting was given up.
    async fn store_sifted(&mut self, refused: Ready) -> Result<bool, Error> {
        let Ready {
            mut store, head, about, ..
        } = refused;
        store.is_patient = true;
        loop {
            let Some((found, events, letters)) = self.sift(store, &head, &about.receipt).await? else {
                return Ok(false);
            };
            store = found;
            let refused_events = letters.len() as u64;
            // Should it be the letters that are not taken, they are only counted and logged.
            for dead_letters in [[head.dead_letters.clone(), letters].concat(), Vec::new()] {
                let mut rest = Gathered {
                    receipt: about.receipt,
                    digests: head.digests.clone(),
                    dead_letters,
                    ..Gathered::of(&events)
                };
                let Some((mut part, touched)) = self.make(store, &mut rest).await? else {
                    return Ok(false);
                };
                match part.end(self.told.clone()).await? {
                    Outcome::Stored(stored) => {
                        self.told.shared.metrics.refused.inc_by(refused_events);
                        self.count_on(touched);
                        self.settle(part, &stored);
                        return Ok(true);
                    }
                    Outcome::GivenUp | Outcome::Lost => return Ok(false),
                    Outcome::Refused(reason) => tracing::error!(error = %reason, "what was sifted is refused together"),
                }
                store = part.store;
            }
            // It was taken a moment ago, so this passes; nothing may be acknowledged that is not stored.
            if !store.wait_a_moment().await {
                return Ok(false);
            }
        }
    }

    /// Returns the events of a refused batch that the store takes together, and letters of the others; `None` when waiting was
    /// given up.
    async fn sift(
        &mut self,
        mut store: Store,
        refused: &BatchHead,
        receipt: &Receipt,
    ) -> Result<Option<(Store, Vec<Event>, Vec<DeadLetter>)>, Error> {
        let mut sieve = Sieve::new(&refused.chunks, receipt.oldest.unwrap_or_default());
        while let Some(mut trial) = sieve.trial().map(Gathered::of) {
            let Some((mut part, _)) = self.make(store, &mut trial).await? else {
                return Ok(None);
            };
            match part.store.commit(&part.head, &part.changes, Ending::Rollback).await? {
                Outcome::Stored(_) => sieve.taken(),
                Outcome::Refused(reason) => sieve.refused(&reason),
                Outcome::GivenUp | Outcome::Lost => return Ok(None),
            }
            store = part.store;
        }
        let (events, letters) = sieve.end();
        Ok(Some((store, events, letters)))
    }

    /// Returns what the store knows of the tasks that the reducer does not know; `None` when waiting was given up.
    async fn look_up(&mut self, store: &mut Store, part: &Gathered) -> Result<Option<Loaded>, Error> {
        while self.reducer.live.is_due(Instant::now()) {
            // The old set gives its memory to the new one.
            self.reducer.live.forget();
            let Some(loaded) = store.live_ids().await? else {
                return Ok(None);
            };
            self.reducer.live.load(loaded, Instant::now());
        }
        let wanted = self.told.shared.archived().wanted();
        if let Some(piece) = wanted {
            let Some(loaded) = store.archived_ids(piece).await? else {
                return Ok(None);
            };
            let mut archived = self.told.shared.archived();
            match loaded {
                Some(loaded) => archived.load(piece, &loaded),
                None => archived.give_up(),
            }
        }
        let missing = self.reducer.missing(&part.tasks);
        self.told.shared.metrics.cache_misses.inc_by(missing.len() as u64);
        store.load_facts(&missing).await
    }

    /// Removes messages that are stored already, and second copies within the batch.
    async fn drop_duplicates(&mut self, store: &mut Store, gathered: &mut Gathered) -> Result<bool, Error> {
        if !gathered.kept.iter().any(Kept::maybe_stored) {
            return Ok(true);
        }
        if self.digests.needs_load() {
            let Some(digests) = store.recent_digests().await? else {
                return Ok(false);
            };
            self.digests.load(digests, Instant::now());
        }
        let now = Instant::now();
        let mut here: HashSet<u128> = HashSet::default();
        let is_new = |kept: &Kept| match kept {
            Kept::Message {
                maybe_stored,
                digest: Some(digest),
                ..
            } => {
                let first = here.insert(*digest);
                !maybe_stored || (first && !self.digests.contains(*digest, now))
            }
            Kept::Message { digest: None, .. } | Kept::Own(_) => true,
        };
        let payloads = &self.settings.borrow().payloads;
        let dropped = gathered.leave_out(is_new, payloads, &self.limits);
        self.told.shared.metrics.duplicates.inc_by(dropped as u64);
        Ok(true)
    }
}
