//! RabbitMQ while it works: one server for all, a virtual host for each test.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use kanchi_broker::{ConnectReason, ConnectionState, EventStreamOptions, GapCause, QueueSampler, TlsFiles, UnixMicros};
use kanchi_contract::EventQueueType;
use kanchi_test_servers::certificates::Certificates;
use kanchi_test_servers::rabbitmq::{Rabbitmq, RabbitmqOptions, RabbitmqUser};
use lapin::options::{
    BasicPublishOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, ExchangeKind};

use crate::support::{Publisher, Watched, eventually, now, spec};

static CERTIFICATES: LazyLock<Arc<Certificates>> = LazyLock::new(|| Arc::new(Certificates::generate().unwrap()));

static SERVER: LazyLock<Rabbitmq> = LazyLock::new(|| {
    let all = [".*".to_owned(), ".*".to_owned(), ".*".to_owned()];
    let own = [
        "^kanchi\\..*".to_owned(),
        "^kanchi\\..*".to_owned(),
        "^(kanchi\\..*|celeryev)$".to_owned(),
    ];
    let user = |name: &str, permissions| RabbitmqUser {
        name: name.into(),
        password: "p@ss/word".into(),
        permissions,
    };
    Rabbitmq::with(&RabbitmqOptions {
        vhosts: [
            "flow",
            "exchange",
            "access",
            "redelivery",
            "away",
            "prefetch",
            "burst",
            "overflow",
            "arguments",
            "expiry",
            "queues",
            "least",
            "vanish",
            "quorum",
        ]
        .map(str::to_owned)
        .to_vec(),
        users: vec![
            user("nobody", Vec::new()),
            user(
                "blind",
                vec![("access".into(), [String::new(), String::new(), String::new()])],
            ),
            user("everything", vec![("access".into(), all)]),
            user("least", vec![("least".into(), own)]),
        ],
        tls: Some(Arc::clone(&CERTIFICATES)),
        settings: Vec::new(),
    })
    .unwrap()
});

fn url(vhost: &str) -> String {
    SERVER.url_of("guest", "guest", vhost)
}

async fn depth(publisher: &Publisher, queue: &str) -> Option<u32> {
    let channel = publisher.connection.create_channel().await.unwrap();
    let passive = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare(queue.into(), passive, FieldTable::default())
        .await
        .ok()
        .map(|queue| queue.message_count())
}

fn event_queue(watched: &Watched) -> String {
    watched
        .reports
        .last()
        .and_then(|report| report.event_queue.clone())
        .unwrap()
}

#[tokio::test]
async fn events_come_in_order_with_their_properties_and_are_gone_once_acknowledged() {
    let mut watched = Watched::connected(&spec(&url("flow"))).await;
    let publisher = Publisher::connect(&url("flow")).await;
    // The monitor came first and has created the exchange: a worker's declaration must fit.
    publisher.declare().await;
    publisher.events(0..50).await;
    watched.deliveries(50).await;
    assert_eq!(
        watched.bodies(),
        (0..50).map(|number| number.to_string()).collect::<Vec<_>>()
    );
    let first = &watched.deliveries[0];
    assert!(!first.redelivered);
    assert_eq!(
        first.framing,
        kanchi_broker::Framing::Message {
            content_type: Some("application/json".into()),
            content_encoding: Some("utf-8".into()),
            compression: None
        }
    );
    assert_eq!(
        watched.reports.last().unwrap().broker_version.as_deref(),
        Some("RabbitMQ 3.10.8")
    );
    assert!(watched.gaps.is_empty());
    let queue = event_queue(&watched);
    watched.ack_all();
    drop(watched);
    eventually("an empty queue", async || depth(&publisher, &queue).await == Some(0)).await;
}

#[tokio::test]
async fn a_foreign_exchange_is_named_left_alone_and_healed_from() {
    let publisher = Publisher::connect(&url("exchange")).await;
    let options = ExchangeDeclareOptions::default();
    publisher
        .channel
        .exchange_declare("celeryev".into(), ExchangeKind::Fanout, options, FieldTable::default())
        .await
        .unwrap();
    let mut watched = Watched::open(&spec(&url("exchange")));
    watched.reason(ConnectReason::ExchangeMismatch).await;
    publisher
        .channel
        .exchange_delete("celeryev".into(), ExchangeDeleteOptions::default())
        .await
        .unwrap();
    watched
        .until("connected", |watched| watched.is(ConnectionState::Connected))
        .await;
    publisher.declare().await;
}

