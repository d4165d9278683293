//! The workers of one broker: who is there, and when one counts as lost. Pure: time and answers are passed in.
//!
//! A worker that says goodbye is offline. One that falls silent for max(`offlineAfter`, 2 × its own interval) is suspect:
//! it is asked (`ping`), and lost if it does not answer; under `readOnly` nobody is asked and the wait is twice as long.
//! A busy solo-pool worker cannot answer and is unknown, and so is a worker that never sent a heartbeat. Silence counts
//! only while the stream is connected and caught up ([`WorkerTable::restart_timers`]).

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use kanchi_domain::{Event, EventKind, UnixMicros, WorkerFields};
use kanchi_store::WorkerRow;

/// Hostile or careless publishers must not fill the memory with names.
const MAX_WORKERS: usize = 10_000;

/// Queues that one worker may name.
const MAX_QUEUES_OF_A_WORKER: usize = 200;

/// A clock that is off by less is left alone; Celery itself warns beyond it.
const SKEW_TOLERANCE: i64 = 16_000_000;

/// A row is written at once when its state changes, and else at most so often.
const SAVE_EVERY: i64 = 5_000_000;

/// Where a worker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerState {
    /// Heard of within its time.
    Online,
    /// Said goodbye.
    Offline,
    /// Silent, and did not answer.
    Lost,
    /// Cannot be told: it sends no heartbeats, or is silent and may be busy.
    Unknown,
}

impl WorkerState {
    /// Returns the name used in the store and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Lost => "lost",
            Self::Unknown => "unknown",
        }
    }

    fn from_name(name: &str) -> Self {
        match name {
            "online" => Self::Online,
            "offline" => Self::Offline,
            "lost" => Self::Lost,
            _ => Self::Unknown,
        }
    }
}

/// How long silence is borne.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// `workers.offlineAfter`.
    pub offline_after: Duration,
    /// Nobody may be asked: wait twice as long instead.
    pub read_only: bool,
}

/// Workers by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerCounts {
    /// Online.
    pub online: u64,
    /// Offline.
    pub offline: u64,
    /// Lost.
    pub lost: u64,
    /// Unknown.
    pub unknown: u64,
}

/// The workers.
#[derive(Debug, Default)]
pub struct WorkerTable {
    workers: HashMap<Box<str>, Worker>,
    newly_online: BTreeSet<String>,
}

/// What matters of a worker's pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pool {
    /// Runs tasks in the process that should answer: busy means silent.
    Solo,
    /// Any other, or not known.
    Other,
}

#[derive(Debug)]
struct Worker {
    row: WorkerRow,
    state: WorkerState,
    /// Time of the last sign of life, by our clock.
    heard: i64,
    /// What is added to this worker's timestamps: its clock is off.
    skew: i64,
    sends_heartbeats: bool,
    pool: Pool,
    queues: BTreeSet<String>,
    saved: i64,
    dirty: bool,
    /// Suspected and asked; not asked again before this is cleared.
    asked: bool,
}

impl WorkerTable {
    /// Returns a table of what an earlier process had stored; the timers start now.
    pub fn load(rows: Vec<WorkerRow>, now: UnixMicros) -> Self {
        let mut table = Self::default();
        for row in rows.into_iter().take(MAX_WORKERS) {
            let state = WorkerState::from_name(&row.state);
            let mut worker = Worker::new(row, state, now.0);
            worker.sends_heartbeats = worker.row.last_heartbeat_at.is_some();
            table.workers.insert(worker.row.hostname.as_str().into(), worker);
        }
        table
    }

    /// Adds what an earlier process had stored, without touching workers heard of since.
    pub fn merge_loaded(&mut self, rows: Vec<WorkerRow>, now: UnixMicros) {
        for (hostname, worker) in Self::load(rows, now).workers {
            self.workers.entry(hostname).or_insert(worker);
        }
    }

    /// Takes note of an event. `live`: the stream is caught up, so that arrival minus timestamp is the clock's error.
    pub fn observe(&mut self, event: &Event, live: bool) {
        let Some(worker) = self.worker_of(event) else { return };
        if live {
            worker.correct_skew(event);
        }
        // A clock that is ahead must not make a worker look alive beyond the moment we heard of it.
        let heard = event.timestamp.0.saturating_add(worker.skew).min(event.arrived.0);
        let newer = event.timestamp >= worker.row.last_event_at;
        let was = worker.state;
        worker.heard = worker.heard.max(heard);
        if newer {
            worker.row.last_event_at = event.timestamp;
        }
        if matches!(event.kind, EventKind::WorkerOnline | EventKind::WorkerHeartbeat) {
            worker.beat(event, newer);
        } else if event.kind == EventKind::WorkerOffline && newer {
            worker.take_fields(event);
            worker.state = WorkerState::Offline;
        } else if newer && was == WorkerState::Lost {
            // A task event from a worker that was given up: it lives.
            worker.state = if worker.sends_heartbeats {
                WorkerState::Online
            } else {
                WorkerState::Unknown
            };
        }
        if newer && worker.state != WorkerState::Offline {
            worker.asked = false;
        }
        let came_up = event.kind == EventKind::WorkerOnline
            || (worker.state == WorkerState::Online && was != WorkerState::Online);
        worker.dirty |= worker.state != was
            || event.kind == EventKind::WorkerOnline
            || worker.row.last_event_at.0.saturating_sub(worker.saved) >= SAVE_EVERY;
        if came_up && worker.state == WorkerState::Online {
            let hostname = worker.row.hostname.clone();
            self.newly_online.insert(hostname);
        }
    }

