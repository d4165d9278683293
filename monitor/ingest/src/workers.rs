//! The workers of one broker: who is there, and when one counts as lost. Pure: time and answers are passed in.
//!
//! A worker that says goodbye is offline. One that falls silent for max(`offlineAfter`, 2 × its own interval) is suspect:
//! it is asked (`ping`), and lost if it does not answer; under `readOnly` nobody is asked and the wait is twice as long.
//! A busy solo-pool worker cannot answer and is unknown for an hour, and so is a worker that never sent a heartbeat, for
//! ever. Silence counts only while the stream is connected and caught up ([`WorkerTable::restart_timers`]).
//!
//! What was lost stays lost for a grace time before its tasks are orphaned ([`WorkerTable::losses`]). A worker that began
//! anew without a goodbye has lost its process before: that one cannot be asked any more, and twice the silence decides.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use kanchi_domain::{Event, EventKind, Running, UnixMicros};
use kanchi_store::WorkerRow;

use worker::Worker;

pub mod liveness;
pub mod orphans;
mod worker;

/// Hostile or careless publishers must not fill the memory with names.
const MAX_WORKERS: usize = 10_000;

/// Queues that one worker may name.
const MAX_QUEUES_OF_A_WORKER: usize = 200;

/// A clock that is off by less is left alone; Celery itself warns beyond it.
const SKEW_TOLERANCE: i64 = 16_000_000;

/// A row is written at once when its state changes, and else at most so often.
const SAVE_EVERY: i64 = 5_000_000;

/// A silent solo-pool worker may be busy for so long: it tells of a task, its start included, only when the task is over.
/// Celery's time limits do not hold in that pool, and it names none.
const SOLO_PATIENCE: i64 = 3_600_000_000;

/// A worker that is not online leaves the list so long after its last event: pods come and go under new names.
const FORGET_AFTER: i64 = 24 * 3_600_000_000;

/// Workers forgotten, and losses told, in one turn.
const AT_ONCE: usize = 1_000;

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

/// How a worker runs its tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// In the process that should answer: busy means silent.
    Solo,
    /// In child processes.
    Prefork,
    /// In threads.
    Thread,
    /// In green threads of eventlet.
    Eventlet,
    /// In green threads of gevent.
    Gevent,
    /// In a way that Celery has no name for, or has not told.
    Other,
}

impl Pool {
    const NAMED: [Self; 5] = [Self::Solo, Self::Prefork, Self::Thread, Self::Eventlet, Self::Gevent];

    /// Returns the name used in the store; Celery's modules have the same.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Solo => "solo",
            Self::Prefork => "prefork",
            Self::Thread => "thread",
            Self::Eventlet => "eventlet",
            Self::Gevent => "gevent",
            Self::Other => "other",
        }
    }

    /// Finds the pool in a name of ours or in that of its class.
    fn from_name(name: &str) -> Self {
        let named = Self::NAMED.into_iter().find(|pool| name.contains(pool.as_str()));
        named.unwrap_or(Self::Other)
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

/// A process that was given up, after its grace time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Its worker.
    pub hostname: String,
    /// Its id, as far as it is known.
    pub pid: Option<i64>,
    /// Its last sign of life, by its own clock; `None`: an earlier process of ours heard it.
    pub heard: Option<UnixMicros>,
    /// When it was given up, by our clock.
    pub since: UnixMicros,
}

impl Loss {
    /// Says whether a task runs in the process that was given up, and is not known to be orphaned yet. A process that came
    /// after it, under the same id in another container, begins its tasks after the last sign of life.
    pub fn took(&self, running: &Running) -> bool {
        *running.hostname == *self.hostname
            && running.lost.is_none()
            && (running.pid == self.pid || running.pid.is_none() || self.pid.is_none())
            && self.heard.is_none_or(|heard| running.began <= heard)
    }
}

/// The workers.
#[derive(Debug, Default)]
pub struct WorkerTable {
    workers: HashMap<Box<str>, Worker>,
    newly_online: BTreeSet<String>,
    returned: BTreeSet<String>,
    /// What earlier processes of ours knew is in.
    is_loaded: bool,
    replayed: bool,
}

impl WorkerTable {
    /// Returns a table of what an earlier process had stored; the timers start now.
    pub fn load(rows: Vec<WorkerRow>, now: UnixMicros) -> Self {
        let mut table = Self::default();
        for row in rows.into_iter().take(MAX_WORKERS) {
            let state = WorkerState::from_name(&row.state);
            let worker = Worker::load(row, state, now);
            table.workers.insert(worker.row.hostname.as_str().into(), worker);
        }
        table
    }

    /// Adds what an earlier process had stored, without touching workers heard of since.
    pub fn merge_loaded(&mut self, rows: Vec<WorkerRow>, now: UnixMicros) {
        self.is_loaded = true;
        for (hostname, loaded) in Self::load(rows, now).workers {
            match self.workers.entry(hostname) {
                Entry::Occupied(mut known) => known.get_mut().remember(&loaded),
                Entry::Vacant(place) => drop(place.insert(loaded)),
            }
        }
    }