#[tokio::test]
async fn each_refusal_has_its_reason_and_no_credential_in_it() {
    for (url, reason) in [
        (
            SERVER.url_of("everything", "hunter2-wrong", "access"),
            ConnectReason::AuthenticationFailed,
        ),
        (
            SERVER.url_of("guest", "guest", "no-such-vhost"),
            ConnectReason::VhostNotFound,
        ),
        (
            SERVER.url_of("nobody", "p%40ss%2Fword", "access"),
            ConnectReason::AccessRefused,
        ),
        (
            SERVER.url_of("blind", "p%40ss%2Fword", "access"),
            ConnectReason::AccessRefused,
        ),
        (
            "amqp://guest:hunter2@127.0.0.1:1/".into(),
            ConnectReason::ConnectionRefused,
        ),
        (
            "amqp://guest:hunter2@no-such-host.invalid/".into(),
            ConnectReason::DnsFailed,
        ),
    ] {
        let mut watched = Watched::open(&spec(&url));
        watched.reason(reason).await;
        let message = &watched.reports.last().unwrap().message;
        for secret in ["hunter2", "p@ss/word", "'nobody'", "'blind'", "'everything'"] {
            assert!(!message.contains(secret), "{message}");
        }
    }
    let mut decoded = Watched::open(&spec(&SERVER.url_of("everything", "p%40ss%2Fword", "access")));
    decoded
        .until("connected", |watched| watched.is(ConnectionState::Connected))
        .await;
}

#[tokio::test]
async fn rights_on_our_own_names_and_reading_the_exchange_are_enough() {
    Publisher::connect(&url("least")).await.declare().await;
    Watched::connected(&spec(&SERVER.url_of("least", "p%40ss%2Fword", "least"))).await;
}

#[tokio::test]
async fn what_was_not_acknowledged_comes_again_and_says_so() {
    let publisher = Publisher::connect(&url("redelivery")).await;
    let mut first = Watched::connected(&spec(&url("redelivery"))).await;
    publisher.events(0..10).await;
    first.deliveries(10).await;
    first.stream.ack_through(first.deliveries[3].tag);
    let queue = event_queue(&first);
    drop(first);
    eventually("six messages left", async || depth(&publisher, &queue).await == Some(6)).await;
    let mut second = Watched::connected(&spec(&url("redelivery"))).await;
    publisher.events(10..11).await;
    second.deliveries(7).await;
    assert_eq!(second.bodies(), ["4", "5", "6", "7", "8", "9", "10"]);
    let flags: Vec<bool> = second.deliveries.iter().map(|delivery| delivery.redelivered).collect();
    assert_eq!(flags, [true, true, true, true, true, true, false]);
    second.ack_all();
}

#[tokio::test]
async fn events_wait_while_no_monitor_is_there_and_that_is_no_gap() {
    let publisher = Publisher::connect(&url("away")).await;
    let first = Watched::connected(&spec(&url("away"))).await;
    let (queue, left) = (event_queue(&first), now());
    drop(first);
    publisher.events(0..20).await;
    let options = EventStreamOptions {
        last_seen: Some(left),
        ..EventStreamOptions::default()
    };
    let mut second = Watched::connected_with(&spec(&url("away")), options).await;
    second.deliveries(20).await;
    assert_eq!(second.gaps, []);
    assert_eq!(event_queue(&second), queue);
    second.ack_all();
}

#[tokio::test]
async fn a_quorum_queue_is_used_where_asked_for() {
    let mut spec = spec(&url("quorum"));
    spec.celery.event_queue.queue_type = EventQueueType::Quorum;
    let mut watched = Watched::connected(&spec).await;
    let publisher = Publisher::connect(&url("quorum")).await;
    publisher.events(0..10).await;
    watched.deliveries(10).await;
    drop(watched);
    let mut again = Watched::connected(&spec).await;
    again.deliveries(10).await;
    assert!(again.deliveries.iter().all(|delivery| delivery.redelivered));
    assert_eq!(again.bodies()[9], "9");
    again.ack_all();
}

#[tokio::test]
async fn bytes_under_way_stay_bounded_with_messages_of_a_megabyte() {
    const MIB: usize = 1024 * 1024;
    let publisher = Publisher::connect(&url("prefetch")).await;
    let options = EventStreamOptions {
        budget_bytes: 4 * MIB,
        ..EventStreamOptions::default()
    };
    let mut watched = Watched::connected_with(&spec(&url("prefetch")), options).await;
    let body = vec![b'x'; MIB];
    for _ in 0..40 {
        publisher.event(&body).await;
    }
    watched.until_quiet(Duration::from_secs(2)).await;
    assert!((MIB..=10 * MIB).contains(&watched.bytes()), "{} bytes", watched.bytes());
    // Acknowledged one by one the rest follows, within the budget.
    while watched.deliveries.len() < 40 {
        watched.ack_all();
        let next = watched.deliveries.len() + 1;
        watched.deliveries(next).await;
    }
    watched.ack_all();
    assert!(
        watched
            .deliveries
            .iter()
            .all(|delivery| delivery.body.len() == MIB && !delivery.redelivered)
    );
}

