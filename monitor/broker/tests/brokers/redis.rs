//! Redis, working and failing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kanchi_broker::{
    ConnectReason, ConnectionState, EventStreamOptions, Framing, GapCause, QueueSampler, Record, ResultBackend,
    ResultError, TlsFiles,
};
use kanchi_test_servers::certificates::Certificates;
use kanchi_test_servers::redis::{ClientCertificates, Redis, RedisOptions};

use crate::support::{Watched, now, spec};

fn publish(server: &Redis, channel: &str, body: &str) {
    server.cli(&["PUBLISH", channel, body]).unwrap();
}

#[tokio::test]
async fn events_come_on_every_channel_that_any_kombu_uses_and_no_other_databases() {
    let server = Redis::start_new().unwrap();
    let mut watched = Watched::connected(&spec(&server.url(5))).await;
    let channels = [
        "/5.celeryev/worker.heartbeat",
        "/5.celeryev",
        "celeryev/task.sent",
        "celeryev",
        "/{db}.celeryev/task.multi",
    ];
    for foreign in [
        "/0.celeryev/x",
        "acme:/5.celeryev/x",
        "/5.celery.pidbox",
        "/5.celeryevil/x",
        "xceleryev/x",
    ] {
        publish(&server, foreign, "foreign");
    }
    for channel in channels {
        publish(&server, channel, channel);
    }
    watched.deliveries(channels.len()).await;
    assert_eq!(watched.bodies(), channels);
    assert_eq!(watched.deliveries[0].framing, Framing::Envelope);
    assert_eq!(watched.gaps, [], "a first start is no gap");
    let version = watched.reports.last().unwrap().broker_version.clone().unwrap();
    assert!(version.starts_with("Redis 7."), "{version}");

    let mut prefixed = spec(&server.url(0));
    prefixed.celery.global_key_prefix = "ac*me[1]:".into();
    prefixed.celery.event_exchange = "my?ev".into();
    let mut watched = Watched::connected(&prefixed).await;
    publish(&server, "acXme1:/0.myXev/x", "foreign");
    publish(&server, "ac*me[1]:/0.my?ev/task.multi", "own");
    watched.deliveries(1).await;
    assert_eq!(watched.bodies(), ["own"]);
}

#[tokio::test]
async fn a_cut_subscription_is_a_gap_from_the_last_sign_to_the_next() {
    let mut server = Redis::start_new().unwrap();
    let mut watched = Watched::connected(&spec(&server.url(0))).await;
    publish(&server, "/0.celeryev/x", "before");
    watched.deliveries(1).await;
    server.kill();
    watched
        .until("disconnected", |watched| watched.is(ConnectionState::Disconnected))
        .await;
    let down = now();
    watched.reason(ConnectReason::ConnectionRefused).await;
    server.start().unwrap();
    watched.reconnected().await;
    publish(&server, "/0.celeryev/x", "after");
    watched.deliveries(2).await;
    let causes: Vec<GapCause> = watched.gaps.iter().map(|gap| gap.cause).collect();
    assert_eq!(causes, [GapCause::SubscriberCut]);
    assert!(watched.gaps[0].from < down && down < watched.gaps[0].to.unwrap());
}

#[tokio::test]
async fn the_time_between_two_monitors_is_a_gap() {
    let server = Redis::start_new().unwrap();
    let left = now();
    let options = EventStreamOptions {
        last_seen: Some(left),
        ..EventStreamOptions::default()
    };
    let watched = Watched::connected_with(&spec(&server.url(0)), options).await;
    let told: Vec<_> = watched.gaps.iter().map(|gap| (gap.cause, gap.from)).collect();
    assert_eq!(told, [(GapCause::MonitorRestart, left)]);
}

