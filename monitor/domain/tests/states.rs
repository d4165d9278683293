//! What each sequence of events that real workers send makes of a task (`docs/states.md`).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

#[path = "states/attempts.rs"]
mod attempts;
#[path = "states/orphans.rs"]
mod orphans;
#[path = "states/progress.rs"]
mod progress;

use kanchi_domain::{Event, EventKind, Limits, RawMessage, TaskFacts, TaskId, TaskMark, TaskRow, UnixMicros, decode};
use serde_json::{Value, json};

/// Seconds of the first event.
const BEGIN: f64 = 1_795_219_800.0;

/// Reads `sent received started succeeded`: one event a second, from `w@h` unless `kind@worker` says another, with
/// `kind(field=value,…)`; `at` shifts one event in time.
fn events(text: &str) -> Vec<Value> {
    text.split_whitespace()
        .enumerate()
        .map(|(index, word)| event(index, word))
        .collect()
}

fn event(index: usize, word: &str) -> Value {
    let (head, fields) = word.split_once('(').map_or((word, ""), |(head, rest)| {
        (head, rest.strip_suffix(')').unwrap_or(rest))
    });
    let (kind, worker) = head
        .split_once('@')
        .unwrap_or((head, if head == "sent" { "gen1" } else { "w" }));
    let mut at = index as f64;
    let mut event = json!({"type": format!("task-{kind}"), "hostname": format!("{worker}@h"), "pid": 1, "clock": index + 1, "uuid": "t"});
    if matches!(kind, "sent" | "received") {
        event["retries"] = json!(0);
        event["name"] = json!("app.add");
    }
    for (key, value) in fields.split(',').filter_map(|field| field.split_once('=')) {
        match (key, serde_json::from_str::<Value>(value)) {
            ("at", _) => at = value.parse().unwrap(),
            (_, Ok(value)) => event[key] = value,
            (_, Err(_)) => event[key] = json!(value),
        }
    }
    event["timestamp"] = json!(BEGIN + at);
    event
}

fn facts(events: &[Value]) -> TaskFacts {
    let body = serde_json::to_vec(events).unwrap();
    let decoded = decode(
        &RawMessage {
            body: &body,
            ..RawMessage::default()
        },
        UnixMicros(0),
        &Limits::default(),
    );
    assert!(decoded.rejects.is_empty(), "{:?}", decoded.rejects);
    let mut facts = TaskFacts::new();
    for event in &decoded.events {
        assert_ne!(event.kind, EventKind::Custom);
        facts.absorb(event);
    }
    facts
}

fn row(text: &str) -> TaskRow {
    facts(&events(text)).project()
}

fn seconds(time: Option<UnixMicros>) -> Option<f64> {
    time.map(|time| time.as_seconds() - BEGIN)
}

/// The task's worker was given up at this second, by its clock.
fn lost(facts: &mut TaskFacts, heard: f64) {
    let (task, heard) = (
        TaskId::new("t").unwrap(),
        UnixMicros::from_seconds(BEGIN + heard).unwrap(),
    );
    let running = facts.running().unwrap();
    facts.absorb(&Event::worker_lost(task, &running, heard, UnixMicros(0)));
}

fn add(facts: &mut TaskFacts, text: &str) {
    facts.merge(&self::facts(&events(text)));
}

#[test]
fn observed_sequences_have_their_states() {
    for (text, state) in [
        ("sent", "PENDING"),
        ("sent received", "RECEIVED"),
        ("sent received started", "STARTED"),
        ("sent received started succeeded", "SUCCESS"),
        ("received sent started succeeded", "SUCCESS"),
        ("received started succeeded", "SUCCESS"),
        ("sent received started failed", "FAILURE"),
        ("sent received started failed failed", "FAILURE"),
        // Ended before a worker received it.
        ("sent revoked", "REVOKED"),
        ("sent failed(exception=NotRegistered)", "FAILURE"),
        ("sent revoked(expired=true)", "EXPIRED"),
        // Waiting at a worker.
        ("sent received revoked", "REVOKED"),
        ("sent received revoked(expired=true)", "EXPIRED"),
        ("sent received started revoked(terminated=true,signum=15)", "REVOKED"),
        (
            "sent received started revoked(terminated=true,signum=15) revoked(terminated=true)",
            "REVOKED",
        ),
        // Rejected: 5.7 says failed first.
        ("sent received started rejected(requeue=false)", "REJECTED"),
        ("sent received started failed rejected(requeue=false)", "FAILURE"),
        ("sent received started rejected(requeue=true)", "PENDING"),
        ("sent received started rejected(requeue=true) received", "RECEIVED"),
        (
            "sent received started rejected(requeue=true) received@x started@x",
            "STARTED",
        ),
        (
            "sent received started rejected(requeue=true) received started succeeded",
            "SUCCESS",
        ),
        ("sent received started cancelled", "PENDING"),
        ("sent received started cancelled received started", "STARTED"),
        // Ignored: nothing more comes.
        ("sent received started", "STARTED"),
        // A worker is killed, another takes over; the first may even come back.
        ("sent received started received@x", "RECEIVED"),
        ("sent received started received@x started@x succeeded@x", "SUCCESS"),
        ("sent received started received@x started@x succeeded", "SUCCESS"),
        ("sent received started received(pid=2)", "RECEIVED"),
        // Custom states.
        ("sent received started progress(progress=50)", "PROGRESS"),
        ("sent received progress(progress=50) started", "PROGRESS"),
        ("sent received started progress(progress=50) succeeded", "SUCCESS"),
        ("sent received started progress(progress=50) failed", "FAILURE"),
        (
            "sent received started progress(progress=50) revoked(terminated=true)",
            "REVOKED",
        ),
        (
            "sent received started revoked(terminated=true) progress(progress=50)",
            "REVOKED",
        ),
        ("sent received started success", "TASK-SUCCESS"),
    ] {
        assert_eq!(row(text).state.as_str(), state, "{text}");
    }
}

