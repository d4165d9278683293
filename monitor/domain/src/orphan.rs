//! What Kanchi itself finds out about the process that runs a task, as events like any other.
//!
//! A worker that dies says nothing, so its tasks would run for ever. When the monitor has given a process up, each task that
//! ran there gets `kanchi-worker-lost`; when that process turns out to live, `kanchi-worker-back`. Both are stored and merged
//! like Celery's events, so that the row stays a function of the set of events. They are made here and nowhere else: what
//! comes from the wire under these names is an application's own event.

use std::sync::Arc;

use crate::decode::blank;
use crate::event::{Event, EventKind, TaskId};
use crate::time::UnixMicros;

/// The process that runs a task, as far as the task's events say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Node name of its worker.
    pub hostname: Arc<str>,
    /// Main process of that worker.
    pub pid: Option<i64>,
    /// When it began there, by the worker's clock.
    pub began: UnixMicros,
    /// The latest event of the task from there, by the worker's clock.
    pub latest: UnixMicros,
    /// The task is ORPHANED: up to this moment, by the worker's clock, the process had been heard of.
    pub lost: Option<UnixMicros>,
}

impl Event {
    /// Returns the finding that the process which runs a task was given up. `heard`: its last sign of life, by its own
    /// clock. The event is placed just after it, and after the last event of the task: whatever comes later heals.
    pub fn worker_lost(task: TaskId, running: &Running, heard: UnixMicros, now: UnixMicros) -> Self {
        let at = running.latest.max(heard).0.saturating_add(1);
        own(EventKind::WorkerLost, task, running, UnixMicros(at), now)
    }

    /// Returns the finding that this process lives. `heard`: a sign of life, by its own clock; it heals a loss before that.
    pub fn worker_back(task: TaskId, running: &Running, heard: UnixMicros, now: UnixMicros) -> Self {
        own(EventKind::WorkerBack, task, running, heard, now)
    }
}

fn own(kind: EventKind, task: TaskId, running: &Running, at: UnixMicros, now: UnixMicros) -> Event {
    let mut event = blank(now, &running.hostname);
    event.kind = kind;
    event.type_name = kind.as_str().into();
    event.pid = running.pid;
    event.timestamp = at;
    event.task_id = Some(task);
    event
}
