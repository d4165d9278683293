//! How long an event takes in each step of the decoder and the merge: `cargo bench -p kanchi-domain`.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement for people")]

use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kanchi_domain::{Limits, RawMessage, TaskFacts, UnixMicros, decode, decode_virtual_envelope};
use serde_json::Value;

const STRETCHES: u32 = 400;
const ROUNDS: u32 = 50;

/// The four events of a task that succeeds, as Redis delivers them.
fn envelopes() -> Vec<Vec<u8>> {
    let of_success = |sample: &Value| {
        let note = sample["note"].as_str().unwrap();
        [
            "task-sent(retries=0)",
            "task-received(retries=0)",
            "task-started",
            "task-succeeded",
        ]
        .iter()
        .any(|kind| note.ends_with(kind))
    };
    let lines = include_str!("../tests/samples/redis-events.jsonl")
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .filter(of_success)
        .take(4)
        .map(|sample| STANDARD.decode(sample["raw_base64"].as_str().unwrap()).unwrap())
        .collect()
}

fn main() {
    let (envelopes, limits) = (envelopes(), Limits::default());
    assert_eq!(envelopes.len(), 4);
    let measure = |name: &str, step: &mut dyn FnMut()| {
        // The shortest of many short stretches: what it takes on a machine that does nothing else.
        let stretch = |_| {
            let begin = Instant::now();
            for _ in 0..ROUNDS {
                step();
            }
            begin.elapsed().as_nanos()
        };
        let shortest = (0..STRETCHES).map(stretch).min().unwrap();
        println!("{name:30} {:6} ns an event", shortest / u128::from(ROUNDS * 4));
    };
    let decode_all = || {
        let event = |bytes: &Vec<u8>| {
            let envelope = decode_virtual_envelope(bytes).unwrap();
            decode(&envelope.as_raw_message(), UnixMicros(0), &limits)
                .events
                .remove(0)
        };
        envelopes.iter().map(event).collect::<Vec<_>>()
    };
    let absorb_all = |events: &[kanchi_domain::Event]| {
        let mut facts = TaskFacts::new();
        for event in events {
            facts.absorb(event);
        }
        facts
    };
    let events = decode_all();
    let facts = absorb_all(&events);
    let encoded = facts.encode();
    println!("{} bytes of facts", encoded.len());
    let raw: Vec<_> = envelopes
        .iter()
        .map(|bytes| decode_virtual_envelope(bytes).unwrap())
        .collect();
    measure("envelope", &mut || {
        for bytes in &envelopes {
            decode_virtual_envelope(bytes).unwrap();
        }
    });
    let decode_raw = |message: &RawMessage<'_>| decode(message, UnixMicros(0), &limits).events.len();
    measure("decode", &mut || {
        for envelope in &raw {
            assert_eq!(decode_raw(&envelope.as_raw_message()), 1);
        }
    });
    let bodies: Vec<_> = raw
        .iter()
        .map(|envelope| STANDARD.decode(envelope.body.as_bytes()).unwrap())
        .collect();
    measure("decode without base64", &mut || {
        for body in &bodies {
            assert_eq!(
                decode_raw(&RawMessage {
                    body,
                    content_type: Some("application/json"),
                    ..RawMessage::default()
                }),
                1
            );
        }
    });
    measure("absorb", &mut || drop(absorb_all(&events)));
    measure("project, once a task", &mut || drop(facts.project()));
    measure("encode, once a task", &mut || drop(facts.encode()));
    measure("decode facts, once a task", &mut || drop(TaskFacts::decode(&encoded)));
    let mut out = String::new();
    measure("to JSON", &mut || {
        out.clear();
        for event in &events {
            event.write_json(&mut out);
        }
    });
}