#[tokio::test]
async fn a_sudden_run_of_large_messages_is_stopped_at_the_socket() {
    const MIB: usize = 1024 * 1024;
    let publisher = Publisher::connect(&url("burst")).await;
    let options = EventStreamOptions {
        budget_bytes: 4 * MIB,
        ..EventStreamOptions::default()
    };
    let mut watched = Watched::connected_with(&spec(&url("burst")), options).await;
    // Small ones raise the prefetch into the thousands.
    publisher.events(0..400).await;
    watched.deliveries(400).await;
    watched.ack_all();
    let body = vec![b'x'; MIB];
    for _ in 0..60 {
        publisher.event(&body).await;
    }
    watched.until_quiet(Duration::from_secs(2)).await;
    let held = watched.bytes();
    assert!((MIB..=12 * MIB).contains(&held), "{held} bytes");
    while watched.deliveries.len() < 460 {
        watched.ack_all();
        let next = watched.deliveries.len() + 1;
        watched.deliveries(next).await;
    }
    watched.ack_all();
}

#[tokio::test]
async fn an_overflow_while_no_monitor_was_there_is_told_as_a_gap() {
    let publisher = Publisher::connect(&url("overflow")).await;
    let mut spec = spec(&url("overflow"));
    spec.celery.event_queue.max_length_bytes = 10_000;
    let first = Watched::connected(&spec).await;
    let left = now();
    drop(first);
    let body = |number: usize| format!("{number:0>1000}");
    for number in 0..50 {
        publisher.event(body(number).as_bytes()).await;
    }
    let options = EventStreamOptions {
        last_seen: Some(left),
        ..EventStreamOptions::default()
    };
    let mut second = Watched::connected_with(&spec, options).await;
    second.until("a gap", |watched| !watched.gaps.is_empty()).await;
    assert_eq!(
        (second.gaps[0].cause, second.gaps[0].from),
        (GapCause::QueueOverflow, left)
    );
    second.deliveries(10).await;
    second.until_quiet(Duration::from_millis(500)).await;
    assert_eq!(second.bodies(), (40..50).map(body).collect::<Vec<_>>());
    second.ack_all();
    // Told once.
    drop(second);
    let mut third = Watched::connected(&spec).await;
    third.until_quiet(Duration::from_millis(500)).await;
    assert_eq!(third.gaps, []);
}

#[tokio::test]
async fn a_queue_with_other_arguments_is_drained_then_deleted_and_nothing_is_lost() {
    let publisher = Publisher::connect(&url("arguments")).await;
    let mut spec = spec(&url("arguments"));
    let mut watched = Watched::connected(&spec).await;
    let old = event_queue(&watched);
    publisher.events(0..10).await;
    watched.deliveries(10).await;
    spec.celery.event_queue.max_length_bytes /= 2;
    watched.stream.reload(spec.clone());
    // The ten were not acknowledged: they come again, from the old queue, before anything of the new one.
    watched.deliveries(20).await;
    assert!(watched.deliveries[10..].iter().all(|delivery| delivery.redelivered));
    publisher.events(10..20).await;
    watched.ack_all();
    watched
        .until("the new queue", |watched| event_queue(watched) != old)
        .await;
    watched.deliveries(30).await;
    assert_eq!(
        watched.bodies()[20..],
        (10..20).map(|number| number.to_string()).collect::<Vec<_>>()
    );
    watched.ack_all();
    for name in [old.clone(), format!("{old}.dropped"), format!("{old}.alive")] {
        assert_eq!(depth(&publisher, &name).await, None, "{name}");
    }
    assert_eq!(watched.gaps, []);
    // A new process is told of the old queue by its predecessor, which the broker believes to be alive: what that one has
    // and never acknowledges comes back when it is given up, and must not be deleted with the queue until then.
    let previous = event_queue(&watched);
    publisher.events(20..25).await;
    watched.deliveries(35).await;
    spec.celery.event_queue.max_length_bytes /= 2;
    let last_seen = Some(now());
    let previous_queue = Some(previous.clone());
    let options = EventStreamOptions {
        last_seen,
        previous_queue,
        ..EventStreamOptions::default()
    };
    let mut next = Watched::connected_with(&spec, options).await;
    next.until_quiet(Duration::from_secs(2)).await;
    assert_eq!(next.deliveries.len(), 0);
    drop(watched);
    next.deliveries(5).await;
    next.ack_all();
    eventually("the old queue deleted", async || {
        depth(&publisher, &previous).await.is_none()
    })
    .await;
    assert_eq!(next.gaps, []);
}

