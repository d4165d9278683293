//! What goes with a CeleryBroker, and what never holds it up.

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::api::events::v1::Event;
use kanchi_crds::{CeleryBroker, ConditionType, HISTORY_FINALIZER};
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::support::eventually;
use crate::support::operator::{CLUSTER_ROLE, Operator};
use crate::support::world::{PATIENCE, World, connected};

fn redis(policy: &str) -> serde_json::Value {
    json!({ "connection": { "urlSecretRef": { "name": "cache", "key": "url" } }, "reclaimPolicy": policy })
}

#[tokio::test(flavor = "multi_thread")]
async fn retain_has_no_finalizer_and_the_history_is_found_again() {
    let world = World::new("retain").await;
    let operator = Operator::start(&world, "one", &[]).await;
    world.secret("cache", json!({ "url": "redis://cache/0" })).await;
    world.apply("orders", redis("Retain")).await;
    world
        .condition("orders", ConditionType::Ready, "True", "AsExpected")
        .await;
    let broker = world.broker("orders").await;
    assert!(broker.finalizers().is_empty());
    let key = broker.status.unwrap().store_key;
    let reporter = tokio::sync::Mutex::new(world.reporter("orders").await);
    world.delete::<CeleryBroker>("orders").await;
    world.await_gone::<Secret>("orders-monitor").await;
    eventually("the old role may not log in", PATIENCE, || async {
        match reporter.lock().await.heartbeat(&connected()).await {
            Ok(()) => Err("still writes".to_owned()),
            Err(_refused) => Ok(()),
        }
    })
    .await;
    world.apply("orders", redis("Retain")).await;
    world
        .condition("orders", ConditionType::Ready, "True", "AsExpected")
        .await;
    assert_eq!(
        world.broker("orders").await.status.unwrap().store_key,
        key,
        "the history is adopted"
    );
    world.reporter("orders").await.heartbeat(&connected()).await.unwrap();
    world
        .condition("orders", ConditionType::BrokerReachable, "True", "Connected")
        .await;
    operator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_deleted_while_no_operator_runs_is_retired_by_the_next_one() {
    let world = World::new("stranger").await;
    let operator = Operator::start(&world, "one", &[]).await;
    world.secret("cache", json!({ "url": "redis://cache/0" })).await;
    for name in ["orders", "stays"] {
        let prefix = json!({ "globalKeyPrefix": name });
        let mut spec = redis("Retain");
        spec["celery"] = prefix;
        world.apply(name, spec).await;
        world.condition(name, ConditionType::Ready, "True", "AsExpected").await;
    }
    let reporter = tokio::sync::Mutex::new(world.reporter("orders").await);
    operator.stop().await.unwrap();
    world.delete::<CeleryBroker>("orders").await;
    reporter.lock().await.heartbeat(&connected()).await.unwrap();
    let operator = Operator::start(&world, "two", &[]).await;
    eventually("the old role may not log in", PATIENCE, || async {
        match reporter.lock().await.heartbeat(&connected()).await {
            Ok(()) => Err("still writes".to_owned()),
            Err(_refused) => Ok(()),
        }
    })
    .await;
    world.reporter("stays").await.heartbeat(&connected()).await.unwrap();
    operator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_removes_the_history_first_and_needs_no_secret() {
    let world = World::new("delete").await;
    let operator = Operator::start(&world, "one", &[CLUSTER_ROLE]).await;
    world.secret("cache", json!({ "url": "redis://cache/0" })).await;
    world.apply("orders", redis("Delete")).await;
    world
        .condition("orders", ConditionType::Ready, "True", "AsExpected")
        .await;
    let broker = world.broker("orders").await;
    assert_eq!(broker.finalizers(), [HISTORY_FINALIZER]);
    let key = broker.status.unwrap().store_key;
    // The policy is followed both ways.
    world.apply("orders", redis("Retain")).await;
    world
        .await_object::<CeleryBroker>("orders", |broker| broker.finalizers().is_empty())
        .await;
    world.apply("orders", redis("Delete")).await;
    world
        .await_object::<CeleryBroker>("orders", |broker| !broker.finalizers().is_empty())
        .await;
    world.delete::<Secret>("cache").await;
    world
        .condition("orders", ConditionType::Ready, "False", "SecretNotFound")
        .await;
    world.delete::<CeleryBroker>("orders").await;
    world.await_gone::<CeleryBroker>("orders").await;
    world.await_gone::<StatefulSet>("orders-monitor").await;
    world.secret("cache", json!({ "url": "redis://cache/0" })).await;
    world.apply("orders", redis("Delete")).await;
    world
        .condition("orders", ConditionType::Ready, "True", "AsExpected")
        .await;
    assert_ne!(
        world.broker("orders").await.status.unwrap().store_key,
        key,
        "nothing of the old history is left"
    );
    operator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_holds_up_neither_the_broker_nor_the_namespace() {
    let world = World::new("nostore").await;
    let operator = Operator::start(&world, "one", &[CLUSTER_ROLE]).await;
    world.secret("cache", json!({ "url": "redis://cache/0" })).await;
    world.apply("orders", redis("Delete")).await;
    world
        .condition("orders", ConditionType::Ready, "True", "AsExpected")
        .await;
    // Away, for this operator alone.
    std::fs::write(world.store_url_file(), "postgres://nobody:nothing@127.0.0.1:1/nowhere").unwrap();
    world
        .condition("orders", ConditionType::StoreReachable, "False", "Unreachable")
        .await;
    world
        .condition("orders", ConditionType::Ready, "True", "AsExpected")
        .await;
    world.delete::<CeleryBroker>("orders").await;
    let asked = Instant::now();
    world.await_gone::<CeleryBroker>("orders").await;
    assert!(asked.elapsed() < Duration::from_mins(1), "{:?}", asked.elapsed());
    let events = world.api::<Event>().list(&ListParams::default()).await.unwrap().items;
    let told = events
        .iter()
        .filter(|event| event.reason.as_deref() == Some("HistoryNotDeleted"))
        .count();
    assert_eq!(told, 1, "{events:#?}");
    operator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_goes_with_everything_in_it() {
    namespace_goes(&[CLUSTER_ROLE]).await;
}

/// The namespace takes our rights in it along: a finalizer could not be removed any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_goes_also_when_the_operator_has_roles_only() {
    namespace_goes(&[]).await;
}

async fn namespace_goes(extra: &[&str]) {
    let world = World::new("namespace").await;
    // Its lease must outlive the namespace under test.
    let home = World::new("home").await;
    let operator = Operator::start_over(&home, &[&world], "one", extra).await;
    world.secret("cache", json!({ "url": "redis://cache/0" })).await;
    world.apply("orders", redis("Delete")).await;
    world
        .apply("mails", json!({ "connection": { "url": "redis://cache/1" } }))
        .await;
    world
        .condition("orders", ConditionType::Ready, "True", "AsExpected")
        .await;
    world
        .condition("mails", ConditionType::Ready, "True", "AsExpected")
        .await;
    let reporter = tokio::sync::Mutex::new(world.reporter("orders").await);
    let namespaces = Api::<Namespace>::all(world.client.clone());
    namespaces
        .delete(&world.namespace, &DeleteParams::default())
        .await
        .unwrap();
    eventually("the namespace is gone", Duration::from_mins(1), || async {
        match namespaces.get_opt(&world.namespace).await {
            Ok(None) => Ok(()),
            Ok(Some(still)) => Err(format!("{:#?}", still.status)),
            Err(error) => Err(error.to_string()),
        }
    })
    .await;
    eventually("the role is gone", PATIENCE, || async {
        match reporter.lock().await.heartbeat(&connected()).await {
            Ok(()) => Err("still writes".to_owned()),
            Err(_refused) => Ok(()),
        }
    })
    .await;
    operator.stop().await.unwrap();
}
