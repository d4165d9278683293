//! The types of events.

use std::borrow::Cow;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventKind {
    /// `task-sent`: a client published the task.
    TaskSent,
    /// `task-received`: a worker has the message.
    TaskReceived,
    /// `task-started`: it runs.
    TaskStarted,
    /// `task-succeeded`.
    TaskSucceeded,
    /// `task-failed`.
    TaskFailed,
    /// `task-retried`: this attempt is over, another was sent.
    TaskRetried,
    /// `task-rejected`: for good, or put back into the queue.
    TaskRejected,
    /// `task-revoked`: not run, terminated, or expired.
    TaskRevoked,
    /// `task-cancelled`: stopped with its worker's connection; it will run again.
    TaskCancelled,
    /// Any other `task-…`: an application's own state.
    TaskCustom,
    /// `kanchi-task-progress`.
    TaskProgress,
    /// `kanchi-task-steps`.
    TaskSteps,
    /// `worker-online`.
    WorkerOnline,
    /// `worker-heartbeat`.
    WorkerHeartbeat,
    /// `worker-offline`.
    WorkerOffline,
    /// Any other `worker-…`.
    WorkerOther,
    /// Anything else an application sends.
    Custom,
    /// `kanchi-worker-lost`: the process that ran a task was given up. Kanchi's own, see [`super::Event::worker_lost`].
    WorkerLost,
    /// `kanchi-worker-back`: that process lives after all. Kanchi's own.
    WorkerBack,
    /// `kanchi-task-started`: a worker says that the task runs. Kanchi's own, see [`super::Event::found_running`].
    FoundStarted,
    /// `kanchi-task-succeeded`: so the result backend. Kanchi's own, see [`super::Event::found_result`].
    FoundSucceeded,
    /// `kanchi-task-failed`: so the result backend. Kanchi's own.
    FoundFailed,
    /// `kanchi-task-revoked`: so the result backend. Kanchi's own.
    FoundRevoked,
}

impl EventKind {
    /// All kinds, for metrics that start at zero.
    pub const ALL: [Self; 23] = [
        Self::TaskSent,
        Self::TaskReceived,
        Self::TaskStarted,
        Self::TaskSucceeded,
        Self::TaskFailed,
        Self::TaskRetried,
        Self::TaskRejected,
        Self::TaskRevoked,
        Self::TaskCancelled,
        Self::TaskCustom,
        Self::TaskProgress,
        Self::TaskSteps,
        Self::WorkerOnline,
        Self::WorkerHeartbeat,
        Self::WorkerOffline,
        Self::WorkerOther,
        Self::Custom,
        Self::WorkerLost,
        Self::WorkerBack,
        Self::FoundStarted,
        Self::FoundSucceeded,
        Self::FoundFailed,
        Self::FoundRevoked,
    ];

    /// Returns the kind of a `type` on the wire. Kanchi's own kinds are never among them: an event that calls itself so is an
    /// application's.
    pub fn of(type_name: &str) -> Self {
        match type_name {
            "task-sent" => Self::TaskSent,
            "task-received" => Self::TaskReceived,
            "task-started" => Self::TaskStarted,
            "task-succeeded" => Self::TaskSucceeded,
            "task-failed" => Self::TaskFailed,
            "task-retried" => Self::TaskRetried,
            "task-rejected" => Self::TaskRejected,
            "task-revoked" => Self::TaskRevoked,
            "task-cancelled" => Self::TaskCancelled,
            "worker-heartbeat" => Self::WorkerHeartbeat,
            "worker-online" => Self::WorkerOnline,
            "worker-offline" => Self::WorkerOffline,
            "kanchi-task-progress" => Self::TaskProgress,
            "kanchi-task-steps" => Self::TaskSteps,
            other if other.starts_with("task-") => Self::TaskCustom,
            other if other.starts_with("worker-") => Self::WorkerOther,
            _ => Self::Custom,
        }
    }

