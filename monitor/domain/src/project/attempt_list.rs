//! The attempts of a task one by one, where the row shows the newest alone.
//!
//! Which attempts there are, and what each comes to, is decided where the row's is; here nothing but what follows from
//! their order is added: an attempt that has a next one was retried, whether that was told or not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::attempts::{Life, Place};
use super::delivery::{Delivery, Phase};
use super::{TaskRow, decisive, found, state_of};
use crate::facts::{Fact, Field, Step, TaskFacts, Texts, UNKNOWN};
use crate::state::{TaskMark, TaskState};
use crate::time::UnixMicros;

/// One attempt of a task: all that happened under one count of retries in one run (`docs/states.md`).
///
/// Worker and times are those of the delivery that decides the outcome, as in the row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Retries before it: 0 for the first. An attempt that was found after a gap without its number has the lowest it
    /// can be.
    pub retries: u32,
    /// Which run under this id, from 0.
    pub run: u32,
    /// How it ended, or how far it is.
    pub outcome: AttemptOutcome,
    /// Node name of the worker that has or had it; `None` as long as none is known to.
    pub worker: Option<Arc<str>>,
    /// Main process of that worker.
    pub worker_pid: Option<i64>,
    /// Not to run before; of a retry, the end of its countdown.
    pub eta: Option<UnixMicros>,
    /// Its `task-sent`.
    pub sent_at: Option<UnixMicros>,
    /// Its `task-received`.
    pub received_at: Option<UnixMicros>,
    /// Its `task-started`.
    pub started_at: Option<UnixMicros>,
    /// When it ended, for good or by a retry; `None` where that was not told.
    pub finished_at: Option<UnixMicros>,
    /// Exception that it failed or was retried with. Facts keep the texts of the latest failure and of the latest retry
    /// alone; those of earlier ones are in the stored events.
    pub exception: Option<Arc<str>>,
    /// Class of that exception.
    pub exception_class: Option<Arc<str>>,
    /// Its traceback.
    pub traceback: Option<Arc<str>>,
    /// Who had it, in order of time; more than one: redelivered or put back. None: no worker is known to have had it.
    pub deliveries: Vec<AttemptDelivery>,
}

/// One worker having the message of an attempt once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptDelivery {
    /// How it ended, or how far it is.
    pub outcome: AttemptOutcome,
    /// Node name of the worker.
    pub worker: Option<Arc<str>>,
    /// Main process of that worker.
    pub worker_pid: Option<i64>,
    /// Its `task-received`.
    pub received_at: Option<UnixMicros>,
    /// Its `task-started`.
    pub started_at: Option<UnixMicros>,
    /// When it ended, in whatever way; `None` where that was not told.
    pub finished_at: Option<UnixMicros>,
}

/// How an attempt or a delivery ended, or how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AttemptOutcome {
    /// Has not begun to run, or is in the queue again.
    Waiting,
    /// Runs, by all that is known.
    Running,
    /// Ended with a retry: it was told, or there is a next attempt of the same run.
    Retried,
    /// Ended well.
    Succeeded,
    /// Ended with an exception.
    Failed,
    /// Refused by the task itself, for good.
    Rejected,
    /// Revoked before it ran, or terminated while it ran.
    Revoked,
    /// A worker, or the result backend, says that its `expires` passed before it ran.
    Expired,
    /// Was running in a process that was given up, and nothing has been heard since.
    Lost,
    /// Put back into the queue by its worker. Of deliveries only: the attempt waits for the next one.
    PutBack,
    /// Its end fell into a gap: the task went on without it.
    Unknown,
}

impl AttemptOutcome {
    /// Returns the name used in the API and the UI.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Retried => "retried",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::Lost => "lost",
            Self::PutBack => "put back",
            Self::Unknown => "unknown",
        }
    }

    /// Says whether it is not known to have ended. A lost one may yet be heard of.
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Waiting | Self::Running | Self::Lost)
    }

    /// Returns what a state says of an attempt that has no next one.
    const fn of(state: &TaskState) -> Self {
        match state {
            TaskState::Pending | TaskState::Received | TaskState::Retry => Self::Waiting,
            TaskState::Started | TaskState::Custom(_) => Self::Running,
            TaskState::Success => Self::Succeeded,
            TaskState::Failure => Self::Failed,
            TaskState::Revoked => Self::Revoked,
            TaskState::Rejected => Self::Rejected,
            TaskState::Expired => Self::Expired,
            TaskState::Orphaned => Self::Lost,
        }
    }
}

