//! Rows as the monitor hands them over.

use std::sync::Arc;

use kanchi_domain::{Failure, TaskRow, TaskState, UnixMicros};
use uuid::Uuid;

use crate::packed::PackedEvents;
use crate::statistics::StatisticDelta;
use crate::writer::Epoch;

/// Everything that one transaction stores: all of it or nothing.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// What is stored as it came.
    pub head: BatchHead,
    /// What it means for tasks.
    pub changes: TaskChanges,
}

/// The part of a batch that needs no knowledge of what is stored already.
#[derive(Clone, Debug, Default)]
pub struct BatchHead {
    /// Identifies the batch, so that a COMMIT of unknown outcome can be resolved. Kept the same over retries.
    pub id: Uuid,
    /// The writer's epoch; a batch of an older one is refused.
    pub epoch: Epoch,
    /// Digests of the broker messages in this batch; empty where the transport never delivers twice (Redis).
    pub digests: Vec<u128>,
    /// The events, one chunk per task (or per worker for events without a task).
    pub chunks: Vec<EventChunk>,
    /// Workers that were heard of; the newest row of each.
    pub workers: Vec<WorkerRow>,
    /// Messages that could not be read; the store keeps a bounded number per broker.
    pub dead_letters: Vec<DeadLetter>,
    /// Gaps that began or ended in this batch's part of the stream.
    pub gaps: Vec<GapRow>,
}

/// The part of a batch that merges its events with what was known.
#[derive(Clone, Debug, Default)]
pub struct TaskChanges {
    /// Tasks whose facts grew.
    pub tasks: Vec<LiveTask>,
    /// What is added to the statistics, in the order of the minutes.
    pub statistics: Vec<StatisticDelta>,
    /// What is added to the groups of failures, one entry a group.
    pub failures: Vec<FailureDelta>,
}

/// What a batch says of one group of failures.
#[derive(Clone, Debug, PartialEq)]
pub struct FailureDelta {
    /// The group.
    pub group: Failure,
    /// Failures more; fewer where later events show that a task did not fail, or failed otherwise.
    pub failed: i64,
    /// Those of them after at least one retry.
    pub critical: i64,
    /// When the first of the new ones failed.
    pub first_at: Option<UnixMicros>,
    /// The last of the new ones; `None` if none is new.
    pub last: Option<LastFailure>,
}

/// The failure that stands for its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastFailure {
    /// When it failed, by its worker's clock.
    pub at: UnixMicros,
    /// The task.
    pub task_id: Arc<str>,
    /// The exception as it was written; the store keeps the first kilobyte.
    pub exception: Option<Arc<str>>,
}

/// The events of one task within one batch.
#[derive(Clone, Debug)]
pub struct EventChunk {
    /// The task, at most 255 bytes; `None` for events that belong to no task.
    pub task_id: Option<Arc<str>>,
    /// Earliest Celery timestamp in the chunk.
    pub first_at: UnixMicros,
    /// How many events the chunk holds.
    pub count: u16,
    /// The events as one JSON array, packed.
    pub events: PackedEvents,
}

/// A task as it stands after this batch.
#[derive(Clone, Debug)]
pub struct LiveTask {
    /// The task, at most 255 bytes.
    pub task_id: Arc<str>,
    /// `TaskFacts::encode()`: everything known of the task, this batch included.
    pub facts: Arc<[u8]>,
    /// Its state.
    pub state: TaskState,
    /// Its name.
    pub name: Option<Arc<str>>,
    /// Its queue.
    pub queue: Option<Arc<str>>,
    /// The worker that has or had it.
    pub worker: Option<Arc<str>>,
    /// When it may settle, before any linger: zero when it is final, its deadline when it has one.
    pub due_at: Option<UnixMicros>,
    /// The latest of its events.
    pub last_event_at: Option<UnixMicros>,
    /// The whole row, of a task that may go to history with this batch.
    pub ended: Option<Box<TaskRow>>,
    /// Whether a row of the task may be in the live table already. `false` takes the fast way (a plain COPY); it is
    /// a promise that the caller asked [`StoreWriter::load_facts`](crate::StoreWriter::load_facts) in this epoch and
    /// has not written the task since, nor in a batch that is still on its way. A broken promise costs a second attempt, never a wrong row.
    pub maybe_stored: bool,
    /// Whether recent history may have a row of the task, which is asked when it ends in a batch with many others. `false` is a promise that this
    /// process remembers the last half a million tasks that ended and this is none of them. A broken promise costs a second row.
    pub maybe_archived: bool,
}

impl LiveTask {
    /// Takes of a task's row, the projection of exactly these facts, what is stored.
    pub fn new(task_id: Arc<str>, facts: Arc<[u8]>, row: TaskRow, maybe_stored: bool) -> Self {
        Self {
            task_id,
            facts,
            state: row.state.clone(),
            name: row.name.clone(),
            queue: row.queue.clone(),
            worker: row.worker.clone(),
            due_at: due_at(&row),
            last_event_at: row.last_event_at,
            ended: (row.is_final() && has_a_beginning(&row)).then(|| Box::new(row)),
            maybe_stored,
            maybe_archived: true,
        }
    }
}

/// Never a worker's clock: one that is ahead by years would keep the row live for so long.
fn due_at(row: &TaskRow) -> Option<UnixMicros> {
    if row.is_final() {
        Some(UnixMicros(0))
    } else {
        row.deadline()
    }
}

