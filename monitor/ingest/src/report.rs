//! What the monitor tells of itself, on the store's second connection: heartbeat, gaps, workers, queues; and the settling
//! of final tasks.

use std::sync::Arc;
use std::time::Duration;

use kanchi_broker::{ConnectionState, Gap, GapCause};
use kanchi_domain::UnixMicros;
use kanchi_store::{Error as StoreError, ErrorKind, Heartbeat, Previous, Renewal, StoreReporter};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::intake::buffer::Buffer;
use crate::repair::Desk;
use crate::sampler::Samples;
use crate::settings::SettingsWatch;
use crate::shared::Shared;
use crate::workers::orphans::Orphans;

/// How often the heartbeat is written; the operator takes a monitor for silent after 30 s.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// How often the lease is renewed: a standby takes over once it was not for ten seconds.
const RENEW: Duration = Duration::from_secs(2);

/// Digests are said to be kept so long after they are.
const DIGESTS_AFTER: Duration = Duration::from_secs(10);

/// How often workers, gaps and queue samples are written.
const TICK: Duration = Duration::from_secs(1);

/// How often workers are written whose state did not change; all together, so that samples of one minute are complete.
const WORKERS_EVERY: Duration = Duration::from_secs(6);

/// How often final tasks move to history.
const SETTLE: Duration = Duration::from_mins(1);

/// How long a final task lingers for late events before it moves.
const LINGER_SECONDS: u32 = 180;

/// A turn moves no longer; the heartbeat must not wait behind a large backlog.
const SETTLE_AT_ONCE: Duration = Duration::from_secs(2);

/// A call that takes longer is given up: a connection that hangs must not silence the heartbeat.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Since when digests of all messages are kept, as far as the lease says: a while after it is so, since what was on its way
/// then has none. Once they are kept they are for good.
#[derive(Clone, Copy, Debug)]
pub struct KeptDigests {
    always: bool,
    since: Option<Instant>,
}

impl KeptDigests {
    /// `always`: since this process began to write.
    pub const fn new(always: bool) -> Self {
        Self { always, since: None }
    }

    fn are_kept(&mut self, has_standby: bool, now: Instant) -> bool {
        if has_standby {
            self.since.get_or_insert(now);
        }
        self.always
            || self
                .since
                .is_some_and(|since| now.duration_since(since) >= DIGESTS_AFTER)
    }
}

/// Writes what the monitor tells of itself, and keeps its lease.
#[derive(Debug)]
pub struct Reporter {
    /// Shared state.
    pub shared: Arc<Shared>,
    /// Settings in force.
    pub settings: SettingsWatch,
    /// Newest queue samples.
    pub samples: Samples,
    /// Redis: the buffer, for its size.
    pub buffer: Option<Arc<Buffer>>,
    /// Name of this process.
    pub instance: String,
    /// Version of this build.
    pub version: String,
    /// Ends it.
    pub shutdown: CancellationToken,
    /// The connection, once there is one.
    pub store: Option<StoreReporter>,
    /// Finds the tasks of workers that were lost or came back.
    pub orphans: Orphans,
    /// What the repair of gaps asks of the store.
    pub desk: Desk,
    /// When workers were written last.
    pub workers_saved: Option<Instant>,
    /// Redis: the store could not be asked at the start where the last process stopped; since when this one listens.
    pub restart_at: Option<UnixMicros>,
    /// Until when the last heartbeat called the history complete.
    pub told_complete: Option<UnixMicros>,
    /// When the lease was renewed last.
    pub renewed: Option<Instant>,
    /// Whether digests of all that is stored are kept.
    pub digests: KeptDigests,
    /// Told when another monitor has taken over.
    pub fenced: CancellationToken,
}

