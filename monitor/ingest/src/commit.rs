//! The end of the event path: one transaction a batch, then the acknowledgement.
//!
//! A store that is away keeps the batch waiting; nothing is acknowledged before its commit. What the store refuses for its
//! data is sifted down to the single event, which becomes a dead letter. A newer writer ends this one.

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;
use std::{collections, mem, panic};

use foldhash::{HashMap, HashSet};
use kanchi_domain::{Event, Limits};
use kanchi_store::{BatchHead, DeadLetter, Ending, Epoch, GapRow, Stored};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::{join, select};
use tokio_util::sync::CancellationToken;

use crate::connections::Connections;
use crate::decoder::Turn;
use crate::digests::Digests;
use crate::gather::{Gathered, Kept, Receipt};
use crate::ready::{About, Ready, Told};
use crate::reduce::{Reduced, Reducer, Touched};
use crate::settings::SettingsWatch;
use crate::shared::Shared;
use crate::sieve::Sieve;
use crate::store::{Outcome, Store};

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

/// A batch of fewer events is stored when the one before it is: nobody waits for it.
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
    /// Tasks of the newest batch of which the reducer knows nothing until that batch is durable.
    unknown: HashSet<Arc<str>>,
}

/// What became of a batch while the one before it was brought to its end.
#[derive(Debug)]
enum Ahead {
    Ready(Box<Ready>),
    /// It has to wait for that one.
    Waits(Box<Gathered>),
    /// Waiting for the store was given up.
    GivenUp,
}

