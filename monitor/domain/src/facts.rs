//! What is known of one task: a bounded set of facts whose merge is a union.

use crate::event::Event;
use crate::project::TaskRow;
use crate::time::UnixMicros;

/// Why stored facts could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FactsError {
    /// Written by a version that this one does not know.
    #[error("failed to read facts of version {0}")]
    Version(u8),
    /// Damaged.
    #[error("failed to read facts: damaged at byte {0}")]
    Damaged(usize),
}

/// What an event did to the facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absorbed {
    /// It was new.
    New,
    /// It was known, or is older than what is kept.
    Known,
    /// It is not about a task.
    NotATask,
}

impl Absorbed {
    /// Says whether the facts changed.
    pub const fn is_new(self) -> bool {
        matches!(self, Self::New)
    }
}

/// What is known of one task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskFacts {}

impl TaskFacts {
    /// Returns the facts of a task nobody has heard of.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an event.
    pub fn absorb(&mut self, _event: &Event) -> Absorbed {
        Absorbed::New
    }

    /// Adds all that `other` knows; says whether that was anything new.
    pub fn merge(&mut self, _other: &Self) -> bool {
        false
    }

    /// Returns the facts as bytes; equal facts give equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        vec![1]
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, FactsError> {
        match bytes.first() {
            Some(1) => Ok(Self::default()),
            Some(version) => Err(FactsError::Version(*version)),
            None => Err(FactsError::Damaged(0)),
        }
    }

    /// Returns about how many bytes of memory these facts take.
    pub fn memory(&self) -> usize {
        size_of::<Self>()
    }

    /// Returns the row of the task, without regard to the time of day.
    pub fn project(&self) -> TaskRow {
        TaskRow::default()
    }

    /// Returns the row of the task at `now`: a task past its deadline is EXPIRED.
    pub fn project_at(&self, _now: UnixMicros) -> TaskRow {
        self.project()
    }
}
