//! What is taken out of a growing batch, and what waits.

use kanchi_broker::Framing;
use kanchi_domain::{PayloadStore, TaskFacts};

use super::*;

const BEGIN: i64 = 1_795_219_800_000_000;
const MILLI: i64 = 1_000;

fn message(tag: u64, at: i64, kind: &str, task: &str) -> Message {
    let body = format!(
        r#"{{"type": "task-{kind}", "hostname": "w@h", "uuid": "{task}", "timestamp": 1795219800.5, "clock": {tag}}}"#
    );
    Message {
        tag,
        maybe_stored: false,
        may_repeat: false,
        arrived: UnixMicros(BEGIN + at * MILLI),
        body: body.into(),
        framing: Framing::Message {
            content_type: None,
            content_encoding: None,
            compression: None,
        },
    }
}

fn policy() -> PayloadPolicy {
    PayloadPolicy {
        store: PayloadStore::Full,
        max_bytes: 1_000,
        redact_keys: Vec::new(),
    }
}

fn push(gathering: &mut Gathering, message: Message) {
    let mut reading = Reading::default();
    reading.read(&message, &policy(), &Limits::DEFAULT);
    gathering.push(message, &mut reading.decoded);
}

fn ids(gathered: &Gathered) -> Vec<&str> {
    gathered.tasks.iter().map(|task| &*task.id).collect()
}

/// Ten that ended, so that a quarter of the batch is more than a task.
fn with_others() -> Gathering {
    let mut gathering = Gathering::default();
    for number in 0..10 {
        let task = format!("other-{number}");
        push(&mut gathering, message(number + 1, 0, "received", &task));
        push(&mut gathering, message(number + 1, 0, "succeeded", &task));
    }
    gathering
}

#[test]
fn a_task_that_has_just_begun_waits_for_one_batch() {
    let mut gathering = with_others();
    push(&mut gathering, message(11, 10, "received", "old"));
    push(&mut gathering, message(12, 90, "received", "young"));
    push(&mut gathering, message(13, 95, "started", "known"));
    push(&mut gathering, message(14, 100, "received", "done"));
    push(&mut gathering, message(15, 100, "failed", "done"));
    let first = gathering.finish_but_young();
    assert_eq!(ids(&first)[10..], ["old", "known", "done"]);
    assert_eq!((first.events, first.chunks.len()), (24, 13));
    assert_eq!(first.receipt.through, Some(15), "nothing waits for its acknowledgement");
    let stored = UnixMicros(BEGIN + 90 * MILLI - 1);
    assert_eq!(first.receipt.stored_through(), Some(stored), "what waits is not stored");

    assert_eq!((gathering.events(), gathering.messages()), (1, 0));
    assert!(!gathering.is_empty() && gathering.bytes() >= TASK_BYTES);
    push(&mut gathering, message(16, 110, "started", "young"));
    push(&mut gathering, message(17, 111, "received", "next"));
    let second = gathering.finish_but_young();
    assert_eq!(ids(&second), ["young"], "it has waited");
    let mut facts = TaskFacts::new();
    let json = second.chunks[0].events.unpack(Some("young")).unwrap();
    for event in Event::read_stored(std::str::from_utf8(&json).unwrap(), None, UnixMicros(0)).unwrap() {
        facts.absorb(&Event {
            task_id: TaskId::new("young"),
            ..event.unwrap()
        });
    }
    assert_eq!(facts, second.tasks[0].facts, "both events are in one chunk");
    assert_eq!((second.events, gathering.events()), (2, 1));
}

#[test]
fn what_waits_alone_completes_what_has_arrived() {
    let mut gathering = with_others();
    push(&mut gathering, message(11, 100, "received", "young"));
    gathering.finish_but_young();
    let last = gathering.finish();
    assert_eq!((ids(&last), last.receipt.through), (vec!["young"], None));
    assert_eq!(last.receipt.stored_through(), Some(UnixMicros(BEGIN + 100 * MILLI)));
    assert!(gathering.is_empty() && gathering.bytes() == 0);
}

#[test]
fn what_the_broker_delivers_again_and_what_is_our_own_does_not_wait() {
    let mut gathering = with_others();
    push(
        &mut gathering,
        Message {
            may_repeat: true,
            ..message(11, 100, "received", "again")
        },
    );
    let mut own = Reading::default();
    own.read(&message(11, 100, "received", "own"), &policy(), &Limits::DEFAULT);
    gathering.push_own(own.decoded.events, 11, UnixMicros(BEGIN + 100 * MILLI));
    let all = gathering.finish_but_young();
    assert_eq!(ids(&all)[10..], ["again", "own"]);
    assert_eq!((all.digests.len(), all.receipt.own, all.receipt.messages), (1, 1, 22));
    assert!(gathering.is_empty());
}

#[test]
fn no_more_than_a_quarter_waits() {
    let mut gathering = Gathering::default();
    for number in 0..1_000 {
        push(&mut gathering, message(number, 0, "received", &format!("t{number}")));
    }
    let before = gathering.bytes();
    let gathered = gathering.finish_but_young();
    assert!(gathering.bytes() > before / 5 && gathering.bytes() < before / 3);
    assert_eq!(gathered.events + gathering.events(), 1_000);
}

#[test]
fn messages_that_may_be_stored_are_kept_and_can_be_left_out() {
    let again = |tag, task: &str| Message {
        maybe_stored: true,
        may_repeat: true,
        ..message(tag, 0, "received", task)
    };
    let mut gathering = Gathering::default();
    push(&mut gathering, message(1, 0, "received", "first"));
    assert!(!gathering.suits(&again(2, "second")), "the first was not kept");
    assert!(gathering.finish().kept.is_empty());
    assert!(gathering.suits(&again(2, "second")));
    push(&mut gathering, again(2, "second"));
    assert!(gathering.suits(&again(3, "third")));
    push(&mut gathering, message(3, 0, "received", "third"));
    let mut gathered = gathering.finish_but_young();
    assert_eq!(ids(&gathered), ["second", "third"], "none of such a batch waits");
    assert_eq!(
        gathered.leave_out(|kept| !kept.maybe_stored(), &policy(), &Limits::DEFAULT),
        1
    );
    assert_eq!((ids(&gathered), gathered.digests.len()), (vec!["third"], 0));
    assert_eq!(gathered.receipt.through, Some(3));
    assert!(gathering.suits(&message(4, 0, "received", "x")) && gathering.is_empty());
}
