//! The row is a function of the set of distinct events.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

use std::sync::Arc;

use kanchi_domain::{
    Absorbed, Attempt, AttemptOutcome, Event, EventKind, Limits, RawMessage, Running, RunningInfo, TaskFacts, TaskMark,
    TaskRow, TaskState, UnixMicros, decode,
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn decode_all(events: &[Value]) -> Vec<Event> {
    let body = serde_json::to_vec(events).unwrap();
    let message = RawMessage {
        body: &body,
        content_type: Some("application/json"),
        ..RawMessage::default()
    };
    let decoded = decode(&message, UnixMicros(1_795_300_000_000_000), &Limits::default());
    assert!(decoded.rejects.is_empty(), "{:?}", decoded.rejects);
    decoded.events.into_iter().map(finding).collect()
}

/// Makes Kanchi's own event of one that only calls itself so: on the wire there is none.
fn finding(told: Event) -> Event {
    let make = match &*told.type_name {
        "kanchi-task-started" => return found_running(&told),
        "kanchi-task-succeeded" => return found_result(&told, "SUCCESS"),
        "kanchi-task-failed" => return found_result(&told, "FAILURE"),
        "kanchi-task-revoked" => return found_result(&told, "REVOKED"),
        "kanchi-worker-lost" => Event::worker_lost,
        "kanchi-worker-back" => Event::worker_back,
        _ => return told,
    };
    let running = Running {
        hostname: Arc::clone(&told.hostname),
        pid: told.pid,
        began: UnixMicros(0),
        latest: UnixMicros(0),
        lost: None,
    };
    let task = told.task_id.clone().unwrap();
    make(task, &running, told.timestamp, told.arrived)
}

/// The finding that a record of the result backend makes, with the sender, time and texts of this event.
fn found_result(told: &Event, status: &str) -> Event {
    let (task, text) = (told.task_id.clone().unwrap(), told.result.as_deref());
    let record = json!({
        "status": status, "date_done": told.timestamp.as_seconds(), "worker": &*told.hostname, "retries": told.retries,
        "result": if status == "SUCCESS" { json!(text) } else { json!({"exc_type": "E", "exc_message": [text]}) },
        "name": told.name.as_deref(), "queue": told.queue.as_deref(), "args": [text], "kwargs": {},
    });
    let record = serde_json::to_vec(&record).unwrap();
    Event::found_result(&task, &record, told.arrived).unwrap().unwrap()
}

/// The finding that this event's sender runs the task.
fn found_running(told: &Event) -> Event {
    let info = RunningInfo {
        name: told.name.as_deref().map(str::to_owned),
        ..RunningInfo::default()
    };
    let task = told.task_id.clone().unwrap();
    Event::found_running(&task, &told.hostname, told.timestamp, &info, told.arrived)
}

const TYPES: [&str; 20] = [
    "task-sent",
    "task-received",
    "task-started",
    "task-succeeded",
    "task-failed",
    "task-retried",
    "task-rejected",
    "task-revoked",
    "task-cancelled",
    "task-progress",
    "task-other",
    "kanchi-task-progress",
    "kanchi-task-steps",
    "worker-heartbeat",
    "kanchi-worker-lost",
    "kanchi-worker-back",
    "kanchi-task-started",
    "kanchi-task-succeeded",
    "kanchi-task-failed",
    "kanchi-task-revoked",
];

fn any_event() -> impl Strategy<Value = Value> {
    any_event_of(0..TYPES.len())
}

prop_compose! {
    fn any_event_of(kinds: std::ops::Range<usize>)(
        kind in kinds, host in 0..3_u8, pid in 0..2_u8, clock in proptest::option::of(0..6_i64),
        at in proptest::option::weighted(0.9, 0..12_i64), retries in proptest::option::of(0..3_u32), flag in any::<bool>(), text in 0..3_u8,
    ) -> Value {
        let mut event = json!({
            "type": TYPES[kind], "hostname": format!("w{host}@h"), "pid": pid, "clock": clock, "uuid": "t", "task_id": "t",
            "retries": retries, "requeue": flag, "terminated": flag, "expired": !flag, "signum": 15, "result": format!("r{text}"),
            "exception": format!("E{text}()"), "traceback": "Traceback\n", "args": format!("({text},)"), "kwargs": "{}", "name": "n",
            "progress": f64::from(text) * 60.0 - 10.0, "step_key": format!("k{text}"), "message": format!("m{host}"), "meta": {"pid": pid}, "queue": "q", "runtime": f64::from(text), "expires": if flag { json!("2026-11-21T00:10:50+00:00") } else { json!(null) },
        });
        if TYPES[kind] == "kanchi-task-steps" {
            event["steps"] = json!([{"key": format!("k{text}"), "total": clock}, {"key": "last", "order": at}, "k2", text]);
            event["progress"] = json!(null);
        }
        if let Some(at) = at {
            event["timestamp"] = json!(1_795_219_800.0 + at as f64);
        }
        event
    }
}

fn absorb(events: &[Event]) -> TaskFacts {
    let mut facts = TaskFacts::new();
    for event in events {
        facts.absorb(event);
    }
    facts
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn order_duplicates_and_batches_do_not_matter(
        (events, shuffled) in proptest::collection::vec(any_event(), 0..60).prop_flat_map(|events| {
            let twice: Vec<_> = events.iter().chain(events.iter().step_by(2)).cloned().collect();
            (Just(events), Just(twice).prop_shuffle())
        }),
        cut in 0..60_usize,
        other_cut in 0..60_usize,
    ) {
        let straight = absorb(&decode_all(&events));
        let shuffled = decode_all(&shuffled);
        let again = absorb(&shuffled);
        prop_assert_eq!(&straight, &again);
        prop_assert_eq!(straight.encode(), again.encode());
        prop_assert_eq!(straight.project(), again.project());
        prop_assert_eq!(straight.attempts(), again.attempts());

        let (first, rest) = shuffled.split_at(cut.min(shuffled.len()));
        let (second, third) = rest.split_at(other_cut.min(rest.len()));
        let (first, second, third) = (absorb(first), absorb(second), absorb(third));
        let merged = |parts: [&TaskFacts; 3]| {
            let mut facts = TaskFacts::decode(&parts[0].encode()).unwrap();
            facts.merge(parts[1]);
            facts.merge(parts[2]);
            facts.encode()
        };
        prop_assert_eq!(merged([&first, &second, &third]), straight.encode());
        prop_assert_eq!(merged([&third, &first, &second]), straight.encode());
        let mut right = second.clone();
        right.merge(&third);
        prop_assert_eq!(merged([&first, &right, &right]), straight.encode());
    }

    #[test]
    fn what_is_known_is_told_apart_from_what_is_new(events in proptest::collection::vec(any_event(), 0..12)) {
        let events = decode_all(&events);
        let mut facts = absorb(&events);
        let before = facts.encode();
        for event in &events {
            prop_assert_ne!(facts.absorb(event), Absorbed::New);
        }
        prop_assert_eq!(before, facts.encode());
    }

    #[test]
    fn stored_facts_come_back_and_damage_is_noticed(events in proptest::collection::vec(any_event(), 0..40), at in any::<usize>(), byte in any::<u8>()) {
        let facts = absorb(&decode_all(&events));
        let mut bytes = facts.encode();
        prop_assert_eq!(&TaskFacts::decode(&bytes).unwrap(), &facts);
        let at = at % bytes.len();
        prop_assert!(TaskFacts::decode(&bytes[..at]).is_err());
        bytes[at] = byte;
        // Whatever it says, it does not panic, and what it accepts can be projected and written.
        if let Ok(facts) = TaskFacts::decode(&bytes) {
            facts.project();
            facts.attempts();
            facts.encode();
        }
    }
}

#[test]
fn facts_are_bounded() {
    let events = |count: i64| -> Vec<Value> {
        let event = |n: i64, kind: &str| {
            json!({
                "type": kind, "hostname": "w@h", "uuid": "t", "task_id": "t", "timestamp": 1_795_219_800 + n, "clock": n,
                "retries": n, "exception": "E()", "progress": n,
            })
        };
        (0..count).flat_map(|n| TYPES.map(|kind| event(n, kind))).collect()
    };
    let facts = absorb(&decode_all(&events(500)));
    assert!(facts.encode().len() < 8_192);
    let attempts = facts.attempts();
    assert!((16..=33).contains(&attempts.len()), "{}", attempts.len());
    // As many as there can be facts: 16 of nine types, 8 custom ones, 6 of each of Kanchi's own six.
    assert!(attempts.iter().map(|attempt| attempt.deliveries.len()).sum::<usize>() <= 188);
    assert!(facts.project().thinned);
    assert!(!absorb(&decode_all(&events(2))).project().thinned);
}

// === The attempts one by one ===

/// Says in what the last attempt and the row disagree.
fn disagreement(row: &TaskRow, last: &Attempt) -> Option<&'static str> {
    let outcomes: &[AttemptOutcome] = match row.state {
        TaskState::Pending | TaskState::Received => &[AttemptOutcome::Waiting],
        TaskState::Retry => &[AttemptOutcome::Waiting, AttemptOutcome::Retried],
        TaskState::Started | TaskState::Custom(_) => &[AttemptOutcome::Running],
        TaskState::Orphaned => &[AttemptOutcome::Lost],
        TaskState::Success => &[AttemptOutcome::Succeeded],
        TaskState::Failure => &[AttemptOutcome::Failed],
        TaskState::Revoked => &[AttemptOutcome::Revoked],
        TaskState::Rejected => &[AttemptOutcome::Rejected],
        TaskState::Expired => &[AttemptOutcome::Expired],
    };
    // Of an attempt that no event tells of the row shows what it knows of the one before.
    let found = row
        .mark
        .is_some_and(|mark| matches!(mark, TaskMark::Repaired | TaskMark::Incomplete));
    let same = |alike: bool, is_none: bool| alike || (found && is_none);
    let no_worker = last.deliveries.is_empty() && last.worker.is_none();
    let error = (&last.exception, &last.exception_class, &last.traceback);
    let is_retried = last.outcome == AttemptOutcome::Retried;
    let checks = [
        ("state", outcomes.contains(&last.outcome)),
        ("run", last.run == row.run),
        (
            "retries",
            last.retries == row.retries || (found && last.retries > row.retries),
        ),
        (
            "deliveries",
            last.deliveries.len() == row.deliveries as usize || (found && last.deliveries.is_empty()),
        ),
        ("worker", no_worker || last.worker == row.worker),
        (
            "pid",
            no_worker || same(last.worker_pid == row.worker_pid, last.worker_pid.is_none()),
        ),
        ("sent", same(last.sent_at == row.sent_at, last.sent_at.is_none())),
        ("eta", same(last.eta == row.eta, last.eta.is_none())),
        (
            "received",
            same(last.received_at == row.received_at, last.received_at.is_none()),
        ),
        (
            "started",
            same(last.started_at == row.started_at, last.started_at.is_none()),
        ),
        ("finished", is_retried || last.finished_at == row.finished_at),
        ("retried", !is_retried || last.finished_at <= row.retried_at),
        (
            "error",
            last.exception.is_none() || error == (&row.exception, &row.exception_class, &row.traceback),
        ),
    ];
    checks.iter().find(|(_, agrees)| !agrees).map(|(field, _)| *field)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn attempts_are_a_function_of_the_set_of_events(
        (events, shuffled) in proptest::collection::vec(any_event(), 0..40).prop_flat_map(|events| {
            let twice: Vec<_> = events.iter().chain(events.iter().step_by(3)).cloned().collect();
            (Just(events), Just(twice).prop_shuffle())
        }),
        batch in 1..20_usize,
    ) {
        let attempts = absorb(&decode_all(&events)).attempts();
        let shuffled = decode_all(&shuffled);
        prop_assert_eq!(&attempts, &absorb(&shuffled).attempts());
        let stored: Vec<_> = shuffled.chunks(batch).map(|events| absorb(events).encode()).collect();
        let joined = |batches: &mut dyn Iterator<Item = &Vec<u8>>| {
            let mut facts = TaskFacts::new();
            for batch in batches {
                facts.absorb_all(TaskFacts::decode(batch).unwrap(), &mut Vec::new());
            }
            facts.attempts()
        };
        prop_assert_eq!(&attempts, &joined(&mut stored.iter()));
        prop_assert_eq!(&attempts, &joined(&mut stored.iter().rev().chain(&stored)));
    }

    #[test]
    fn the_last_attempt_is_the_one_of_the_row(events in proptest::collection::vec(any_event(), 0..25)) {
        let facts = absorb(&decode_all(&events));
        let (row, attempts) = (facts.project(), facts.attempts());
        let Some(last) = attempts.last() else {
            prop_assert_eq!((row.state, row.mark, row.deliveries, row.sent_at), (TaskState::Pending, None, 0, None));
            return Ok(());
        };
        prop_assert_eq!(disagreement(&row, last), None, "{:#?} {:#?}", row, last);
        prop_assert!(attempts.is_sorted_by_key(|attempt| (attempt.run, attempt.retries)));
        for pair in attempts.windows(2) {
            prop_assert!((pair[0].run, pair[0].retries) < (pair[1].run, pair[1].retries));
            let goes_on = matches!(pair[0].outcome, AttemptOutcome::Waiting | AttemptOutcome::Running);
            prop_assert!(!goes_on, "{:#?}", pair);
            prop_assert!(pair[0].run < pair[1].run || !pair[0].outcome.is_open(), "{:#?}", pair);
        }
        let outcomes = || attempts.iter().map(|attempt| attempt.outcome);
        prop_assert!(outcomes().all(|outcome| outcome != AttemptOutcome::PutBack));
        prop_assert!(last.outcome != AttemptOutcome::Unknown);
        for (outcome, most) in [(AttemptOutcome::Failed, 2), (AttemptOutcome::Retried, 1)] {
            let told = |attempt: &&Attempt| attempt.outcome == outcome && attempt.exception.is_some();
            prop_assert!(attempts.iter().filter(told).count() <= most, "the texts of the latest are kept");
        }
        prop_assert!(attempts.iter().all(|attempt| attempt.exception.is_none()
            || matches!(attempt.outcome, AttemptOutcome::Failed | AttemptOutcome::Retried)));
    }
}