/// Whether the beginning of the task's life was seen; a late event of an archived task has none.
pub(crate) const fn has_a_beginning(row: &TaskRow) -> bool {
    row.run == 0 && (row.sent_at.is_some() || row.received_at.is_some())
}

/// A worker as it was last heard of. Older rows never overwrite newer ones (`last_event_at` decides).
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerRow {
    /// Celery's node name, for example `celery@host`.
    pub hostname: String,
    /// Process id.
    pub pid: Option<i64>,
    /// `online`, `offline`, `lost` or `unknown`.
    pub state: String,
    /// Heartbeat interval in seconds.
    pub freq: Option<f64>,
    /// Tasks running.
    pub active: Option<i64>,
    /// Tasks done since its start.
    pub processed: Option<i64>,
    /// Load averages over 1, 5 and 15 minutes.
    pub loadavg: Option<[f64; 3]>,
    /// For example `py-celery`.
    pub sw_ident: Option<String>,
    /// For example `5.5.3`.
    pub sw_ver: Option<String>,
    /// For example `Linux`.
    pub sw_sys: Option<String>,
    /// How it runs tasks, for example `prefork` or `solo`; `None` until it has answered `stats`.
    pub pool: Option<String>,
    /// When this process said that it started, or was first heard.
    pub started_at: Option<UnixMicros>,
    /// Celery timestamp of the newest event of any kind.
    pub last_event_at: UnixMicros,
    /// Celery timestamp of the newest heartbeat.
    pub last_heartbeat_at: Option<UnixMicros>,
}

/// A message or event that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// When it arrived.
    pub arrived: UnixMicros,
    /// A fixed set of words, `RejectReason::as_str()`.
    pub reason: String,
    /// More words for people; cut at 1 kB.
    pub detail: String,
    /// Head of the bytes; cut at 4 kB.
    pub sample: Vec<u8>,
}

/// A stretch of the event stream that may be missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GapRow {
    /// Identifies the gap, so that it can be closed later.
    pub id: Uuid,
    /// Last moment known to be complete.
    pub from: UnixMicros,
    /// First moment known to be complete again; `None` while it is open.
    pub to: Option<UnixMicros>,
    /// `GapCause::as_str()`.
    pub cause: String,
    /// Best guess of the number of events lost.
    pub estimated_events: Option<u64>,
}

/// What the repair of a gap came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GapRepair {
    /// `Done`, `Partial` or `GivenUp`.
    pub outcome: String,
    /// Tasks whose end was found in the result backend.
    pub repaired: u64,
    /// Tasks that lie wholly inside the gap and were found in the result backend.
    pub found: u64,
    /// Tasks that had not ended as far as is known, and of which neither the result backend nor a worker knows.
    pub unknown: u64,
    /// What bounded or failed it, for people and without credentials; cut at 1 kB.
    pub note: Option<String>,
}

/// A gap and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownGap {
    /// The gap.
    pub gap: GapRow,
    /// When its repair ended, by the server's clock, and what it came to; `None` while it has not.
    pub repair: Option<(UnixMicros, GapRepair)>,
}

/// A gap whose repair has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingGap {
    /// The gap; closed.
    pub gap: GapRow,
    /// Since when the store knows of it, in seconds.
    pub known_seconds: u64,
}

/// One look at one queue.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueRow {
    /// Queue name.
    pub name: String,
    /// Messages that wait.
    pub ready: u64,
    /// Messages delivered and not acknowledged; `None` where the broker cannot tell.
    pub unacked: Option<u64>,
    /// Consumers; `None` where the broker cannot tell.
    pub consumers: Option<u64>,
}

/// What a monitor says of itself, every 5 seconds and at once when its connection changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heartbeat {
    /// Which process says so, for example the pod's name.
    pub instance: String,
    /// Version of the monitor.
    pub version: String,
    /// State of the broker connection: `Connecting`, `Connected` or `Disconnected`.
    pub connection: String,
    /// Why it is not connected, a fixed word.
    pub reason: Option<String>,
    /// More words for people, without credentials; cut at 1 kB.
    pub message: Option<String>,
    /// What the broker said it is, for example `RabbitMQ 4.1.2`.
    pub broker_version: Option<String>,
    /// Celery timestamp of the newest event stored.
    pub last_event_at: Option<UnixMicros>,
    /// Seconds between an event's arrival and its commit, of the newest batch.
    pub lag_seconds: Option<f64>,
    /// Events stored per second, over the last half minute or so.
    pub events_per_second: Option<f64>,
    /// Workers that are online; `None` when not known.
    pub workers_online: Option<u64>,
    /// Messages waiting in all sampled queues; `None` when not known.
    pub messages_queued: Option<u64>,
    /// Bytes waiting in memory and in the spool.
    pub spool_bytes: Option<u64>,
    /// RabbitMQ: the event queue in use; kept when a later heartbeat says `None`.
    pub event_queue: Option<String>,
    /// A new configuration was refused for this reason; the old one is in force. Cut at 1 kB.
    pub config_error: Option<String>,
    /// [`ErrorKind`](crate::ErrorKind) of what keeps batches from being stored for some time now.
    pub store_error: Option<String>,
    /// Everything that arrived before is stored; `None`: as the heartbeat before said.
    pub complete_until: Option<UnixMicros>,
}