#[test]
fn a_retry_begins_before_the_attempt_ends() {
    let all = "sent received started sent@w(retries=1) received(retries=1) retried(exception=KeyError) started succeeded(result=5,runtime=0.5)";
    let states: Vec<_> = (1..=8)
        .map(|count| {
            let row = facts(&events(all)[..count]).project();
            (row.state.to_string(), row.retries)
        })
        .collect();
    let expected = [
        ("PENDING", 0),
        ("RECEIVED", 0),
        ("STARTED", 0),
        ("RETRY", 1),
        ("RETRY", 1),
        ("RETRY", 1),
        ("STARTED", 1),
        ("SUCCESS", 1),
    ];
    assert_eq!(states, expected.map(|(state, retries)| (state.to_owned(), retries)));
    let row = row(all);
    assert_eq!((row.mark, row.run, row.deliveries), (Some(TaskMark::Recovered), 0, 1));
    assert_eq!(
        (
            seconds(row.received_at),
            seconds(row.started_at),
            seconds(row.finished_at)
        ),
        (Some(4.0), Some(6.0), Some(7.0))
    );
    assert_eq!(
        (row.result.as_deref(), row.runtime, row.exception.as_deref()),
        (Some("5"), Some(0.5), None)
    );
    assert_eq!(seconds(row.retried_at), Some(5.0));
}

#[test]
fn a_retry_on_a_worker_whose_clock_is_behind_is_still_the_next_attempt() {
    let row = row(
        "sent(at=0) received(at=10) started(at=11) sent@w(retries=1,at=12) retried(at=13) received@x(retries=1,at=3) started@x(at=4) succeeded@x(at=5)",
    );
    assert_eq!(
        (row.state.as_str(), row.retries, row.run, row.worker.as_deref()),
        ("SUCCESS", 1, 0, Some("x@h"))
    );
}

#[test]
fn the_news_of_a_retry_may_come_after_the_next_attempt_has_begun_or_even_ended() {
    for end in [
        "started retried",
        "started retried succeeded(result=5)",
        "started succeeded(result=5) retried",
    ] {
        let row = row(&format!(
            "sent received started sent@w(retries=1) received(retries=1) {end}"
        ));
        let state = if end.contains("succeeded") {
            ("SUCCESS", Some("5"))
        } else {
            ("STARTED", None)
        };
        assert_eq!((row.state.as_str(), row.result.as_deref()), state, "{end}");
        assert_eq!((row.retries, row.run, row.retried_at.is_some()), (1, 0, true));
    }
}

/// The pool process publishes the retry itself: a busy worker may receive that before it hears of the first start.
#[test]
fn a_retry_may_be_received_before_the_start_of_the_attempt_before_it_is_told() {
    for (rest, state) in [
        ("started retried started succeeded", "SUCCESS"),
        ("started started retried succeeded", "SUCCESS"),
        ("started started succeeded retried", "SUCCESS"),
        ("started retried started failed", "FAILURE"),
        ("started retried", "STARTED"),
    ] {
        let row = row(&format!("received received(retries=1) {rest}"));
        assert_eq!((row.state.as_str(), row.retries), (state, 1), "{rest}");
    }
}

#[test]
fn retries_to_the_end_are_critical() {
    let row = row(
        "sent received started sent@w(retries=1) received(retries=1) retried(exception=A()) started failed(exception=B())",
    );
    assert_eq!(
        (row.state.as_str(), row.mark, row.retries),
        ("FAILURE", Some(TaskMark::Critical), 1)
    );
    assert_eq!(
        (row.exception.as_deref(), row.exception_class.as_deref()),
        (Some("B()"), Some("B"))
    );
    let waiting = self::row(
        "sent received started sent@w(retries=1,eta=2026-11-21T01:00:00) received(retries=1,eta=2026-11-21T01:00:00) retried(exception=A())",
    );
    assert_eq!(
        (waiting.state.as_str(), waiting.exception.as_deref()),
        ("RETRY", Some("A()"))
    );
    assert!(waiting.eta.is_some());
}

#[test]
fn a_task_revoked_while_it_waits_for_its_retry_is_revoked() {
    let row = row("sent received started sent@w(retries=1) received(retries=1) retried revoked");
    assert_eq!((row.state.as_str(), row.retries), ("REVOKED", 1));
}

