//! From facts to the row that users see.

use std::time::Duration;

use crate::event::{PayloadFields, TaskId};
use crate::state::{OutcomeClass, TaskMark, TaskState};
use crate::time::UnixMicros;

/// A task counts as EXPIRED so long after its `expires`: a start just before it may still be on its way to us.
pub const EXPIRY_GRACE: Duration = Duration::from_secs(5);

/// All that is known of a task, projected from its facts. Times are of the current attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskRow {
    /// The state.
    pub state: TaskState,
    /// What the state does not say by itself.
    pub mark: Option<TaskMark>,
    /// True name if `task-sent` was seen, else what the worker calls it.
    pub name: Option<Box<str>>,
    /// Queue.
    pub queue: Option<Box<str>>,
    /// The queue was not told but inferred. Never set by the projection: whoever infers it sets both.
    pub queue_inferred: bool,
    /// Exchange, if not the default one.
    pub exchange: Option<Box<str>>,
    /// Routing key.
    pub routing_key: Option<Box<str>>,
    /// Node name of the sender.
    pub client: Option<Box<str>>,
    /// Node name of the worker that has or had it.
    pub worker: Option<Box<str>>,
    /// Main process of that worker.
    pub worker_pid: Option<i64>,
    /// Retries before the current attempt.
    pub retries: u32,
    /// Which run under this id, from 0: a rerun counts one up.
    pub run: u32,
    /// How often workers got it in the current attempt; more than one: redelivered or put back.
    pub deliveries: u32,
    /// Positional arguments.
    pub args: Option<Box<str>>,
    /// Keyword arguments.
    pub kwargs: Option<Box<str>>,
    /// Result.
    pub result: Option<Box<str>>,
    /// Exception of the failure, or of the last retry while the task is not final.
    pub exception: Option<Box<str>>,
    /// Class of that exception.
    pub exception_class: Option<Box<str>>,
    /// Its traceback.
    pub traceback: Option<Box<str>>,
    /// Payloads that were cut.
    pub cut: PayloadFields,
    /// Root of the workflow.
    pub root_id: Option<TaskId>,
    /// Parent task.
    pub parent_id: Option<TaskId>,
    /// Not to run before.
    pub eta: Option<UnixMicros>,
    /// Not to run after.
    pub expires: Option<UnixMicros>,
    /// Seconds it ran, by the worker.
    pub runtime: Option<f64>,
    /// `task-sent` of the current attempt.
    pub sent_at: Option<UnixMicros>,
    /// `task-received` of the current attempt.
    pub received_at: Option<UnixMicros>,
    /// `task-started` of the current attempt.
    pub started_at: Option<UnixMicros>,
    /// When the state was reached that ended the task.
    pub finished_at: Option<UnixMicros>,
    /// The last `task-retried`.
    pub retried_at: Option<UnixMicros>,
    /// The earliest event of the task.
    pub first_event_at: Option<UnixMicros>,
    /// The latest event of the task.
    pub last_event_at: Option<UnixMicros>,
    /// Revoked while it was running.
    pub terminated: bool,
    /// Signal it was terminated with.
    pub signum: Option<Box<str>>,
    /// Progress, if the application tells it.
    pub progress: Option<Progress>,
    /// Events were dropped from the facts because there were too many; counts may be low.
    pub thinned: bool,
}

/// Progress as the application tells it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Percent done.
    pub percent: Option<f64>,
    /// Which step.
    pub step_key: Option<Box<str>>,
    /// A word on it.
    pub message: Option<Box<str>>,
    /// Anything: JSON text.
    pub meta: Option<Box<str>>,
    /// The steps: text of a JSON array.
    pub steps: Option<Box<str>>,
}

impl TaskRow {
    /// Says whether the task has ended.
    pub fn is_final(&self) -> bool {
        self.state.is_final()
    }

    /// Returns how the task ended, if it has.
    pub fn outcome(&self) -> Option<OutcomeClass> {
        self.state.outcome()
    }

    /// Returns when the row must be projected again because it may be EXPIRED by then.
    pub fn deadline(&self) -> Option<UnixMicros> {
        let waits = matches!(self.state, TaskState::Pending | TaskState::Received | TaskState::Retry);
        self.expires
            .filter(|_| waits)
            .map(|expires| expires.saturating_add(EXPIRY_GRACE))
    }
}

impl Default for TaskRow {
    fn default() -> Self {
        Self {
            state: TaskState::Pending,
            mark: None,
            name: None,
            queue: None,
            queue_inferred: false,
            exchange: None,
            routing_key: None,
            client: None,
            worker: None,
            worker_pid: None,
            retries: 0,
            run: 0,
            deliveries: 0,
            args: None,
            kwargs: None,
            result: None,
            exception: None,
            exception_class: None,
            traceback: None,
            cut: PayloadFields::default(),
            root_id: None,
            parent_id: None,
            eta: None,
            expires: None,
            runtime: None,
            sent_at: None,
            received_at: None,
            started_at: None,
            finished_at: None,
            retried_at: None,
            first_event_at: None,
            last_event_at: None,
            terminated: false,
            signum: None,
            progress: None,
            thinned: false,
        }
    }
}