impl Reporter {
    /// Runs until the token ends it, then says goodbye; until another monitor has taken over, without a word: that one
    /// writes the heartbeat now.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        let mut next_heartbeat = Instant::now();
        let mut next_settle = Instant::now() + SETTLE;
        let mut loaded_workers = false;
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => break,
                () = self.shared.heartbeat_due.notified() => next_heartbeat = Instant::now(),
                () = self.desk.asked() => {}
                () = tokio::time::sleep_until(next_heartbeat.min(Instant::now() + TICK)) => {}
            }
            let shutdown = self.shutdown.clone();
            let turn = self.turn(&mut next_heartbeat, &mut next_settle, &mut loaded_workers);
            let result = tokio::select! {
                () = shutdown.cancelled() => break,
                result = tokio::time::timeout(CALL_TIMEOUT, turn) => result,
            };
            match result {
                Ok(Ok(())) => {
                    if backoff.failures() > 0 {
                        tracing::info!("the monitor's own news are stored again");
                    }
                    backoff.reset();
                }
                Ok(Err(error)) if error.kind() == ErrorKind::StaleEpoch => {
                    self.fenced.cancel();
                    return;
                }
                Ok(Err(error)) => self.failed(&error, &mut backoff).await,
                Err(_elapsed) => self.store = None,
            }
        }
        let last = tokio::time::timeout(Duration::from_secs(3), self.last_words()).await;
        if !matches!(last, Ok(Ok(()))) {
            tracing::debug!("the last heartbeat was not written");
        }
    }

    async fn turn(
        &mut self,
        next_heartbeat: &mut Instant,
        next_settle: &mut Instant,
        loaded_workers: &mut bool,
    ) -> Result<(), StoreError> {
        if let Some(to) = self.restart_at {
            // Before the first heartbeat of this process, which would hide the last one of the process before.
            let previous = self.store().await?.previous().await?;
            self.restart_at = None;
            if let Some(from) = previous.complete_until.filter(|from| *from < to) {
                let cause = GapCause::MonitorRestart;
                self.shared.gap(&Gap {
                    from,
                    to: Some(to),
                    cause,
                    estimated_events: None,
                });
            }
        }
        // First: a process that stood still learns here that it is not the writer any more.
        self.renew().await?;
        // Before the heartbeat, which may say that all is complete until now.
        self.save_gaps().await?;
        if *next_heartbeat <= Instant::now() {
            let heartbeat = self.heartbeat();
            self.store().await?.heartbeat(&heartbeat).await?;
            self.told_complete = heartbeat.complete_until.or(self.told_complete);
            // Only now: one that failed stays due, so that the next turn asks the store again.
            *next_heartbeat = Instant::now() + HEARTBEAT;
        }
        if !*loaded_workers {
            let rows = self.store().await?.load_workers().await?;
            self.shared.workers().merge_loaded(rows, self.shared.now());
            *loaded_workers = true;
        }
        self.save().await?;
        self.renew().await?;
        if let Some(store) = self.store.as_mut() {
            let grace = self.settings.borrow().orphan_grace();
            self.orphans.turn(store, &self.shared, grace).await?;
            self.desk.serve(store).await?;
        }
        if *next_settle <= Instant::now() {
            self.forget_workers().await?;
            let more = self.settle().await?;
            // What is left goes on in the next turn, behind the heartbeat.
            *next_settle = Instant::now() + if more { Duration::ZERO } else { SETTLE };
        }
        Ok(())
    }

    /// Says that this monitor is there, and how far behind. Connects in any case.
    async fn renew(&mut self) -> Result<(), StoreError> {
        if self.renewed.is_some_and(|at| at.elapsed() < RENEW) {
            return self.store().await.map(drop);
        }
        // Else a standby would take what came after a gap for a sign that nothing is missing before it.
        self.save_gaps().await?;
        self.store().await?;
        // After the answer to the last renewal and before this one, without waiting between: the standby counts on it.
        let waiting = self
            .buffer
            .as_ref()
            .is_some_and(|buffer| buffer.fill().waiting_bytes > 0);
        let behind = self.shared.behind(waiting);
        let keeps_digests = self
            .digests
            .are_kept(self.settings.borrow().has_standby(), Instant::now());
        let renewal = Renewal { behind, keeps_digests };
        self.store().await?.renew(renewal).await?;
        self.renewed = Some(Instant::now());
        Ok(())
    }

    async fn save_gaps(&mut self) -> Result<(), StoreError> {
        self.take_gaps(false);
        while let Some(gap) = self.shared.next_gap() {
            self.store().await?.save_gap(&gap).await?;
            self.shared.gap_stored(&gap);
        }
        Ok(())
    }

    /// Takes the gaps of what was read and not kept; `end`: those that are open as well.
    fn take_gaps(&self, end: bool) {
        let now = self.shared.now();
        let gaps = self.buffer.iter().flat_map(|buffer| buffer.take_gaps(now, end));
        gaps.for_each(|gap| self.shared.gap(&gap));
    }

    /// Writes what has changed: gaps, workers, queues.
    async fn save(&mut self) -> Result<(), StoreError> {
        self.save_gaps().await?;
        let routine = self.workers_saved.is_none_or(|at| at.elapsed() >= WORKERS_EVERY);
        let workers = if routine || self.shared.workers().is_urgent() {
            self.workers_saved = Some(Instant::now());
            self.shared.workers().take_dirty()
        } else {
            Vec::new()
        };
        if !workers.is_empty()
            && let Err(error) = self.store().await?.save_workers(&workers).await
        {
            if error.kind().is_transient() {
                self.shared.workers().restore_dirty(&workers);
            }
            return Err(error);
        }
        if self.samples.has_changed().unwrap_or(false) {
            let samples = self.samples.borrow_and_update().clone();
            if let Some(samples) = samples {
                let now = self.shared.now();
                self.store().await?.save_queues(now, &samples).await?;
            }
        }
        Ok(())
    }

    /// Workers that left long ago leave memory and store. Where the store fails meanwhile, the next start finds them there,
    /// and they leave then.
    async fn forget_workers(&mut self) -> Result<(), StoreError> {
        if !self.shared.is_caught_up() {
            return Ok(());
        }
        let gone = self.shared.workers().forget(self.shared.now());
        if gone.is_empty() {
            return Ok(());
        }
        tracing::info!(workers = gone.len(), "forgot workers that left a day ago");
        self.store().await?.forget_workers(&gone).await
    }

    /// Moves final tasks to history; answers whether there are more.
    async fn settle(&mut self) -> Result<bool, StoreError> {
        let until = Instant::now() + SETTLE_AT_ONCE;
        while Instant::now() < until {
            self.renew().await?;
            let now = self.shared.now();
            let shared = Arc::clone(&self.shared);
            // Before history has them, for the outcome of a COMMIT may never be known.
            let leave = |ids: &[&str]| shared.archived().add(ids.iter().copied());
            let settled = self.store().await?.settle(now, LINGER_SECONDS, leave).await?;
            tracing::debug!(
                moved = settled.moved,
                merged = settled.merged,
                "final tasks moved to history"
            );
            if !settled.more {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn store(&mut self) -> Result<&mut StoreReporter, StoreError> {
        let changed = self.settings.has_changed().unwrap_or(false);
        let store = match self.store.take() {
            Some(store) if !changed => store,
            Some(mut store) => {
                let settings = self.settings.borrow_and_update();
                store.reconfigure(&settings.store, settings.retention);
                store
            }
            None => {
                let settings = Arc::clone(&self.settings.borrow_and_update());
                StoreReporter::connect(&settings.store, settings.retention).await?
            }
        };
        let store = self.store.insert(store);
        if let Some(epoch) = self.shared.epoch() {
            store.speak_for(epoch);
        }
        Ok(store)
    }

    async fn failed(&mut self, error: &StoreError, backoff: &mut Backoff) {
        self.shared.metrics.store_failed(error.kind());
        if backoff.failures() == 0 {
            let text = crate::error_chain(error);
            tracing::warn!(reason = error.kind().as_str(), error = %text, "the monitor's own news were not stored");
        }
        let pause = backoff.pause();
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
            Ok(()) = self.settings.changed() => self.settings.mark_changed(),
        }
    }

    async fn last_words(&mut self) -> Result<(), StoreError> {
        self.take_gaps(true);
        let mut heartbeat = self.heartbeat();
        ConnectionState::Disconnected
            .as_str()
            .clone_into(&mut heartbeat.connection);
        heartbeat.reason = Some(kanchi_contract::MONITOR_STOPPED.to_owned());
        heartbeat.message = Some("the monitor was stopped".to_owned());
        // Since when nobody listens is not known to the moment; what arrived before is.
        let spooled = heartbeat.spool_bytes.is_some_and(|bytes| bytes > 0);
        heartbeat.complete_until = self
            .shared
            .complete_at_end(spooled)
            .filter(|end| Some(*end) > self.told_complete);
        self.save().await?;
        self.store().await?.heartbeat(&heartbeat).await?;
        if self.shared.epoch().is_some() {
            let instance = self.instance.clone();
            self.store().await?.release(&instance).await?;
        }
        Ok(())
    }

    fn heartbeat(&self) -> Heartbeat {
        let status = self.shared.status();
        let fill = self.buffer.as_ref().map(|buffer| buffer.fill());
        let waiting = fill.map(|fill| fill.waiting_bytes);
        let counts = self.shared.workers().counts();
        let connection = status.connection.as_ref();
        let connected = self.shared.is_connected();
        let message = connection
            .map(|report| report.message.clone())
            .filter(|message| !message.is_empty());
        Heartbeat {
            instance: self.instance.clone(),
            version: self.version.clone(),
            connection: connection
                .map_or(ConnectionState::Connecting, |report| report.state)
                .as_str()
                .to_owned(),
            reason: connection
                .and_then(|report| report.reason)
                .map(|reason| reason.as_str().to_owned()),
            message,
            broker_version: connection.and_then(|report| report.broker_version.clone()),
            last_event_at: status.last_event_at,
            lag_seconds: status.lag_seconds,
            events_per_second: Some(self.shared.events_per_second()),
            workers_online: connected.then_some(counts.online),
            messages_queued: status.messages_queued,
            spool_bytes: waiting,
            event_queue: connection.and_then(|report| report.event_queue.clone()),
            config_error: status.config_error.clone(),
            store_error: self.shared.store_failure().map(|kind| kind.as_str().to_owned()),
            complete_until: self
                .shared
                .complete_until(waiting.is_some_and(|bytes| bytes > 0))
                // What was read and not kept is told first.
                .filter(|_| !fill.is_some_and(|fill| fill.hides_gap)),
        }
    }
}

/// Asks, for a short time, what the process before this one left: a restart's gap begins where it was last connected.
pub async fn previous(settings: &SettingsWatch, patience: Duration) -> (Option<StoreReporter>, Previous) {
    let settings = Arc::clone(&settings.borrow());
    let ask = async {
        let mut store = StoreReporter::connect(&settings.store, settings.retention).await?;
        let previous = store.previous().await?;
        Ok::<_, StoreError>((store, previous))
    };
    match tokio::time::timeout(patience, ask).await {
        Ok(Ok((store, previous))) => (Some(store), previous),
        Ok(Err(error)) => {
            let text = crate::error_chain(&error);
            tracing::warn!(reason = error.kind().as_str(), error = %text, "the store was not asked what was before");
            (None, Previous::default())
        }
        Err(_elapsed) => (None, Previous::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_told_of_after_what_was_on_its_way_and_then_for_good() {
        let now = Instant::now();
        let mut digests = KeptDigests::new(false);
        assert!(!digests.are_kept(false, now));
        assert!(!digests.are_kept(true, now));
        assert!(digests.are_kept(true, now + DIGESTS_AFTER));
        assert!(digests.are_kept(false, now + DIGESTS_AFTER * 2));
        assert!(KeptDigests::new(true).are_kept(false, now), "it stood by before");
    }
}