// === What is found after a gap ===

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the task's own events are, and whatever is found: once they tell how it ended, that is what the row shows.
    #[test]
    fn a_finding_changes_nothing_that_events_tell(
        (told, mixed) in (
            proptest::collection::vec(any_event_of(0..16), 0..20),
            proptest::collection::vec(any_event_of(16..20), 1..4),
        ).prop_flat_map(|(told, found)| {
            let mixed: Vec<_> = told.iter().cloned().chain(found).collect();
            (Just(told), Just(mixed).prop_shuffle())
        }),
    ) {
        let (told, both) = (absorb(&decode_all(&told)), absorb(&decode_all(&mixed)));
        let (before, after) = (told.attempts(), both.attempts());
        let earlier = before.len().saturating_sub(1);
        prop_assert!(after.len() >= before.len() && after.len() <= before.len() + 1);
        prop_assert_eq!(&before[..earlier], &after[..earlier], "a finding is about the last attempt");
        let (told, both) = (told.project(), both.project());
        if told.is_final() {
            prop_assert_eq!(&told, &both);
            prop_assert_eq!(&before, &after);
        }
        // What is told of the sending, the runs and the deliveries stays as it is in any case.
        prop_assert_eq!((told.run, told.deliveries, told.sent_at, told.received_at), (both.run, both.deliveries, both.sent_at, both.received_at));
        prop_assert_eq!((told.first_event_at, told.last_event_at, &told.progress), (both.first_event_at, both.last_event_at, &both.progress));
        if both.mark.is_some_and(|mark| matches!(mark, TaskMark::Repaired | TaskMark::Incomplete)) {
            prop_assert!(!told.is_final());
        } else {
            prop_assert_eq!(&told, &both, "a row that a finding changed says so");
        }
    }

    /// A task whose end fell into a gap has the state that the backend holds; its true end takes that back, whenever it comes.
    #[test]
    fn a_repaired_task_is_what_it_would_have_been(
        kinds in one_attempt(), cut in 0..8_usize, end in prop::sample::select(vec![("task-succeeded", "SUCCESS"), ("task-failed", "FAILURE"), ("task-revoked", "REVOKED")]),
        order in any::<u64>(),
    ) {
        let (end, status) = end;
        let mut kinds: Vec<&str> = kinds.into_iter().filter(|kind| !matches!(*kind, "task-succeeded" | "task-failed" | "task-revoked" | "task-retried")).collect();
        kinds.push(end);
        let told: Vec<Value> = kinds.iter().enumerate().map(|(index, kind)| json!({
            "type": kind, "hostname": if *kind == "task-sent" { "gen1@h" } else { "w@h" }, "pid": 2, "uuid": "t",
            "timestamp": 1_795_219_800 + index, "result": "r", "exception": "E('r')", "name": "n", "terminated": false,
        })).collect();
        // The record was made a moment before the worker told of the end, or of a start that a fast task overtook.
        let record = json!({
            "type": format!("kanchi-{end}"), "hostname": "w@h", "uuid": "t", "name": "n",
            // An order to revoke alone ends no task that runs.
            "result": if end == "task-revoked" { "terminated" } else { "r" },
            "timestamp": 1_795_219_800.0 + (kinds.len() - 1) as f64 - 0.001,
        });
        let found = decode_all(&[record]);
        let told = decode_all(&told);
        let without = &told[..cut.min(told.len() - 1)];

        let repaired = absorb(&[without, &found].concat()).project();
        prop_assert_eq!(repaired.state.as_str(), status);
        prop_assert_eq!(repaired.finished_at, Some(found[0].timestamp));
        prop_assert_eq!(repaired.name.as_deref(), Some("n"));
        prop_assert_eq!(repaired.mark, Some(if without.is_empty() { TaskMark::Incomplete } else { TaskMark::Repaired }));

        let mut all = [&told[..], &found].concat();
        let turn = usize::try_from(order % all.len() as u64).unwrap();
        all.rotate_left(turn);
        prop_assert_eq!(absorb(&all).project(), absorb(&told).project());
    }
}

