//! The end of the event path: one transaction a batch, then the acknowledgement.
//!
//! A store that is away keeps the batch waiting; nothing is acknowledged before its commit. A COMMIT of unknown outcome is
//! resolved by the batch's id. What the store refuses for its data is bisected down to the single message, which becomes a
//! dead letter. A newer writer ends this one.

use std::collections::HashSet;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::HashMap;
use kanchi_domain::{Limits, UnixMicros};
use kanchi_store::{BatchHead, DeadLetter, Epoch, Error as StoreError, ErrorKind, StoreWriter, Stored};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::backoff::Backoff;
use crate::decoder::Turn;
use crate::digests::Digests;
use crate::gather::{Gathered, Receipt, TaskNews};
use crate::live::{LoadedIds, MAX_LIVE};
use crate::reduce::{Reduced, Reducer};
use crate::reducing::Reducing;
use crate::settings::SettingsWatch;
use crate::shared::Shared;

/// Ids in one look-up; the store takes at most so many.
const MAX_LOOKUP: usize = 10_000;

/// An error that is neither the data's nor the connection's is tried so often before the batch is taken apart.
const TRIES_BEFORE_BISECT: u32 = 8;

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

/// Writes batches and acknowledges them.
pub struct Committer {
    /// Shared state.
    pub shared: Arc<Shared>,
    /// Settings in force.
    pub settings: SettingsWatch,
    /// The newest tag that is durable.
    pub acknowledge: watch::Sender<u64>,
    /// Ends waiting for a store that is away; what is not committed stays with the broker.
    pub give_up: CancellationToken,
    /// Name of this process, for the epoch.
    pub instance: String,
    /// What is read of a message, should it be read again.
    pub limits: Limits,
    writer: Option<(StoreWriter, Epoch)>,
    reducer: Reducer,
    digests: Digests,
}

/// How an attempt to store a batch ended.
enum Outcome {
    Stored(Stored),
    /// The store refused the data.
    Refused(String),
    /// Waiting was given up.
    GivenUp,
}

impl std::fmt::Debug for Committer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Committer")
            .field("instance", &self.instance)
            .finish_non_exhaustive()
    }
}

impl Committer {
    /// Makes a committer; it connects with the first batch, or when it is told to.
    pub fn new(
        shared: Arc<Shared>,
        settings: SettingsWatch,
        acknowledge: watch::Sender<u64>,
        give_up: CancellationToken,
        instance: String,
        limits: Limits,
        cache_bytes: usize,
    ) -> Self {
        Self {
            shared,
            settings,
            acknowledge,
            give_up,
            instance,
            limits,
            writer: None,
            reducer: Reducer::new(cache_bytes),
            digests: Digests::default(),
        }
    }