#[tokio::test]
async fn a_silent_connection_is_asked_and_then_given_up() {
    let server = Redis::start_new().unwrap();
    let heartbeat = Duration::from_millis(300);
    let options = EventStreamOptions {
        heartbeat,
        connect_timeout: heartbeat,
        ..EventStreamOptions::default()
    };
    let mut watched = Watched::connected_with(&spec(&server.url(0)), options).await;
    // Quiet but alive: pings keep it.
    watched.until_quiet(heartbeat * 5).await;
    assert!(watched.is(ConnectionState::Connected), "{}", watched.seen());
    server.freeze().unwrap();
    watched.reason(ConnectReason::Timeout).await;
    server.thaw().unwrap();
    watched.reconnected().await;
}

#[tokio::test]
async fn each_refusal_has_its_reason_and_no_credential_in_it() {
    let server = Redis::with(RedisOptions {
        password: Some("hunter2-default".into()),
        users: vec![
            "monitor on >hunter2-monitor +@all ~* &*".into(),
            "deaf on >hunter2-deaf +@all ~* resetchannels".into(),
            "least on >hunter2-least -@all +psubscribe +ping &*".into(),
        ],
        ..RedisOptions::default()
    })
    .unwrap();
    for (url, reason) in [
        (
            format!("redis://:hunter2-wrong@127.0.0.1:{}", server.port()),
            ConnectReason::AuthenticationFailed,
        ),
        (
            format!("redis://127.0.0.1:{}", server.port()),
            ConnectReason::AuthenticationFailed,
        ),
        (
            server.url_of("monitor", "hunter2-wrong"),
            ConnectReason::AuthenticationFailed,
        ),
        (server.url_of("deaf", "hunter2-deaf"), ConnectReason::AccessRefused),
    ] {
        let mut watched = Watched::open(&spec(&url));
        watched.reason(reason).await;
        let message = &watched.reports.last().unwrap().message;
        assert!(!message.contains("hunter2") && !message.contains("deaf"), "{message}");
    }
    for url in [
        server.url(0),
        server.url_of("monitor", "hunter2-monitor"),
        server.url_of("least", "hunter2-least"),
    ] {
        let mut watched = Watched::connected(&spec(&url)).await;
        publish(&server, "/0.celeryev/x", "event");
        watched.deliveries(1).await;
    }
    // A sampler says the same.
    let wrong = server.url_of("monitor", "hunter2-wrong");
    let refused = QueueSampler::new(spec(&wrong)).discover().await.unwrap_err();
    let kanchi_broker::SampleError::Unavailable { reason, message } = refused;
    assert_eq!(reason, ConnectReason::AuthenticationFailed);
    assert!(!message.contains("hunter2"), "{message}");
}

#[tokio::test]
async fn tls_works_by_the_right_authority_and_client_certificate() {
    let certificates = Arc::new(Certificates::generate().unwrap());
    let server = Redis::with(RedisOptions {
        password: Some("pw".into()),
        tls: Some(Arc::clone(&certificates)),
        client_certificates: ClientCertificates::Required,
        ..RedisOptions::default()
    })
    .unwrap();
    let pem = |name: &str| Some(certificates.pem(name).unwrap());
    let mut spec = spec(&server.tls_url());
    let good = TlsFiles {
        ca: pem("ca.crt"),
        certificate: pem("client.crt"),
        key: pem("client.key"),
    };
    spec.tls = Some(good.clone());
    Watched::connected(&spec).await;
    QueueSampler::new(spec.clone()).discover().await.unwrap();

    let stranger = Certificates::generate().unwrap();
    spec.tls = Some(TlsFiles {
        ca: Some(stranger.pem("ca.crt").unwrap()),
        ..good.clone()
    });
    Watched::open(&spec).reason(ConnectReason::TlsFailed).await;

    let unverified = format!("{}?ssl_cert_reqs=CERT_NONE", server.tls_url());
    let mut insecure = crate::support::spec(&unverified);
    insecure.tls = Some(TlsFiles {
        ca: Some(stranger.pem("ca.crt").unwrap()),
        ..good
    });
    Watched::connected(&insecure).await;

    let plain = server.tls_url().replace("rediss", "redis");
    let mut watched = Watched::open(&crate::support::spec(&plain));
    watched
        .until("a refusal", |watched| watched.is(ConnectionState::Disconnected))
        .await;
}

