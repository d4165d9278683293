//! The steps that facts tell of.

use crate::event::EventKind;

/// A step in a task's life. The order breaks ties of time and clock; the numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Step {
    Sent = 1,
    Received = 2,
    Started = 3,
    Custom = 4,
    Retried = 5,
    Rejected = 6,
    Cancelled = 7,
    Revoked = 8,
    Failed = 9,
    Succeeded = 10,
    /// Only texts, no fact.
    Progress = 11,
    /// Only texts, no fact.
    Steps = 12,
    /// Kanchi's own: the process was given up.
    Lost = 13,
    /// Kanchi's own: it lives after all.
    Back = 14,
    /// Kanchi's own: a worker says that the task runs.
    FoundStarted = 15,
    /// Kanchi's own: so the result backend.
    FoundSucceeded = 16,
    /// Kanchi's own: so the result backend.
    FoundFailed = 17,
    /// Kanchi's own: so the result backend.
    FoundRevoked = 18,
}

impl Step {
    /// Says whether this is what the task's senders told, and not Kanchi's own finding.
    pub(crate) const fn is_told(self) -> bool {
        !matches!(self, Self::Lost | Self::Back) && !self.is_found()
    }

    /// Says whether this was found after a gap, in the result backend or at a worker.
    pub(crate) const fn is_found(self) -> bool {
        matches!(
            self,
            Self::FoundStarted | Self::FoundSucceeded | Self::FoundFailed | Self::FoundRevoked
        )
    }

    pub(super) fn of(kind: EventKind) -> Option<Self> {
        match kind {
            EventKind::TaskSent => Some(Self::Sent),
            EventKind::TaskReceived => Some(Self::Received),
            EventKind::TaskStarted => Some(Self::Started),
            EventKind::TaskSucceeded => Some(Self::Succeeded),
            EventKind::TaskFailed => Some(Self::Failed),
            EventKind::TaskRetried => Some(Self::Retried),
            EventKind::TaskRejected => Some(Self::Rejected),
            EventKind::TaskRevoked => Some(Self::Revoked),
            EventKind::TaskCancelled => Some(Self::Cancelled),
            EventKind::TaskCustom => Some(Self::Custom),
            EventKind::TaskProgress => Some(Self::Progress),
            EventKind::TaskSteps => Some(Self::Steps),
            EventKind::WorkerLost => Some(Self::Lost),
            EventKind::WorkerBack => Some(Self::Back),
            EventKind::FoundStarted => Some(Self::FoundStarted),
            EventKind::FoundSucceeded => Some(Self::FoundSucceeded),
            EventKind::FoundFailed => Some(Self::FoundFailed),
            EventKind::FoundRevoked => Some(Self::FoundRevoked),
            EventKind::WorkerOnline
            | EventKind::WorkerHeartbeat
            | EventKind::WorkerOffline
            | EventKind::WorkerOther
            | EventKind::Custom => None,
        }
    }

    /// The kind of event that tells of this step.
    pub(super) const fn kind(self) -> EventKind {
        match self {
            Self::Sent => EventKind::TaskSent,
            Self::Received => EventKind::TaskReceived,
            Self::Started => EventKind::TaskStarted,
            Self::Custom => EventKind::TaskCustom,
            Self::Retried => EventKind::TaskRetried,
            Self::Rejected => EventKind::TaskRejected,
            Self::Cancelled => EventKind::TaskCancelled,
            Self::Revoked => EventKind::TaskRevoked,
            Self::Failed => EventKind::TaskFailed,
            Self::Succeeded => EventKind::TaskSucceeded,
            Self::Progress => EventKind::TaskProgress,
            Self::Steps => EventKind::TaskSteps,
            Self::Lost => EventKind::WorkerLost,
            Self::Back => EventKind::WorkerBack,
            Self::FoundStarted => EventKind::FoundStarted,
            Self::FoundSucceeded => EventKind::FoundSucceeded,
            Self::FoundFailed => EventKind::FoundFailed,
            Self::FoundRevoked => EventKind::FoundRevoked,
        }
    }

    /// Says whether events of this step carry texts of their own that the row shows.
    pub(super) const fn has_texts(self) -> bool {
        matches!(
            self,
            Self::Sent | Self::Received | Self::Retried | Self::Revoked | Self::Failed | Self::Succeeded
        ) || self.is_found()
    }

    /// How many of the lowest and how many of the highest facts of this step are kept.
    pub(super) const fn kept(self) -> (usize, usize) {
        match self {
            Self::Sent
            | Self::Received
            | Self::Started
            | Self::Retried
            | Self::Rejected
            | Self::Cancelled
            | Self::Revoked
            | Self::Failed
            | Self::Succeeded => (8, 8),
            Self::Custom => (2, 6),
            Self::Lost
            | Self::Back
            | Self::FoundStarted
            | Self::FoundSucceeded
            | Self::FoundFailed
            | Self::FoundRevoked => (2, 4),
            Self::Progress | Self::Steps => (0, 0),
        }
    }
}
