//! Secrets: missing, found, rotated, and never shown.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kanchi_crds::{CeleryBroker, ConditionType};
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::json;

use crate::support::eventually;
use crate::support::operator::Operator;
use crate::support::world::{PATIENCE, World};

fn referenced() -> serde_json::Value {
    json!({ "connection": { "urlSecretRef": { "name": "rabbit", "key": "url" } } })
}

/// The same with a result backend.
fn with_backend() -> serde_json::Value {
    let mut spec = referenced();
    spec["celery"] = json!({ "resultBackend": { "urlSecretRef": { "name": "rabbit", "key": "backend" } } });
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_secret_or_key_is_named_and_heals_when_it_appears() {
    let world = World::new("missing").await;
    let operator = Operator::start(&world, "one", &[]).await;
    world.apply("orders", referenced()).await;
    let message = world
        .condition("orders", ConditionType::ReferencesResolved, "False", "SecretNotFound")
        .await;
    assert!(message.contains(&format!("{}/rabbit", world.namespace)), "{message}");
    world
        .condition("orders", ConditionType::Ready, "False", "SecretNotFound")
        .await;
    world
        .condition("orders", ConditionType::Stalled, "False", "NotStalled")
        .await;

    world
        .secret("rabbit", json!({ "user": "canary-user", "pass": "canary-pass" }))
        .await;
    let message = world
        .condition("orders", ConditionType::ReferencesResolved, "False", "SecretKeyMissing")
        .await;
    assert!(
        message.contains("key url") && message.contains("found: pass, user"),
        "{message}"
    );
    assert!(!message.contains("canary"), "{message}");

    world
        .secret("rabbit", json!({ "url": "sentinel://:canary@host" }))
        .await;
    world
        .condition("orders", ConditionType::Accepted, "False", "UnsupportedTransport")
        .await;
    world
        .condition("orders", ConditionType::Stalled, "True", "UnsupportedTransport")
        .await;

    world
        .secret("rabbit", json!({ "url": "amqp://u:canary@rabbit/shop" }))
        .await;
    world
        .condition("orders", ConditionType::ReferencesResolved, "True", "AllFound")
        .await;
    world
        .condition("orders", ConditionType::Ready, "True", "AsExpected")
        .await;

    let both = |backend: &str| json!({ "url": "amqp://u:canary@rabbit/shop", "backend": backend });
    world.secret("rabbit", both("db+postgresql://u:canary@db/celery")).await;
    world.apply("orders", with_backend()).await;
    let message = world
        .condition("orders", ConditionType::Accepted, "False", "UnsupportedTransport")
        .await;
    assert!(
        message.contains("spec.celery.resultBackend") && message.contains("db+postgresql"),
        "{message}"
    );
    assert!(!message.contains("canary"), "{message}");
    world.secret("rabbit", both("redis://:canary@cache/3")).await;
    world
        .condition("orders", ConditionType::Ready, "True", "AsExpected")
        .await;
    operator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_password_reaches_the_pod_without_a_restart_and_is_shown_nowhere() {
    let world = World::new("rotate").await;
    let operator = Operator::start(&world, "one", &["--resync-seconds=3600"]).await;
    world
        .secret(
            "rabbit",
            json!({ "url": "amqp://u:canary-1@rabbit/shop", "backend": "redis://:canary-3@cache/3", "other": "a" }),
        )
        .await;
    world.apply("orders", with_backend()).await;
    world
        .condition("orders", ConditionType::Ready, "True", "AsExpected")
        .await;
    let hash = |pod: &Pod| pod.annotations().get("kanchi.io/config-hash").cloned();
    let pod = world
        .await_object::<Pod>("orders-monitor-0", |pod| hash(pod).is_some())
        .await;
    let set = world.api::<StatefulSet>().get("orders-monitor").await.unwrap();

    world
        .secret(
            "rabbit",
            json!({ "url": "amqp://u:canary-2@rabbit/shop", "backend": "redis://:canary-4@cache/3", "other": "a" }),
        )
        .await;
    let rotated = world
        .await_object::<Pod>("orders-monitor-0", |now| hash(now) != hash(&pod))
        .await;
    assert_eq!(
        world.mounted("orders", "broker-url").await,
        "amqp://u:canary-2@rabbit/shop"
    );
    assert_eq!(
        world.mounted("orders", "result-backend-url").await,
        "redis://:canary-4@cache/3"
    );
    assert_eq!(rotated.uid(), pod.uid(), "the pod is the same");
    let now = world.api::<StatefulSet>().get("orders-monitor").await.unwrap();
    assert_eq!(
        now.metadata.generation, set.metadata.generation,
        "the pod template is the same"
    );

    // A key that nobody uses: a pass may look, and finds nothing to do.
    let since = Timestamp::now().to_string();
    let before = world
        .api::<Secret>()
        .get("orders-monitor")
        .await
        .unwrap()
        .resource_version();
    world
        .secret(
            "rabbit",
            json!({ "url": "amqp://u:canary-2@rabbit/shop", "backend": "redis://:canary-4@cache/3", "other": "b" }),
        )
        .await;
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(
        world
            .api::<Secret>()
            .get("orders-monitor")
            .await
            .unwrap()
            .resource_version(),
        before
    );
    let writes = world.cluster.writes(&operator.user, &since);
    assert!(writes.iter().all(|write| write.resource == "leases"), "{writes:#?}");

    let objects = [
        serde_json::to_string(&world.broker("orders").await).unwrap(),
        serde_json::to_string(&world.api::<StatefulSet>().get("orders-monitor").await.unwrap()).unwrap(),
        serde_json::to_string(&rotated).unwrap(),
        serde_json::to_string(&world.api::<Event>().list(&ListParams::default()).await.unwrap().items).unwrap(),
        operator.metrics(),
        world.cluster.audit_log(),
    ];
    for text in objects {
        assert!(!text.contains("canary-1") && !text.contains("canary-2"), "{text}");
    }
    operator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_broker_for_the_same_thing_is_refused_until_the_first_goes() {
    let world = World::new("twice").await;
    let operator = Operator::start(&world, "one", &["--resync-seconds=3600"]).await;
    let url = |host: &str| json!({ "connection": { "url": format!("redis://{host}/0") } });
    world.apply("first", url("cache")).await;
    world
        .condition("first", ConditionType::Ready, "True", "AsExpected")
        .await;
    // Creation times have seconds.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    world
        .apply("second", url(&format!("cache.{}.svc", world.namespace)))
        .await;
    let message = world
        .condition("second", ConditionType::Accepted, "False", "DuplicateBroker")
        .await;
    assert!(message.contains("first"), "{message}");
    world
        .condition("second", ConditionType::Ready, "False", "DuplicateBroker")
        .await;
    assert!(
        world
            .api::<StatefulSet>()
            .get_opt("second-monitor")
            .await
            .unwrap()
            .is_none()
    );
    world
        .condition("first", ConditionType::Ready, "True", "AsExpected")
        .await;

    world.delete::<CeleryBroker>("first").await;
    world
        .condition("second", ConditionType::Ready, "True", "AsExpected")
        .await;
    operator.stop().await.unwrap();
}

/// A second leader has no memory of who was accepted.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_refuses_the_same_one() {
    let world = World::new("again").await;
    let operator = Operator::start(&world, "one", &[]).await;
    for name in ["zz-first", "aa-second"] {
        world
            .apply(name, json!({ "connection": { "url": "redis://cache/0" } }))
            .await;
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    }
    world
        .condition("aa-second", ConditionType::Accepted, "False", "DuplicateBroker")
        .await;
    world
        .condition("zz-first", ConditionType::Ready, "True", "AsExpected")
        .await;
    operator.stop().await.unwrap();
    let since = Timestamp::now().to_string();
    let operator = Operator::start(&world, "two", &["--resync-seconds=2"]).await;
    eventually("passes go on", PATIENCE, || async {
        let ok = operator.metrics().lines().any(|line| {
            line.starts_with("kanchi_operator_reconciles_total{kind=\"CeleryBroker\",result=\"terminal\"}")
        });
        if ok { Ok(()) } else { Err(operator.metrics()) }
    })
    .await;
    world
        .condition("aa-second", ConditionType::Accepted, "False", "DuplicateBroker")
        .await;
    let writes = world.cluster.writes(&operator.user, &since);
    assert!(
        writes.iter().all(|write| write.resource == "leases"),
        "a new leader finds all in order: {writes:#?}"
    );
    operator.stop().await.unwrap();
}
