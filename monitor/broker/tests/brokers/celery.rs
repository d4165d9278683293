//! A real Celery worker on both brokers: its events arrive, it obeys and answers.

use std::collections::BTreeSet;
use std::time::Duration;

use kanchi_broker::{BrokerConnectSpec, Command, Control, ControlError, Framing, QueueSampler};
use kanchi_domain::{BodyEncoding, Decoded, Limits, RawMessage, decode, decode_virtual_envelope};
use kanchi_test_servers::celery::{Celery, Events, NEWEST, WorkerOptions};
use kanchi_test_servers::rabbitmq::Rabbitmq;
use kanchi_test_servers::redis::Redis;

use crate::support::{Watched, eventually, spec};

/// Names of the events in a stream's deliveries.
fn event_types(watched: &Watched) -> Vec<String> {
    let mut types = Vec::new();
    for delivery in &watched.deliveries {
        let decoded: Decoded = match &delivery.framing {
            Framing::Message {
                content_type,
                content_encoding,
                compression,
            } => {
                let message = RawMessage {
                    body: &delivery.body,
                    content_type: content_type.as_deref(),
                    content_encoding: content_encoding.as_deref(),
                    compression: compression.as_deref(),
                    body_encoding: BodyEncoding::Raw,
                };
                decode(&message, delivery.arrived, &Limits::DEFAULT)
            }
            Framing::Envelope => {
                let envelope = decode_virtual_envelope(&delivery.body).unwrap();
                assert_eq!(envelope.exchange.as_deref(), Some("celeryev"));
                decode(&envelope.as_raw_message(), delivery.arrived, &Limits::DEFAULT)
            }
        };
        assert!(decoded.rejects.is_empty(), "{:?}", decoded.rejects);
        types.extend(decoded.events.into_iter().map(|event| event.type_name.to_string()));
    }
    types
}

async fn a_worker_is_watched_and_controlled(spec: BrokerConnectSpec, url: &str) {
    let celery = Celery::install(NEWEST, url).await.unwrap();
    let mut watched = Watched::connected(&spec).await;
    let options = WorkerOptions {
        events: Events::Off,
        ..WorkerOptions::default()
    };
    let worker = celery.start_worker(&options).await.unwrap();
    watched
        .until("worker-online", |watched| {
            event_types(watched).contains(&"worker-online".into())
        })
        .await;

    let control = Control::new(spec.clone());
    // A worker is online before it listens: what is said until then is lost on Redis.
    let deadline = std::time::Instant::now() + Duration::from_mins(1);
    let all = loop {
        let all = control
            .broadcast(Command::ping(), None, Duration::from_secs(5))
            .await
            .unwrap();
        if !all.is_empty() || std::time::Instant::now() > deadline {
            break all;
        }
    };
    assert_eq!(all.len(), 1, "{all:?}");
    let name = all[0].worker.clone();
    assert!(name.starts_with("worker@"), "{name}");
    assert_eq!(all[0].value, serde_json::json!({ "ok": "pong" }));

    // With a destination the call ends with the last answer, long before the timeout.
    let to_it = || Some(vec![name.clone()]);
    let started = std::time::Instant::now();
    let queues = control
        .broadcast(Command::active_queues(), to_it(), Duration::from_secs(30))
        .await
        .unwrap();
    assert!(started.elapsed() < Duration::from_secs(20));
    let consumed: BTreeSet<&str> = queues[0]
        .value
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|queue| queue["name"].as_str())
        .collect();
    assert_eq!(consumed, BTreeSet::from(["mail", "orders"]));
    let (stats, nobody) = tokio::join!(
        control.broadcast(Command::stats(), to_it(), Duration::from_secs(30)),
        control.broadcast(Command::ping(), Some(vec!["nobody@h".into()]), Duration::from_secs(1)),
    );
    assert!(stats.unwrap()[0].value["pid"].is_number());
    assert_eq!(nobody.unwrap(), []);
    let unknown = control
        .broadcast(Command::new("nosuch"), to_it(), Duration::from_secs(30))
        .await
        .unwrap();
    assert!(unknown[0].value["error"].is_string(), "{unknown:?}");

    // No task events until they are asked for.
    let heard = watched.deliveries.len();
    control.cast(Command::heartbeat(), None).await.unwrap();
    watched.deliveries(heard + 1).await;
    assert!(!event_types(&watched).iter().any(|name| name.starts_with("task-")));
    let enabled = control
        .broadcast(Command::enable_events(), to_it(), Duration::from_secs(30))
        .await
        .unwrap();
    assert!(
        enabled[0].value["ok"].as_str().unwrap().contains("enabled"),
        "{enabled:?}"
    );
    celery.publish("success", 3).await.unwrap();
    watched
        .until("three successes", |watched| {
            event_types(watched)
                .iter()
                .filter(|name| *name == "task-succeeded")
                .count()
                == 3
        })
        .await;
    watched.ack_all();

    let mut sampler = QueueSampler::new(spec.clone());
    let names = BTreeSet::from(["orders".to_owned(), "mail".to_owned()]);
    eventually("empty queues", async || {
        let samples = sampler.sample(&names).await.unwrap();
        samples.len() == 2 && samples.iter().all(|sample| sample.ready == Some(0))
    })
    .await;

    let mut read_only = spec;
    read_only.read_only = true;
    control.reload(read_only);
    let refused = control.broadcast(Command::ping(), None, Duration::from_secs(1)).await;
    assert!(matches!(refused, Err(ControlError::ReadOnly(_))));
    worker.stop().await.unwrap();
    watched
        .until("worker-offline", |watched| {
            event_types(watched).contains(&"worker-offline".into())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_on_rabbitmq_is_watched_and_controlled() {
    let server = Rabbitmq::start_new().unwrap();
    a_worker_is_watched_and_controlled(spec(&server.url()), &server.url()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_on_redis_is_watched_and_controlled_and_no_key_is_left() {
    let server = Redis::start_new().unwrap();
    a_worker_is_watched_and_controlled(spec(&server.url(3)), &server.url(3)).await;
    eventually("no reply key", async || {
        server
            .cli(&["-n", "3", "KEYS", "*reply.celery.pidbox*"])
            .unwrap()
            .is_empty()
    })
    .await;
}
