//! Whatever arrives has a defined fate, and costs no other event.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on must fail")]

#[path = "hostile/bodies.rs"]
mod bodies;
#[path = "hostile/progress.rs"]
mod progress;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kanchi_domain::{
    BodyEncoding, Decoded, Event, Limits, PayloadPolicy, PayloadStore, RawMessage, RejectReason, Repair, TaskFacts,
    UnixMicros, decode, decode_virtual_envelope,
};
use proptest::prelude::*;
use serde_json::Value;

const ARRIVED: UnixMicros = UnixMicros(1_795_300_000_000_000);

fn json(body: &[u8]) -> Decoded {
    let message = RawMessage {
        body,
        content_type: Some("application/json"),
        ..RawMessage::default()
    };
    decode(&message, ARRIVED, &Limits::default())
}

fn good(id: usize) -> String {
    format!(
        r#"{{"type": "task-started", "hostname": "w@h", "pid": 1, "clock": 1, "uuid": "good-{id}", "timestamp": 1795219800.5}}"#
    )
}

/// What Postgres refuses in `jsonb`: no JSON, NUL, lone surrogates, numbers beyond `numeric`.
fn assert_fit_for_jsonb(event: &Event) {
    let text = event.to_json();
    let parsed: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert!(parsed.is_object());
    assert!(
        !text.contains('\0') && !text.contains("\\u0000") && !text.contains("\\ud8"),
        "{text}"
    );
}

/// What is stored of an event says all of it: a batch that the store refused is made again of it.
fn assert_is_read_back(event: &Event) {
    let array = format!("[{}]", event.to_json());
    let mut read = Event::read_stored(&array, event.task_id.as_ref(), event.arrived).unwrap();
    let read = read.remove(0).unwrap_or_else(|error| panic!("{error}: {array}"));
    assert_eq!((&read.to_json(), read.identity()), (&event.to_json(), event.identity()));
    let facts = |event: &Event| {
        let mut facts = TaskFacts::new();
        facts.absorb(event);
        facts
    };
    assert_eq!(facts(&read), facts(event), "{array}");
}

/// Decodes `element` alone and between two good events: the good ones always come.
fn element(element: &[u8]) -> Decoded {
    let batch = [b"[", good(1).as_bytes(), b",", element, b",", good(2).as_bytes(), b"]"].concat();
    let decoded = json(&batch);
    let good: Vec<_> = decoded
        .events
        .iter()
        .filter_map(|event| event.task_id.as_ref())
        .map(AsRef::as_ref)
        .collect();
    assert_eq!(
        (good.first(), good.last()),
        (Some(&"good-1"), Some(&"good-2")),
        "{decoded:?}"
    );
    decoded.events.iter().for_each(assert_fit_for_jsonb);
    decoded.events.iter().for_each(assert_is_read_back);
    let alone = json(element);
    let reasons = |decoded: &Decoded| decoded.rejects.iter().map(|reject| reject.reason).collect::<Vec<_>>();
    assert_eq!(reasons(&alone), reasons(&decoded), "{alone:?}");
    alone
}

fn kept(text: &str) -> Event {
    let mut decoded = element(text.as_bytes());
    assert!(decoded.rejects.is_empty(), "{text}: {:?}", decoded.rejects);
    assert_eq!(decoded.events.len(), 1, "{text}");
    decoded.events.remove(0)
}

fn repairs(event: &Event) -> Vec<&'static str> {
    event.repairs.iter().map(Repair::as_str).collect()
}

