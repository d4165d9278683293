//! Counts per minute: how many tasks were received, started, retried, and how they ended. Pure.
//!
//! Steps are counted once for each distinct event. Endings are counted by what the row says, because Celery sends some
//! of them twice: when later events show that a task ended otherwise, the first count is taken back.

use std::sync::Arc;

use foldhash::HashMap;
use kanchi_domain::{EventKind, TaskRow, TaskState, UnixMicros};
use kanchi_store::MinuteStat;

const MINUTE: i64 = 60_000_000;

/// How a task stood in the counts before a batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counted {
    run: u32,
    ending: Option<Ending>,
}

#[derive(Clone, Debug, PartialEq)]
struct Ending {
    minute: i64,
    name: Arc<str>,
    transition: &'static str,
    runtime: f64,
}

impl Counted {
    /// Returns what is counted of a row.
    pub fn of(row: &TaskRow) -> Self {
        let ending = ending(&row.state).map(|transition| Ending {
            minute: minute(row.finished_at.or(row.last_event_at).unwrap_or(UnixMicros(0))),
            name: row.name.clone().unwrap_or_default(),
            transition,
            runtime: row.runtime.filter(|runtime| runtime.is_finite()).unwrap_or(0.0),
        });
        Self { run: row.run, ending }
    }

    /// Returns the bytes on the heap.
    pub fn weight(&self) -> usize {
        self.ending.as_ref().map_or(0, |ending| ending.name.len())
    }
}

/// The counts of one batch.
#[derive(Debug, Default)]
pub struct Tally {
    counts: HashMap<(i64, Arc<str>, &'static str), Count>,
}

#[derive(Debug, Default)]
struct Count {
    tasks: i64,
    runtime_sum: f64,
    runtime_max: f64,
}

impl Tally {
    /// A distinct event of a task was stored.
    pub fn step(&mut self, kind: EventKind, at: UnixMicros, name: Option<&Arc<str>>) {
        let transition = match kind {
            EventKind::TaskSent => "sent",
            EventKind::TaskReceived => "received",
            EventKind::TaskStarted => "started",
            EventKind::TaskRetried => "retried",
            EventKind::TaskSucceeded
            | EventKind::TaskFailed
            | EventKind::TaskRejected
            | EventKind::TaskRevoked
            | EventKind::TaskCancelled
            | EventKind::TaskCustom
            | EventKind::TaskProgress
            | EventKind::TaskSteps
            | EventKind::WorkerOnline
            | EventKind::WorkerHeartbeat
            | EventKind::WorkerOffline
            | EventKind::WorkerOther
            | EventKind::Custom
            | EventKind::WorkerLost
            | EventKind::WorkerBack => return,
        };
        self.add(minute(at), name.cloned().unwrap_or_default(), transition, 1, 0.0);
    }

    /// A task's row changed from what was counted before.
    pub fn change(&mut self, before: &Counted, after: &Counted) {
        if before == after {
            return;
        }
        // A rerun under the same id does not disprove how the run before it ended.
        let same_run = before.run == after.run;
        if same_run && let Some(ending) = &before.ending {
            self.add(
                ending.minute,
                Arc::clone(&ending.name),
                ending.transition,
                -1,
                -ending.runtime,
            );
        }
        let again = !same_run && before.ending == after.ending;
        if let Some(ending) = after.ending.as_ref().filter(|_| !again) {
            self.add(
                ending.minute,
                Arc::clone(&ending.name),
                ending.transition,
                1,
                ending.runtime,
            );
        }
    }

    /// Returns the counts that are not zero.
    pub fn finish(self) -> Vec<MinuteStat> {
        let nonzero = self
            .counts
            .into_iter()
            .filter(|(_, count)| count.tasks != 0 || count.runtime_sum.abs() > 1e-9);
        nonzero
            .map(|((minute, task_name, transition), count)| MinuteStat {
                minute: UnixMicros(minute),
                task_name: (*task_name).to_owned(),
                transition: transition.to_owned(),
                count: count.tasks,
                runtime_sum: count.runtime_sum,
                runtime_max: count.runtime_max,
            })
            .collect()
    }

    fn add(&mut self, minute: i64, name: Arc<str>, transition: &'static str, count: i64, runtime: f64) {
        let entry = self.counts.entry((minute, name, transition)).or_default();
        entry.tasks += count;
        entry.runtime_sum += runtime;
        entry.runtime_max = entry.runtime_max.max(runtime);
    }
}

const fn ending(state: &TaskState) -> Option<&'static str> {
    match state {
        TaskState::Success => Some("succeeded"),
        TaskState::Failure => Some("failed"),
        TaskState::Revoked => Some("revoked"),
        TaskState::Rejected => Some("rejected"),
        TaskState::Expired => Some("expired"),
        TaskState::Pending
        | TaskState::Received
        | TaskState::Started
        | TaskState::Retry
        | TaskState::Orphaned
        | TaskState::Custom(_) => None,
    }
}

const fn minute(at: UnixMicros) -> i64 {
    at.0 - at.0.rem_euclid(MINUTE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(state: TaskState, finished: i64, runtime: f64) -> TaskRow {
        TaskRow {
            state,
            name: Some("t".into()),
            finished_at: Some(UnixMicros(finished * MINUTE + 5)),
            runtime: Some(runtime),
            ..TaskRow::default()
        }
    }

    fn counts(changes: &[(TaskRow, TaskRow)]) -> Vec<(i64, String, i64)> {
        let mut tally = Tally::default();
        for (before, after) in changes {
            tally.change(&Counted::of(before), &Counted::of(after));
        }
        let mut all: Vec<_> = tally
            .finish()
            .into_iter()
            .map(|stat| (stat.minute.0 / MINUTE, stat.transition, stat.count))
            .collect();
        all.sort();
        all
    }

    #[test]
    fn counts_an_ending_once_however_often_it_is_told() {
        let (open, failed) = (TaskRow::default(), row(TaskState::Failure, 3, 1.0));
        assert_eq!(
            counts(&[(open, failed.clone()), (failed.clone(), failed)]),
            [(3, "failed".into(), 1)]
        );
    }

    #[test]
    fn takes_back_what_later_events_disprove() {
        let (failed, succeeded) = (row(TaskState::Failure, 3, 1.0), row(TaskState::Success, 4, 2.0));
        assert_eq!(
            counts(&[(failed, succeeded)]),
            [(3, "failed".into(), -1), (4, "succeeded".into(), 1)]
        );
    }

    #[test]
    fn a_rerun_does_not_take_back_the_first_run() {
        let first = row(TaskState::Success, 3, 1.0);
        let rerun = TaskRow {
            run: 1,
            ..TaskRow::default()
        };
        let second = TaskRow {
            run: 1,
            ..row(TaskState::Failure, 5, 1.0)
        };
        assert_eq!(
            counts(&[(first, rerun.clone()), (rerun, second)]),
            [(5, "failed".into(), 1)]
        );
    }

    #[test]
    fn both_endings_of_one_batch_cancel_out_to_the_last() {
        let (open, failed, succeeded) = (
            TaskRow::default(),
            row(TaskState::Failure, 3, 1.0),
            row(TaskState::Success, 3, 2.0),
        );
        assert_eq!(
            counts(&[(open, failed.clone()), (failed, succeeded)]),
            [(3, "succeeded".into(), 1)]
        );
    }
}
