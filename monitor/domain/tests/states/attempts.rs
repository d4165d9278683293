//! The attempts of a task, one by one.

use kanchi_domain::{Attempt, AttemptDelivery, AttemptOutcome, Event, TaskFacts, TaskId, TaskMark, UnixMicros};
use serde_json::json;

use crate::{add, events, facts, lost, seconds};

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
