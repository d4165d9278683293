use std::collections::BTreeMap;

use kanchi_domain::{Event, Limits, RawMessage, decode};
use proptest::prelude::*;

use super::*;

fn row(state: TaskState, finished: i64, runtime: f64) -> TaskRow {
    TaskRow {
        state,
        name: Some("t".into()),
        queue: Some("q".into()),
        worker: Some("w".into()),
        finished_at: Some(UnixMicros(finished * MINUTE + 5)),
        runtime: Some(runtime),
        ..TaskRow::default()
    }
}

fn tallied(changes: &[(TaskRow, TaskRow)]) -> Vec<StatisticDelta> {
    let mut labels = Labels::default();
    let mut tally = Tally::new(&mut labels);
    for (before, after) in changes {
        let (before, after) = (labels.counted(before), labels.counted(after));
        tally.change(&before, &after);
    }
    tally.finish()
}

/// Minute, transition and count under the task's name.
fn counts(changes: &[(TaskRow, TaskRow)]) -> Vec<(i64, &'static str, i64)> {
    let mut all = Vec::new();
    for delta in tallied(changes) {
        if delta.dimension == Dimension::Task && delta.key == "t" {
            let counted =
                Transition::ALL.map(|one| (delta.minute.0 / MINUTE, one.as_str(), delta.measures.counts.get(one)));
            all.extend(counted.into_iter().filter(|(_, _, count)| *count != 0));
        }
    }
    all
}

#[test]
fn counts_an_ending_once_however_often_it_is_told() {
    let (open, failed) = (TaskRow::default(), row(TaskState::Failure, 3, 1.0));
    assert_eq!(
        counts(&[(open, failed.clone()), (failed.clone(), failed)]),
        [(3, "failed", 1)]
    );
}

#[test]
fn takes_back_what_later_events_disprove() {
    let (failed, succeeded) = (row(TaskState::Failure, 3, 1.0), row(TaskState::Success, 4, 2.0));
    assert_eq!(counts(&[(failed, succeeded)]), [(3, "failed", -1), (4, "succeeded", 1)]);
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
    assert_eq!(counts(&[(first, rerun.clone()), (rerun, second)]), [(5, "failed", 1)]);
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
        [(3, "succeeded", 1)]
    );
}

#[test]
fn an_ending_moves_with_its_name_queue_and_worker() {
    let before = row(TaskState::Success, 3, 1.0);
    let after = TaskRow {
        queue: Some("other".into()),
        ..before.clone()
    };
    let mut found: Vec<_> = tallied(&[(before, after)])
        .into_iter()
        .map(|delta| {
            let (counts, runtime) = (delta.measures.counts, delta.measures.runtime);
            let succeeded = counts.get(Transition::Succeeded);
            assert_eq!(runtime.sum_micros, succeeded * 1_000_000);
            assert_eq!(runtime.histogram.buckets(), [(bucket_of(1_000_000), succeeded)]);
            (delta.dimension, delta.key, succeeded)
        })
        .collect();
    found.sort();
    assert_eq!(
        found,
        [
            (Dimension::Queue, "other".to_owned(), 1),
            (Dimension::Queue, "q".to_owned(), -1)
        ],
        "nothing else changed"
    );
}

#[test]
fn marks_are_counted_beside_their_state() {
    let recovered = TaskRow {
        mark: Some(TaskMark::Recovered),
        ..row(TaskState::Success, 3, 1.0)
    };
    assert_eq!(
        counts(&[(TaskRow::default(), recovered)]),
        [(3, "succeeded", 1), (3, "recovered", 1)]
    );
}

#[test]
fn names_beyond_the_bound_are_counted_together() {
    let changes: Vec<_> = (0..KEYS_PER_BATCH + 7)
        .map(|number| {
            let named = TaskRow {
                name: Some(format!("{number}").into()),
                ..row(TaskState::Success, 3, 1.0)
            };
            (TaskRow::default(), named)
        })
        .collect();
    let deltas = tallied(&changes);
    let of = |key: &str| {
        let found = deltas
            .iter()
            .find(|delta| delta.dimension == Dimension::Task && delta.key == key);
        found.map(|delta| delta.measures.counts.get(Transition::Succeeded))
    };
    assert_eq!((of("0"), of(OTHER)), (Some(1), Some(7)));
    let all: i64 = deltas
        .iter()
        .filter(|delta| delta.dimension == Dimension::Queue)
        .map(|delta| delta.measures.counts.get(Transition::Succeeded))
        .sum();
    assert_eq!(all, KEYS_PER_BATCH as i64 + 7);
}

#[test]
fn names_that_no_task_has_any_more_are_forgotten() {
    let mut labels = Labels::default();
    let kept = labels.label(Some("kept"));
    for number in 0..LABELS * 4 {
        labels.label(Some(&number.to_string()));
        assert!(labels.known.len() <= LABELS + 1);
    }
    assert_eq!(labels.label(Some("kept")).address(), kept.address());
}