    /// Returns Kanchi's own kind of this name.
    pub(crate) fn own(type_name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.is_own() && kind.as_str() == type_name)
    }

    /// Returns the one `type` of this kind; kinds that stand for many types have a label instead.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TaskSent => "task-sent",
            Self::TaskReceived => "task-received",
            Self::TaskStarted => "task-started",
            Self::TaskSucceeded => "task-succeeded",
            Self::TaskFailed => "task-failed",
            Self::TaskRetried => "task-retried",
            Self::TaskRejected => "task-rejected",
            Self::TaskRevoked => "task-revoked",
            Self::TaskCancelled => "task-cancelled",
            Self::TaskCustom => "task-custom",
            Self::TaskProgress => "kanchi-task-progress",
            Self::TaskSteps => "kanchi-task-steps",
            Self::WorkerOnline => "worker-online",
            Self::WorkerHeartbeat => "worker-heartbeat",
            Self::WorkerOffline => "worker-offline",
            Self::WorkerOther => "worker-other",
            Self::Custom => "custom",
            Self::WorkerLost => "kanchi-worker-lost",
            Self::WorkerBack => "kanchi-worker-back",
            Self::FoundStarted => "kanchi-task-started",
            Self::FoundSucceeded => "kanchi-task-succeeded",
            Self::FoundFailed => "kanchi-task-failed",
            Self::FoundRevoked => "kanchi-task-revoked",
        }
    }

    /// Returns `type_name` without an allocation where this kind has only one type.
    pub(crate) fn type_name(self, type_name: &str) -> Cow<'static, str> {
        match self {
            Self::TaskCustom | Self::WorkerOther | Self::Custom => type_name.to_owned().into(),
            Self::TaskSent
            | Self::TaskReceived
            | Self::TaskStarted
            | Self::TaskSucceeded
            | Self::TaskFailed
            | Self::TaskRetried
            | Self::TaskRejected
            | Self::TaskRevoked
            | Self::TaskCancelled
            | Self::TaskProgress
            | Self::TaskSteps
            | Self::WorkerOnline
            | Self::WorkerHeartbeat
            | Self::WorkerOffline
            | Self::WorkerLost
            | Self::WorkerBack
            | Self::FoundStarted
            | Self::FoundSucceeded
            | Self::FoundFailed
            | Self::FoundRevoked => self.as_str().into(),
        }
    }

    /// Says whether events of this kind are about a task and must name it.
    pub const fn needs_task(self) -> bool {
        match self {
            Self::TaskSent
            | Self::TaskReceived
            | Self::TaskStarted
            | Self::TaskSucceeded
            | Self::TaskFailed
            | Self::TaskRetried
            | Self::TaskRejected
            | Self::TaskRevoked
            | Self::TaskCancelled
            | Self::TaskProgress
            | Self::TaskSteps
            | Self::WorkerLost
            | Self::WorkerBack
            | Self::FoundStarted
            | Self::FoundSucceeded
            | Self::FoundFailed
            | Self::FoundRevoked => true,
            Self::TaskCustom
            | Self::WorkerOnline
            | Self::WorkerHeartbeat
            | Self::WorkerOffline
            | Self::WorkerOther
            | Self::Custom => false,
        }
    }

    /// Says whether events of this kind are about a worker.
    pub const fn is_worker(self) -> bool {
        matches!(
            self,
            Self::WorkerOnline | Self::WorkerHeartbeat | Self::WorkerOffline | Self::WorkerOther
        )
    }

    /// Says whether this is a step in a task's life that Celery itself reports.
    pub const fn is_lifecycle(self) -> bool {
        self.needs_task() && !matches!(self, Self::TaskProgress | Self::TaskSteps) && !self.is_own()
    }

    /// Says whether events of this kind are Kanchi's own findings, and never come from the wire.
    pub const fn is_own(self) -> bool {
        matches!(
            self,
            Self::WorkerLost
                | Self::WorkerBack
                | Self::FoundStarted
                | Self::FoundSucceeded
                | Self::FoundFailed
                | Self::FoundRevoked
        )
    }
}
