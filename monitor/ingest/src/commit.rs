//! The end of the event path: one transaction a batch, then the acknowledgement.
//!
//! A store that is away keeps the batch waiting; nothing is acknowledged before its commit. What the store refuses for its
//! data is sifted down to the single event, which becomes a dead letter. A newer writer ends this one.

use std::collections::HashSet;
use std::mem;
use std::sync::Arc;
use std::time::Instant;

use foldhash::HashMap;
use kanchi_domain::{Event, Limits};
use kanchi_store::{BatchHead, DeadLetter, Ending, Epoch, Stored};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::decoder::Turn;
use crate::digests::Digests;
use crate::gather::{Gathered, Kept, Receipt};
use crate::reduce::{Reduced, Reducer};
use crate::reducing::Reducing;
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
    pub digests: Option<HashSet<u128>>,
}

/// Writes batches and acknowledges them.
#[derive(Debug)]
pub struct Committer {
    shared: Arc<Shared>,
    settings: SettingsWatch,
    /// The newest tag that is durable.
    acknowledge: watch::Sender<u64>,
    /// What is read of a message, should it be read again.
    limits: Limits,
    store: Store,
    reducer: Reducer,
    digests: Digests,
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
            store: Store::new(
                Arc::clone(&shared),
                settings.clone(),
                give_up,
                begin.instance,
                begin.taken,
            ),
            shared,
            settings,
            acknowledge,
            limits,
            reducer: Reducer::new(cache_bytes),
            digests,
        }
    }

    /// Stores what comes in until the channel closes or waiting is given up.
    pub async fn run(mut self, mut batches: mpsc::Receiver<(Gathered, Turn)>) -> Result<(), Error> {
        // The epoch is taken at once: an older process must not go on beside us until our first event.
        if self.store.connected().await?.is_none() {
            return Ok(());
        }
        while let Some((gathered, turn)) = batches.recv().await {
            if !self.store(gathered).await? {
                tracing::warn!("the store was away until the end: what is not stored stays with the broker");
                return Ok(());
            }
            drop(turn);
            self.digests.tidy(Instant::now());
        }
        Ok(())
    }

    /// Stores a batch, without those events that the store refuses; `false` when waiting was given up.
    async fn store(&mut self, mut gathered: Gathered) -> Result<bool, Error> {
        let receipt = gathered.receipt;
        if !self.drop_duplicates(&mut gathered).await? {
            return Ok(false);
        }
        let (outcome, head) = self.attempt(&mut gathered, Ending::Commit).await?;
        match outcome {
            Outcome::Stored(_) => {
                // Thousands of small pieces of memory: given back beside the next batch.
                drop(spawn_blocking(move || drop((head, gathered))));
            }
            Outcome::GivenUp => return Ok(false),
            Outcome::Refused(reason) => {
                tracing::warn!(events = gathered.events, error = %reason, "the store refused a batch; taking it apart");
                if !self.store_sifted(head, &receipt).await? {
                    return Ok(false);
                }
            }
        }
        if let Some(through) = receipt.through {
            self.acknowledge.send_replace(through);
        }
        if let Some(at) = receipt.stored_through() {
            self.shared.stored_through(at);
        }
        self.shared.own_stored(receipt.own);
        Ok(true)
    }

    /// Stores what of a refused batch the store takes, and the rest as dead letters; `false` when waiting was given up.
    async fn store_sifted(&mut self, refused: BatchHead, receipt: &Receipt) -> Result<bool, Error> {
        loop {
            let Some((events, letters)) = self.sift(&refused, receipt).await? else {
                return Ok(false);
            };
            let refused_events = letters.len() as u64;
            // Should it be the letters that are not taken, they are only counted and logged.
            for dead_letters in [[refused.dead_letters.clone(), letters].concat(), Vec::new()] {
                let mut rest = Gathered {
                    receipt: *receipt,
                    digests: refused.digests.clone(),
                    dead_letters,
                    ..Gathered::of(&events)
                };
                match self.attempt(&mut rest, Ending::Commit).await?.0 {
                    Outcome::Stored(_) => {
                        self.shared.metrics.refused.inc_by(refused_events);
                        return Ok(true);
                    }
                    Outcome::GivenUp => return Ok(false),
                    Outcome::Refused(reason) => tracing::error!(error = %reason, "what was sifted is refused together"),
                }
            }
            // It was taken a moment ago, so this passes; nothing may be acknowledged that is not stored.
            if !self.store.wait_a_moment().await {
                return Ok(false);
            }
        }
    }

    /// Returns the events of a refused batch that the store takes together, and letters of the others; `None` when waiting was
    /// given up.
    async fn sift(
        &mut self,
        refused: &BatchHead,
        receipt: &Receipt,
    ) -> Result<Option<(Vec<Event>, Vec<DeadLetter>)>, Error> {
        let mut sieve = Sieve::new(&refused.chunks, receipt.oldest.unwrap_or_default());
        while let Some(mut trial) = sieve.trial().map(Gathered::of) {
            match self.attempt(&mut trial, Ending::Rollback).await?.0 {
                Outcome::Stored(_) => sieve.taken(),
                Outcome::Refused(reason) => sieve.refused(&reason),
                Outcome::GivenUp => return Ok(None),
            }
        }
        Ok(Some(sieve.end()))
    }

    /// Sends what was gathered as one batch; gives back the head, which `gathered` does not have any more.
    async fn attempt(&mut self, gathered: &mut Gathered, ending: Ending) -> Result<(Outcome, BatchHead), Error> {
        if gathered.is_void() {
            let nothing = Stored::Now { live: Vec::new() };
            return Ok((Outcome::Stored(nothing), BatchHead::default()));
        }
        let started = Instant::now();
        let Some(loaded) = self.look_up(gathered).await? else {
            return Ok((Outcome::GivenUp, BatchHead::default()));
        };
        let Some(epoch) = self.store.connected().await? else {
            return Ok((Outcome::GivenUp, BatchHead::default()));
        };
        let mut head = gathered.take_head(epoch);
        if ending == Ending::Commit {
            // With what came after it, if not before: who finds that stored believes that nothing is missing before it.
            head.gaps = self.shared.waiting_gaps();
        }
        let mut reducing = Reducing::start(self.reducer.lend(), mem::take(&mut gathered.tasks), loaded);
        let outcome = self.store.commit(&head, &mut reducing, ending).await?;
        let done = reducing.end().await;
        self.reducer = done.reducer;
        if let (Outcome::Stored(stored), Ending::Commit) = (&outcome, ending) {
            match stored {
                Stored::Now { live } => self.reducer.live.add(live.iter().map(|id| &**id)),
                Stored::Before => self.reducer.live.forget(),
            }
            self.stored(gathered, &head, done.reduced, started);
        }
        Ok((outcome, head))
    }

    fn stored(&mut self, part: &Gathered, head: &BatchHead, reduced: Reduced, started: Instant) {
        let metrics = &self.shared.metrics;
        metrics.batch_events.observe(part.events as f64);
        metrics.batch_messages.observe(part.receipt.messages as f64);
        metrics.batch_seconds.observe(started.elapsed().as_secs_f64());
        self.shared.committed(part.events, part.newest, part.receipt.oldest);
        for gap in &head.gaps {
            self.shared.gap_stored(gap.id);
        }
        self.digests.remember(&head.digests);
        self.reducer.committed(reduced);
        let (bytes, tasks) = self.reducer.size();
        metrics.cache_bytes.set(bytes as i64);
        metrics.cache_tasks.set(tasks as i64);
    }

    /// Returns what the store knows of the tasks that the reducer does not know; `None` when waiting was given up.
    async fn look_up(&mut self, part: &Gathered) -> Result<Option<HashMap<String, Vec<u8>>>, Error> {
        while self.reducer.live.is_due(Instant::now()) {
            let Some(loaded) = self.store.live_ids().await? else {
                return Ok(None);
            };
            self.reducer.live.load(loaded, Instant::now());
        }
        let missing = self.reducer.missing(&part.tasks);
        self.shared.metrics.cache_misses.inc_by(missing.len() as u64);
        self.store.load_facts(&missing).await
    }

    /// Removes messages that are stored already, and second copies within the batch.
    async fn drop_duplicates(&mut self, gathered: &mut Gathered) -> Result<bool, Error> {
        if !gathered.kept.iter().any(Kept::maybe_stored) {
            return Ok(true);
        }
        if self.digests.needs_load() {
            let Some(digests) = self.store.recent_digests().await? else {
                return Ok(false);
            };
            self.digests.load(digests, Instant::now());
        }
        let now = Instant::now();
        let mut here: HashSet<u128> = HashSet::new();
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
        self.shared.metrics.duplicates.inc_by(dropped as u64);
        Ok(true)
    }
}