    /// The connection came back, or a gap was closed: silence so far says nothing.
    pub fn restart_timers(&mut self, now: UnixMicros) {
        for worker in self.workers.values_mut() {
            worker.heard = worker.heard.max(now.0);
            worker.asked = false;
        }
    }

    /// Judges silence; returns the workers that should be asked. Call only while connected and caught up.
    pub fn check(&mut self, now: UnixMicros, patience: Patience) -> Vec<String> {
        let mut suspects = Vec::new();
        for worker in self.workers.values_mut() {
            if worker.state != WorkerState::Online || !worker.sends_heartbeats {
                continue;
            }
            let silence = now.0.saturating_sub(worker.heard);
            let limit = worker.limit(patience);
            if silence <= limit {
                continue;
            }
            if !patience.read_only {
                if !worker.asked {
                    worker.asked = true;
                    suspects.push(worker.row.hostname.clone());
                }
            } else if silence > limit.saturating_mul(2) {
                worker.give_up();
            }
        }
        suspects.sort();
        suspects
    }

    /// A worker answered when it was asked.
    pub fn answered(&mut self, hostname: &str, now: UnixMicros) {
        if let Some(worker) = self.workers.get_mut(hostname) {
            worker.heard = worker.heard.max(now.0);
            worker.asked = false;
            if matches!(worker.state, WorkerState::Lost | WorkerState::Unknown) && worker.sends_heartbeats {
                worker.state = WorkerState::Online;
                worker.dirty = true;
            }
        }
    }

    /// A worker did not answer when it was asked; nothing was heard of it since.
    pub fn unanswered(&mut self, hostname: &str) {
        if let Some(worker) = self.workers.get_mut(hostname)
            && worker.state == WorkerState::Online
            && worker.asked
        {
            worker.give_up();
        }
    }

    /// What `stats` told: a solo-pool worker is its own pool process.
    pub fn set_solo(&mut self, hostname: &str, solo: bool) {
        if let Some(worker) = self.workers.get_mut(hostname) {
            worker.pool = if solo { Pool::Solo } else { Pool::Other };
        }
    }

    /// What `active_queues` told.
    pub fn set_queues(&mut self, hostname: &str, queues: BTreeSet<String>) {
        if let Some(worker) = self.workers.get_mut(hostname) {
            worker.queues = queues.into_iter().take(MAX_QUEUES_OF_A_WORKER).collect();
        }
    }

    /// Returns the queues that workers which are not offline or lost consume.
    pub fn queues(&self) -> BTreeSet<String> {
        self.workers
            .values()
            .filter(|worker| matches!(worker.state, WorkerState::Online | WorkerState::Unknown))
            .flat_map(|worker| worker.queues.iter().cloned())
            .collect()
    }

    /// Returns the workers that came online since the last call.
    pub fn take_newly_online(&mut self) -> Vec<String> {
        std::mem::take(&mut self.newly_online).into_iter().collect()
    }

    /// Tells whether the state of a worker has changed since the rows were written.
    pub fn is_urgent(&self) -> bool {
        self.workers
            .values()
            .any(|worker| worker.dirty && worker.state.as_str() != worker.row.state)
    }

    /// Returns the rows to be written, and counts them as written.
    pub fn take_dirty(&mut self) -> Vec<WorkerRow> {
        let mut rows = Vec::new();
        for worker in self.workers.values_mut().filter(|worker| worker.dirty) {
            worker.dirty = false;
            worker.saved = worker.row.last_event_at.0;
            worker.state.as_str().clone_into(&mut worker.row.state);
            rows.push(worker.row.clone());
        }
        rows
    }

    /// The rows could not be written after all.
    pub fn restore_dirty(&mut self, rows: &[WorkerRow]) {
        for row in rows {
            if let Some(worker) = self.workers.get_mut(row.hostname.as_str()) {
                worker.dirty = true;
            }
        }
    }

    /// Returns how many workers are in which state.
    pub fn counts(&self) -> WorkerCounts {
        let mut counts = WorkerCounts::default();
        for worker in self.workers.values() {
            let count = match worker.state {
                WorkerState::Online => &mut counts.online,
                WorkerState::Offline => &mut counts.offline,
                WorkerState::Lost => &mut counts.lost,
                WorkerState::Unknown => &mut counts.unknown,
            };
            *count += 1;
        }
        counts
    }

    /// Returns where a worker stands.
    pub fn state_of(&self, hostname: &str) -> Option<WorkerState> {
        self.workers.get(hostname).map(|worker| worker.state)
    }