#[test]
fn a_task_that_begins_again_is_not_what_its_record_says() {
    let received = json!({"type": "task-received", "hostname": "w@h", "pid": 2, "uuid": "t", "timestamp": 1_795_219_800, "retries": 0});
    let done = json!({"type": "kanchi-task-failed", "hostname": "w@h", "uuid": "t", "timestamp": 1_795_219_810, "result": "r"});
    let mut again = received.clone();
    again["timestamp"] = json!(1_795_219_820);
    again["hostname"] = json!("x@h");
    let row = absorb(&decode_all(&[received.clone(), done.clone(), again])).project();
    assert_eq!((row.state, row.mark), (TaskState::Received, None));
    let row = absorb(&decode_all(&[received, done])).project();
    assert_eq!((row.state, row.mark), (TaskState::Failure, Some(TaskMark::Repaired)));
    assert_eq!(row.exception_class.as_deref(), Some("E"));
}

#[test]
fn a_retry_after_it_was_found_running_is_a_retry() {
    let at = |kind: &str, second: i64| json!({"type": kind, "hostname": "w@h", "pid": 2, "uuid": "t", "timestamp": 1_795_219_800 + second, "retries": 0});
    let found = at("kanchi-task-started", 5);
    for (kind, state) in [
        ("task-retried", TaskState::Retry),
        ("task-cancelled", TaskState::Pending),
    ] {
        let facts = absorb(&decode_all(&[at("task-received", 0), found.clone(), at(kind, 9)]));
        assert_eq!((facts.project().state, facts.project().mark), (state, None), "{kind}");
        assert!(facts.running().is_none());
    }
    let before = absorb(&decode_all(&[at("task-received", 0), at("task-retried", 3), found])).project();
    assert_eq!(
        (before.state, before.mark),
        (TaskState::Started, Some(TaskMark::Repaired)),
        "the next attempt runs"
    );
}