#[tokio::test]
async fn a_queue_that_expired_is_a_gap_and_a_first_start_is_none() {
    let mut spec = spec(&url("expiry"));
    spec.celery.event_queue.expires_seconds = 1;
    let first = Watched::connected(&spec).await;
    assert_eq!(first.gaps, []);
    let (queue, left) = (event_queue(&first), now());
    drop(first);
    // Not by a declaration: that would renew the lease.
    let listed = || SERVER.ctl(&["list_queues", "-p", "expiry", "name"]).unwrap();
    eventually("the queue expired", async || {
        !listed().lines().any(|line| line == queue)
    })
    .await;
    let options = EventStreamOptions {
        last_seen: Some(left),
        ..EventStreamOptions::default()
    };
    let second = Watched::connected_with(&spec, options).await;
    let causes: Vec<GapCause> = second.gaps.iter().map(|gap| gap.cause).collect();
    assert_eq!(causes, [GapCause::QueueExpired]);
    assert!(second.gaps[0].to.unwrap() > left);
}

#[tokio::test]
async fn a_queue_deleted_under_us_is_declared_again_and_a_gap() {
    let publisher = Publisher::connect(&url("vanish")).await;
    let mut watched = Watched::connected(&spec(&url("vanish"))).await;
    publisher.events(0..1).await;
    watched.deliveries(1).await;
    watched.ack_all();
    let queue = event_queue(&watched);
    publisher
        .channel
        .queue_delete(queue.clone().into(), QueueDeleteOptions::default())
        .await
        .unwrap();
    watched.until("a gap", |watched| !watched.gaps.is_empty()).await;
    watched
        .until("connected", |watched| watched.is(ConnectionState::Connected))
        .await;
    publisher.events(1..2).await;
    watched.deliveries(2).await;
}

#[tokio::test]
async fn queues_are_sampled_without_touching_them() {
    let publisher = Publisher::connect(&url("queues")).await;
    for queue in ["celery", "mail", "worker1@host.celery.pidbox"] {
        let options = QueueDeclareOptions::default();
        publisher
            .channel
            .queue_declare(queue.into(), options, FieldTable::default())
            .await
            .unwrap();
    }
    let exclusive = QueueDeclareOptions {
        exclusive: true,
        ..QueueDeclareOptions::default()
    };
    publisher
        .channel
        .queue_declare("theirs".into(), exclusive, FieldTable::default())
        .await
        .unwrap();
    for _ in 0..3 {
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        let published = publisher
            .channel
            .basic_publish("".into(), "celery".into(), options, b"task", properties)
            .await;
        published.unwrap().await.unwrap();
    }
    let names: BTreeSet<String> = ["celery", "missing", "theirs", "mail", "worker1@host.celery.pidbox"]
        .map(str::to_owned)
        .into();
    let mut sampler = QueueSampler::new(spec(&url("queues")));
    let samples = sampler.sample(&names).await.unwrap();
    let told: Vec<_> = samples
        .iter()
        .map(|one| (one.name.as_str(), one.ready, one.consumers))
        .collect();
    assert_eq!(
        told,
        [
            ("celery", Some(3), Some(0)),
            ("mail", Some(0), Some(0)),
            ("theirs", None, None)
        ]
    );
    assert!(sampler.discover().await.unwrap().is_empty());
}

#[tokio::test]
async fn tls_works_by_the_right_authority_and_names_its_failure() {
    let mut spec = spec(&SERVER.tls_url());
    spec.tls = Some(TlsFiles {
        ca: Some(CERTIFICATES.pem("ca.crt").unwrap()),
        ..TlsFiles::default()
    });
    Watched::connected(&spec).await;

    let client = |name: &str| Some(CERTIFICATES.pem(name).unwrap());
    spec.tls = Some(TlsFiles {
        ca: client("ca.crt"),
        certificate: client("client.crt"),
        key: client("client.key"),
    });
    Watched::connected(&spec).await;

    let stranger = Certificates::generate().unwrap();
    for ca in [Some(stranger.pem("ca.crt").unwrap()), None] {
        spec.tls = Some(TlsFiles {
            ca,
            ..TlsFiles::default()
        });
        Watched::open(&spec).reason(ConnectReason::TlsFailed).await;
    }
    spec.tls = Some(TlsFiles {
        ca: Some(b"no certificate".to_vec()),
        ..TlsFiles::default()
    });
    Watched::open(&spec).reason(ConnectReason::InvalidConfiguration).await;

    let plain = SERVER.tls_url().replace("amqps", "amqp");
    Watched::open(&crate::support::spec(&plain))
        .reason(ConnectReason::ProtocolError)
        .await;
}

#[tokio::test]
async fn a_stream_that_was_never_connected_has_no_gap_to_tell() {
    let options = EventStreamOptions {
        last_seen: Some(UnixMicros(1)),
        ..EventStreamOptions::default()
    };
    let mut watched = Watched::open_with(&spec("amqp://127.0.0.1:1"), options);
    watched.reason(ConnectReason::ConnectionRefused).await;
    assert_eq!(watched.gaps, []);
}
