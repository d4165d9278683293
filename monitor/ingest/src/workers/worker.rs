//! One worker: what its events say, and what its silence means.

use std::collections::BTreeSet;

use kanchi_domain::{Event, EventKind, Running, UnixMicros, WorkerFields};
use kanchi_store::WorkerRow;

use super::{FORGET_AFTER, Loss, Patience, Pool, SAVE_EVERY, SKEW_TOLERANCE, SOLO_PATIENCE, WorkerState};

/// Two heartbeats that come closer together than they were sent, by more than this, were waiting somewhere.
const REPLAY_TOLERANCE: i64 = 1_500_000;

/// Earlier processes of one worker that are watched for their end; more at a time are two workers of one name.
const MAX_FORMER: usize = 4;

/// A process of this worker that another one has followed without a goodbye.
#[derive(Debug)]
struct Former {
    pid: Option<i64>,
    stamp: Option<i64>,
    heard: i64,
    lost_at: Option<i64>,
}

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Worker {
    pub(super) row: WorkerRow,
    pub(super) state: WorkerState,
    /// Time of the last sign of life, by our clock.
    pub(super) heard: i64,
    /// The same by the worker's clock; `None`: not since our start.
    stamp: Option<i64>,
    /// Timestamp and arrival of the event that came last.
    last: Option<(i64, i64)>,
    /// The same of its heartbeats.
    last_beat: Option<(i64, i64)>,
    /// What is added to this worker's timestamps: its clock is off.
    skew: i64,
    pub(super) sends_heartbeats: bool,
    /// An earlier process of ours knew it.
    pub(super) was_loaded: bool,
    /// The present process has told of a task's start. A solo worker tells of it only with the task's end.
    told_start: bool,
    pub(super) queues: BTreeSet<String>,
    pub(super) saved: i64,
    pub(super) dirty: bool,
    /// Suspected and asked; not asked again before this is cleared.
    pub(super) asked: bool,
    /// When the present process was first heard of, by its own clock, if another one was before it.
    began: Option<i64>,
    /// When it was given up, by our clock, while its tasks are not known to be orphaned.
    lost_at: Option<i64>,
    former: Vec<Former>,
}

impl Worker {
    pub(super) fn new(row: WorkerRow, state: WorkerState, heard: i64) -> Self {
        Self {
            saved: row.last_event_at.0,
            row,
            state,
            heard,
            stamp: None,
            last: None,
            last_beat: None,
            skew: 0,
            sends_heartbeats: false,
            was_loaded: false,
            told_start: false,
            queues: BTreeSet::new(),
            dirty: false,
            asked: false,
            began: None,
            lost_at: None,
            former: Vec::new(),
        }
    }

    /// Returns a worker as an earlier process of ours knew it. One that was lost is told of again: whether its tasks were
    /// orphaned is not known, and doing it twice changes nothing.
    pub(super) fn load(row: WorkerRow, state: WorkerState, now: UnixMicros) -> Self {
        let mut worker = Self::new(row, state, now.0);
        worker.was_loaded = true;
        worker.sends_heartbeats = worker.row.last_heartbeat_at.is_some();
        worker.lost_at = (state == WorkerState::Lost).then_some(now.0);
        worker
    }

    /// Adds what an earlier process of ours knew of a worker that was heard of since.
    pub(super) fn remember(&mut self, loaded: &Self) {
        let another = self.row.pid.is_some() && loaded.row.pid.is_some() && self.row.pid != loaded.row.pid;
        if another && loaded.state != WorkerState::Offline {
            self.succeed(loaded.row.pid, None, loaded.heard, loaded.lost_at);
        }
        if self.row.pool.is_none() {
            self.row.pool.clone_from(&loaded.row.pool);
            if another {
                self.doubt_pool();
            }
        }
    }

    /// Returns its pool; `None`: it has not answered yet, and may be a solo worker that is busy since it began.
    fn pool(&self) -> Option<Pool> {
        self.row.pool.as_deref().map(Pool::from_name)
    }

    pub(super) fn set_pool(&mut self, pool: Pool) {
        self.dirty |= self.row.pool.as_deref() != Some(pool.as_str());
        self.row.pool = Some(pool.as_str().to_owned());
    }

    /// Another process under this name may have another pool. Until it answers, it must not be taken for lost by mistake.
    fn doubt_pool(&mut self) {
        if self.pool() != Some(Pool::Solo) {
            self.row.pool = None;
        }
    }

    /// Says whether nothing was heard of it since our start.
    pub(super) const fn is_news(&self) -> bool {
        self.stamp.is_none()
    }

