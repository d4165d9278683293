//! What the tasks of one monitor know together: metrics, connection, workers, queues, gaps.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kanchi_broker::{ConnectionReport, ConnectionState, Gap};
use kanchi_domain::UnixMicros;
use kanchi_store::{Epoch, ErrorKind, GapRow};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::commit::archived::ArchivedIds;
use crate::metrics::Metrics;
use crate::workers::WorkerTable;

/// Gaps that wait for the store; a flapping connection must not fill the memory.
const MAX_WAITING_GAPS: usize = 1_000;

/// Queue names learned from `task-sent`.
const MAX_QUEUES: usize = 1_000;

/// A store that refuses batches for so long is told of.
const STORE_PATIENCE: Duration = Duration::from_secs(10);

/// The stream counts as caught up when for so long nothing old came and it was drained at least once.
pub const SETTLED_MS: u64 = 5_000;

/// Rates are over so long.
const RATE_WINDOW: Duration = Duration::from_secs(30);

/// Returns the time; passed in so that tests can turn it.
pub type Clock = fn() -> i64;

/// Shared state of one monitor.
#[derive(Debug)]
pub struct Shared {
    /// The metrics; they outlive a monitor that begins anew as standby.
    pub metrics: Arc<Metrics>,
    clock: Clock,
    status: Mutex<Status>,
    workers: Mutex<WorkerTable>,
    queues_seen: Mutex<BTreeSet<String>>,
    gaps: Mutex<VecDeque<GapRow>>,
    archived: Mutex<ArchivedIds>,
    /// Gaps that are stored.
    gaps_stored: AtomicU64,
    /// The stream had nothing more to give at this moment (milliseconds since the start).
    drained_ms: AtomicU64,
    /// Something came late, or could have, at this moment (milliseconds since the start).
    unsettled_ms: AtomicU64,
    connected: AtomicBool,
    /// Arrival of the newest message read, and of the newest that is stored.
    newest_arrived: AtomicI64,
    newest_stored: AtomicI64,
    /// All that was published until then has been read; 0: not known. `i64::MAX`: no stream has told of it yet.
    received_until: AtomicI64,
    /// Messages of our own that are stored.
    own_stored: AtomicU64,
    /// The epoch of this process; 0: none yet.
    epoch: AtomicI64,
    store_failure: Mutex<Option<(Instant, ErrorKind)>>,
    started: Instant,
    /// The heartbeat is due at once.
    pub heartbeat_due: Notify,
    /// The stream connected: ask who is there.
    pub connected_again: Notify,
}

/// What the heartbeat says.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// The broker connection as last reported.
    pub connection: Option<ConnectionReport>,
    /// Why the mounted configuration is not in force.
    pub config_error: Option<String>,
    /// Celery timestamp of the newest event stored.
    pub last_event_at: Option<UnixMicros>,
    /// Seconds from arrival to commit of the newest batch.
    pub lag_seconds: Option<f64>,
    /// Messages waiting in all sampled queues.
    pub messages_queued: Option<u64>,
    /// Committed events and when, newest last.
    rates: VecDeque<(Instant, u64)>,
}

impl Shared {
    /// Makes the state of a monitor that has not connected yet.
    pub fn new(metrics: impl Into<Arc<Metrics>>, clock: Clock) -> Self {
        Self {
            metrics: metrics.into(),
            clock,
            status: Mutex::default(),
            workers: Mutex::default(),
            queues_seen: Mutex::default(),
            gaps: Mutex::default(),
            archived: Mutex::default(),
            gaps_stored: AtomicU64::new(0),
            drained_ms: AtomicU64::new(0),
            unsettled_ms: AtomicU64::new(0),
            connected: AtomicBool::new(false),
            started: Instant::now(),
            newest_arrived: AtomicI64::new(0),
            newest_stored: AtomicI64::new(0),
            received_until: AtomicI64::new(i64::MAX),
            own_stored: AtomicU64::new(0),
            epoch: AtomicI64::new(0),
            store_failure: Mutex::default(),
            heartbeat_due: Notify::new(),
            connected_again: Notify::new(),
        }
    }

    /// Returns the time.
    pub fn now(&self) -> UnixMicros {
        UnixMicros((self.clock)())
    }

    /// This process writes, in this epoch.
    pub fn begin_epoch(&self, epoch: Epoch) {
        self.epoch.store(epoch.0, Ordering::Relaxed);
    }

    /// Returns the epoch in which this process writes, once it does.
    pub fn epoch(&self) -> Option<Epoch> {
        Some(Epoch(self.epoch.load(Ordering::Relaxed))).filter(|epoch| epoch.0 > 0)
    }