    /// Takes note of an event. `live`: the stream is caught up, so that arrival minus timestamp is the clock's error.
    pub fn observe(&mut self, event: &Event, live: bool) {
        let is_loaded = self.is_loaded;
        let Some(worker) = self.worker_of(event) else { return };
        let was = worker.state;
        // Lost or back while none of us was there to see it.
        let is_news = worker.is_news() && (worker.was_loaded || !is_loaded);
        let replayed = worker.observe(event, live);
        let now_online = worker.state == WorkerState::Online;
        let came_up = now_online && (event.kind == EventKind::WorkerOnline || was != WorkerState::Online);
        let lives = matches!(worker.state, WorkerState::Online | WorkerState::Unknown);
        let came_back = lives && (was == WorkerState::Lost || is_news);
        let hostname = (came_up || came_back).then(|| worker.row.hostname.clone());
        self.replayed |= replayed;
        if let Some(hostname) = hostname.clone().filter(|_| came_back) {
            self.returned.insert(hostname);
        }
        if let Some(hostname) = hostname.filter(|_| came_up) {
            self.newly_online.insert(hostname);
        }
    }

    /// Tells whether heartbeats came faster than they were sent: what waited somewhere is being read.
    pub const fn take_replayed(&mut self) -> bool {
        std::mem::replace(&mut self.replayed, false)
    }

    /// The stream has been live since a moment: what arrived after it was sent just then, whatever its sender's clock says.
    pub fn live_since(&mut self, moment: UnixMicros) {
        for worker in self.workers.values_mut() {
            worker.live_since(moment);
        }
    }

    /// The connection came back, a gap was closed, or our clock jumped: silence so far says nothing.
    pub fn restart_timers(&mut self, now: UnixMicros) {
        for worker in self.workers.values_mut() {
            worker.restart_timers(now);
        }
    }

    /// Judges silence; returns the workers that should be asked. Call only while connected and caught up.
    pub fn check(&mut self, now: UnixMicros, patience: Patience) -> Vec<String> {
        let mut suspects = Vec::new();
        for worker in self.workers.values_mut() {
            if worker.check(now, patience) {
                suspects.push(worker.row.hostname.clone());
            }
        }
        suspects.sort();
        suspects
    }

    /// Returns the processes that were given up a grace time ago and whose tasks are not known to be orphaned yet.
    pub fn losses(&self, now: UnixMicros, grace: Duration) -> Vec<Loss> {
        let grace = i64::try_from(grace.as_micros()).unwrap_or(i64::MAX);
        let due = |loss: &Loss| now.0.saturating_sub(loss.since.0) >= grace;
        self.workers
            .values()
            .flat_map(Worker::losses)
            .filter(due)
            .take(AT_ONCE)
            .collect()
    }

    /// The tasks of this process are orphaned.
    pub fn loss_done(&mut self, loss: &Loss) {
        if let Some(worker) = self.workers.get_mut(loss.hostname.as_str()) {
            worker.loss_done(loss);
        }
    }

    /// Returns the workers that were lost and live after all, since the last call.
    pub fn take_returned(&mut self) -> Vec<String> {
        std::mem::take(&mut self.returned).into_iter().collect()
    }

    /// Returns the newest sign of life of the very process that runs this task, by its own clock, if it lives.
    pub fn sign_of_life(&self, running: &Running) -> Option<UnixMicros> {
        self.workers.get(&*running.hostname)?.sign_of_life(running)
    }

    /// Forgets workers that left long ago; returns their names.
    pub fn forget(&mut self, now: UnixMicros) -> Vec<String> {
        let gone = self.workers.values().filter(|worker| worker.is_forgotten(now));
        let gone: Vec<String> = gone.map(|worker| worker.row.hostname.clone()).take(AT_ONCE).collect();
        for hostname in &gone {
            self.workers.remove(hostname.as_str());
        }
        gone
    }

    /// A worker answered when it was asked.
    pub fn answered(&mut self, hostname: &str, now: UnixMicros) {
        if let Some(worker) = self.workers.get_mut(hostname) {
            worker.heard = worker.heard.max(now.0);
            worker.asked = false;
            if worker.state == WorkerState::Unknown && worker.sends_heartbeats {
                worker.state = WorkerState::Online;
                worker.dirty = true;
            }
        }
    }

    /// A worker did not answer when it was asked; nothing was heard of it since.
    pub fn unanswered(&mut self, hostname: &str, now: UnixMicros) {
        if let Some(worker) = self.workers.get_mut(hostname)
            && worker.state == WorkerState::Online
            && worker.asked
        {
            worker.give_up(now);
        }
    }

    /// What `stats` told.
    pub fn set_pool(&mut self, hostname: &str, pool: Pool) {
        if let Some(worker) = self.workers.get_mut(hostname) {
            worker.set_pool(pool);
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

    /// Returns workers that are online or may be, at most so many.
    pub fn reachable(&self, limit: usize) -> Vec<String> {
        let may_answer = |worker: &Worker| matches!(worker.state, WorkerState::Online | WorkerState::Unknown);
        let workers = self.workers.iter().filter(|(_, worker)| may_answer(worker));
        workers.map(|(hostname, _)| hostname.to_string()).take(limit).collect()
    }

    /// Returns where a worker stands.
    pub fn state_of(&self, hostname: &str) -> Option<WorkerState> {
        self.workers.get(hostname).map(|worker| worker.state)
    }

    /// Finds or makes the worker that sent an event; clients send `task-sent` and are no workers.
    fn worker_of(&mut self, event: &Event) -> Option<&mut Worker> {
        let hostname: &str = &event.hostname;
        if hostname.is_empty() || matches!(event.kind, EventKind::TaskSent | EventKind::Custom) || event.kind.is_own() {
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
                pool: None,
                started_at: None,
                last_event_at: event.timestamp.min(event.arrived),
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

#[cfg(test)]
mod tests;