/// How a batch was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settled {
    /// It is stored as it was.
    Stored,
    /// What the store took of it is.
    Sifted,
    /// Waiting for the store was given up.
    GivenUp,
}

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
            connections: Connections::new(
                Arc::clone(&shared),
                settings.clone(),
                give_up,
                begin.instance,
                begin.taken,
            ),
            told: Told { shared, acknowledge },
            settings,
            limits,
            reducer: Reducer::new(cache_bytes),
            digests,
            unknown: HashSet::default(),
        }
    }

    /// Stores what comes in until the channel closes or waiting is given up.
    pub async fn run(mut self, batches: mpsc::Receiver<(Gathered, Turn)>) -> Result<(), Error> {
        // The epoch is taken at once: an older process must not go on beside us until our first event.
        let mut store = self.connections.take();
        if store.connected().await?.is_none() {
            return Ok(());
        }
        self.connections.give_back(store);
        if !self.store_all(batches).await? {
            tracing::warn!("the store was away until the end: what is not stored stays with the broker");
        }
        Ok(())
    }

    /// Stores what comes in; `false` when waiting was given up.
    async fn store_all(&mut self, mut batches: mpsc::Receiver<(Gathered, Turn)>) -> Result<bool, Error> {
        let mut ready: Option<Ready> = None;
        loop {
            let Some(mut batch) = ready.take() else {
                let Some((gathered, turn)) = batches.recv().await else {
                    return Ok(true);
                };
                ready = self.prepare(gathered).await?;
                if ready.is_none() {
                    return Ok(false);
                }
                drop(turn);
                continue;
            };
            let told = self.told.clone();
            let (outcome, ahead) = {
                let mut end = pin!(batch.end(told));
                select! {
                    biased;
                    outcome = &mut end => (outcome?, None),
                    next = batches.recv() => match next {
                        None => (end.await?, None),
                        Some((gathered, turn)) => {
                            let (outcome, ahead) = join!(end, self.go_ahead(gathered));
                            drop(turn);
                            (outcome?, Some(ahead?))
                        }
                    }
                }
            };
            let waits = match (self.settle(batch, outcome).await?, ahead) {
                (Settled::GivenUp, _) | (_, Some(Ahead::GivenUp)) => return Ok(false),
                (_, None) => None,
                (_, Some(Ahead::Waits(gathered))) => Some(*gathered),
                (Settled::Stored, Some(Ahead::Ready(next))) => {
                    ready = Some(*next);
                    None
                }
                (Settled::Sifted, Some(Ahead::Ready(next))) => Some(next.undo()),
            };
            if let Some(gathered) = waits {
                ready = self.prepare(gathered).await?;
                if ready.is_none() {
                    return Ok(false);
                }
            }
        }
    }

    /// Does what can be done of a batch beside the end of the one before it.
    async fn go_ahead(&mut self, gathered: Gathered) -> Result<Ahead, Error> {
        // What may be stored already may be stored by the batch before.
        let depends = gathered.kept.iter().any(Kept::maybe_stored)
            || gathered.tasks.iter().any(|task| self.unknown.contains(&task.id));
        if depends || gathered.events < GOES_AHEAD {
            return Ok(Ahead::Waits(Box::new(gathered)));
        }
        let Some(store) = self.connections.second().await else {
            return Ok(Ahead::Waits(Box::new(gathered)));
        };
        Ok(match self.prepare_on(store, gathered).await? {
            Some(ready) => Ahead::Ready(Box::new(ready)),
            None => Ahead::GivenUp,
        })
    }

    /// Makes a batch ready that nothing is under way beside; `None` when waiting was given up.
    async fn prepare(&mut self, gathered: Gathered) -> Result<Option<Ready>, Error> {
        let store = self.connections.take();
        self.prepare_on(store, gathered).await
    }

    async fn prepare_on(&mut self, mut store: Store, mut gathered: Gathered) -> Result<Option<Ready>, Error> {
        if !self.drop_duplicates(&mut store, &mut gathered).await? {
            return Ok(None);
        }
        let about = About::new(&gathered);
        let (head, reduced) = if gathered.is_void() {
            Default::default()
        } else {
            let gaps = self.told.shared.waiting_gaps();
            match self.make(&mut store, &mut gathered, gaps).await? {
                Some(made) => made,
                None => return Ok(None),
            }
        };
        self.count_on(reduced.touched);
        Ok(Some(Ready {
            store,
            head,
            changes: reduced.changes,
            about,
        }))
    }

    /// Sends the events of a batch, makes its changes meanwhile, and returns both; the head is not in `gathered` any more.
    /// `None` when waiting was given up. `gaps`: with what came after them, if not before: who finds that stored believes that
    /// nothing is missing before it.
    async fn make(
        &mut self,
        store: &mut Store,
        gathered: &mut Gathered,
        gaps: Vec<GapRow>,
    ) -> Result<Option<(BatchHead, Reduced)>, Error> {
        let Some(loaded) = self.look_up(store, gathered).await? else {
            return Ok(None);
        };
        let Some(epoch) = store.connected().await? else {
            return Ok(None);
        };
        let mut head = gathered.take_head(epoch);
        head.gaps = gaps;
        let (mut lent, tasks) = (self.reducer.lend(), mem::take(&mut gathered.tasks));
        let making = spawn_blocking(move || (lent.reduce(tasks, loaded), lent));
        let ((), made) = join!(store.begin(&head), making);
        let (reduced, lent) = made.unwrap_or_else(|error| panic::resume_unwind(error.into_panic()));
        self.reducer = lent;
        Ok(Some((head, reduced)))
    }

    /// From now on what the batch says of its tasks is what is known.
    fn count_on(&mut self, touched: Touched) {
        self.unknown = self.reducer.keep(touched);
        let (bytes, tasks) = self.reducer.size();
        let metrics = &self.told.shared.metrics;
        metrics.cache_bytes.set(bytes as i64);
        metrics.cache_tasks.set(tasks as i64);
    }

    /// Follows up on the end of a batch. What the store refused is sifted.
    async fn settle(&mut self, batch: Ready, outcome: Outcome) -> Result<Settled, Error> {
        let Ready {
            mut store,
            head,
            changes,
            about,
        } = batch;
        let settled = match outcome {
            Outcome::GivenUp => Settled::GivenUp,
            Outcome::Stored(stored) => {
                self.stored(&stored, &head);
                // Thousands of small pieces of memory: given back beside the next batch.
                drop(spawn_blocking(move || drop((head, changes))));
                Settled::Stored
            }
            Outcome::Refused(reason) => {
                tracing::warn!(events = about.events, error = %reason, "the store refused a batch; taking it apart");
                // It was counted on.
                self.reducer.forget();
                if self.store_sifted(&mut store, head, &about.receipt).await? {
                    self.told.acknowledge(&about.receipt);
                    Settled::Sifted
                } else {
                    Settled::GivenUp
                }
            }
        };
        self.connections.give_back(store);
        self.digests.tidy(Instant::now());
        Ok(settled)
    }

    fn stored(&mut self, stored: &Stored, head: &BatchHead) {
        match stored {
            Stored::Now { live } => self.reducer.live.add(live.iter().map(|id| &**id)),
            Stored::Before => self.reducer.live.forget(),
        }
        self.digests.remember(&head.digests);
    }

    /// Stores what of a refused batch the store takes, and the rest as dead letters; `false` when waiting was given up.
    async fn store_sifted(&mut self, store: &mut Store, refused: BatchHead, receipt: &Receipt) -> Result<bool, Error> {
        loop {
            let Some((events, letters)) = self.sift(store, &refused, receipt).await? else {
                return Ok(false);
            };
            let refused_events = letters.len() as u64;
            // Should it be the letters that are not taken, they are only counted and logged.
            for dead_letters in [[refused.dead_letters.clone(), letters].concat(), Vec::new()] {
                let rest = Gathered {
                    receipt: *receipt,
                    digests: refused.digests.clone(),
                    dead_letters,
                    ..Gathered::of(&events)
                };
                match self.attempt(store, rest, Ending::Commit).await? {
                    Outcome::Stored(_) => {
                        self.told.shared.metrics.refused.inc_by(refused_events);
                        return Ok(true);
                    }
                    Outcome::GivenUp => return Ok(false),
                    Outcome::Refused(reason) => tracing::error!(error = %reason, "what was sifted is refused together"),
                }
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
        store: &mut Store,
        refused: &BatchHead,
        receipt: &Receipt,
    ) -> Result<Option<(Vec<Event>, Vec<DeadLetter>)>, Error> {
        let mut sieve = Sieve::new(&refused.chunks, receipt.oldest.unwrap_or_default());
        while let Some(trial) = sieve.trial().map(Gathered::of) {
            match self.attempt(store, trial, Ending::Rollback).await? {
                Outcome::Stored(_) => sieve.taken(),
                Outcome::Refused(reason) => sieve.refused(&reason),
                Outcome::GivenUp => return Ok(None),
            }
        }
        Ok(Some(sieve.end()))
    }

    /// Stores a part of a refused batch, or only tries whether the store takes it.
    async fn attempt(&mut self, store: &mut Store, mut part: Gathered, ending: Ending) -> Result<Outcome, Error> {
        if part.is_void() {
            return Ok(Outcome::Stored(Stored::Now { live: Vec::new() }));
        }
        let about = About::new(&part);
        let gaps = match ending {
            Ending::Commit => self.told.shared.waiting_gaps(),
            Ending::Rollback => Vec::new(),
        };
        let Some((head, reduced)) = self.make(store, &mut part, gaps).await? else {
            return Ok(Outcome::GivenUp);
        };
        let outcome = store.commit(&head, &reduced.changes, ending).await?;
        if let (Outcome::Stored(stored), Ending::Commit) = (&outcome, ending) {
            self.stored(stored, &head);
            self.told.stored(&about, &head);
            self.count_on(reduced.touched);
        }
        Ok(outcome)
    }

    /// Returns what the store knows of the tasks that the reducer does not know; `None` when waiting was given up.
    async fn look_up(&mut self, store: &mut Store, part: &Gathered) -> Result<Option<HashMap<String, Vec<u8>>>, Error> {
        while self.reducer.live.is_due(Instant::now()) {
            let Some(loaded) = store.live_ids().await? else {
                return Ok(None);
            };
            self.reducer.live.load(loaded, Instant::now());
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
