//! What each sequence of events that real workers send makes of a task (`docs/states.md`).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

use kanchi_domain::{
    Attempt, AttemptDelivery, AttemptOutcome, Event, EventKind, Limits, RawMessage, TaskFacts, TaskId, TaskMark,
    TaskRow, TaskState, UnixMicros, decode,
};
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
fn progress_and_steps_are_shown_without_changing_the_state() {
    let mut all = events("sent received started");
    all.push(json!({"type": "kanchi-task-steps", "hostname": "gen7@h", "task_id": "t", "timestamp": BEGIN + 3.0, "steps": [{"key": "load"}]}));
    all.push(json!({"type": "kanchi-task-progress", "hostname": "gen7@h", "task_id": "t", "timestamp": BEGIN + 5.0, "progress": 42.5, "step_key": "load", "message": "loading", "meta": {"rows": 10}}));
    all.push(json!({"type": "kanchi-task-progress", "hostname": "gen7@h", "task_id": "t", "timestamp": BEGIN + 4.0, "progress": 10}));
    let row = facts(&all).project();
    let progress = row.progress.unwrap();
    assert_eq!(
        (row.state.as_str(), progress.percent, progress.step_key.as_deref()),
        ("STARTED", Some(42.5), Some("load"))
    );
    assert_eq!(
        (seconds(progress.at), progress.message.as_deref()),
        (Some(5.0), Some("loading"))
    );
    assert_eq!(
        (progress.meta.as_deref(), progress.steps.as_deref()),
        (Some(r#"{"rows":10}"#), Some(r#"[{"key":"load"}]"#))
    );
    assert_eq!(seconds(row.last_event_at), Some(5.0));
}

#[test]
fn steps_are_what_the_task_announced_last() {
    let announce = |at: f64, steps: Value| json!({"type": "kanchi-task-steps", "hostname": "gen7@h", "task_id": "t", "timestamp": BEGIN + at, "steps": steps});
    let told = [
        announce(
            4.0,
            json!([{"key": "store", "label": "Store", "order": 2}, {"key": "load", "label": "Load", "description": "from disk", "total": 10, "order": 1}]),
        ),
        announce(3.0, json!([{"key": "early"}])),
        announce(5.0, json!("no list")),
    ];
    let row = facts(&[events("sent received started"), told.to_vec()].concat()).project();
    let progress = row.progress.unwrap();
    assert_eq!((progress.percent, progress.at), (None, None));
    let announced = progress.announced();
    let keys: Vec<_> = announced.iter().map(|step| &*step.key).collect();
    assert_eq!(keys, ["load", "store"]);
    assert_eq!(
        (
            announced[0].description.as_deref(),
            announced[0].total,
            announced[1].label.as_deref()
        ),
        (Some("from disk"), Some(10), Some("Store"))
    );
}

#[test]
fn a_task_without_progress_has_none() {
    for words in [
        "sent received started succeeded",
        "sent received retried failed",
        "sent received progress",
    ] {
        assert_eq!(row(words).progress, None, "{words}");
    }
}

#[test]
fn progress_of_a_run_says_nothing_about_the_next() {
    let mut all = events("sent received started succeeded");
    all.push(json!({"type": "kanchi-task-progress", "hostname": "gen7@h", "task_id": "t", "timestamp": BEGIN + 3.5, "progress": 90}));
    assert_eq!(facts(&all).project().progress.unwrap().percent, Some(90.0));
    let last = BEGIN + 60.0;
    all.push(json!({"type": "task-received", "hostname": "w@h", "pid": 2, "clock": 900, "uuid": "t", "retries": 0, "timestamp": last}));
    let row = facts(&all).project();
    assert_eq!((row.run, row.progress), (1, None));
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

/// The task's worker was given up at this second, by its clock.
fn lost(facts: &mut TaskFacts, heard: f64) {
    let (task, heard) = (
        TaskId::new("t").unwrap(),
        UnixMicros::from_seconds(BEGIN + heard).unwrap(),
    );
    let running = facts.running().unwrap();
    facts.absorb(&Event::worker_lost(task, &running, heard, UnixMicros(0)));
}

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

fn add(facts: &mut TaskFacts, text: &str) {
    facts.merge(&self::facts(&events(text)));
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

// === The attempts one by one ===

/// One line for each attempt: `run.retries outcome worker`, the seconds of `sent received started finished`, its exception,
/// and its deliveries where they are not one that says the same.
fn attempts(facts: &TaskFacts) -> Vec<String> {
    let second = |time| seconds(time).map_or("-".to_owned(), |second| second.to_string());
    let line = |attempt: &Attempt| {
        let (outcome, worker) = (attempt.outcome.as_str(), attempt.worker.as_deref().unwrap_or("-"));
        let mut words = vec![format!("{}.{} {outcome} {worker}", attempt.run, attempt.retries)];
        let (received, started) = (attempt.received_at, attempt.started_at);
        words.extend([attempt.sent_at, received, started, attempt.finished_at].map(second));
        words.extend(attempt.exception.as_deref().map(str::to_owned));
        let alike = |one: &AttemptDelivery| (one.outcome, &one.worker) == (attempt.outcome, &attempt.worker);
        if attempt.deliveries.len() != 1 || !attempt.deliveries.iter().all(alike) {
            let deliveries = attempt.deliveries.iter().map(|one| {
                let (outcome, worker) = (one.outcome.as_str(), one.worker.as_deref().unwrap_or("-"));
                format!("{worker} {outcome} {}", second(one.finished_at))
            });
            words.push(format!("[{}]", deliveries.collect::<Vec<_>>().join(", ")));
        }
        words.join(" ")
    };
    facts.attempts().iter().map(line).collect()
}

#[test]
fn a_task_that_succeeds_at_once_has_one_attempt() {
    let task = facts(&events("sent received started succeeded(result=5)"));
    assert_eq!(attempts(&task), ["0.0 succeeded w@h 0 1 2 3"]);
    assert_eq!(task.attempts()[0].worker_pid, Some(1));
    assert!(TaskFacts::new().attempts().is_empty());
    for (text, line) in [
        ("sent", "0.0 waiting - 0 - - - []"),
        ("sent received", "0.0 waiting w@h 0 1 - -"),
        ("sent received started", "0.0 running w@h 0 1 2 -"),
        ("sent received started progress", "0.0 running w@h 0 1 2 -"),
        ("sent received revoked(expired=true)", "0.0 expired w@h 0 1 - 2"),
        (
            "sent received started revoked(terminated=true)",
            "0.0 revoked w@h 0 1 2 3",
        ),
        (
            "sent received started rejected(requeue=false)",
            "0.0 rejected w@h 0 1 2 3",
        ),
        (
            "sent received started cancelled",
            "0.0 waiting w@h 0 1 2 - [w@h put back 3]",
        ),
        ("succeeded", "0.0 succeeded w@h - - - 0"),
    ] {
        assert_eq!(attempts(&facts(&events(text))), [line], "{text}");
    }
}

#[test]
fn each_retry_is_an_attempt_of_its_own_and_knows_its_worker_and_times() {
    let twice = "sent received started sent@w(retries=1) received@x(retries=1) retried(exception=A()) started@x \
        sent@x(retries=2) received@w(retries=2) retried@x(exception=B()) started ";
    let recovered = facts(&events(&format!("{twice} succeeded")));
    assert_eq!(recovered.project().mark, Some(TaskMark::Recovered));
    assert_eq!(
        attempts(&recovered),
        [
            // The texts of the latest retry alone are kept.
            "0.0 retried w@h 0 1 2 5",
            "0.1 retried x@h 3 4 6 9 B()",
            "0.2 succeeded w@h 7 8 10 11",
        ]
    );
    let critical = facts(&events(&format!("{twice} failed(exception=C(),traceback=trace)")));
    assert_eq!(critical.project().mark, Some(TaskMark::Critical));
    let last = critical.attempts().pop().unwrap();
    assert_eq!(attempts(&critical)[1], "0.1 retried x@h 3 4 6 9 B()");
    assert_eq!(attempts(&critical)[2], "0.2 failed w@h 7 8 10 11 C()");
    assert_eq!(
        (last.exception_class.as_deref(), last.traceback.as_deref()),
        (Some("C"), Some("trace"))
    );
}

#[test]
fn an_attempt_with_a_next_one_was_retried_before_that_is_told_and_also_if_it_never_is() {
    let text = "sent received started sent@w(retries=1,eta=2026-11-21T01:00:00)";
    let waits = facts(&events(text));
    assert_eq!(
        attempts(&waits),
        ["0.0 retried w@h 0 1 2 -", "0.1 waiting - 3 - - - []"]
    );
    assert!(waits.attempts()[1].eta.is_some());
    let ended = facts(&events(&format!("{text} received(retries=1) started succeeded")));
    assert_eq!(
        attempts(&ended),
        ["0.0 retried w@h 0 1 2 -", "0.1 succeeded w@h 3 4 5 6"]
    );
    // One in between that no event tells of is not listed.
    assert_eq!(
        attempts(&facts(&events(
            "sent received started retried received(retries=2) started"
        ))),
        ["0.0 retried w@h 0 1 2 3", "0.2 running w@h - 4 5 -"]
    );
}

#[test]
fn a_redelivery_after_a_lost_worker_is_a_second_delivery_of_the_attempt() {
    let mut task = facts(&events("sent received started"));
    lost(&mut task, 2.0);
    assert_eq!(attempts(&task), ["0.0 lost w@h 0 1 2 -"]);
    add(&mut task, "received@x(at=60,retries=0)");
    assert_eq!(
        attempts(&task),
        ["0.0 waiting x@h 0 60 - - [w@h lost -, x@h waiting -]"]
    );
    add(&mut task, "started@x(at=61)");
    add(&mut task, "succeeded@x(at=62)");
    let line = "0.0 succeeded x@h 0 60 61 62 [w@h lost -, x@h succeeded 62]";
    assert_eq!(attempts(&task), [line]);
    // The loss was not noticed: nobody knows what the first worker came to.
    assert_eq!(
        attempts(&facts(&events(
            "sent received started received@x started@x failed@x(exception=E())"
        ))),
        ["0.0 failed x@h 0 3 4 5 E() [w@h unknown -, x@h failed 5]"]
    );
}

#[test]
fn a_rerun_under_the_same_id_lists_the_attempts_of_both_runs() {
    let first = "sent received started failed(exception=A()) ";
    let both = facts(&events(&format!("{first} sent received started failed(exception=B())")));
    assert_eq!(
        attempts(&both),
        ["0.0 failed w@h 0 1 2 3", "1.0 failed w@h 4 5 6 7 B()"]
    );
    let running = facts(&events(&format!("{first} sent@gen2 received@x started@x")));
    assert_eq!(
        attempts(&running),
        ["0.0 failed w@h 0 1 2 3 A()", "1.0 running x@h 4 5 6 -"]
    );
    let gap = facts(&events(
        "sent received started retried received(retries=1) started received",
    ));
    assert_eq!(
        attempts(&gap),
        [
            "0.0 retried w@h 0 1 2 3",
            "0.1 unknown w@h - 4 5 -",
            "1.0 waiting w@h - 6 - -"
        ],
        "the end of the first run fell into a gap"
    );
}

#[test]
fn an_error_found_after_a_gap_is_not_mixed_with_one_that_was_told() {
    let mut task = facts(&events("failed(exception=A(),traceback=trace) retried received@x"));
    let record =
        br#"{"status": "FAILURE", "result": {"exc_type": "B", "exc_message": []}, "date_done": "2026-11-21T00:10:30"}"#;
    let event = Event::found_result(&TaskId::new("t").unwrap(), record, UnixMicros(0));
    task.absorb(&event.unwrap().unwrap());
    let last = task.attempts().pop().unwrap();
    assert_eq!(
        (last.outcome, last.exception_class.as_deref(), last.traceback),
        (AttemptOutcome::Failed, Some("B"), None)
    );
}

/// The result backend says that the task ended well at this second, after so many retries.
fn found(facts: &mut TaskFacts, second: u32, retries: Option<u32>) {
    let record = json!({"status": "SUCCESS", "result": 5, "date_done": format!("2026-11-21T00:10:{second:02}"), "worker": "x@h", "retries": retries});
    let record = serde_json::to_vec(&record).unwrap();
    let event = Event::found_result(&TaskId::new("t").unwrap(), &record, UnixMicros(0));
    facts.absorb(&event.unwrap().unwrap());
}

#[test]
fn an_end_found_after_a_gap_is_that_of_the_attempt_it_names_else_of_the_one_that_is_known() {
    let of = |text: &str, retries| {
        let mut task = facts(&events(text));
        found(&mut task, 30, retries);
        attempts(&task)
    };
    let started = "sent received started";
    assert_eq!(of(started, None), ["0.0 succeeded x@h 0 1 2 30 [w@h unknown -]"]);
    assert_eq!(of(started, Some(0)), of(started, None));
    assert_eq!(
        of(started, Some(2)),
        ["0.0 retried w@h 0 1 2 -", "0.2 succeeded x@h - - - 30 []"]
    );
    assert_eq!(
        of("sent received started retried(exception=A())", None),
        ["0.0 retried w@h 0 1 2 3 A()", "0.1 succeeded x@h - - - 30 []"],
        "it had a next attempt, since it was retried"
    );
    assert_eq!(of("", Some(1)), ["0.1 succeeded x@h - - - 30 []"]);
    let told = "sent received started succeeded";
    assert_eq!(of(told, Some(1)), attempts(&facts(&events(told))));
}