/// An event `second` seconds after some moment.
fn event(kind: &str, second: f64, host: &str, retries: Option<u32>) -> Event {
    let retries = retries.map_or(String::new(), |retries| format!(r#","retries":{retries}"#));
    let text = format!(
        r#"{{"type":"{kind}","uuid":"id","hostname":"{host}","pid":7,"clock":1,"utcoffset":0,"timestamp":{:.6}{retries}}}"#,
        1_700_000_000.0 + second
    );
    let message = RawMessage {
        body: text.as_bytes(),
        content_type: Some("application/json"),
        ..RawMessage::default()
    };
    decode(&message, UnixMicros(0), &Limits::default()).events.remove(0)
}

/// The wait that is counted once all of these are known, in seconds.
fn waited(events: &[Event]) -> Option<f64> {
    let mut labels = Labels::default();
    let (mut facts, mut tally) = (TaskFacts::new(), Tally::new(&mut labels));
    for event in events {
        let (mut news, mut steps) = (TaskFacts::new(), Vec::new());
        news.absorb(event);
        facts.absorb_all(news, &mut steps);
        let counted = labels.counted(&facts.project());
        for step in &steps {
            tally.step(step, event.arrived, &facts, &counted, &mut labels);
        }
    }
    let all = tally
        .finish()
        .into_iter()
        .filter(|delta| delta.dimension == Dimension::All);
    let mut sum = Measures::default();
    all.for_each(|delta| sum.merge(&delta.measures));
    sum.wait.mean_seconds()
}

#[test]
fn a_task_waits_from_its_sending_or_else_its_receipt_and_never_before_its_eta() {
    let sent = event("task-sent", 1.0, "client", Some(0));
    let received = event("task-received", 3.0, "w", Some(0));
    let started = event("task-started", 4.5, "w", None);
    let later = Event {
        eta: Some(UnixMicros(1_700_000_000_000_000 + 4_000_000)),
        ..received.clone()
    };
    assert_eq!(waited(&[sent.clone(), received.clone(), started.clone()]), Some(3.5));
    assert_eq!(waited(&[received.clone(), started.clone()]), Some(1.5));
    assert_eq!(waited(&[sent.clone(), later, started.clone()]), Some(0.5));
    assert_eq!(waited(std::slice::from_ref(&started)), None, "not known is not zero");
    let ahead = event("task-sent", 9.0, "client", Some(0));
    assert_eq!(waited(&[ahead, received, started]), Some(0.0), "a clock that is ahead");
}

#[test]
fn each_attempt_waits_by_itself() {
    let events = [
        event("task-sent", 0.0, "client", Some(0)),
        event("task-received", 1.0, "w", Some(0)),
        event("task-started", 2.0, "w", None),
        event("task-sent", 3.0, "w", Some(1)),
        event("task-received", 4.0, "w", Some(1)),
        event("task-retried", 4.5, "w", None),
        event("task-started", 7.0, "w", None),
    ];
    assert_eq!(waited(&events), Some(3.0), "two seconds and four");
}

fn ending() -> impl Strategy<Value = TaskRow> {
    let states = prop_oneof![
        Just(TaskState::Started),
        Just(TaskState::Success),
        Just(TaskState::Failure),
        Just(TaskState::Revoked)
    ];
    (states, 0..3_i64, 0..3_u8, 0..2_u8, 0.0..100.0).prop_map(|(state, minute, name, worker, runtime)| TaskRow {
        name: (name > 0).then(|| format!("task-{name}").into()),
        worker: Some(format!("worker-{worker}").into()),
        ..row(state, minute, runtime)
    })
}

fn summed(deltas: Vec<StatisticDelta>) -> BTreeMap<(i64, Dimension, String), Measures> {
    let mut sums: BTreeMap<_, Measures> = BTreeMap::new();
    for delta in deltas {
        let key = (delta.minute.0, delta.dimension, delta.key);
        sums.entry(key).or_default().merge(&delta.measures);
    }
    sums.retain(|_, measures| !measures.is_zero());
    sums
}

proptest! {
    /// However often a task turns out otherwise, and wherever batches are cut: what is left is its last row's.
    #[test]
    fn what_is_taken_back_cancels_exactly(rows in proptest::collection::vec(ending(), 1..8), cut in 0..8_usize) {
        let first = std::iter::once(TaskRow::default());
        let changes: Vec<_> = first.chain(rows.iter().cloned()).zip(rows.iter().cloned()).collect();
        let (one, other) = changes.split_at(cut.min(changes.len()));
        let mut deltas = tallied(one);
        deltas.extend(tallied(other));
        let last = rows.last().cloned().unwrap_or_default();
        prop_assert_eq!(summed(deltas), summed(tallied(&[(TaskRow::default(), last)])));
    }
}
