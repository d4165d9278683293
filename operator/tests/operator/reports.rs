//! What monitors report in the store becomes conditions and counts, and ends when they fall silent.

use std::time::{Duration, Instant};

use kanchi_crds::{CeleryBroker, ConditionType};
use kanchi_store::Heartbeat;
use serde_json::json;

use crate::support::operator::Operator;
use crate::support::world::{World, connected};

#[tokio::test(flavor = "multi_thread")]
async fn reachability_follows_the_monitor_and_silence_is_unknown() {
    let world = World::new("reports").await;
    let operator = Operator::start(&world, "one", &[]).await;
    world
        .apply("orders", json!({ "connection": { "url": "redis://cache/0" } }))
        .await;
    world
        .condition("orders", ConditionType::Ready, "True", "AsExpected")
        .await;
    let mut reporter = world.reporter("orders").await;
    reporter.heartbeat(&connected()).await.unwrap();
    world
        .condition("orders", ConditionType::BrokerReachable, "True", "Connected")
        .await;
    world
        .condition("orders", ConditionType::StoreReachable, "True", "Writing")
        .await;
    let counted = |broker: &CeleryBroker| {
        broker
            .status
            .as_ref()
            .is_some_and(|status| status.messages_queued == Some(7))
    };
    let broker = world.await_object::<CeleryBroker>("orders", counted).await;
    let status = broker.status.unwrap();
    assert_eq!((status.workers_online, status.events_per_second), (Some(2), Some(0.5)));
    assert_eq!(status.broker_version.as_deref(), Some("Redis 7.2"));
    let metrics = operator.metrics();
    assert!(metrics.contains("kanchi_celerybroker_workers_online{"), "{metrics}");

    let refused = Heartbeat {
        connection: "Disconnected".into(),
        reason: Some("AuthenticationFailed".into()),
        message: Some("the broker refused the password".into()),
        ..connected()
    };
    reporter.heartbeat(&refused).await.unwrap();
    let at = Instant::now();
    let message = world
        .condition(
            "orders",
            ConditionType::BrokerReachable,
            "False",
            "AuthenticationFailed",
        )
        .await;
    assert!(at.elapsed() < Duration::from_secs(12), "{:?}", at.elapsed());
    assert_eq!(message, "the broker refused the password");
    world
        .condition("orders", ConditionType::Ready, "True", "AsExpected")
        .await;

    world
        .condition("orders", ConditionType::BrokerReachable, "Unknown", "ReportStale")
        .await;
    let silent = |broker: &CeleryBroker| {
        broker
            .status
            .as_ref()
            .is_some_and(|status| status.messages_queued.is_none())
    };
    let status = world
        .await_object::<CeleryBroker>("orders", silent)
        .await
        .status
        .unwrap();
    assert_eq!(
        (status.workers_online, status.events_per_second, status.gaps),
        (None, None, None)
    );
    world
        .condition("orders", ConditionType::Ready, "True", "AsExpected")
        .await;
    operator.stop().await.unwrap();
}