#[tokio::test]
async fn what_nobody_takes_is_dropped_within_the_budget_and_told() {
    const MIB: usize = 1024 * 1024;
    let server = Redis::start_new().unwrap();
    let options = EventStreamOptions {
        budget_bytes: 8 * MIB,
        ..EventStreamOptions::default()
    };
    let mut watched = Watched::connected_with(&spec(&server.url(0)), options).await;
    let body = "x".repeat(MIB / 16);
    let script = "for i = 1, 480 do redis.call('PUBLISH', '/0.celeryev/x', ARGV[1]) end";
    server.cli(&["EVAL", script, "0", &body]).unwrap();
    // Nothing is taken until the server has sent everything.
    let sent = async || {
        let list = server.cli(&["CLIENT", "LIST", "TYPE", "PUBSUB"]).unwrap();
        list.contains("omem=0") && list.contains("obl=0")
    };
    crate::support::eventually("the subscriber read to the end", sent).await;
    publish(&server, "/0.celeryev/x", "not yet");
    watched.until_quiet(Duration::from_secs(1)).await;
    publish(&server, "/0.celeryev/x", "last");
    watched
        .until("the last event", |watched| {
            watched.bodies().last().is_some_and(|body| body == "last")
        })
        .await;
    let full = watched
        .deliveries
        .iter()
        .filter(|delivery| delivery.body.len() == body.len())
        .count();
    // 8 MiB here, and what the kernel's receive buffer still held when taking began.
    assert!((100..=240).contains(&full), "{full}");
    let told: Vec<_> = watched.gaps.iter().map(|gap| gap.cause).collect();
    assert_eq!(told, [GapCause::SpoolFull]);
    let missing = watched.gaps[0].estimated_events.unwrap() as usize;
    assert!(missing + full >= 480 && missing + full <= 481, "{missing} + {full}");
    assert!(watched.is(ConnectionState::Connected), "reading went on");
}

