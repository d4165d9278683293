//! Every event captured from real Celery decodes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kanchi_domain::{
    Decoded, EventKind, Limits, RawMessage, RejectReason, TaskFacts, UnixMicros, decode, decode_virtual_envelope,
};
use serde_json::Value;

const ARRIVED: UnixMicros = UnixMicros(1_795_300_000_000_000);

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn bytes(sample: &Value, key: &str) -> Vec<u8> {
    STANDARD.decode(sample[key].as_str().unwrap()).unwrap()
}

fn amqp() -> Vec<(Value, Decoded)> {
    let decode_one = |sample: Value| {
        let body = bytes(&sample, "body_base64");
        let message = RawMessage {
            body: &body,
            content_type: sample["properties"]["content_type"].as_str(),
            content_encoding: sample["properties"]["content_encoding"].as_str(),
            compression: sample["headers"]["compression"].as_str(),
            ..RawMessage::default()
        };
        let decoded = decode(&message, ARRIVED, &Limits::default());
        (sample, decoded)
    };
    lines(include_str!("samples/amqp-events.jsonl"))
        .into_iter()
        .map(decode_one)
        .collect()
}

fn redis() -> Vec<(Value, Decoded)> {
    let decode_one = |sample: Value| {
        let raw = bytes(&sample, "raw_base64");
        let envelope = decode_virtual_envelope(&raw).unwrap();
        assert_eq!(envelope.exchange.as_deref(), sample["exchange"].as_str());
        assert_eq!(envelope.routing_key.as_deref(), sample["routing_key"].as_str());
        assert_eq!(
            envelope.delivery_tag.as_deref(),
            sample["properties"]["delivery_tag"].as_str()
        );
        let decoded = decode(&envelope.as_raw_message(), ARRIVED, &Limits::default());
        (sample, decoded)
    };
    lines(include_str!("samples/redis-events.jsonl"))
        .into_iter()
        .map(decode_one)
        .collect()
}

fn counts(samples: &[(Value, Decoded)]) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for event in samples.iter().flat_map(|(_, decoded)| &decoded.events) {
        *counts.entry(event.kind.as_str()).or_default() += 1;
    }
    counts
}

#[test]
fn amqp_samples_have_the_expected_types() {
    let samples = amqp();
    insta::assert_yaml_snapshot!(counts(&samples));
    let rejects: Vec<_> = samples
        .iter()
        .flat_map(|(_, decoded)| &decoded.rejects)
        .map(|reject| reject.reason)
        .collect();
    assert_eq!(rejects, [RejectReason::Pickle; 2]);
}

#[test]
fn redis_samples_have_the_expected_types() {
    let samples = redis();
    insta::assert_yaml_snapshot!(counts(&samples));
    assert!(samples.iter().all(|(_, decoded)| decoded.rejects.is_empty()));
}