#[test]
fn an_order_to_revoke_ends_no_task_that_runs() {
    let at = |kind: &str, second: i64| json!({"type": kind, "hostname": "w@h", "pid": 2, "uuid": "t", "timestamp": 1_795_219_800 + second});
    let (received, started, revoked) = (
        at("task-received", 0),
        at("task-started", 1),
        at("kanchi-task-revoked", 5),
    );
    let row = absorb(&decode_all(&[received.clone(), revoked.clone()])).project();
    assert_eq!((row.state, row.mark), (TaskState::Revoked, Some(TaskMark::Repaired)));
    let facts = absorb(&decode_all(&[received.clone(), started.clone(), revoked.clone()]));
    assert_eq!(
        (facts.project().state, facts.project().mark),
        (TaskState::Started, None)
    );
    assert!(facts.running().is_some(), "its worker may still be lost");
    let mut terminated = revoked;
    terminated["result"] = json!("terminated");
    let row = absorb(&decode_all(&[received, started, terminated])).project();
    assert_eq!((row.state, row.terminated), (TaskState::Revoked, true));
}

#[test]
fn a_task_found_running_is_orphaned_with_its_worker_and_healed_by_it() {
    let received = json!({"type": "task-received", "hostname": "w@h", "pid": 2, "uuid": "t", "timestamp": 1_795_219_800, "retries": 0});
    let found =
        json!({"type": "kanchi-task-started", "hostname": "w@h", "uuid": "t", "timestamp": 1_795_219_801, "name": "n"});
    let mut events = decode_all(&[received, found]);
    let facts = absorb(&events);
    let row = facts.project();
    assert_eq!((row.state, row.mark), (TaskState::Started, Some(TaskMark::Repaired)));
    let running = facts.running().unwrap();
    assert_eq!((&*running.hostname, running.lost), ("w@h", None));
    let task = events[0].task_id.clone().unwrap();
    events.push(Event::worker_lost(
        task.clone(),
        &running,
        running.latest,
        UnixMicros(1),
    ));
    let facts = absorb(&events);
    assert_eq!(facts.project().state, TaskState::Orphaned);
    let lost = facts.running().unwrap();
    assert!(lost.lost.is_some());
    events.push(Event::worker_back(
        task,
        &lost,
        UnixMicros(1_795_219_900_000_000),
        UnixMicros(2),
    ));
    assert_eq!(absorb(&events).project().state, TaskState::Started);
}

