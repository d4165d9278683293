//! Failures of a batch by group: each task counts once, in the group that its row is of. Pure.
//!
//! They follow the endings that the statistics count: what a later event disproves is taken back, but not by a rerun.

use std::sync::Arc;

use foldhash::HashMap;
use kanchi_domain::{Failure, Fingerprint, TaskMark, TaskRow, UnixMicros};
use kanchi_store::statistics::OTHER;
use kanchi_store::{FailureDelta, LastFailure};

/// Groups that one batch tells apart. The failures of others go to one group for all, as [`OTHER`].
const GROUPS: usize = 256;

/// The failures of one batch.
#[derive(Debug, Default)]
pub struct Failures {
    groups: HashMap<Fingerprint, FailureDelta>,
}

impl Failures {
    /// The row of a task changed; `before` is what was counted. A failure without a time happened when it `arrived`.
    pub fn change(&mut self, task_id: &Arc<str>, before: Option<&TaskRow>, after: &TaskRow, arrived: UnixMicros) {
        let before = before.filter(|before| before.run == after.run);
        let (was, is) = (before.and_then(counted), counted(after));
        if was == is {
            return;
        }
        if let Some((group, critical)) = was {
            let delta = self.group(group);
            delta.failed -= 1;
            delta.critical -= i64::from(critical);
        }
        if let Some((group, critical)) = is {
            let delta = self.group(group);
            delta.failed += 1;
            delta.critical += i64::from(critical);
            let at = after.finished_at.or(after.last_event_at).unwrap_or(arrived);
            delta.first_at = Some(delta.first_at.map_or(at, |first| first.min(at)));
            if delta.last.as_ref().is_none_or(|last| last.at <= at) {
                delta.last = Some(LastFailure {
                    at,
                    task_id: Arc::clone(task_id),
                    exception: after.exception.clone(),
                });
            }
        }
    }

    /// Returns what changes anything.
    pub fn finish(self) -> Vec<FailureDelta> {
        let groups = self.groups.into_values();
        groups
            .filter(|delta| delta.failed != 0 || delta.critical != 0)
            .collect()
    }

    fn group(&mut self, mut group: Failure) -> &mut FailureDelta {
        if self.groups.len() >= GROUPS && !self.groups.contains_key(&group.fingerprint) {
            group = other();
        }
        self.groups.entry(group.fingerprint).or_insert_with(|| FailureDelta {
            group,
            failed: 0,
            critical: 0,
            first_at: None,
            last: None,
        })
    }
}

/// The group of a failure, and whether it is CRITICAL.
fn counted(row: &TaskRow) -> Option<(Failure, bool)> {
    Some((Failure::of(row)?, row.mark == Some(TaskMark::Critical)))
}

fn other() -> Failure {
    Failure {
        fingerprint: Fingerprint::of(OTHER, "", OTHER),
        task: OTHER.into(),
        exception_class: "".into(),
        message: OTHER.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use kanchi_domain::TaskState;

    use super::*;

    fn failed(message: &str, at: i64) -> TaskRow {
        TaskRow {
            state: TaskState::Failure,
            name: Some("t".into()),
            exception: Some(format!("E('{message}')").into()),
            exception_class: Some("E".into()),
            finished_at: Some(UnixMicros(at)),
            ..TaskRow::default()
        }
    }

    fn critical(message: &str) -> TaskRow {
        TaskRow {
            mark: Some(TaskMark::Critical),
            ..failed(message, 1)
        }
    }

    /// Message, failures and critical ones of each group.
    fn counts(changes: &[(Option<TaskRow>, TaskRow)]) -> Vec<(String, i64, i64)> {
        let mut failures = Failures::default();
        for (before, after) in changes {
            failures.change(&"id".into(), before.as_ref(), after, UnixMicros(9));
        }
        let one = |delta: FailureDelta| (delta.group.message, delta.failed, delta.critical);
        let mut all: Vec<_> = failures.finish().into_iter().map(one).collect();
        all.sort();
        all
    }

    fn of(message: &str, failed: i64, critical: i64) -> (String, i64, i64) {
        (message.to_owned(), failed, critical)
    }

    #[test]
    fn a_failure_counts_once_however_often_it_is_told() {
        let row = failed("boom 5", 1);
        assert_eq!(
            counts(&[
                (None, row.clone()),
                (Some(row.clone()), row),
                (None, failed("boom 6", 2))
            ]),
            [of("boom <n>", 2, 0)]
        );
        assert_eq!(counts(&[(None, TaskRow::default())]), []);
    }

    #[test]
    fn what_later_events_disprove_is_taken_back() {
        let succeeded = TaskRow {
            state: TaskState::Success,
            ..TaskRow::default()
        };
        assert_eq!(counts(&[(Some(critical("a")), succeeded)]), [of("a", -1, -1)]);
        assert_eq!(
            counts(&[(Some(failed("a", 1)), failed("b", 1))]),
            [of("a", -1, 0), of("b", 1, 0)]
        );
        assert_eq!(counts(&[(Some(failed("a", 1)), critical("a"))]), [of("a", 0, 1)]);
    }

    #[test]
    fn a_rerun_takes_nothing_back() {
        let rerun = TaskRow {
            run: 1,
            ..TaskRow::default()
        };
        let again = TaskRow {
            run: 1,
            ..failed("a", 1)
        };
        assert_eq!(counts(&[(Some(failed("a", 1)), rerun)]), []);
        assert_eq!(counts(&[(Some(failed("a", 1)), again)]), [of("a", 1, 0)]);
    }

    #[test]
    fn the_last_failure_stands_for_its_group() {
        let mut failures = Failures::default();
        for (id, at) in [("b", 20), ("c", 30), ("a", 10)] {
            failures.change(&id.into(), None, &failed(&format!("no {at}"), at), UnixMicros(9));
        }
        let unknown = TaskRow {
            finished_at: None,
            ..failed("no 0", 0)
        };
        failures.change(&"d".into(), None, &unknown, UnixMicros(5));
        let [delta] = <[FailureDelta; 1]>::try_from(failures.finish()).unwrap();
        assert_eq!((delta.failed, delta.first_at), (4, Some(UnixMicros(5))));
        let last = delta.last.unwrap();
        assert_eq!(
            (last.at, &*last.task_id, last.exception.as_deref()),
            (UnixMicros(30), "c", Some("E('no 30')"))
        );
    }

    #[test]
    fn groups_beyond_the_bound_are_one() {
        let mut failures = Failures::default();
        let words: Vec<String> = (0..GROUPS + 7).map(|number| "x".repeat(number + 1)).collect();
        for word in words.iter().chain(&words) {
            let row = TaskRow {
                name: Some(word.as_str().into()),
                ..failed("a", 1)
            };
            failures.change(&"id".into(), None, &row, UnixMicros(9));
        }
        let all = failures.finish();
        assert_eq!(all.len(), GROUPS + 1);
        let other = all.iter().find(|delta| &*delta.group.task == OTHER).unwrap();
        assert_eq!(other.failed, 14);
    }
}