fn started(fields: &str) -> String {
    format!(r#"{{"type": "task-started", "hostname": "w@h", "uuid": "t", "timestamp": 1795219800.5, {fields}}}"#)
}

#[test]
fn what_is_no_event_is_refused_with_its_reason() {
    for (text, reason) in [
        ("1", RejectReason::NotAnEvent),
        ("null", RejectReason::NotAnEvent),
        ("\"task-sent\"", RejectReason::NotAnEvent),
        ("{}", RejectReason::MissingType),
        (r#"{"type": 5}"#, RejectReason::MissingType),
        (r#"{"type": ""}"#, RejectReason::MissingType),
        (r#"{"type": ["task-sent"], "uuid": "t"}"#, RejectReason::MissingType),
        (
            r#"{"type": "task-sent", "hostname": "w@h"}"#,
            RejectReason::MissingTaskId,
        ),
        (
            r#"{"type": "task-sent", "hostname": "w@h", "uuid": null}"#,
            RejectReason::MissingTaskId,
        ),
        (
            r#"{"type": "task-sent", "hostname": "w@h", "uuid": ""}"#,
            RejectReason::MissingTaskId,
        ),
        (r#"{"type": "worker-heartbeat"}"#, RejectReason::MissingHostname),
        (r#"{"type": "task-sent" "uuid": "t"}"#, RejectReason::InvalidJson),
        (r#"{"type": task-sent}"#, RejectReason::InvalidJson),
        (r#"{"type": "\x"}"#, RejectReason::InvalidJson),
        (r#"{"type": 01}"#, RejectReason::InvalidJson),
        (r#"{"type": "task-sent",}"#, RejectReason::InvalidJson),
        ("{'type': 'task-sent'}", RejectReason::InvalidJson),
    ] {
        let decoded = element(text.as_bytes());
        assert!(decoded.events.is_empty(), "{text}");
        assert_eq!(decoded.rejects[0].reason, reason, "{text}");
        assert_eq!(decoded.rejects[0].sample, text.as_bytes(), "{text}");
    }
}

#[test]
fn a_truncated_batch_keeps_what_came_before() {
    let batch = format!("[{}, {}, {}]", good(1), good(2), good(3));
    for end in 0..batch.len() {
        let decoded = json(&batch.as_bytes()[..end]);
        let expected = batch[..end].matches('}').count();
        assert_eq!(decoded.events.len(), expected, "{end}");
        assert_eq!(decoded.rejects.len(), 1, "{end}");
        let reason = decoded.rejects[0].reason;
        assert!(
            matches!(reason, RejectReason::Truncated | RejectReason::Empty),
            "{end}: {reason}"
        );
    }
    assert_eq!(json(batch.as_bytes()).events.len(), 3);
}

#[test]
fn empty_lists_are_no_fault_and_trailing_data_costs_no_event() {
    assert!(json(b"[]").rejects.is_empty() && json(b" [ ] ").events.is_empty());
    assert_eq!(json(b"").rejects[0].reason, RejectReason::Empty);
    assert_eq!(json(b"  ").rejects[0].reason, RejectReason::Empty);
    let decoded = json(format!("{} x", good(1)).as_bytes());
    assert_eq!(
        (decoded.events.len(), decoded.rejects[0].reason),
        (1, RejectReason::TrailingData)
    );
}

#[test]
fn faulty_text_is_repaired_and_marked() {
    let event = kept(&started(
        r#""name": "a\u0000b", "args": "\ud800", "kwargs": "\ud83d\ude00", "result": "\udc00x\ud800\u0041""#,
    ));
    assert_eq!(
        (event.name.as_deref(), event.args.as_deref()),
        (Some("a\u{FFFD}b"), Some("\u{FFFD}"))
    );
    assert_eq!(
        (event.kwargs.as_deref(), event.result.as_deref()),
        (Some("😀"), Some("\u{FFFD}x\u{FFFD}A"))
    );
    assert_eq!(repairs(&event), ["nul", "surrogate"]);

    let mut decoded = element(started("\"name\": \"a\u{0}b\"").as_bytes());
    assert_eq!(decoded.events.remove(0).name.as_deref(), Some("a\u{FFFD}b"));

    let mut body = started(r#""name": "x""#).into_bytes();
    let at = body.windows(3).position(|window| window == b"\"x\"").unwrap() + 1;
    body[at] = 0xff;
    let event = element(&body).events.remove(0);
    assert_eq!(
        (event.name.as_deref(), repairs(&event)),
        (Some("\u{FFFD}"), vec!["utf8"])
    );
}

#[test]
fn numbers_that_are_none_do_no_harm() {
    let event = kept(&started(
        r#""runtime": NaN, "pid": 123456789012345678901234567890, "clock": -Infinity, "own": [NaN, Infinity, -Infinity, 1e999, 12345678901234567890, -0.0, 1e-400]"#,
    ));
    assert_eq!((event.runtime, event.pid, event.clock), (None, None, None));
    let own = r#"{"own":["NaN","Infinity","-Infinity","Infinity","12345678901234567890",-0.0,0]}"#;
    assert_eq!(event.extra.as_deref(), Some(own));
    assert_eq!(repairs(&event), ["not_a_number", "huge_integer"]);
}

#[test]
fn timestamps_in_another_form_are_read_and_those_far_off_are_unknown() {
    let event = |timestamp: &str| {
        kept(&format!(
            r#"{{"type": "task-started", "hostname": "w@h", "uuid": "t", "timestamp": {timestamp}}}"#
        ))
    };
    for text in [
        "1795219800.5",
        "\"1795219800.5\"",
        "\"2026-11-21T00:10:00.5+00:00\"",
        "\"2026-11-21T00:10:00.5\"",
        r#"{"__type__": "datetime", "__value__": "2026-11-21T00:10:00.5Z"}"#,
    ] {
        assert_eq!(event(text).timestamp, UnixMicros(1_795_219_800_500_000), "{text}");
        assert!(event(text).has_timestamp());
    }
    for text in [
        "0",
        "-5",
        "1e300",
        "99999999999",
        "NaN",
        "\"yesterday\"",
        "\"9999-12-31T00:00:00\"",
        "null",
        "true",
        "[1]",
        "100000000000000000000000000",
    ] {
        let event = event(text);
        assert_eq!((event.timestamp, event.has_timestamp()), (ARRIVED, false), "{text}");
        assert!(!event.to_json().contains("\"timestamp\":1"), "{text}");
    }
    let none = kept(r#"{"type": "task-started", "hostname": "w@h", "uuid": "t"}"#);
    assert_eq!(repairs(&none), ["timestamp"]);
}

#[test]
fn an_event_without_a_time_is_the_same_event_whenever_it_arrives() {
    let body = br#"[{"type": "task-received", "hostname": "w@h", "uuid": "t"}, {"type": "task-succeeded", "hostname": "w@h", "uuid": "t"}]"#;
    let message = RawMessage {
        body,
        ..RawMessage::default()
    };
    let mut facts = TaskFacts::new();
    for arrived in [5, 3, 9] {
        for event in decode(&message, UnixMicros(arrived), &Limits::default()).events {
            facts.absorb(&event);
        }
    }
    let row = facts.project();
    assert_eq!(
        (row.state.as_str(), row.run, row.received_at, row.finished_at),
        ("SUCCESS", 0, None, None)
    );
}

#[test]
fn names_are_bounded_and_ids_need_not_be_uuids() {
    let long = "n".repeat(10_000);
    let event = kept(&format!(
        r#"{{"type": "task-{long}", "hostname": "{long}", "uuid": "{long}", "name": "{long}", "queue": "", "timestamp": 1795219800}}"#
    ));
    let names = [
        &*event.type_name,
        &event.hostname,
        event.task_id.as_ref().unwrap().as_str(),
        event.name.as_deref().unwrap(),
    ];
    assert!(names.iter().all(|name| name.len() <= 255));
    assert_eq!((event.queue.as_deref(), repairs(&event)), (None, vec!["long_name"]));
    let mut facts = TaskFacts::new();
    facts.absorb(&event);
    assert!(facts.project().state.as_str().len() <= 64);
    for (id, text) in [
        ("\"order 7/ä\"", "order 7/ä"),
        ("7", "7"),
        (
            r#"{"__type__": "uuid", "__value__": {"hex": "00000000000000000000000000000005"}}"#,
            "00000000-0000-0000-0000-000000000005",
        ),
    ] {
        let event = kept(&format!(
            r#"{{"type": "task-started", "hostname": "w@h", "uuid": {id}, "timestamp": 1795219800}}"#
        ));
        assert_eq!(event.task_id.as_ref().unwrap().as_str(), text);
    }
}

#[test]
fn wrong_types_are_converted_or_dropped() {
    let event = kept(&started(
        r#""name": 5, "args": [1, "a"], "kwargs": {"a": null}, "retries": "2", "eta": 1795219800, "expires": true, "requeue": "no", "pid": "12", "runtime": "x", "queue": ["q"], "root_id": false"#,
    ));
    assert_eq!(
        (event.name.as_deref(), event.args.as_deref(), event.kwargs.as_deref()),
        (Some("5"), Some(r#"[1,"a"]"#), Some(r#"{"a":null}"#))
    );
    assert_eq!(
        (event.retries, event.pid, event.runtime, event.requeue),
        (Some(2), Some(12), None, None)
    );
    assert_eq!(
        (event.eta, event.expires),
        (Some(UnixMicros(1_795_219_800_000_000)), None)
    );
    assert_eq!(repairs(&event), ["wrong_type"]);
    let event = kept(&started(
        r#""retries": -1, "freq": "x", "loadavg": "high", "progress": {"a": 1}, "meta": null"#,
    ));
    assert_eq!(
        (event.retries, event.worker.is_none(), event.progress.is_none()),
        (None, true, true)
    );
    let worker = kept(
        r#"{"type": "worker-heartbeat", "hostname": "w@h", "timestamp": 1795219800, "freq": -1, "active": null, "loadavg": [1, 2], "processed": 1.5}"#,
    );
    let fields = worker.worker.as_deref().unwrap();
    assert_eq!(
        (fields.freq, fields.active, fields.loadavg, fields.processed),
        (None, None, None, None)
    );
}

#[test]
fn deep_nesting_is_cut_and_a_deep_body_refused() {
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let event = kept(&started(&format!("\"own\": {deep}")));
    assert!(event.extra.as_deref().unwrap().contains("[...]"));
    assert_eq!(repairs(&event), ["depth"]);
    assert!(event.to_json().len() < 1_000);
    assert_eq!(json(deep.as_bytes()).rejects[0].reason, RejectReason::NotAnEvent);
    let objects = r#"{"a":"#.repeat(100_000);
    assert_eq!(json(objects.as_bytes()).rejects[0].reason, RejectReason::Truncated);
}

#[test]
fn large_bodies_are_cut_and_larger_ones_refused() {
    let (megabytes, ten_megabytes) = ("x".repeat(4 << 20), "x".repeat(10 << 20));
    let event = kept(&started(&format!(
        r#""exception": "{megabytes}", "traceback": "\n{megabytes}", "own": "{megabytes}""#
    )));
    assert!(
        event.exception.as_deref().unwrap().len() <= 1 << 20 && event.traceback.as_deref().unwrap().len() <= 1 << 20
    );
    assert_eq!(
        (event.extra.as_deref(), repairs(&event)),
        (None, vec!["long_text", "many_fields"])
    );
    let mut facts = TaskFacts::new();
    let failed = started(&format!(r#""exception": "{ten_megabytes}""#)).replace("task-started", "task-failed");
    facts.absorb(&json(failed.as_bytes()).events[0]);
    assert!(facts.encode().len() < 300_000);
    assert!(!facts.project().cut.is_empty());
    let huge = vec![b' '; Limits::default().max_body_bytes + 1];
    let decoded = json(&huge);
    assert_eq!(
        (decoded.rejects[0].reason, decoded.rejects[0].sample.len()),
        (RejectReason::Oversize, 512)
    );
    assert_eq!(
        decode_virtual_envelope(&vec![b' '; 60 << 20]).unwrap_err().reason,
        RejectReason::Oversize
    );
}

#[test]
fn a_message_with_too_much_in_it_is_bounded() {
    let limits = Limits {
        max_events: 5,
        max_rejects: 3,
        ..Limits::default()
    };
    let many = format!("[{}]", vec![good(1); 9].join(","));
    let message = |body| RawMessage {
        body,
        ..RawMessage::default()
    };
    let decoded = decode(&message(many.as_bytes()), ARRIVED, &limits);
    assert_eq!(
        (decoded.events.len(), decoded.rejects[0].reason),
        (5, RejectReason::TooManyEvents)
    );
    let limits = Limits {
        max_rejects: 3,
        ..Limits::default()
    };
    let bad = format!("[{},{}]", vec!["1"; 1_000].join(","), good(1));
    let decoded = decode(&message(bad.as_bytes()), ARRIVED, &limits);
    assert_eq!((decoded.events.len(), decoded.rejects.len()), (1, 3));
    assert_eq!(decoded.rejects.iter().map(|reject| reject.count).sum::<u64>(), 1_000);
}

#[test]
fn unknown_types_and_fields_are_kept() {
    let event = kept(
        r#"{"type": "billing-closed", "hostname": "gen1@h", "timestamp": 1795219800, "total": 1.10, "by": {"id": 1, "n": [1, 2.50]}, "utcoffset": -9}"#,
    );
    assert_eq!((&*event.type_name, event.kind.as_str()), ("billing-closed", "custom"));
    assert_eq!(
        event.extra.as_deref(),
        Some(r#"{"total":1.1,"by":{"id":1,"n":[1,2.50]}}"#)
    );
}

#[test]
fn delayed_delivery_leaves_no_trace_in_the_queue_name() {
    let prefix = "0.".repeat(25) + "1.0.1.";
    let text = started(&format!(
        r#""queue": null, "exchange": "celery_delayed_27", "routing_key": "{prefix}orders.eu""#
    ))
    .replace("task-started", "task-sent");
    let event = kept(&text);
    assert_eq!(event.routing_key.as_deref(), Some("orders.eu"));
    let mut facts = TaskFacts::new();
    facts.absorb(&event);
    assert_eq!(facts.project().queue.as_deref(), Some("orders.eu"));
    let event = kept(&started(r#""queue": "0.1.orders""#));
    assert_eq!(event.queue.as_deref(), Some("0.1.orders"));
}

#[test]
fn pickle_is_never_read() {
    for (content_type, body) in [
        (Some("application/x-python-serialize"), &b"\x80\x04\x95x"[..]),
        (Some("application/data"), b"\x80\x04\x95x"),
        (None, b"\x80\x02}q"),
    ] {
        let message = RawMessage {
            body,
            content_type,
            ..RawMessage::default()
        };
        let decoded = decode(&message, ARRIVED, &Limits::default());
        assert_eq!(decoded.rejects[0].reason, RejectReason::Pickle, "{content_type:?}");
    }
    let message = RawMessage {
        body: b"x",
        content_type: Some("image/png"),
        ..RawMessage::default()
    };
    assert_eq!(
        decode(&message, ARRIVED, &Limits::default()).rejects[0].reason,
        RejectReason::UnknownContentType
    );
}

fn samples() -> Vec<Vec<u8>> {
    let text = concat!(
        include_str!("samples/amqp-events.jsonl"),
        include_str!("samples/redis-events.jsonl")
    );
    let line = |line: &str| -> Vec<u8> {
        let sample: Value = serde_json::from_str(line).unwrap();
        STANDARD.decode(sample["body_base64"].as_str().unwrap()).unwrap()
    };
    text.lines().map(line).collect()
}

fn decode_every_way(body: &[u8]) {
    let policy = PayloadPolicy {
        store: PayloadStore::Full,
        max_bytes: 50,
        redact_keys: vec!["k".into()],
    };
    for content_type in [
        None,
        Some("application/json"),
        Some("application/x-msgpack"),
        Some("application/x-yaml"),
    ] {
        for compression in [
            None,
            Some("zstd"),
            Some("brotli"),
            Some("bzip2"),
            Some("lzma"),
            Some("zlib"),
        ] {
            for body_encoding in [BodyEncoding::Raw, BodyEncoding::Base64] {
                if compression.is_some() && content_type.is_some() {
                    continue;
                }
                let message = RawMessage {
                    body,
                    content_type,
                    compression,
                    body_encoding,
                    ..RawMessage::default()
                };
                let decoded = decode(&message, ARRIVED, &Limits::default());
                for mut event in decoded.events {
                    assert_fit_for_jsonb(&event);
                    policy.apply(&mut event);
                    assert_fit_for_jsonb(&event);
                    assert_is_read_back(&event);
                    let mut facts = TaskFacts::new();
                    facts.absorb(&event);
                    facts.project();
                }
            }
        }
    }
    drop(decode_virtual_envelope(body));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_do_no_harm(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        decode_every_way(&body);
    }

    #[test]
    fn random_json_does_no_harm(body in r#"[\[\]{},:"\\u0-9a-zA-Z .eE+-]{0,80}"#) {
        decode_every_way(body.as_bytes());
        let inside = format!(r#"{{"type": "task-failed", "uuid": "t", "exception": "{body}", "own": {body}}}"#);
        decode_every_way(inside.as_bytes());
    }

    #[test]
    fn mutated_samples_do_no_harm(index in any::<prop::sample::Index>(), mutations in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in any::<prop::sample::Index>()) {
        let samples = samples();
        let mut body = index.get(&samples).clone();
        for (at, byte) in mutations {
            if !body.is_empty() {
                let at = at.index(body.len());
                body[at] = byte;
            }
        }
        decode_every_way(&body);
        body.truncate(cut.index(body.len() + 1));
        decode_every_way(&body);
    }
}