// === Celery's own rules as an oracle, for one attempt whose events come in order (wire protocol, section 3.8) ===

struct Oracle {
    state: &'static str,
    timestamp: f64,
}

fn precedence(state: &str) -> u8 {
    match state {
        "SUCCESS" => 0,
        "FAILURE" => 1,
        "REVOKED" => 3,
        "STARTED" => 4,
        "RECEIVED" => 5,
        "REJECTED" => 6,
        "RETRY" => 7,
        "PENDING" => 8,
        _ => 2,
    }
}

impl Oracle {
    fn apply(&mut self, kind: &str, timestamp: f64) {
        let new = match kind {
            "task-sent" => "PENDING",
            "task-received" => "RECEIVED",
            "task-started" => "STARTED",
            "task-succeeded" => "SUCCESS",
            "task-failed" => "FAILURE",
            "task-retried" => "RETRY",
            "task-revoked" => "REVOKED",
            "task-rejected" => "REJECTED",
            "task-progress" => "PROGRESS",
            _ => "OTHER",
        };
        if new != "RETRY" && self.state != "RETRY" && precedence(new) > precedence(self.state) {
            return;
        }
        (self.state, self.timestamp) = (new, timestamp);
    }
}

/// One attempt: sent at most once, received before its end, custom events, then ends in any number, at last maybe a retry.
fn one_attempt() -> impl Strategy<Value = Vec<&'static str>> {
    let alive = prop::sample::select(vec!["task-received", "task-started", "task-progress", "task-other"]);
    let ends = prop::sample::select(vec!["task-succeeded", "task-failed", "task-revoked", "task-started"]);
    (
        proptest::collection::vec(alive, 0..6),
        proptest::collection::vec(ends, 0..4),
        any::<usize>(),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(mut kinds, ends, sent_at, sent, retried)| {
            // The one difference: an application's own state does not hide REVOKED (docs/states.md).
            if ends.contains(&"task-revoked") {
                kinds.retain(|kind| !matches!(*kind, "task-progress" | "task-other"));
            }
            kinds.extend(ends);
            if sent {
                kinds.insert(sent_at % (kinds.len() + 1), "task-sent");
            }
            if retried {
                kinds.push("task-retried");
            }
            kinds
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_attempt_in_order_has_the_state_that_celery_gives_it(kinds in one_attempt(), retries in 0..3_u32) {
        let mut oracle = Oracle { state: "PENDING", timestamp: 0.0 };
        let mut facts = TaskFacts::new();
        for (index, kind) in kinds.iter().enumerate() {
            let timestamp = 1_795_219_800.0 + index as f64;
            oracle.apply(kind, timestamp);
            let event = match *kind {
                "task-sent" => json!({"type": kind, "hostname": "gen1@h", "pid": 1, "retries": retries}),
                "task-received" => json!({"type": kind, "hostname": "w@h", "pid": 2, "retries": retries}),
                "task-progress" => json!({"type": kind, "hostname": "w@h", "pid": 3}),
                "task-other" => json!({"type": kind, "hostname": "gen3@h", "pid": 3}),
                _ => json!({"type": kind, "hostname": "w@h", "pid": 2}),
            };
            let mut event = event;
            event["uuid"] = json!("t");
            event["timestamp"] = json!(timestamp);
            facts.absorb(&decode_all(&[event])[0]);
            let state = facts.project().state;
            prop_assert_eq!(state.as_str(), oracle.state, "{:?} of {:?}", index, kinds);
        }
    }
}

#[test]
fn an_event_without_a_task_changes_nothing() {
    let mut facts = TaskFacts::new();
    let events = decode_all(&[
        json!({"type": "worker-online", "hostname": "w@h"}),
        json!({"type": "x-tz", "hostname": "w@h", "uuid": "t"}),
    ]);
    assert!(events.iter().all(|event| facts.absorb(event) == Absorbed::NotATask));
    assert!(facts.is_empty());
    assert_eq!(facts.project().state, TaskState::Pending);
}

#[test]
fn identity_is_of_hostname_pid_clock_timestamp_type_and_task() {
    let base = json!({"type": "task-started", "hostname": "w@h", "pid": 1, "clock": 1, "timestamp": 1_795_219_800.5, "uuid": "t"});
    let event = &decode_all(std::slice::from_ref(&base))[0];
    let mut same = event.clone();
    same.arrived = UnixMicros(1);
    same.result = Some("other".into());
    assert_eq!(event.identity(), same.identity());
    for (key, value) in [
        ("hostname", json!("x@h")),
        ("pid", json!(2)),
        ("clock", json!(null)),
        ("timestamp", json!(1_795_219_800.6)),
        ("type", json!("task-failed")),
        ("uuid", json!("u")),
    ] {
        let mut other = base.clone();
        other[key] = value;
        assert_ne!(event.identity(), decode_all(&[other])[0].identity(), "{key}");
    }
    assert_eq!(event.kind, EventKind::TaskStarted);
}