    /// Takes note of an event; says whether it shows that what waited somewhere is being read.
    pub(super) fn observe(&mut self, event: &Event, live: bool) -> bool {
        let was = self.state;
        let replayed = self.is_replayed(event);
        if live {
            self.correct_skew(event.timestamp, event);
        }
        // A clock that is ahead must not make a worker look alive beyond the moment we heard of it.
        let heard = event.timestamp.0.saturating_add(self.skew).min(event.arrived.0);
        let behind = self.stamp.map_or(0, |stamp| stamp.saturating_sub(event.timestamp.0));
        // While the stream is live, much older means that the worker's clock was set back.
        let newer = behind <= 0 || (live && behind > SKEW_TOLERANCE);
        if event.has_timestamp() {
            self.last = Some((event.timestamp.0, event.arrived.0));
        }
        if matches!(event.kind, EventKind::WorkerOnline | EventKind::WorkerHeartbeat) {
            self.beat(event, newer, heard);
        } else if event.kind == EventKind::WorkerOffline && newer {
            self.take_fields(event);
            self.state = WorkerState::Offline;
            self.lost_at = None;
        } else if newer && was == WorkerState::Lost && self.is_of_this_process(event) {
            // A task event from a worker that was given up: it lives.
            self.state = self.alive();
        }
        self.told_start |= event.kind == EventKind::TaskStarted && self.is_of_this_process(event);
        // Not before: a process that another one follows was heard of until now, and no longer.
        self.heard = self.heard.max(heard);
        if newer {
            self.stamp = Some(event.timestamp.0);
            self.row.last_event_at = self.row.last_event_at.max(UnixMicros(heard));
        }
        if newer && self.state != WorkerState::Offline {
            self.asked = false;
        }
        if self.state != WorkerState::Lost {
            self.lost_at = None;
        }
        self.dirty |= self.state != was
            || event.kind == EventKind::WorkerOnline
            || self.row.last_event_at.0.saturating_sub(self.saved) >= SAVE_EVERY;
        replayed
    }

    /// Code inside a task sends events from its own process, which outlives a killed worker for a moment.
    fn is_of_this_process(&self, event: &Event) -> bool {
        event.pid.is_none() || self.row.pid.is_none() || event.pid == self.row.pid
    }

    const fn alive(&self) -> WorkerState {
        if self.sends_heartbeats {
            WorkerState::Online
        } else {
            WorkerState::Unknown
        }
    }

    fn is_replayed(&mut self, event: &Event) -> bool {
        if event.kind != EventKind::WorkerHeartbeat || !event.has_timestamp() {
            return false;
        }
        let (stamp, arrived) = (event.timestamp.0, event.arrived.0);
        let before = self.last_beat.replace((stamp, arrived));
        before.is_some_and(|(stamp_before, arrived_before)| {
            let sent_apart = stamp.saturating_sub(stamp_before);
            let came_apart = arrived.saturating_sub(arrived_before);
            sent_apart.saturating_sub(came_apart) > REPLAY_TOLERANCE
        })
    }

    /// `heard`: when it was sent, by our clock.
    fn beat(&mut self, event: &Event, newer: bool, heard: i64) {
        // The answer to the `heartbeat` command comes from workers without heartbeats, too.
        let regular = event.worker.as_deref().is_some_and(WorkerFields::is_regular);
        if regular || event.kind == EventKind::WorkerOnline {
            self.sends_heartbeats = true;
            self.row.last_heartbeat_at = self.row.last_heartbeat_at.max(Some(UnixMicros(heard)));
        }
        if event.kind == EventKind::WorkerOnline && (newer || self.row.started_at.is_none()) {
            // It repeats after every reconnect: the same process has not started again.
            if self.row.pid != event.pid || self.row.started_at.is_none() {
                self.row.started_at = Some(event.timestamp);
            }
        }
        if newer {
            self.notice_succession(event);
            self.take_fields(event);
            self.state = self.alive();
        }
    }

    /// Another process sends under this name: by its id, or, as ids are alike in containers, by a count that began anew.
    fn notice_succession(&mut self, event: &Event) {
        let another = event.pid.is_some() && self.row.pid.is_some() && self.row.pid != event.pid;
        let processed = event.worker.as_deref().and_then(|fields| fields.processed);
        let anew = processed
            .zip(self.row.processed)
            .is_some_and(|(now, before)| now < before);
        if !another && !anew {
            return;
        }
        if anew {
            self.row.started_at = Some(event.timestamp);
        }
        self.row.processed = None;
        self.told_start = false;
        // Else nobody asks it, and what is known is the best guess.
        if event.kind == EventKind::WorkerOnline {
            self.doubt_pool();
        }
        self.began = Some(event.timestamp.0);
        self.former.retain(|former| !another || former.pid != event.pid);
        // After a goodbye, or when its loss has been dealt with, nobody misses it.
        let dealt_with = self.state == WorkerState::Lost && self.lost_at.is_none();
        if self.state != WorkerState::Offline && !dealt_with {
            self.succeed(self.row.pid, self.stamp, self.heard, self.lost_at);
        }
    }

