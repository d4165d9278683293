//! The states of a task, as users see them. `docs/states.md` defines each.

use std::fmt;
use std::sync::Arc;

/// State of a task.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TaskState {
    /// Waiting in a queue: sent, or put back by a worker.
    Pending,
    /// A worker has the message; waiting for its eta or for a free slot.
    Received,
    /// Running.
    Started,
    /// Ended with a retry; the next attempt has not begun.
    Retry,
    /// Ended well.
    Success,
    /// Ended with an exception.
    Failure,
    /// Revoked before it ran, or terminated while it ran.
    Revoked,
    /// Refused by the task itself, for good.
    Rejected,
    /// Its `expires` passed before it ran.
    Expired,
    /// Was running on a worker that is gone, and nothing has been heard since.
    Orphaned,
    /// The application's own state: the upper-case subject of a custom `task-…` event.
    Custom(Arc<str>),
}

impl TaskState {
    /// Returns the name used in the store, the API and the UI.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Pending => "PENDING",
            Self::Received => "RECEIVED",
            Self::Started => "STARTED",
            Self::Retry => "RETRY",
            Self::Success => "SUCCESS",
            Self::Failure => "FAILURE",
            Self::Revoked => "REVOKED",
            Self::Rejected => "REJECTED",
            Self::Expired => "EXPIRED",
            Self::Orphaned => "ORPHANED",
            Self::Custom(name) => name,
        }
    }

    /// Returns the state of a name; a name that is none of Kanchi's own is a custom state.
    pub fn from_name(name: &str) -> Self {
        match name {
            "PENDING" => Self::Pending,
            "RECEIVED" => Self::Received,
            "STARTED" => Self::Started,
            "RETRY" => Self::Retry,
            "SUCCESS" => Self::Success,
            "FAILURE" => Self::Failure,
            "REVOKED" => Self::Revoked,
            "REJECTED" => Self::Rejected,
            "EXPIRED" => Self::Expired,
            "ORPHANED" => Self::Orphaned,
            custom => Self::Custom(custom.into()),
        }
    }

    /// Says whether the task has ended. A rerun under the same id, or a late event, can still change the row.
    pub const fn is_final(&self) -> bool {
        self.outcome().is_some()
    }

    /// Returns how the task ended, if it has.
    pub const fn outcome(&self) -> Option<OutcomeClass> {
        match self {
            Self::Success => Some(OutcomeClass::Succeeded),
            Self::Failure | Self::Revoked | Self::Rejected | Self::Expired => Some(OutcomeClass::Failed),
            Self::Pending | Self::Received | Self::Started | Self::Retry | Self::Orphaned | Self::Custom(_) => None,
        }
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a task ended, as retention sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OutcomeClass {
    /// `SUCCESS`.
    Succeeded,
    /// Any other end.
    Failed,
}

/// What a state does not say by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TaskMark {
    /// Ended well after at least one retry, or after it had been orphaned.
    Recovered,
    /// Failed for good although it was retried.
    Critical,
    /// What became of it was not told by its events, but found in the result backend or asked of a worker after a gap.
    Repaired,
    /// Nothing is known of it but what the result backend holds: all its events fell into a gap.
    Incomplete,
}

impl TaskMark {
    /// Returns the name used in the store, the API and the UI.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Recovered => "RECOVERED",
            Self::Critical => "CRITICAL",
            Self::Repaired => "REPAIRED",
            Self::Incomplete => "INCOMPLETE",
        }
    }
}