    /// Returns the worker table.
    pub fn workers(&self) -> MutexGuard<'_, WorkerTable> {
        lock(&self.workers)
    }

    /// Returns which tasks may have a row in recent history.
    pub fn archived(&self) -> MutexGuard<'_, ArchivedIds> {
        lock(&self.archived)
    }

    /// Returns a copy of the status.
    pub fn status(&self) -> Status {
        lock(&self.status).clone()
    }

    /// The connection changed.
    pub fn connection(&self, report: ConnectionReport) {
        let connected = report.state == ConnectionState::Connected;
        self.metrics.set_connection(report.state);
        if let Some(reason) = report.reason {
            self.metrics.connection_failed(reason);
        }
        if connected {
            tracing::info!(
                broker.version = report.broker_version.as_deref(),
                "connected to the broker"
            );
        } else if let Some(reason) = report.reason {
            tracing::warn!(reason = reason.as_str(), message = %report.message, "not connected to the broker");
        }
        self.drained_ms.store(0, Ordering::Relaxed);
        self.unsettled();
        self.connected.store(connected, Ordering::Relaxed);
        lock(&self.status).connection = Some(report);
        if connected {
            // Silence while we were not listening says nothing about any worker.
            self.workers().restart_timers(self.now());
            self.connected_again.notify_one();
        }
        self.heartbeat_due.notify_one();
    }

    /// Tells whether the broker is connected.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// The stream had nothing more to give just now.
    pub fn stream_drained(&self) {
        let now = self.elapsed_ms().max(1);
        let before = self.drained_ms.swap(now, Ordering::Relaxed);
        if now.saturating_sub(before) >= SETTLED_MS {
            // What piled up meanwhile may still be on its way.
            self.unsettled();
        }
    }

    /// What is read now was sent some time ago. A reader that is faster than the broker finds nothing waiting for a moment
    /// in the middle of a backlog, so that alone does not mean being caught up.
    pub fn unsettled(&self) {
        self.unsettled_ms.store(self.elapsed_ms(), Ordering::Relaxed);
    }

    /// Tells whether what was published a few seconds ago has been read by now, and nothing older for as long.
    pub fn is_caught_up(&self) -> bool {
        let now = self.elapsed_ms();
        let drained = self.drained_ms.load(Ordering::Relaxed);
        let recently = drained > 0 && now.saturating_sub(drained) < SETTLED_MS;
        let settled = now.saturating_sub(self.unsettled_ms.load(Ordering::Relaxed)) >= SETTLED_MS;
        self.is_connected() && recently && settled
    }

    /// So many messages of our own are stored.
    pub fn own_stored(&self, count: u64) {
        self.own_stored.fetch_add(count, Ordering::Relaxed);
    }

    /// Returns how many messages of our own have been stored since the start.
    pub fn own_messages_stored(&self) -> u64 {
        self.own_stored.load(Ordering::Relaxed)
    }

    /// Tells whether all that was read before a moment is stored.
    pub fn is_stored_through(&self, moment: UnixMicros) -> bool {
        let stored = self.newest_stored.load(Ordering::Relaxed);
        stored >= moment.0 || stored >= self.newest_arrived.load(Ordering::Relaxed)
    }

    /// A message was read from the connection.
    pub fn arrived(&self, at: UnixMicros) {
        self.newest_arrived.fetch_max(at.0, Ordering::Relaxed);
    }

    /// Everything up to a message that arrived then is stored.
    pub fn stored_through(&self, at: UnixMicros) {
        self.newest_stored.fetch_max(at.0, Ordering::Relaxed);
    }

    /// What was published until then has been read.
    pub fn received_all_until(&self, at: UnixMicros) {
        self.received_until.store(at.0, Ordering::Relaxed);
    }

    /// Until when all that was published is stored, as far as this process knows: while nothing waits here until all was
    /// read, else until the arrival of the newest message stored. `spooled`: messages wait that an earlier process may
    /// have read.
    pub fn complete_until(&self, spooled: bool) -> Option<UnixMicros> {
        if !self.is_connected() {
            return None;
        }
        // Asked first: what arrives from here on is later than that.
        let now = self.now();
        let (stored, waiting) = self.newest_stored(spooled);
        self.read_until(if waiting { stored? } else { now })
    }

    /// How far the store is behind what was read; `None`: not known.
    pub fn behind(&self, spooled: bool) -> Option<Duration> {
        let now = self.now();
        let until = self.complete_until(spooled)?;
        Some(Duration::from_micros(u64::try_from(now.0 - until.0).unwrap_or(0)))
    }

    /// The same for a process that has stopped reading: the newest arrival, if all that arrived is stored.
    pub fn complete_at_end(&self, spooled: bool) -> Option<UnixMicros> {
        let (stored, waiting) = self.newest_stored(spooled);
        self.read_until(stored.filter(|_| !waiting)?)
    }

    fn read_until(&self, at: UnixMicros) -> Option<UnixMicros> {
        let received = self.received_until.load(Ordering::Relaxed);
        Some(at.min(UnixMicros(received))).filter(|until| until.0 > 0)
    }

    /// Arrival of the newest message stored, and whether others wait.
    fn newest_stored(&self, spooled: bool) -> (Option<UnixMicros>, bool) {
        let stored = self.newest_stored.load(Ordering::Relaxed);
        let waiting = spooled || stored < self.newest_arrived.load(Ordering::Relaxed);
        (Some(UnixMicros(stored)).filter(|at| at.0 > 0), waiting)
    }

    /// A call to the store succeeded.
    pub fn store_works(&self) {
        self.metrics.store_up.set(1);
        *lock(&self.store_failure) = None;
    }

    /// A batch could not be stored and waits.
    pub fn store_failing(&self, kind: ErrorKind) {
        let mut failure = lock(&self.store_failure);
        *failure = Some((failure.map_or_else(Instant::now, |(since, _)| since), kind));
    }

    /// What has kept batches from being stored for a while; a single failed try is nobody's business.
    pub fn store_failure(&self) -> Option<ErrorKind> {
        let failure = *lock(&self.store_failure);
        failure
            .filter(|(since, _)| since.elapsed() >= STORE_PATIENCE)
            .map(|(_, kind)| kind)
    }

    /// A gap was found: it is counted, told, and waits to be stored.
    pub fn gap(&self, gap: &Gap) {
        self.metrics.gap(gap.cause);
        tracing::warn!(
            reason = gap.cause.as_str(),
            gap.from = gap.from.0,
            gap.to = gap.to.map(|to| to.0),
            gap.estimated_events = gap.estimated_events,
            "events may be missing"
        );
        self.workers().restart_timers(self.now());
        let mut gaps = lock(&self.gaps);
        if gaps.len() >= MAX_WAITING_GAPS {
            // Widen the newest instead of losing one: what is inside is a gap anyway.
            if let Some(newest) = gaps.back_mut() {
                newest.to = newest.to.zip(gap.to).map(|(a, b)| a.max(b));
            }
            return;
        }
        gaps.push_back(GapRow {
            id: Uuid::new_v4(),
            from: gap.from,
            to: gap.to,
            cause: gap.cause.as_str().to_owned(),
            estimated_events: gap.estimated_events,
        });
    }

    /// Returns all gaps that wait to be stored, oldest first.
    pub fn waiting_gaps(&self) -> Vec<GapRow> {
        lock(&self.gaps).iter().cloned().collect()
    }

    /// Returns the oldest gap that waits to be stored.
    pub fn next_gap(&self) -> Option<GapRow> {
        lock(&self.gaps).front().cloned()
    }

    /// This gap is stored. One that was widened meanwhile still waits. Told twice, it counts once.
    pub fn gap_stored(&self, stored: &GapRow) {
        let mut gaps = lock(&self.gaps);
        let before = gaps.len();
        gaps.retain(|gap| gap != stored);
        self.gaps_stored
            .fetch_add((before - gaps.len()) as u64, Ordering::Relaxed);
    }

    /// Returns how many gaps have been stored since the start.
    pub fn gaps_stored(&self) -> u64 {
        self.gaps_stored.load(Ordering::Relaxed)
    }

    /// A client published to this queue.
    pub fn queue_seen(&self, queue: &str) {
        let mut queues = lock(&self.queues_seen);
        if queues.len() < MAX_QUEUES && !queues.contains(queue) {
            queues.insert(queue.to_owned());
        }
    }

    /// Returns the queues that clients published to.
    pub fn queues_seen(&self) -> BTreeSet<String> {
        lock(&self.queues_seen).clone()
    }

    /// Depth of all sampled queues together.
    pub fn messages_queued(&self, total: Option<u64>) {
        lock(&self.status).messages_queued = total;
    }

    /// A changed configuration was refused, or is in force again.
    pub fn config_refused(&self, error: Option<String>) {
        if error.is_some() {
            self.metrics.config_reloaded(false);
        } else {
            self.metrics.config_current.set(1);
        }
        lock(&self.status).config_error = error;
        self.heartbeat_due.notify_one();
    }

    /// A batch is durable.
    pub fn committed(&self, events: u64, newest: Option<UnixMicros>, oldest_arrived: Option<UnixMicros>) {
        let now = self.now();
        let mut status = lock(&self.status);
        status.last_event_at = status.last_event_at.max(newest);
        if let Some(last) = status.last_event_at {
            self.metrics.last_event.set(last.as_seconds());
        }
        if let Some(arrived) = oldest_arrived {
            let lag = (now.0.saturating_sub(arrived.0)).max(0) as f64 / 1e6;
            self.metrics.lag.set(lag);
            status.lag_seconds = Some(lag);
        }
        let at = Instant::now();
        status.rates.push_back((at, events));
        while status
            .rates
            .front()
            .is_some_and(|(then, _)| at.duration_since(*then) > RATE_WINDOW)
        {
            status.rates.pop_front();
        }
    }

    /// Returns the events stored a second.
    pub fn events_per_second(&self) -> f64 {
        let now = Instant::now();
        let status = lock(&self.status);
        let events: u64 = status
            .rates
            .iter()
            .filter(|(then, _)| now.duration_since(*then) <= RATE_WINDOW)
            .map(|(_, events)| events)
            .sum();
        let window = now.duration_since(self.started).min(RATE_WINDOW).as_secs_f64().max(1.0);
        events as f64 / window
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