#[test]
fn running_again_under_the_same_id_begins_a_new_run() {
    let first = "sent received started failed(exception=E()) ";
    for (again, state, run) in [
        ("sent", "PENDING", 1),
        ("received", "RECEIVED", 1),
        ("sent received", "RECEIVED", 1),
        ("sent received started", "STARTED", 1),
        ("sent received started succeeded", "SUCCESS", 1),
        (
            "sent received started succeeded sent received started failed",
            "FAILURE",
            2,
        ),
    ] {
        let row = row(&format!("{first}{again}"));
        assert_eq!((row.state.as_str(), row.run), (state, run), "{again}");
        assert_eq!(row.exception.is_some(), state == "FAILURE" && run == 0, "{again}");
    }
    let retried = "sent received started sent@w(retries=1) received(retries=1) retried started succeeded ";
    let row = row(&format!("{retried}sent received started"));
    assert_eq!(
        (row.state.as_str(), row.run, row.retries, row.mark),
        ("STARTED", 1, 0, None)
    );
}

#[test]
fn a_client_whose_clock_is_ahead_does_not_begin_a_new_run() {
    let row = row("received(at=1) started(at=2) succeeded(at=3) sent(at=60)");
    assert_eq!((row.state.as_str(), row.run), ("SUCCESS", 0));
}

#[test]
fn a_task_whose_beginning_is_not_known_still_has_a_state() {
    for (text, state) in [
        ("succeeded", "SUCCESS"),
        ("started", "STARTED"),
        ("retried", "RETRY"),
        ("progress", "PROGRESS"),
        ("sent received started retried succeeded", "SUCCESS"),
        ("started sent@w(retries=1) received(retries=1) retried", "RETRY"),
    ] {
        assert_eq!(row(text).state.as_str(), state, "{text}");
    }
}

#[test]
fn a_task_nobody_started_expires_with_its_deadline() {
    let deadline = |text: &str, after: f64| {
        let now = UnixMicros::from_seconds(BEGIN + 60.0 + after).unwrap();
        let row = facts(&events(text)).project_at(now);
        (
            row.state.to_string(),
            seconds(row.finished_at),
            row.deadline().is_some(),
        )
    };
    // BEGIN is 2026-11-21T00:10:00Z.
    let sent = "sent(expires=2026-11-21T00:11:00+00:00)";
    assert_eq!(deadline(sent, 4.0), ("PENDING".into(), None, true));
    assert_eq!(deadline(sent, 5.0), ("EXPIRED".into(), Some(60.0), false));
    assert_eq!(
        deadline(&format!("{sent} received(expires=2026-11-21T00:11:00+00:00)"), 9.0).0,
        "EXPIRED"
    );
    assert_eq!(deadline(&format!("{sent} received started"), 9.0).0, "STARTED");
    assert_eq!(deadline(&format!("{sent} received revoked"), 9.0).0, "REVOKED");
    assert_eq!(deadline("sent", 1e6).0, "PENDING");
}

#[test]
fn the_row_says_where_a_task_comes_from() {
    let row = row(
        "sent(name=app.true,queue=orders,exchange=,routing_key=orders,root_id=r,parent_id=p,args=(1,kwargs={}) received(name=shadow,args=(1,root_id=r,parent_id=p)",
    );
    assert_eq!(
        (row.name.as_deref(), row.queue.as_deref(), row.exchange.as_deref()),
        (Some("app.true"), Some("orders"), None)
    );
    assert_eq!(
        (row.client.as_deref(), row.worker.as_deref(), row.worker_pid),
        (Some("gen1@h"), Some("w@h"), Some(1))
    );
    assert_eq!(row.root_id.unwrap().as_str(), "r");
    assert_eq!(row.parent_id.unwrap().as_str(), "p");
    // A retry is sent by the task itself.
    assert_eq!(
        self::row("sent received started sent@w(retries=1,parent_id=t)").parent_id,
        None
    );
    assert_eq!(self::row("received(name=shadow)").name.as_deref(), Some("shadow"));
    assert_eq!(self::row("received").queue, None);
}

#[test]
fn a_terminated_task_says_by_what_signal() {
    let row = row("sent received started revoked(terminated=true,signum=15) revoked(terminated=true,signum=\"15\")");
    assert_eq!(
        (row.terminated, row.signum.as_deref(), seconds(row.finished_at)),
        (true, Some("15"), Some(3.0))
    );
}

#[test]
fn a_hundred_retries_end_in_the_right_state() {
    let attempt = |retries| format!("sent@w(retries={retries}) received(retries={retries}) retried started ");
    let text = format!("sent received started {}", (1..=100).map(attempt).collect::<String>());
    for (end, state) in [
        ("", "STARTED"),
        ("succeeded", "SUCCESS"),
        ("sent@w(retries=101) received(retries=101) retried", "RETRY"),
    ] {
        let row = row(&format!("{text}{end}"));
        assert_eq!((row.state.as_str(), row.run), (state, 0), "{end}");
        assert!(row.retries >= 100 && row.thinned);
    }
}
