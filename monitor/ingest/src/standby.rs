//! Standing by: another monitor writes for this broker, until it does not.
//!
//! A look a second at the lease, on the one connection that the reporter uses later. Nothing else is written to the store.
//! Redis: both monitors hear the same in the same order, and what one stores is, but for gaps it tells of, a beginning of
//! that. So each message in the ring is new unless its digest is stored, and nothing is missing before the ring if one of
//! its messages is stored, or if the writer has said since that it is not behind.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kanchi_domain::UnixMicros;
use kanchi_store::{Epoch, Error as StoreError, ErrorKind, Lease, Previous, StoreReporter, TakenOver};
use tokio_util::sync::CancellationToken;

use crate::intake::buffer::Buffer;
use crate::intake::spool::{Spool, SpoolOptions};
use crate::settings::SettingsWatch;
use crate::shared::Shared;
use crate::standby::looks::{Hearing, Looks};

pub mod looks;

/// How often the lease is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// A look, or a step of a take-over, that takes longer is given up. A take-over waits for a commit that is under way.
const WITHIN: Duration = Duration::from_secs(20);

/// What arrives so long after a take-over may still have been stored by the writer before: it read faster.
const DOUBTFUL_MICROS: i64 = 60_000_000;

/// Waits until this monitor may write.
#[derive(Debug)]
pub struct Standby {
    /// Shared state.
    pub shared: Arc<Shared>,
    /// Settings in force.
    pub settings: SettingsWatch,
    /// Name of this process; another one of the same broker has another.
    pub instance: String,
    /// Redis: the ring that is being filled.
    pub buffer: Option<Arc<Buffer>>,
    /// Redis: the spool that a writer has.
    pub spool: SpoolOptions,
    /// Bytes of a writer's ring.
    pub ring_bytes: usize,
    /// Ends it.
    pub shutdown: CancellationToken,
}

/// What a take-over has found.
#[derive(Debug)]
pub struct Taken {
    /// The connection.
    pub store: StoreReporter,
    /// The epoch that has begun.
    pub epoch: Epoch,
    /// What the writer before has left.
    pub previous: Previous,
    /// Redis: digests of the newest messages stored.
    pub digests: Option<HashSet<u128>>,
}

/// How far a standby is.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "steps that are done, each once")]
struct Progress {
    store: Option<StoreReporter>,
    /// What an earlier process of this name held is given back.
    given_back: bool,
    /// That role and configuration name different brokers was told.
    mismatch_told: bool,
    /// The spool is of an earlier process that was followed by another monitor, or is not there.
    discarded: bool,
    looks: Looks,
    taken: Option<TakenOver>,
    previous: Option<Previous>,
    digests: Option<HashSet<u128>>,
    begun: bool,
}

