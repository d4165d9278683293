//! One worker having the message once: Celery's own rules of precedence, with the few differences of `docs/states.md`.

use std::sync::Arc;

use crate::facts::{Fact, Flags, Step, UNKNOWN};

/// How far a delivery has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Waiting,
    Received,
    Started,
    Custom,
    Retry,
    /// Put back into the queue.
    Requeued,
    Revoked,
    Rejected,
    Failure,
    Success,
}

impl Phase {
    /// Celery's order (lower wins), except that an application's own state does not win over REVOKED.
    const fn precedence(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Revoked => 2,
            Self::Rejected => 3,
            Self::Requeued => 4,
            Self::Custom => 5,
            Self::Started => 6,
            Self::Received => 7,
            Self::Retry => 8,
            Self::Waiting => 9,
        }
    }

    pub(super) const fn is_final(self) -> bool {
        matches!(self, Self::Success | Self::Failure | Self::Revoked | Self::Rejected)
    }

    fn of(fact: &Fact) -> Self {
        match fact.key.step {
            Step::Received => Self::Received,
            Step::Started => Self::Started,
            Step::Custom => Self::Custom,
            Step::Retried => Self::Retry,
            Step::Rejected if fact.flags.has(Flags::FOR_GOOD) => Self::Rejected,
            Step::Rejected | Step::Cancelled => Self::Requeued,
            Step::Revoked => Self::Revoked,
            Step::Failed => Self::Failure,
            Step::Succeeded => Self::Success,
            Step::Sent
            | Step::Progress
            | Step::Steps
            | Step::Lost
            | Step::Back
            | Step::FoundStarted
            | Step::FoundSucceeded
            | Step::FoundFailed
            | Step::FoundRevoked => Self::Waiting,
        }
    }
}

/// One worker having the message once.
#[derive(Debug)]
pub(super) struct Delivery<'f> {
    pub(super) host: &'f Arc<str>,
    pub(super) pid: i64,
    /// As told by its `task-received`.
    pub(super) retries: Option<u32>,
    /// Index of the fact it began with.
    pub(super) start: usize,
    pub(super) phase: Phase,
    /// The fact that set the phase.
    pub(super) decided: Option<(usize, &'f Fact)>,
    pub(super) received: Option<&'f Fact>,
    pub(super) started: Option<&'f Fact>,
    /// Told last.
    pub(super) retried: Option<&'f Fact>,
    /// Told last.
    pub(super) failed: Option<&'f Fact>,
    /// Its latest fact.
    pub(super) latest: Option<&'f Fact>,
    /// Its process was given up while the task ran, and nothing was heard of either since.
    pub(super) lost: Option<&'f Fact>,
    /// Index of the fact that first made it so, whatever came after.
    pub(super) first_lost: Option<usize>,
}

impl<'f> Delivery<'f> {
    pub(super) fn new(index: usize, fact: &'f Fact, retries: Option<u32>) -> Self {
        Self {
            host: &fact.key.host,
            pid: fact.key.pid,
            retries,
            start: index,
            phase: Phase::Waiting,
            decided: None,
            received: None,
            started: None,
            retried: None,
            failed: None,
            latest: None,
            lost: None,
            first_lost: None,
        }
    }

    /// Says whether this delivery has ended: for good, by a retry, or back in the queue.
    pub(super) fn is_over(&self) -> bool {
        self.phase.is_final() || matches!(self.phase, Phase::Retry | Phase::Requeued)
    }

    /// Returns the index of the fact that ended it for good or by a retry.
    pub(super) fn end(&self) -> Option<usize> {
        self.decided
            .filter(|_| self.phase.is_final() || self.phase == Phase::Retry)
            .map(|(index, _)| index)
    }

    /// Returns the rank of its phase; of two that ended, the lower decides.
    pub(super) const fn precedence(&self) -> u8 {
        self.phase.precedence()
    }

    /// Says whether the task runs here, by all that its events say.
    pub(super) const fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Started | Phase::Custom)
    }

    /// Adds what Kanchi found out about a process of this worker.
    pub(super) fn judge(&mut self, index: usize, fact: &'f Fact) {
        let other = self.pid != fact.key.pid && self.pid != UNKNOWN && fact.key.pid != UNKNOWN;
        if other || !self.is_running() {
            return;
        }
        if fact.key.step == Step::Lost {
            self.lost = Some(fact);
            self.first_lost.get_or_insert(index);
        } else {
            self.lost = None;
        }
    }

    /// Adds the next fact.
    pub(super) fn apply(&mut self, index: usize, fact: &'f Fact) {
        // Whatever it says, somebody lives who can say it.
        self.lost = None;
        self.latest = Some(fact);
        match fact.key.step {
            Step::Received => self.received = Some(fact),
            Step::Started => self.started = Some(fact),
            Step::Retried => self.retried = Some(fact),
            Step::Failed => self.failed = Some(fact),
            Step::Sent
            | Step::Custom
            | Step::Rejected
            | Step::Cancelled
            | Step::Revoked
            | Step::Succeeded
            | Step::Progress
            | Step::Steps
            | Step::Lost
            | Step::Back
            | Step::FoundStarted
            | Step::FoundSucceeded
            | Step::FoundFailed
            | Step::FoundRevoked => {}
        }
        let new = Phase::of(fact);
        // An end that is told twice ended the first time.
        if new == self.phase && new.is_final() {
            return;
        }
        let is_older = new.precedence() > self.phase.precedence();
        if new == Phase::Retry || (!is_older && self.phase != Phase::Retry) {
            self.phase = new;
            self.decided = Some((index, fact));
        }
    }
}