/// Lists the attempts of a task in their order.
pub(crate) fn list(facts: &TaskFacts) -> Vec<Attempt> {
    let life = Life::of(facts.facts());
    let places: BTreeSet<Place> = life.places().collect();
    let mut rows: BTreeMap<Place, TaskRow> = places
        .iter()
        .map(|place| (*place, told(facts, &life, *place)))
        .collect();
    lay_finding(&mut rows, facts, &life);
    let mut attempts = Vec::with_capacity(rows.len());
    let mut rows = rows.into_iter().peekable();
    while let Some((place, row)) = rows.next() {
        let next = rows.peek().map(|(next, _)| *next);
        attempts.push(attempt(facts, &life, place, row, next));
    }
    attempts
}

/// Returns what the task's own events tell of an attempt, as far as a row has it.
fn told(facts: &TaskFacts, life: &Life<'_>, place: Place) -> TaskRow {
    let decisive = decisive(life, place);
    let mut row = TaskRow {
        retries: place.retries,
        run: place.run,
        ..TaskRow::default()
    };
    row.set_state(life, place, decisive);
    row.set_times(facts, life, place, decisive);
    if decisive.is_none() {
        // That one had the attempt before.
        (row.worker, row.worker_pid) = (None, None);
    }
    row
}

/// Lays what was found after a gap over the attempt that it is about, which may be one that no event tells of.
fn lay_finding(rows: &mut BTreeMap<Place, TaskRow>, facts: &TaskFacts, life: &Life<'_>) {
    let newest = life.newest();
    let known = rows.get(&newest);
    let mut laid = known.cloned().unwrap_or_default();
    if !found::lay_over(&mut laid, facts, life, newest) {
        return;
    }
    let was_retried = known.is_some() && is_retried(decisive(life, newest));
    let retries = laid.retries.max(newest.retries.saturating_add(u32::from(was_retried)));
    let place = Place { retries, ..newest };
    if place != newest {
        // Worker and times of the known attempt are not this one's.
        laid = TaskRow::default();
        found::lay_over(&mut laid, facts, life, newest);
    }
    rows.insert(place, laid);
}

fn attempt(facts: &TaskFacts, life: &Life<'_>, place: Place, row: TaskRow, next: Option<Place>) -> Attempt {
    let outcome = outcome(&row, decisive(life, place), place, next);
    let retried = life
        .deliveries_at(place)
        .filter_map(|delivery| delivery.retried)
        .max_by_key(|fact| fact.key.at);
    let retried = retried.filter(|_| outcome == AttemptOutcome::Retried);
    // A finding brings its own error, or none.
    let is_found = matches!(row.mark, Some(TaskMark::Repaired | TaskMark::Incomplete));
    let error = error(facts, life, place, outcome).filter(|_| !is_found);
    let text = |of_row: Option<Arc<str>>, field| of_row.or_else(|| error.and_then(|texts| texts.share(field)));
    Attempt {
        retries: place.retries,
        run: place.run,
        outcome,
        worker: row.worker,
        worker_pid: row.worker_pid,
        eta: row.eta,
        sent_at: row.sent_at,
        received_at: row.received_at,
        started_at: row.started_at,
        finished_at: row.finished_at.or_else(|| retried.and_then(Fact::time)),
        exception: text(row.exception, Field::Exception),
        exception_class: text(row.exception_class, Field::ExceptionClass),
        traceback: text(row.traceback, Field::Traceback),
        deliveries: deliveries(life, place, outcome),
    }
}

