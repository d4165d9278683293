//! RabbitMQ while it fails: a server for each test.

use std::time::Duration;

use kanchi_broker::{BrokerConnectSpec, ConnectReason, ConnectionState, EventStreamOptions, GapCause};
use kanchi_contract::EventQueueType;
use kanchi_test_servers::link::{Flow, Link};
use kanchi_test_servers::rabbitmq::Rabbitmq;

use crate::support::{Publisher, Watched, eventually, now, spec};

fn quorum(url: &str) -> BrokerConnectSpec {
    let mut spec = spec(url);
    spec.celery.event_queue.queue_type = EventQueueType::Quorum;
    spec.broker_key = "shop/quorum".into();
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_loses_nothing_of_a_quorum_queue_and_opens_a_gap_for_a_classic_one() {
    let mut server = Rabbitmq::start_new().unwrap();
    let mut classic = Watched::connected(&spec(&server.url())).await;
    let mut safe = Watched::connected(&quorum(&server.url())).await;
    let publisher = Publisher::connect(&server.url()).await;
    publisher.events(0..100).await;
    classic.deliveries(100).await;
    safe.deliveries(100).await;
    classic.ack_all();
    safe.stream.ack_through(safe.deliveries[49].tag);
    // RabbitMQ 3.10 writes down lazily that it has a quorum queue, and killed before, it never elects its leader again.
    let queue = safe.reports.last().unwrap().event_queue.clone().unwrap();
    eventually("the quorum queue registered on disk", async || {
        server.has_registered(&queue)
    })
    .await;
    let before = now();
    server.kill();
    classic
        .until("disconnected", |watched| watched.is(ConnectionState::Disconnected))
        .await;
    safe.until("disconnected", |watched| watched.is(ConnectionState::Disconnected))
        .await;
    server.start().unwrap();
    classic.reconnected().await;
    safe.reconnected().await;
    let causes: Vec<GapCause> = classic.gaps.iter().map(|gap| gap.cause).collect();
    assert_eq!(causes, [GapCause::BrokerRestart]);
    assert!(classic.gaps[0].from <= before && classic.gaps[0].to.unwrap() > before);
    let publisher = Publisher::connect(&server.url()).await;
    publisher.events(100..200).await;
    // The first fifty were acknowledged, though a killed broker may not have written that down.
    safe.until("the last event", |watched| {
        watched.bodies().last().is_some_and(|body| body == "199")
    })
    .await;
    let bodies = safe.bodies();
    for number in 0..200 {
        assert!(bodies.contains(&number.to_string()), "{number} is lost");
    }
    for delivery in &safe.deliveries[100..] {
        let number: usize = String::from_utf8_lossy(&delivery.body).parse().unwrap();
        // Newer ones may be marked, too: a quorum queue takes back what a changed prefetch finds on its way.
        assert!(delivery.redelivered || number >= 100, "{number}");
    }
    assert_eq!(safe.gaps, []);
    classic.deliveries(200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_while_no_monitor_was_there_is_told_by_the_next_one() {
    let mut server = Rabbitmq::start_new().unwrap();
    drop(Watched::connected(&spec(&server.url())).await);
    let left = now();
    Publisher::connect(&server.url()).await.events(0..5).await;
    server.stop();
    server.start().unwrap();
    let options = EventStreamOptions {
        last_seen: Some(left),
        ..EventStreamOptions::default()
    };
    let watched = Watched::connected_with(&spec(&server.url()), options).await;
    let told: Vec<_> = watched.gaps.iter().map(|gap| (gap.cause, gap.from)).collect();
    assert_eq!(told, [(GapCause::BrokerRestart, left)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_begins_before_a_backlog_that_went_with_the_broker() {
    let mut server = Rabbitmq::start_new().unwrap();
    drop(Watched::connected(&spec(&server.url())).await);
    let left = now();
    Publisher::connect(&server.url()).await.events(0..2_000).await;
    let options = EventStreamOptions {
        last_seen: Some(left),
        // Most of it stays at the broker.
        budget_bytes: 16 * 1024,
        ..EventStreamOptions::default()
    };
    let mut watched = Watched::connected_with(&spec(&server.url()), options).await;
    watched.deliveries(1).await;
    server.kill();
    watched
        .until("disconnected", |watched| watched.is(ConnectionState::Disconnected))
        .await;
    assert!(watched.deliveries.len() < 2_000, "nothing was left to lose");
    server.start().unwrap();
    watched.reconnected().await;
    let told: Vec<_> = watched.gaps.iter().map(|gap| (gap.cause, gap.from)).collect();
    assert_eq!(told, [(GapCause::BrokerRestart, left)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_begins_before_a_backlog_that_formed_when_all_before_had_come() {
    let mut server = Rabbitmq::start_new().unwrap();
    let link = Link::open(server.port()).await.unwrap();
    let url = server
        .url()
        .replace(&format!(":{}/", server.port()), &format!(":{}/", link.port()));
    let mut watched = Watched::connected(&spec(&url)).await;
    let publisher = Publisher::connect(&server.url()).await;
    publisher.events(0..1).await;
    watched.deliveries(1).await;
    watched.ack_all();
    let came = now();
    watched
        .until("all of it here", |watched| watched.complete_until >= Some(came))
        .await;
    let before = now();
    link.set(Flow::Slow(20_000));
    publisher.events(1..3_000).await;
    watched.deliveries(50).await;
    server.kill();
    link.set(Flow::Cut);
    watched
        .until("disconnected", |watched| watched.is(ConnectionState::Disconnected))
        .await;
    assert!(watched.deliveries.len() < 3_000, "nothing was left to lose");
    server.start().unwrap();
    link.set(Flow::Open);
    watched.reconnected().await;
    let [gap] = watched.gaps.as_slice() else {
        panic!("{}", watched.seen())
    };
    assert_eq!(gap.cause, GapCause::BrokerRestart);
    assert!(
        came <= gap.from && gap.from <= before,
        "{gap:?}; published from {before:?} on"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_stops_answering_is_noticed_and_healed_from() {
    let server = Rabbitmq::start_new().unwrap();
    let options = EventStreamOptions {
        heartbeat: Duration::from_secs(2),
        ..EventStreamOptions::default()
    };
    let mut watched = Watched::connected_with(&spec(&server.url()), options).await;
    server.freeze().unwrap();
    watched.reason(ConnectReason::Timeout).await;
    server.thaw().unwrap();
    watched.reconnected().await;
    assert_eq!(watched.gaps, [], "the broker did not restart");
    Publisher::connect(&server.url()).await.events(0..1).await;
    watched.deliveries(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_that_takes_too_long_costs_a_channel_and_no_event() {
    let server = Rabbitmq::start_new().unwrap();
    // The broker's own 30 minutes, made short.
    server
        .ctl(&["eval", "application:set_env(rabbit, consumer_timeout, 3000)."])
        .unwrap();
    server
        .ctl(&["eval", "application:set_env(rabbit, channel_tick_interval, 1000)."])
        .unwrap();
    let mut watched = Watched::connected(&spec(&server.url())).await;
    let publisher = Publisher::connect(&server.url()).await;
    publisher.events(0..5).await;
    watched.deliveries(5).await;
    watched.deliveries(10).await;
    assert_eq!(watched.bodies()[5..], ["0", "1", "2", "3", "4"]);
    assert!(watched.deliveries[5..].iter().all(|delivery| delivery.redelivered));
    watched.ack_all();
    publisher.events(5..6).await;
    watched
        .until("the new event", |watched| {
            watched.bodies().last().is_some_and(|body| body == "5")
        })
        .await;
    let states: Vec<ConnectionState> = watched.reports.iter().map(|report| report.state).collect();
    assert!(!states.contains(&ConnectionState::Disconnected), "{states:?}");
    assert_eq!(watched.gaps, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_password_is_taken_up_by_a_reload() {
    let server = Rabbitmq::start_new().unwrap();
    let mut watched = Watched::connected(&spec(&server.url())).await;
    server.ctl(&["change_password", "guest", "rotated"]).unwrap();
    server.ctl(&["close_all_connections", "rotation"]).unwrap();
    watched.reason(ConnectReason::AuthenticationFailed).await;
    watched.stream.reload(spec(&server.url_of("guest", "rotated", "%2F")));
    watched.reconnected().await;
}
