//! What was found after a gap, laid over what the task's own events told.
//!
//! A finding counts only while those events do not say how the newest attempt ended, and only if nothing shows that the
//! attempt began after it: so it changes neither runs nor attempts nor deliveries, and a late event of Celery takes it back.

use std::sync::Arc;

use super::TaskRow;
use super::attempts::{Life, Place};
use super::delivery::Delivery;
use crate::event::{PayloadField, TaskId};
use crate::facts::{Fact, Field, Flags, Step, TaskFacts, Texts, UNKNOWN};
use crate::orphan::Running;
use crate::state::{TaskMark, TaskState};
use crate::time::UnixMicros;

/// Lays the newest finding over a row that all other facts made; says whether there was one that counts.
pub(super) fn lay_over(row: &mut TaskRow, facts: &TaskFacts, life: &Life<'_>, place: Place) -> bool {
    if row.is_final() {
        return false;
    }
    let Some(found) = newest(facts, life, place) else {
        return false;
    };
    let texts = facts.texts(found.key.step);
    if found.key.step == Step::FoundStarted {
        if !matches!(row.state, TaskState::Pending | TaskState::Received | TaskState::Retry) {
            return false;
        }
        row.state = match lost(facts, found) {
            Some(_) => TaskState::Orphaned,
            None => TaskState::Started,
        };
        row.started_at = found.time();
    } else {
        row.end(found, texts);
    }
    row.mark = Some(mark(facts));
    row.retries = row.retries.max(found.retries.unwrap_or(0));
    if !found.key.host.is_empty() {
        if row.worker.as_ref() != Some(&found.key.host) {
            row.worker_pid = None;
        }
        row.worker = Some(Arc::clone(&found.key.host));
    }
    if let Some(texts) = texts {
        row.fill(texts);
    }
    true
}

/// Returns which process runs a task by what its worker was asked; `decisive` is the delivery that decides its state.
pub(super) fn running(
    facts: &TaskFacts,
    life: &Life<'_>,
    place: Place,
    decisive: Option<&Delivery<'_>>,
) -> Option<Running> {
    let waits = decisive.is_none_or(|delivery| !delivery.phase.is_final() && !delivery.is_running());
    let found = newest(facts, life, place).filter(|found| waits && found.key.step == Step::FoundStarted)?;
    Some(Running {
        hostname: Arc::clone(&found.key.host),
        pid: Some(found.key.pid).filter(|pid| *pid != UNKNOWN),
        began: UnixMicros(found.key.at),
        latest: UnixMicros(found.key.at),
        lost: lost(facts, found).map(|fact| UnixMicros(fact.key.at)),
    })
}

/// Says whether the result backend knows that the newest attempt has ended.
pub(super) fn has_ended(facts: &TaskFacts, life: &Life<'_>, place: Place) -> bool {
    newest(facts, life, place).is_some_and(|found| found.key.step != Step::FoundStarted)
}

/// Returns the newest finding, unless an attempt began after it that it cannot know of.
fn newest<'f>(facts: &'f TaskFacts, life: &Life<'_>, place: Place) -> Option<&'f Fact> {
    let found = facts.facts().iter().rfind(|fact| fact.key.step.is_found())?;
    let received = life
        .deliveries_at(place)
        .filter_map(|delivery| delivery.received)
        .map(|fact| fact.key.at)
        .max();
    // The first sending says nothing: the client's clock may be ahead.
    let begun = life
        .begin_of(place.run)
        .filter(|_| place.run > 0)
        .map(|fact| fact.key.at);
    let later = |at: Option<i64>| at.is_some_and(|at| at > found.key.at);
    (!later(received) && !later(begun) && !is_outdone(found, facts, life, place)).then_some(found)
}

/// Says whether the task's own events know better than this finding.
fn is_outdone(found: &Fact, facts: &TaskFacts, life: &Life<'_>, place: Place) -> bool {
    if found.key.step == Step::FoundStarted {
        // That it ran says nothing any more once that attempt was retried or put back.
        let gave_back = |fact: &Fact| {
            matches!(fact.key.step, Step::Retried | Step::Cancelled)
                || (fact.key.step == Step::Rejected && !fact.flags.has(Flags::FOR_GOOD))
        };
        return facts
            .facts()
            .iter()
            .any(|fact| fact.key.at > found.key.at && gave_back(fact));
    }
    // Celery 5.6 notes a revocation with the order already; a task that runs then goes on (wire protocol, section 5).
    let is_order =
        found.key.step == Step::FoundRevoked && !found.flags.has(Flags::EXPIRED) && !found.flags.has(Flags::TERMINATED);
    let runs = |delivery: &Delivery<'_>| delivery.started.is_some() && !delivery.is_over();
    is_order && life.deliveries_at(place).any(runs)
}

/// Returns the fact by which the process that was found running the task was given up, if it was.
fn lost<'f>(facts: &'f TaskFacts, found: &Fact) -> Option<&'f Fact> {
    let judged = facts.facts().iter().rfind(|fact| {
        matches!(fact.key.step, Step::Lost | Step::Back)
            && fact.key.host == found.key.host
            && fact.key.at >= found.key.at
    });
    judged.filter(|fact| fact.key.step == Step::Lost)
}

/// A task of which no event is known at all is incomplete.
fn mark(facts: &TaskFacts) -> TaskMark {
    let steps = facts.facts().iter().map(|fact| fact.key.step);
    let mut steps = steps.chain(facts.all_texts().iter().map(|texts| texts.key.step));
    if steps.any(Step::is_told) {
        TaskMark::Repaired
    } else {
        TaskMark::Incomplete
    }
}

impl TaskRow {
    /// The task has ended, as the result backend says.
    fn end(&mut self, found: &Fact, texts: Option<&Texts>) {
        if self.state == TaskState::Retry {
            // Those are of the attempt before.
            self.started_at = None;
        }
        (self.exception, self.exception_class, self.traceback) = (None, None, None);
        self.finished_at = found.time();
        let text = |field| texts.and_then(|texts| texts.share(field));
        if found.key.step == Step::FoundSucceeded {
            self.state = TaskState::Success;
            self.result = text(Field::Result);
            self.cut_like(texts, &[PayloadField::Result]);
        } else if found.key.step == Step::FoundFailed {
            self.state = TaskState::Failure;
            self.exception = text(Field::Exception);
            self.exception_class = text(Field::ExceptionClass);
            self.traceback = text(Field::Traceback);
            self.cut_like(texts, &[PayloadField::Exception, PayloadField::Traceback]);
        } else {
            let expired = found.flags.has(Flags::EXPIRED);
            self.state = if expired {
                TaskState::Expired
            } else {
                TaskState::Revoked
            };
            self.terminated = found.flags.has(Flags::TERMINATED);
        }
    }

    /// Takes what the task's own events left unknown.
    fn fill(&mut self, texts: &Texts) {
        let text = |field| texts.share(field);
        self.name = self.name.take().or_else(|| text(Field::Name));
        self.queue = self.queue.take().or_else(|| text(Field::Queue));
        self.parent_id = self
            .parent_id
            .take()
            .or_else(|| text(Field::ParentId).and_then(TaskId::shared));
        if self.args.is_none() {
            self.args = text(Field::Args);
            self.kwargs = text(Field::Kwargs);
            self.cut_like(Some(texts), &[PayloadField::Args, PayloadField::Kwargs]);
        }
    }

    fn cut_like(&mut self, texts: Option<&Texts>, fields: &[PayloadField]) {
        if let Some(texts) = texts {
            self.take_cut(texts, fields);
        }
    }
}