/// Returns how an attempt ended, given the `next` one.
fn outcome(row: &TaskRow, decisive: Option<&Delivery<'_>>, place: Place, next: Option<Place>) -> AttemptOutcome {
    let own = AttemptOutcome::of(&row.state);
    let is_followed = next.is_some_and(|next| next.run == place.run);
    match own {
        // Its retry is sent before it ends.
        AttemptOutcome::Waiting | AttemptOutcome::Running | AttemptOutcome::Lost if is_followed => {
            AttemptOutcome::Retried
        }
        AttemptOutcome::Waiting if is_retried(decisive) => AttemptOutcome::Retried,
        AttemptOutcome::Waiting | AttemptOutcome::Running if next.is_some() => AttemptOutcome::Unknown,
        AttemptOutcome::Waiting
        | AttemptOutcome::Running
        | AttemptOutcome::Retried
        | AttemptOutcome::Succeeded
        | AttemptOutcome::Failed
        | AttemptOutcome::Rejected
        | AttemptOutcome::Revoked
        | AttemptOutcome::Expired
        | AttemptOutcome::Lost
        | AttemptOutcome::PutBack
        | AttemptOutcome::Unknown => own,
    }
}

fn is_retried(decisive: Option<&Delivery<'_>>) -> bool {
    decisive.is_some_and(|delivery| delivery.phase == Phase::Retry)
}

/// Returns the texts of the exception that an attempt ended with, unless only those of a later one are kept.
fn error<'f>(facts: &'f TaskFacts, life: &Life<'f>, place: Place, outcome: AttemptOutcome) -> Option<&'f Texts> {
    let told: (Step, fn(&Delivery<'f>) -> Option<&'f Fact>) = match outcome {
        AttemptOutcome::Failed => (Step::Failed, |delivery| delivery.failed),
        AttemptOutcome::Retried => (Step::Retried, |delivery| delivery.retried),
        AttemptOutcome::Waiting
        | AttemptOutcome::Running
        | AttemptOutcome::Succeeded
        | AttemptOutcome::Rejected
        | AttemptOutcome::Revoked
        | AttemptOutcome::Expired
        | AttemptOutcome::Lost
        | AttemptOutcome::PutBack
        | AttemptOutcome::Unknown => return None,
    };
    let (step, of) = told;
    let texts = facts.texts(step)?;
    let is_of = |delivery: &Delivery<'f>| of(delivery).is_some_and(|fact| fact.key == texts.key);
    life.deliveries_at(place).any(is_of).then_some(texts)
}

fn deliveries(life: &Life<'_>, place: Place, outcome: AttemptOutcome) -> Vec<AttemptDelivery> {
    let count = life.deliveries_at(place).count();
    // A retry that was not told is that of the delivery that was at it last.
    let unheard = outcome == AttemptOutcome::Retried
        && life
            .deliveries_at(place)
            .all(|delivery| delivery.phase != Phase::Retry && delivery.retried.is_none());
    let listed = life.deliveries_at(place).enumerate().map(|(index, delivery)| {
        let ended = delivery.decided.filter(|_| delivery.is_over()).map(|(_, fact)| fact);
        let own = of_delivery(delivery);
        let goes_on = matches!(own, AttemptOutcome::Waiting | AttemptOutcome::Running);
        let outcome = if goes_on && unheard && index + 1 == count {
            outcome
        } else if goes_on && !outcome.is_open() {
            AttemptOutcome::Unknown
        } else {
            own
        };
        AttemptDelivery {
            outcome,
            worker: Some(delivery.host).filter(|host| !host.is_empty()).map(Arc::clone),
            worker_pid: Some(delivery.pid).filter(|pid| *pid != UNKNOWN),
            received_at: delivery.received.and_then(Fact::time),
            started_at: delivery.started.and_then(Fact::time),
            finished_at: ended.and_then(Fact::time),
        }
    });
    listed.collect()
}

/// Returns how a delivery ended, looked at by itself.
fn of_delivery(delivery: &Delivery<'_>) -> AttemptOutcome {
    match delivery.phase {
        Phase::Retry => AttemptOutcome::Retried,
        Phase::Requeued => AttemptOutcome::PutBack,
        Phase::Waiting
        | Phase::Received
        | Phase::Started
        | Phase::Custom
        | Phase::Revoked
        | Phase::Rejected
        | Phase::Failure
        | Phase::Success => AttemptOutcome::of(&state_of(delivery)),
    }
}