#[tokio::test]
async fn messages_of_ten_megabytes_arrive_whole() {
    let server = Redis::start_new().unwrap();
    server
        .cli(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 0 0 0"])
        .unwrap();
    let mut watched = Watched::connected(&spec(&server.url(0))).await;
    let script = "local s = string.rep('y', 10485760) for i = 1, 5 do redis.call('PUBLISH', '/0.celeryev/x', s) end";
    let eval = tokio::task::spawn_blocking({
        let port = server.port().to_string();
        move || {
            std::process::Command::new("redis-cli")
                .args(["-p", &port, "EVAL", script, "0"])
                .status()
        }
    });
    watched.deliveries(5).await;
    assert!(
        watched
            .deliveries
            .iter()
            .all(|delivery| delivery.body.len() == 10_485_760)
    );
    assert!(eval.await.unwrap().unwrap().success());
}

#[tokio::test]
async fn queues_are_found_in_bindings_and_counted_over_all_priorities() {
    let server = Redis::start_new().unwrap();
    let prefix = "acme:";
    let key = |name: &str| format!("{prefix}{name}");
    for (exchange, member) in [
        ("celery", "celery\u{6}\u{16}\u{6}\u{16}celery"),
        ("orders", "o.*\u{6}\u{16}^o\\..*$\u{6}\u{16}orders"),
        ("celery.pidbox", "\u{6}\u{16}\u{6}\u{16}w@h.celery.pidbox"),
        ("reply.celery.pidbox", "x\u{6}\u{16}\u{6}\u{16}x.reply.celery.pidbox"),
        ("celeryev", "#\u{6}\u{16}.*\u{6}\u{16}celeryev.abc"),
    ] {
        server
            .cli(&["SADD", &key(&format!("_kombu.binding.{exchange}")), member])
            .unwrap();
    }
    server
        .cli(&["SADD", "_kombu.binding.other", "a\u{6}\u{16}\u{6}\u{16}foreign"])
        .unwrap();
    server.cli(&["LPUSH", &key("celery"), "1", "2"]).unwrap();
    server.cli(&["LPUSH", &key("celery\u{6}\u{16}3"), "1"]).unwrap();
    server.cli(&["LPUSH", &key("celery\u{6}\u{16}9"), "1"]).unwrap();
    server
        .cli(&["HSET", &key("unacked"), "tag1", "[]", "tag2", "[]"])
        .unwrap();
    server
        .cli(&[
            "ZADD",
            &key("unacked_index"),
            "1700000000.5",
            "tag1",
            "1700000009",
            "tag2",
        ])
        .unwrap();
    server.cli(&["SET", &key("mail"), "not a list"]).unwrap();
    let mut spec = spec(&server.url(0));
    spec.celery.global_key_prefix = prefix.into();
    let mut sampler = QueueSampler::new(spec);
    let found = sampler.discover().await.unwrap();
    assert_eq!(found, BTreeSet::from(["celery".to_owned(), "orders".to_owned()]));
    let names = found
        .into_iter()
        .chain(["mail".to_owned(), "w@h.celery.pidbox".to_owned()])
        .collect();
    let samples = sampler.sample(&names).await.unwrap();
    let told: Vec<_> = samples.iter().map(|one| (one.name.as_str(), one.ready)).collect();
    assert_eq!(told, [("celery", Some(4)), ("mail", None), ("orders", Some(0))]);
    let in_flight = sampler.in_flight().await.unwrap().unwrap();
    assert_eq!((in_flight.count, in_flight.oldest_since), (2, Some(1_700_000_000.5)));
}

#[tokio::test]
async fn a_result_backend_is_read_with_the_least_rights_and_large_or_foreign_values_are_left_alone() {
    let options = RedisOptions {
        password: Some("hunter2-default".into()),
        users: vec!["least on >hunter2-least ~acme_celery-task-meta-* +strlen +mget +scan +select".into()],
        ..RedisOptions::default()
    };
    let server = Redis::with(options).unwrap();
    let set = |key: &str, value: &str| server.cli(&["SET", key, value]).unwrap();
    set("acme_celery-task-meta-a", r#"{"status": "SUCCESS"}"#);
    set("celery-task-meta-a", "another application's");
    server.cli(&["LPUSH", "acme_celery-task-meta-list", "x"]).unwrap();
    let large = (2 << 20).to_string();
    server
        .cli(&["SETRANGE", "acme_celery-task-meta-large", &large, "x"])
        .unwrap();
    let mut spec = spec(&server.url_of("least", "hunter2-least"));
    spec.celery.global_key_prefix = "acme".into();
    let mut backend = ResultBackend::open(&spec).await.unwrap();
    let records = backend.records(&["none", "a", "list", "large"]).await.unwrap();
    let bytes = Record::Bytes(br#"{"status": "SUCCESS"}"#.to_vec());
    assert_eq!(records, [Record::None, bytes, Record::None, Record::TooLarge]);
    for key in ["acme_celery-task-meta-m1", "acme_celery-task-meta-m2"] {
        server.cli(&["SETRANGE", key, "699999", "x"]).unwrap();
    }
    let first = backend.records(&["none", "m1", "m2"]).await.unwrap();
    assert_eq!(first.len(), 2, "an answer stays small");
    assert!(matches!(&first[1], Record::Bytes(bytes) if bytes.len() == 700_000));
    server
        .cli(&["DEL", "acme_celery-task-meta-m1", "acme_celery-task-meta-m2"])
        .unwrap();
    let (mut cursor, mut found) = (0, BTreeSet::new());
    loop {
        let page = backend.scan(cursor).await.unwrap();
        found.extend(page.ids);
        cursor = page.next;
        if cursor == 0 {
            break;
        }
    }
    assert_eq!(found, ["a", "large", "list"].map(str::to_owned).into());

    // Without a right, and without the prefix: said so, and no secret told.
    spec.celery.global_key_prefix = String::new();
    let mut backend = ResultBackend::open(&spec).await.unwrap();
    let refused = backend.records(&["a"]).await.unwrap_err();
    assert!(!format!("{refused} {refused:?}").contains("hunter2"), "{refused:?}");
    let ResultError::Unavailable { reason, .. } = refused;
    assert_eq!(reason, ConnectReason::AccessRefused);
}