    /// Finds or makes the worker that sent an event; clients send `task-sent` and are no workers.
    fn worker_of(&mut self, event: &Event) -> Option<&mut Worker> {
        let hostname: &str = &event.hostname;
        if hostname.is_empty() || matches!(event.kind, EventKind::TaskSent | EventKind::Custom) {
            return None;
        }
        let known = self.workers.contains_key(hostname);
        // Code inside a task calls itself `gen<pid>@host` and may send any event.
        if !known && (hostname.starts_with("gen") || event.kind == EventKind::WorkerOther) {
            return None;
        }
        if !known {
            if self.workers.len() >= MAX_WORKERS {
                self.forget_oldest();
            }
            let row = WorkerRow {
                hostname: hostname.to_owned(),
                pid: event.pid,
                state: String::new(),
                freq: None,
                active: None,
                processed: None,
                loadavg: None,
                sw_ident: None,
                sw_ver: None,
                sw_sys: None,
                started_at: None,
                last_event_at: event.timestamp,
                last_heartbeat_at: None,
            };
            let mut worker = Worker::new(row, WorkerState::Unknown, event.timestamp.0.min(event.arrived.0));
            worker.dirty = true;
            self.workers.insert(hostname.into(), worker);
        }
        self.workers.get_mut(hostname)
    }

    fn forget_oldest(&mut self) {
        let oldest = self
            .workers
            .iter()
            .min_by_key(|(_, worker)| (worker.state == WorkerState::Online, worker.heard))
            .map(|(hostname, _)| hostname.clone());
        if let Some(hostname) = oldest {
            self.workers.remove(&hostname);
        }
    }
}

impl Worker {
    fn new(row: WorkerRow, state: WorkerState, heard: i64) -> Self {
        Self {
            saved: row.last_event_at.0,
            row,
            state,
            heard,
            skew: 0,
            sends_heartbeats: false,
            pool: Pool::Other,
            queues: BTreeSet::new(),
            dirty: false,
            asked: false,
        }
    }

    fn beat(&mut self, event: &Event, newer: bool) {
        self.sends_heartbeats = true;
        self.row.last_heartbeat_at = self.row.last_heartbeat_at.max(Some(event.timestamp));
        if event.kind == EventKind::WorkerOnline && (newer || self.row.started_at.is_none()) {
            // It repeats after every reconnect: the same process has not started again.
            if self.row.pid != event.pid || self.row.started_at.is_none() {
                self.row.started_at = Some(event.timestamp);
            }
        }
        if newer {
            self.take_fields(event);
            self.state = WorkerState::Online;
        }
    }

    fn take_fields(&mut self, event: &Event) {
        if event.pid.is_some() {
            if self.row.pid.is_some() && self.row.pid != event.pid && event.kind != EventKind::WorkerOnline {
                self.row.started_at = Some(event.timestamp);
            }
            self.row.pid = event.pid;
        }
        if self.row.started_at.is_none() {
            self.row.started_at = Some(event.timestamp);
        }
        let Some(fields) = event.worker.as_deref() else { return };
        self.row.sw_ident = owned(fields.sw_ident.as_deref()).or_else(|| self.row.sw_ident.take());
        self.row.sw_ver = owned(fields.sw_ver.as_deref()).or_else(|| self.row.sw_ver.take());
        self.row.sw_sys = owned(fields.sw_sys.as_deref()).or_else(|| self.row.sw_sys.take());
        if fields.is_regular() {
            self.take_regular(fields);
        }
    }

    /// The answer to the `heartbeat` command says `freq` 5 whatever the truth, and nothing of the load.
    fn take_regular(&mut self, fields: &WorkerFields) {
        self.row.freq = fields
            .freq
            .filter(|freq| freq.is_finite() && *freq > 0.0)
            .or(self.row.freq);
        self.row.active = fields.active.or(self.row.active);
        self.row.processed = fields.processed.or(self.row.processed);
        self.row.loadavg = fields.loadavg.or(self.row.loadavg);
    }

    fn correct_skew(&mut self, event: &Event) {
        if !event.has_timestamp() {
            return;
        }
        let off = event.arrived.0.saturating_sub(event.timestamp.0);
        self.skew = if off.abs() > SKEW_TOLERANCE { off } else { 0 };
    }

    fn limit(&self, patience: Patience) -> i64 {
        // An interval of a day would hide a dead worker for two; Celery's own default is two seconds.
        let own = self.row.freq.map_or(0.0, |freq| (2.0 * freq).min(3600.0));
        let seconds = patience.offline_after.as_secs_f64().max(own);
        (seconds * 1e6) as i64
    }

    fn give_up(&mut self) {
        let busy = self.row.active.is_none_or(|active| active > 0);
        self.state = if self.pool == Pool::Solo && busy {
            WorkerState::Unknown
        } else {
            WorkerState::Lost
        };
        self.asked = false;
        self.dirty = true;
    }
}

fn owned(text: Option<&str>) -> Option<String> {
    text.map(str::to_owned)
}

#[cfg(test)]
mod tests;