impl Standby {
    /// Stands by, and takes over when nobody writes; `None` when it was ended before.
    pub async fn run(mut self) -> Option<Taken> {
        self.shared.metrics.stand_by(true);
        tracing::info!("standing by: another monitor may write for this broker");
        let mut progress = Progress::default();
        let (mut failing, shutdown) = (false, self.shutdown.clone());
        loop {
            let step = tokio::time::timeout(WITHIN, self.step(&mut progress));
            let result = tokio::select! {
                () = shutdown.cancelled() => return None,
                result = step => result,
            };
            match result {
                Ok(Ok(true)) => break,
                Ok(Ok(false)) => {
                    self.shared.store_works();
                    failing = false;
                }
                Ok(Err(error)) => {
                    progress.looks.failed();
                    self.shared.metrics.store_failed(error.kind());
                    if !failing {
                        let text = crate::error_chain(&error);
                        tracing::warn!(reason = error.kind().as_str(), error = %text, "the lease cannot be looked at");
                    }
                    failing = true;
                }
                Err(_elapsed) => {
                    progress.looks.failed();
                    progress.store = None;
                    self.shared.metrics.store_failed(ErrorKind::Timeout);
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        self.shared.metrics.stand_by(false);
        self.shared.metrics.take_overs.inc();
        let now = self.shared.now();
        // Silence while another one listened says nothing about any worker.
        self.shared.workers().restart_timers(now);
        self.shared.unsettled();
        let taken = progress.taken?;
        tracing::info!(store.epoch = taken.epoch.0, "took over: this monitor writes");
        Some(Taken {
            store: progress.store?,
            epoch: taken.epoch,
            previous: progress.previous?,
            digests: progress.digests,
        })
    }

    /// One look, or the next steps of a take-over; tells whether this monitor may write now. What was done is not done again.
    async fn step(&mut self, progress: &mut Progress) -> Result<bool, StoreError> {
        self.connected(progress).await?;
        let Some(store) = progress.store.as_mut() else {
            return Ok(false);
        };
        if progress.taken.is_none() {
            if !progress.given_back {
                store.release(&self.instance).await?;
                progress.given_back = true;
            }
            let at = self.shared.now();
            let hearing = self.hearing(&progress.looks, at);
            let covers = hearing == Hearing::Whole;
            self.shared.metrics.standby_covers.set(i64::from(covers));
            let holder = store.holder(&self.instance).await?;
            if !progress.discarded && holder.as_ref().is_some_and(|holder| !holder.is_own) {
                self.discard_spool();
                progress.discarded = true;
            }
            // One whose lease is over has stored nothing since the look before.
            let tells = holder.is_none_or(|holder| holder.keeps_digests || holder.lease == Lease::Over);
            if let Some(buffer) = self.buffer.as_ref().filter(|_| !tells) {
                buffer.forget(self.shared.now());
            }
            if !progress.looks.see(holder.as_ref(), at, Instant::now(), hearing) {
                return Ok(false);
            }
            progress.taken = store.take_over(&self.instance, holder.as_ref()).await?;
        }
        let Some(taken) = progress.taken else {
            return Ok(false);
        };
        // From here on others are fenced, and whatever fails is tried again.
        store.speak_for(taken.epoch);
        if progress.previous.is_none() {
            progress.previous = Some(store.previous().await?);
        }
        if self.buffer.is_some() && progress.digests.is_none() {
            progress.digests = Some(store.recent_digests().await?);
        }
        if !progress.begun {
            self.begin_writing(progress);
            progress.begun = true;
        }
        // Before the first batch: once that is stored, the next monitor believes that nothing is missing before it.
        let Some(store) = progress.store.as_mut() else {
            return Ok(false);
        };
        while let Some(gap) = self.shared.next_gap() {
            store.save_gap(&gap).await?;
            self.shared.gap_stored(&gap);
        }
        Ok(true)
    }

    async fn connected(&mut self, progress: &mut Progress) -> Result<(), StoreError> {
        let changed = self.settings.has_changed().unwrap_or(false);
        let settings = Arc::clone(&self.settings.borrow_and_update());
        match progress.store.as_mut() {
            Some(store) if changed => store.reconfigure(&settings.store, settings.retention),
            Some(_) => {}
            None => {
                let store = StoreReporter::connect(&settings.store, settings.retention).await?;
                if store.broker_key() != settings.config.broker_key {
                    if std::mem::replace(&mut progress.mismatch_told, true) {
                        return Ok(());
                    }
                    // Half of a changed Secret, or a mistake: nothing may be written under another broker's key.
                    tracing::error!(
                        store.broker_key = store.broker_key(),
                        config.broker_key = settings.config.broker_key,
                        "the store's role belongs to another broker than the configuration"
                    );
                    return Ok(());
                }
                progress.store = Some(store);
            }
        }
        Ok(())
    }

    /// Tells what a take-over now would miss.
    fn hearing(&self, looks: &Looks, now: UnixMicros) -> Hearing {
        // RabbitMQ keeps what is not acknowledged.
        let Some(buffer) = &self.buffer else {
            return Hearing::Whole;
        };
        let since = buffer.whole_since();
        if since.is_some_and(|since| looks.proves(since)) {
            return Hearing::Whole;
        }
        Hearing::since(since, now)
    }

    /// Redis: turns the ring into the buffer of a writer, and tells what is missing before it.
    fn begin_writing(&mut self, progress: &mut Progress) {
        let Some(buffer) = &self.buffer else { return };
        let ours = progress.taken.is_some_and(|taken| taken.was_own);
        if !ours && !progress.discarded {
            self.discard_spool();
        }
        let spool = Spool::open(self.spool.clone())
            .inspect_err(|error| {
                let text = crate::error_chain(error);
                tracing::error!(error = %text, "there is no disk spool: only memory buffers a store that is away");
            })
            .ok();
        let doubtful_until = UnixMicros(self.shared.now().0.saturating_add(DOUBTFUL_MICROS));
        let since = buffer.begin_writing(self.ring_bytes, spool, doubtful_until);
        let known = progress.digests.as_ref();
        let covered = since.is_some_and(|since| progress.looks.proves(since))
            || known.is_some_and(|digests| buffer.holds_any(digests));
        let complete_until = progress.previous.as_ref().and_then(|previous| previous.complete_until);
        if let Some(from) = complete_until.filter(|_| !covered)
            && let Some(gap) = buffer.gap_from(from)
        {
            self.shared.gap(&gap);
        }
    }

    /// What an earlier process of ours has left in its spool is stored, or lies in the gap of the monitor that followed it:
    /// its digests may be forgotten by now, so that it must not be stored again.
    fn discard_spool(&self) {
        if self.buffer.is_none() {
            return;
        }
        match Spool::discard(&self.spool.directory) {
            Ok(0) => {}
            Ok(segments) => tracing::info!(
                segments,
                "discarded the spool of an earlier process: another monitor followed it"
            ),
            Err(error) => tracing::error!(error = %crate::error_chain(&error), "the spool was not discarded"),
        }
    }
}

/// Returns where a spool lies and how large it may become.
pub const fn spool_options(directory: PathBuf, max_bytes: u64) -> SpoolOptions {
    /// Segments are deleted whole, so small ones free space sooner.
    const SEGMENT_BYTES: u64 = 8 * 1024 * 1024;
    SpoolOptions {
        directory,
        max_bytes,
        segment_bytes: SEGMENT_BYTES,
    }
}