    /// Stores what comes in until the channel closes or waiting is given up.
    pub async fn run(mut self, mut batches: mpsc::Receiver<(Gathered, Turn)>) -> Result<(), Error> {
        // The epoch is taken at once: an older process must not go on beside us until our first event.
        if self.connected().await?.is_none() {
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
        if !self.load_live().await? {
            return Ok((Outcome::GivenUp, part.messages));
        }
        let Some(loaded) = self.load_facts(&part.tasks).await? else {
            return Ok((Outcome::GivenUp, part.messages));
        };
        let Some((_, epoch)) = self.writer.as_ref() else {
            return Ok((Outcome::GivenUp, part.messages));
        };
        let head = part.take_head(*epoch);
        let mut reducing = Reducing::start(self.reducer.lend(), mem::take(&mut part.tasks), loaded);
        let outcome = self.commit(&head, &mut reducing).await?;
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

    /// Commits one batch, waiting out a store that is away.
    async fn commit(&mut self, head: &BatchHead, reducing: &mut Reducing) -> Result<Outcome, Error> {
        let mut backoff = store_backoff();
        let mut odd = 0;
        loop {
            let Some(epoch) = self.connected().await? else {
                return Ok(Outcome::GivenUp);
            };
            // After a reconnect within the same process the epoch is the same: nobody else took over.
            if epoch != head.epoch {
                return Err(Error::Fenced);
            }
            let Some((writer, _)) = self.writer.as_mut() else {
                continue;
            };
            let error = match writer.commit_while(head, reducing.changes()).await {
                Ok(stored) => {
                    self.shared.store_works();
                    return Ok(Outcome::Stored(stored));
                }
                Err(error) => error,
            };
            self.shared.metrics.store_failed(error.kind());
            odd += u32::from(error.kind() == ErrorKind::Other);
            if error.kind() == ErrorKind::Data || odd >= TRIES_BEFORE_BISECT {
                return Ok(Outcome::Refused(crate::error_chain(&error)));
            }
            let unknown = error.is_outcome_unknown();
            if !self.wait_out(error, &mut backoff).await? {
                return Ok(Outcome::GivenUp);
            }
            if unknown {
                match self.was_committed(head.id).await? {
                    Some(true) => {
                        self.shared.store_works();
                        return Ok(Outcome::Stored(Stored::Before));
                    }
                    Some(false) => {}
                    None => return Ok(Outcome::GivenUp),
                }
            }
        }
    }

    async fn was_committed(&mut self, id: Uuid) -> Result<Option<bool>, Error> {
        let mut backoff = store_backoff();
        loop {
            if self.connected().await?.is_none() {
                return Ok(None);
            }
            let Some((writer, _)) = self.writer.as_mut() else {
                continue;
            };
            match writer.was_committed(id).await {
                Ok(known) => return Ok(Some(known)),
                Err(error) => {
                    if !self.wait_out(error, &mut backoff).await? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Learns which tasks are live, when that is due; `false` when waiting was given up.
    async fn load_live(&mut self) -> Result<bool, Error> {
        let mut backoff = store_backoff();
        while self.reducer.live.is_due(Instant::now()) {
            if self.connected().await?.is_none() {
                return Ok(false);
            }
            let Some((writer, _)) = self.writer.as_mut() else {
                continue;
            };
            let mut loaded = LoadedIds::default();
            match writer.live_ids(MAX_LIVE + 1, |id| loaded.push(id)).await {
                Ok(()) => self.reducer.live.load(loaded, Instant::now()),
                Err(error) => {
                    self.shared.metrics.store_failed(error.kind());
                    if !self.wait_out(error, &mut backoff).await? {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    async fn load_facts(&mut self, tasks: &[TaskNews]) -> Result<Option<HashMap<String, Vec<u8>>>, Error> {
        let missing = self.reducer.missing(tasks);
        self.shared.metrics.cache_misses.inc_by(missing.len() as u64);
        let mut loaded = HashMap::default();
        let mut backoff = store_backoff();
        for ids in missing.chunks(MAX_LOOKUP) {
            loop {
                if self.connected().await?.is_none() {
                    return Ok(None);
                }
                let Some((writer, _)) = self.writer.as_mut() else {
                    continue;
                };
                match writer.load_facts(ids).await {
                    Ok(facts) => {
                        loaded.extend(facts);
                        break;
                    }
                    Err(error) => {
                        self.shared.metrics.store_failed(error.kind());
                        if !self.wait_out(error, &mut backoff).await? {
                            return Ok(None);
                        }
                    }
                }
            }
        }
        if self.connected().await?.is_none() {
            return Ok(None);
        }
        Ok(Some(loaded))
    }

    /// Removes messages that are stored already, and second copies within the batch.
    async fn drop_duplicates(&mut self, gathered: &mut Gathered) -> Result<bool, Error> {
        if !gathered.messages.iter().any(|message| message.maybe_stored) {
            return Ok(true);
        }
        if self.digests.needs_load() && !self.load_digests().await? {
            return Ok(false);
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

    async fn load_digests(&mut self) -> Result<bool, Error> {
        let mut backoff = store_backoff();
        loop {
            if self.connected().await?.is_none() {
                return Ok(false);
            }
            let Some((writer, _)) = self.writer.as_mut() else {
                continue;
            };
            match writer.recent_digests().await {
                Ok(digests) => {
                    self.digests.load(digests, Instant::now());
                    return Ok(true);
                }
                Err(error) => {
                    if !self.wait_out(error, &mut backoff).await? {
                        return Ok(false);
                    }
                }
            }
        }
    }

    fn dead_letter(&self, message: &Receipt, reason: &str) -> BatchHead {
        self.shared.metrics.refused.inc();
        tracing::error!(error = reason, "the store refuses a message; it becomes a dead letter");
        BatchHead {
            id: Uuid::new_v4(),
            epoch: self.writer.as_ref().map(|(_, epoch)| *epoch).unwrap_or_default(),
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
        match self.commit(&letter, &mut Reducing::nothing()).await? {
            Outcome::Stored(_) => self.digests.remember(&letter.digests),
            Outcome::Refused(reason) => tracing::error!(error = %reason, "a dead letter cannot be stored either"),
            Outcome::GivenUp => return Ok(false),
        }
        Ok(true)
    }

    /// Returns the epoch once the store is connected; `None` when waiting was given up.
    async fn connected(&mut self) -> Result<Option<Epoch>, Error> {
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
                    self.shared.metrics.store_failed(error.kind());
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
        let epoch = writer.begin_epoch(&self.instance).await?;
        self.shared.store_works();
        tracing::info!(store.endpoint = %settings.store.endpoint(), store.epoch = epoch.0, "connected to the store");
        Ok((writer, epoch))
    }

    /// Waits before the next try, or until the configuration changes; `false` when waiting was given up.
    async fn wait_out(&mut self, error: StoreError, backoff: &mut Backoff) -> Result<bool, Error> {
        if error.kind() == ErrorKind::StaleEpoch {
            return Err(Error::Fenced);
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