    fn succeed(&mut self, pid: Option<i64>, stamp: Option<i64>, heard: i64, lost_at: Option<i64>) {
        if self.former.len() >= MAX_FORMER {
            self.former.remove(0);
        }
        self.former.push(Former {
            pid,
            stamp,
            heard,
            lost_at,
        });
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

    fn correct_skew(&mut self, timestamp: UnixMicros, event: &Event) {
        if event.has_timestamp() {
            self.skew = skew(timestamp.0, event.arrived.0);
        }
    }

    /// What arrived after this moment came at once: the difference is the clock's error.
    pub(super) fn live_since(&mut self, moment: UnixMicros) {
        if let Some((stamp, arrived)) = self.last.filter(|(_, arrived)| *arrived >= moment.0) {
            self.skew = skew(stamp, arrived);
            self.heard = self.heard.max(arrived);
        }
    }

    pub(super) fn restart_timers(&mut self, now: UnixMicros) {
        // Not the later of both: a clock of ours that was set back must not hide silence for so long.
        self.heard = now.0;
        self.asked = false;
        self.lost_at = self.lost_at.map(|_| now.0);
        for former in &mut self.former {
            former.heard = now.0;
            former.lost_at = former.lost_at.map(|_| now.0);
        }
    }

    /// Judges silence; says whether this worker should be asked.
    pub(super) fn check(&mut self, now: UnixMicros, patience: Patience) -> bool {
        let limit = self.limit(patience);
        // Nobody can ask them: whoever has the name now would answer.
        for former in &mut self.former {
            if former.lost_at.is_none() && now.0.saturating_sub(former.heard) > limit.saturating_mul(2) {
                former.lost_at = Some(now.0);
            }
        }
        let silence = now.0.saturating_sub(self.heard);
        if !self.sends_heartbeats || silence <= limit {
            return false;
        }
        match self.state {
            WorkerState::Online if !patience.read_only => !std::mem::replace(&mut self.asked, true),
            WorkerState::Online => {
                if silence > limit.saturating_mul(2) {
                    // Nobody may ask, so no pool is known: silence alone decides.
                    self.lose(now);
                }
                false
            }
            WorkerState::Unknown => {
                if silence > SOLO_PATIENCE.max(limit) {
                    self.lose(now);
                }
                false
            }
            WorkerState::Offline | WorkerState::Lost => false,
        }
    }

    fn limit(&self, patience: Patience) -> i64 {
        // An interval of a day would hide a dead worker for two; Celery's own default is two seconds.
        let own = self.row.freq.map_or(0.0, |freq| (2.0 * freq).min(3600.0));
        let seconds = patience.offline_after.as_secs_f64().max(own);
        (seconds * 1e6) as i64
    }

    /// It did not answer.
    pub(super) fn give_up(&mut self, now: UnixMicros) {
        let may_be_busy = match self.pool() {
            Some(Pool::Solo) => true,
            Some(Pool::Prefork | Pool::Thread | Pool::Eventlet | Pool::Gevent | Pool::Other) => false,
            // Killed by its first task, a worker has not answered yet either.
            None => !self.told_start,
        };
        if may_be_busy {
            self.state = WorkerState::Unknown;
            self.asked = false;
            self.dirty = true;
        } else {
            self.lose(now);
        }
    }

    fn lose(&mut self, now: UnixMicros) {
        self.state = WorkerState::Lost;
        self.lost_at = Some(now.0);
        self.asked = false;
        self.dirty = true;
    }

    /// Returns its processes that were given up and whose tasks are not known to be orphaned.
    pub(super) fn losses(&self) -> impl Iterator<Item = Loss> {
        let loss = |pid, stamp: Option<i64>, since: i64| Loss {
            hostname: self.row.hostname.clone(),
            pid,
            heard: stamp.map(UnixMicros),
            since: UnixMicros(since),
        };
        let own = self.lost_at.map(|since| loss(self.row.pid, self.stamp, since));
        let former = self.former.iter();
        own.into_iter()
            .chain(former.filter_map(move |former| Some(loss(former.pid, former.stamp, former.lost_at?))))
    }

    pub(super) fn loss_done(&mut self, loss: &Loss) {
        if self.lost_at == Some(loss.since.0) && self.row.pid == loss.pid {
            self.lost_at = None;
        }
        self.former
            .retain(|former| former.lost_at != Some(loss.since.0) || former.pid != loss.pid);
    }

    pub(super) fn sign_of_life(&self, running: &Running) -> Option<UnixMicros> {
        let lives = matches!(self.state, WorkerState::Online | WorkerState::Unknown);
        let same = self.row.pid.is_none() || running.pid.is_none() || self.row.pid == running.pid;
        // Its tasks began after it; those of a process before it under the same id did not.
        let began = self.began.is_none_or(|began| began <= running.began.0);
        let stamp = UnixMicros(self.stamp?);
        (lives && same && began && running.lost.is_some_and(|lost| stamp > lost)).then_some(stamp)
    }

    pub(super) fn is_forgotten(&self, now: UnixMicros) -> bool {
        let dealt_with = self.lost_at.is_none() && self.former.is_empty();
        let silent = now.0.saturating_sub(self.row.last_event_at.0) > FORGET_AFTER;
        self.state != WorkerState::Online && dealt_with && silent
    }
}

/// Returns what is added to the timestamps of a clock that is off.
const fn skew(timestamp: i64, arrived: i64) -> i64 {
    let off = arrived.saturating_sub(timestamp);
    if off.saturating_abs() > SKEW_TOLERANCE { off } else { 0 }
}

fn owned(text: Option<&str>) -> Option<String> {
    text.map(str::to_owned)
}
