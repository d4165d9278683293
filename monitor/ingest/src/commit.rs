//! The end of the event path: one transaction a batch, then the acknowledgement.
//!
//! A store that is away keeps the batch waiting; nothing is acknowledged before its commit. What the store refuses for its
//! data is bisected down to the single message, which becomes a dead letter. A newer writer ends this one.

use std::collections::HashSet;
use std::mem;
use std::sync::Arc;
use std::time::Instant;

use foldhash::HashMap;
use kanchi_domain::{Limits, UnixMicros};
use kanchi_store::{BatchHead, DeadLetter, Epoch, Stored};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::decoder::Turn;
use crate::digests::Digests;
use crate::gather::{Gathered, Receipt};
use crate::reduce::{Reduced, Reducer};
use crate::reducing::Reducing;
use crate::settings::SettingsWatch;
use crate::shared::Shared;
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

    /// Stores messages in order, bisecting what is refused; `false` when waiting was given up.
    async fn store(&mut self, mut gathered: Gathered) -> Result<bool, Error> {
        let Some(last) = gathered.messages.last().map(|message| message.tag) else {
            return Ok(true);
        };
        let read = gathered.messages.iter().filter(|message| !message.is_own());
        let newest = read.map(|message| message.arrived).max();
        let own = gathered.messages.iter().filter(|message| message.is_own()).count();
        if !self.drop_duplicates(&mut gathered).await? {
            return Ok(false);
        }
        let mut parts = vec![gathered];
        while let Some(part) = parts.pop() {
            let through = part.messages.last().map(|message| message.tag);
            let (outcome, mut messages) = self.store_part(part).await?;
            match outcome {
                Outcome::Stored(_) => drop(spawn_blocking(move || drop(messages))),
                Outcome::GivenUp => return Ok(false),
                Outcome::Refused(reason) if messages.len() == 1 => {
                    let letter = messages.pop().map(|message| self.dead_letter(&message, &reason));
                    if let Some(letter) = letter
                        && !self.store_letter(letter).await?
                    {
                        return Ok(false);
                    }
                }
                Outcome::Refused(reason) => {
                    tracing::warn!(messages = messages.len(), error = %reason, "the store refused a batch; taking it apart");
                    let second = messages.split_off(messages.len() / 2);
                    parts.push(self.gather_again(second));
                    parts.push(self.gather_again(messages));
                    continue;
                }
            }
            if let Some(through) = through {
                self.acknowledge.send_replace(through);
            }
        }
        // Duplicates and empty messages at the end of the batch are done as well.
        self.acknowledge.send_replace(last);
        if let Some(newest) = newest {
            self.shared.stored_through(newest);
        }
        self.shared.own_stored(own as u64);
        Ok(true)
    }

    fn gather_again(&self, messages: Vec<Receipt>) -> Gathered {
        Gathered::again(messages, &self.settings.borrow().payloads, &self.limits)
    }

    /// Stores messages as one batch; gives them back.
    async fn store_part(&mut self, mut part: Gathered) -> Result<(Outcome, Vec<Receipt>), Error> {
        if part.is_void() {
            let nothing = Stored::Now { live: Vec::new() };
            return Ok((Outcome::Stored(nothing), part.messages));
        }
        let started = Instant::now();
        let Some(loaded) = self.look_up(&part).await? else {
            return Ok((Outcome::GivenUp, part.messages));
        };
        let Some(epoch) = self.store.connected().await? else {
            return Ok((Outcome::GivenUp, part.messages));
        };
        let head = part.take_head(epoch);
        let mut reducing = Reducing::start(self.reducer.lend(), mem::take(&mut part.tasks), loaded);
        let outcome = self.store.commit(&head, &mut reducing).await?;
        let done = reducing.end().await;
        self.reducer = done.reducer;
        if let Outcome::Stored(stored) = &outcome {
            match stored {
                Stored::Now { live } => self.reducer.live.add(live.iter().map(|id| &**id)),
                Stored::Before => self.reducer.live.forget(),
            }
            self.stored(&part, &head, done.reduced, started);
        }
        // Thousands of small pieces of memory: given back beside the next batch.
        drop(spawn_blocking(move || drop(head)));
        Ok((outcome, part.messages))
    }

    fn stored(&mut self, part: &Gathered, head: &BatchHead, reduced: Reduced, started: Instant) {
        let metrics = &self.shared.metrics;
        metrics.batch_events.observe(part.events as f64);
        metrics.batch_messages.observe(part.messages.len() as f64);
        metrics.batch_seconds.observe(started.elapsed().as_secs_f64());
        let oldest: Option<UnixMicros> = part.messages.iter().map(|message| message.arrived).min();
        self.shared.committed(part.events, part.newest, oldest);
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
        if !gathered.messages.iter().any(|message| message.maybe_stored) {
            return Ok(true);
        }
        if self.digests.needs_load() {
            let Some(digests) = self.store.recent_digests().await? else {
                return Ok(false);
            };
            self.digests.load(digests, Instant::now());
        }
        let now = Instant::now();
        let before = gathered.messages.len();
        let mut here: HashSet<u128> = HashSet::new();
        gathered.messages.retain(|message| {
            let Some(digest) = message.digest else { return true };
            let first = here.insert(digest);
            !message.maybe_stored || (first && !self.digests.contains(digest, now))
        });
        let dropped = before - gathered.messages.len();
        self.shared.metrics.duplicates.inc_by(dropped as u64);
        if dropped > 0 {
            *gathered = self.gather_again(mem::take(&mut gathered.messages));
        }
        Ok(true)
    }

    fn dead_letter(&self, message: &Receipt, reason: &str) -> BatchHead {
        self.shared.metrics.refused.inc();
        tracing::error!(error = reason, "the store refuses a message; it becomes a dead letter");
        BatchHead {
            id: Uuid::new_v4(),
            epoch: self.store.epoch().unwrap_or_default(),
            digests: message.digest.into_iter().collect(),
            dead_letters: vec![DeadLetter {
                arrived: message.arrived,
                reason: "store_refused".to_owned(),
                detail: reason.replace('\0', "\u{FFFD}"),
                sample: message.head().to_vec(),
            }],
            ..BatchHead::default()
        }
    }

    /// Stores a dead letter; one that is refused in its turn is only counted and logged.
    async fn store_letter(&mut self, letter: BatchHead) -> Result<bool, Error> {
        match self.store.commit(&letter, &mut Reducing::nothing()).await? {
            Outcome::Stored(_) => self.digests.remember(&letter.digests),
            Outcome::Refused(reason) => tracing::error!(error = %reason, "a dead letter cannot be stored either"),
            Outcome::GivenUp => return Ok(false),
        }
        Ok(true)
    }
}