#[test]
fn every_json_sample_is_read_field_by_field() {
    for (sample, decoded) in amqp().into_iter().chain(redis()) {
        let body = bytes(&sample, "body_base64");
        let Ok(parsed) = serde_json::from_slice::<Value>(&body) else {
            continue;
        };
        let expected = if let Value::Array(list) = parsed {
            list
        } else {
            vec![parsed]
        };
        assert_eq!(decoded.events.len(), expected.len());
        for (event, expected) in decoded.events.iter().zip(&expected) {
            assert!(
                event.repairs.is_empty() || expected["signum"] == "15",
                "{:?} {expected}",
                event.repairs
            );
            let text = |key: &str| expected[key].as_str();
            assert_eq!(Some(&*event.type_name), text("type"));
            assert_eq!(Some(&*event.hostname), text("hostname"));
            assert_eq!(event.pid, expected["pid"].as_i64());
            assert_eq!(event.clock, expected["clock"].as_i64());
            assert!((event.timestamp.as_seconds() - expected["timestamp"].as_f64().unwrap()).abs() < 1e-6);
            assert_eq!(
                event.task_id.as_ref().map(AsRef::as_ref),
                text("uuid").or(text("task_id"))
            );
            assert_eq!(event.name.as_deref(), text("name").or(text("task_name")));
            assert_eq!(event.args.as_deref(), text("args"));
            assert_eq!(event.queue.as_deref(), text("queue"));
            assert_eq!(event.root_id.as_ref().map(AsRef::as_ref), text("root_id"));
            assert_eq!(event.parent_id.as_ref().map(AsRef::as_ref), text("parent_id"));
            assert_eq!(event.retries.map(u64::from), expected["retries"].as_u64());
            assert_eq!(event.eta.is_some(), expected["eta"].is_string());
            assert_eq!(event.expires.is_some(), expected["expires"].is_string());
            assert_eq!(event.result.as_deref(), text("result"));
            assert_eq!(
                event.runtime.map(|seconds| (seconds * 1e9) as i64),
                expected["runtime"].as_f64().map(|s| (s * 1e9) as i64)
            );
            assert_eq!(event.traceback.as_deref(), text("traceback"));
            assert_eq!(event.requeue, expected["requeue"].as_bool());
            assert_eq!(event.expired, expected["expired"].as_bool());
            assert_eq!(
                event.worker.as_deref().and_then(|worker| worker.active),
                expected["active"].as_i64()
            );
            assert_eq!(
                event.worker.as_ref().is_some_and(|w| w.loadavg.is_some()),
                expected["loadavg"].is_array()
            );
            assert!(serde_json::from_str::<Value>(&event.to_json()).is_ok());
        }
    }
}

#[test]
fn yaml_and_msgpack_samples_read_like_json() {
    let samples = amqp();
    let of = |note: &str| -> Vec<_> {
        let found = samples
            .iter()
            .filter(|(sample, _)| sample["note"].as_str().unwrap().contains(note));
        found.flat_map(|(_, decoded)| decoded.events.clone()).collect()
    };
    for serializer in ["event_serializer=yaml", "event_serializer=msgpack"] {
        let events = of(serializer);
        let kinds: Vec<_> = events.iter().map(|event| event.kind).collect();
        assert_eq!(
            kinds,
            [EventKind::WorkerOnline, EventKind::TaskReceived],
            "{serializer}"
        );
        assert!(events.iter().all(|event| event.repairs.is_empty()), "{events:?}");
        assert_eq!(
            events[0].worker.as_ref().unwrap().loadavg.map(|load| load[0] > 0.0),
            Some(true)
        );
        assert_eq!(
            (events[1].args.as_deref(), events[1].kwargs.as_deref()),
            (Some("(1, 2)"), Some("{}"))
        );
        assert_eq!(events[1].retries, Some(0));
    }
}

#[test]
fn the_useless_repr_of_a_lost_process_is_explained() {
    let samples = amqp();
    let limit = samples.iter().flat_map(|(_, decoded)| &decoded.events);
    let classes: Vec<_> = limit
        .filter(|event| {
            event
                .traceback
                .as_deref()
                .is_some_and(|text| text.contains("TimeLimitExceeded"))
        })
        .map(|event| {
            (
                event.exception.as_deref().unwrap(),
                event.exception_class.as_deref().unwrap(),
            )
        })
        .collect();
    assert!(classes.len() >= 4, "{classes:?}");
    assert!(
        classes
            .iter()
            .all(|(text, class)| text.starts_with("TimeLimitExceeded(2") && *class == "TimeLimitExceeded")
    );
}

#[test]
fn the_captured_events_of_each_task_make_its_state() {
    let mut tasks: BTreeMap<String, (TaskFacts, Vec<String>)> = BTreeMap::new();
    for event in amqp()
        .into_iter()
        .chain(redis())
        .flat_map(|(_, decoded)| decoded.events)
    {
        let Some(id) = &event.task_id else { continue };
        let (facts, types) = tasks.entry(id.to_string()).or_default();
        facts.absorb(&event);
        types.push(event.type_name.trim_start_matches("task-").to_owned());
    }
    let mut states: BTreeMap<String, usize> = BTreeMap::new();
    for (facts, types) in tasks.values() {
        let row = facts.project();
        *states
            .entry(format!("{} → {}", types.join(" "), row.state))
            .or_default() += 1;
    }
    insta::assert_yaml_snapshot!(states);
}
