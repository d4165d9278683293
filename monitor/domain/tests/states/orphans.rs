//! Tasks of workers that were given up.

use kanchi_domain::{Event, Limits, RawMessage, TaskFacts, TaskId, TaskMark, TaskState, UnixMicros, decode};
use serde_json::json;

use crate::{BEGIN, add, events, facts, lost, seconds};

/// It was heard of at this second.
fn back(facts: &mut TaskFacts, heard: f64, pid: i64) {
    let (task, heard) = (
        TaskId::new("t").unwrap(),
        UnixMicros::from_seconds(BEGIN + heard).unwrap(),
    );
    let mut running = facts.running().unwrap();
    running.pid = Some(pid);
    facts.absorb(&Event::worker_back(task, &running, heard, UnixMicros(0)));
}

#[test]
fn a_running_task_of_a_lost_worker_is_orphaned_until_something_is_heard() {
    for begin in ["sent received started", "sent received started progress", "started"] {
        let mut task = facts(&events(begin));
        let running = task.project().state;
        lost(&mut task, 2.0);
        let row = task.project();
        assert_eq!(row.state, TaskState::Orphaned, "{begin}");
        assert_eq!((row.finished_at, row.worker.as_deref()), (None, Some("w@h")));
        assert!(!row.is_final());
        let mut healed = task.clone();
        back(&mut healed, 30.0, 1);
        assert_eq!(healed.project().state, running, "{begin}");
        let mut another = task.clone();
        back(&mut another, 30.0, 2);
        assert_eq!(
            another.project().state,
            TaskState::Orphaned,
            "another process says nothing of this one"
        );
        lost(&mut healed, 60.0);
        assert_eq!(healed.project().state, TaskState::Orphaned, "lost once more");
    }
}

#[test]
fn what_does_not_run_is_not_orphaned() {
    for text in [
        "sent",
        "sent received",
        "sent received started retried",
        "sent received started succeeded",
    ] {
        assert_eq!(facts(&events(text)).running(), None, "{text}");
    }
    let mut ended = facts(&events("sent received started"));
    lost(&mut ended, 10.0);
    add(&mut ended, "succeeded(at=5)");
    let row = ended.project();
    assert_eq!(
        (row.state, row.mark),
        (TaskState::Success, None),
        "it had ended before the loss"
    );
}

#[test]
fn a_task_that_survives_its_worker_is_recovered() {
    let mut late = facts(&events("sent received started"));
    lost(&mut late, 2.0);
    add(&mut late, "succeeded(at=90)");
    let row = late.project();
    assert_eq!((row.state, row.mark), (TaskState::Success, Some(TaskMark::Recovered)));
    assert_eq!(seconds(row.finished_at), Some(90.0));

    let mut elsewhere = facts(&events("sent received started"));
    lost(&mut elsewhere, 2.0);
    add(&mut elsewhere, "received@v(retries=0,at=60)");
    assert_eq!(
        elsewhere.project().state,
        TaskState::Received,
        "another worker has it now"
    );
    add(&mut elsewhere, "started@v(at=61)");
    add(&mut elsewhere, "succeeded@v(at=62)");
    let row = elsewhere.project();
    assert_eq!(
        (row.mark, row.worker.as_deref()),
        (Some(TaskMark::Recovered), Some("v@h"))
    );

    let mut failed = facts(&events("sent received started"));
    lost(&mut failed, 2.0);
    add(&mut failed, "failed(at=90)");
    assert_eq!(
        (failed.project().state, failed.project().mark),
        (TaskState::Failure, None)
    );
}

#[test]
fn a_loss_comes_after_what_a_process_of_the_pool_told() {
    // The pool's process told of progress after the last heartbeat, and died with its worker.
    let mut task = facts(&events("sent received started progress(at=4)"));
    lost(&mut task, 3.0);
    assert_eq!(task.project().state, TaskState::Orphaned);
    add(&mut task, "progress(at=9)");
    assert_eq!(task.project().state.as_str(), "PROGRESS");
}

#[test]
fn nobody_else_can_say_that_a_worker_is_lost() {
    let mut told = events("sent received started");
    for (at, kind) in [(5.0, "kanchi-worker-lost"), (6.0, "kanchi-worker-back")] {
        told.push(json!({"type": kind, "hostname": "w@h", "pid": 1, "uuid": "t", "timestamp": BEGIN + at, "told_by": "kanchi"}));
    }
    let body = serde_json::to_vec(&told).unwrap();
    let message = RawMessage {
        body: &body,
        ..RawMessage::default()
    };
    let decoded = decode(&message, UnixMicros(0), &Limits::default());
    let mut facts = TaskFacts::new();
    for event in &decoded.events {
        facts.absorb(event);
        assert!(!event.kind.is_own());
        assert!(!event.to_json().contains(r#","told_by":"kanchi","#));
    }
    assert_eq!(facts.project().state, TaskState::Started);
    let own = Event::worker_lost(
        TaskId::new("t").unwrap(),
        &facts.running().unwrap(),
        UnixMicros(0),
        UnixMicros(0),
    );
    assert!(own.to_json().contains(r#""told_by":"kanchi""#));
}
