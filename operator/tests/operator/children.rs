//! Children come, come back, and stay as they should be; an idle operator writes nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Pod, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::jiff::Timestamp;
use kanchi_contract::MonitorConfig;
use kanchi_crds::{CeleryBroker, ConditionType};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::support::eventually;
use crate::support::operator::Operator;
use crate::support::world::{PATIENCE, World, connected};

fn redis() -> serde_json::Value {
    json!({ "connection": { "url": "redis://cache.shop.svc/0" } })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_broker_gets_its_children_and_its_conditions() {
    let world = World::new("create").await;
    let operator = Operator::start(&world, "one", &[]).await;
    world.apply("orders", redis()).await;
    world
        .condition("orders", ConditionType::Ready, "True", "AsExpected")
        .await;
    world
        .condition("orders", ConditionType::MonitorAvailable, "True", "RolledOut")
        .await;
    world
        .condition("orders", ConditionType::StoreIsolated, "True", "OwnRole")
        .await;
    world
        .condition("orders", ConditionType::BrokerReachable, "Unknown", "NotReportedYet")
        .await;
    assert!(operator.health.is_ready());

    let broker = world.broker("orders").await;
    let uid = broker.uid().unwrap();
    let status = broker.status.unwrap();
    assert_eq!(status.observed_generation, Some(1));
    assert_eq!(status.endpoint.as_deref(), Some("cache.shop.svc:6379/0"));
    assert_eq!(status.monitor_image.as_deref(), Some("monitor:1"));
    let config = MonitorConfig::from_yaml(&world.mounted("orders", "config.yaml").await).unwrap();
    assert_eq!(Some(config.broker_key), status.store_key);
    assert_eq!(world.mounted("orders", "broker-url").await, "redis://cache.shop.svc/0");

    let owners = |owners: Option<Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference>>| {
        owners.unwrap().into_iter().map(|owner| owner.uid).collect::<Vec<_>>()
    };
    let name = "orders-monitor";
    assert_eq!(
        owners(world.api::<Secret>().get(name).await.unwrap().metadata.owner_references),
        std::slice::from_ref(&uid)
    );
    assert_eq!(
        owners(
            world
                .api::<Service>()
                .get(name)
                .await
                .unwrap()
                .metadata
                .owner_references
        ),
        std::slice::from_ref(&uid)
    );
    assert_eq!(
        owners(
            world
                .api::<NetworkPolicy>()
                .get(name)
                .await
                .unwrap()
                .metadata
                .owner_references
        ),
        std::slice::from_ref(&uid)
    );
    assert_eq!(
        owners(
            world
                .api::<PodDisruptionBudget>()
                .get(name)
                .await
                .unwrap()
                .metadata
                .owner_references
        ),
        [uid]
    );
    world.reporter("orders").await;

    world.delete::<CeleryBroker>("orders").await;
    world.await_gone::<StatefulSet>(name).await;
    world.await_gone::<Secret>(name).await;
    eventually("its series are gone", PATIENCE, || async {
        if operator.metrics().contains("orders") {
            Err(operator.metrics())
        } else {
            Ok(())
        }
    })
    .await;
    operator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_child_comes_back_and_a_foreign_edit_is_reverted() {
    let world = World::new("heal").await;
    let operator = Operator::start(&world, "one", &[]).await;
    world.apply("orders", redis()).await;
    world
        .condition("orders", ConditionType::Ready, "True", "AsExpected")
        .await;
    let name = "orders-monitor";
    let limit = Duration::from_secs(10);

    macro_rules! comes_back {
        ($kind:ty) => {{
            let before = world.api::<$kind>().get(name).await.unwrap().uid();
            world.delete::<$kind>(name).await;
            eventually(concat!(stringify!($kind), " comes back"), limit, || async {
                match world.api::<$kind>().get_opt(name).await {
                    Ok(Some(object)) if object.uid() != before => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
        }};
    }
    comes_back!(Service);
    comes_back!(NetworkPolicy);
    comes_back!(PodDisruptionBudget);
    comes_back!(StatefulSet);
    comes_back!(Secret);
    // Whether the password is a new one or was still at hand: it opens the store.
    world.reporter("orders").await;

    let edit = json!({
        "metadata": { "labels": { "theirs": "stays" } },
        "spec": { "ports": [{ "name": "admin", "port": 1, "targetPort": 1, "protocol": "TCP" }] }
    });
    world
        .api::<Service>()
        .patch(name, &PatchParams::default(), &Patch::Merge(edit))
        .await
        .unwrap();
    let service = world
        .await_object::<Service>(name, |service| {
            service.spec.as_ref().unwrap().ports.as_ref().unwrap()[0].port == 8080
        })
        .await;
    assert_eq!(service.labels()["theirs"], "stays");
    let scale = json!({ "spec": { "replicas": 0 } });
    world
        .api::<StatefulSet>()
        .patch(name, &PatchParams::default(), &Patch::Merge(scale))
        .await
        .unwrap();
    world
        .await_object::<StatefulSet>(name, |set| set.spec.as_ref().unwrap().replicas == Some(1))
        .await;
    operator.stop().await.unwrap();
}

/// With a resync far shorter than the test, so that second looks are part of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_operator_writes_nothing_but_its_lease() {
    let world = World::new("idle").await;
    let operator = Operator::start(&world, "one", &["--resync-seconds=3"]).await;
    let names: Vec<String> = (0..5).map(|number| format!("broker-{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        // Quantities that the API server writes in another form.
        let resources = json!({ "limits": { "memory": "131072Ki" }, "requests": { "cpu": "0.05" } });
        let spec = json!({ "connection": { "url": format!("redis://cache/{number}") }, "monitor": { "resources": resources } });
        world.apply(name, spec).await;
    }
    let mut reporters = Vec::new();
    for name in &names {
        world.condition(name, ConditionType::Ready, "True", "AsExpected").await;
        let mut reporter = world.reporter(name).await;
        reporter.heartbeat(&connected()).await.unwrap();
        reporters.push(reporter);
    }
    for name in &names {
        world
            .condition(name, ConditionType::BrokerReachable, "True", "Connected")
            .await;
        world
            .await_object::<CeleryBroker>(name, |broker| {
                broker
                    .status
                    .as_ref()
                    .is_some_and(|status| status.workers_online == Some(2))
            })
            .await;
    }
    let quiet_from = Timestamp::now().to_string();
    let passes = operator.metrics();
    for beat in 0..10 {
        for reporter in &mut reporters {
            let mut heartbeat = connected();
            // The rate wobbles by a heartbeat more or less.
            heartbeat.events_per_second = Some(if beat % 2 == 0 { 0.53 } else { 0.47 });
            reporter.heartbeat(&heartbeat).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    assert_ne!(operator.metrics(), passes, "passes went on");
    let writes = world.cluster.writes(&operator.user, &quiet_from);
    let others: Vec<_> = writes.iter().filter(|write| write.resource != "leases").collect();
    assert!(others.is_empty(), "{others:#?}");
    assert!(!writes.is_empty(), "the lease is renewed");
    // A pass reads the CeleryBroker; what the watches say has not changed is not read again.
    let calls = world.cluster.calls(&operator.user, &quiet_from);
    let reads: BTreeSet<_> = calls
        .iter()
        .filter(|call| call.verb == "get" && call.resource != "leases")
        .map(|call| call.resource.as_str())
        .collect();
    assert_eq!(reads, BTreeSet::from(["celerybrokers"]));
    operator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn disabled_means_no_monitor_and_paused_means_no_change() {
    let world = World::new("pause").await;
    let operator = Operator::start(&world, "one", &[]).await;
    let mut spec = redis();
    world.apply("orders", spec.clone()).await;
    world
        .condition("orders", ConditionType::Ready, "True", "AsExpected")
        .await;

    let paused = |value: serde_json::Value| {
        Patch::Merge(json!({ "metadata": { "annotations": { "kanchi.io/paused": value } } }))
    };
    let brokers = world.api::<CeleryBroker>();
    brokers
        .patch("orders", &PatchParams::default(), &paused(json!("true")))
        .await
        .unwrap();
    world
        .condition("orders", ConditionType::Paused, "True", "PausedByUser")
        .await;
    world
        .condition("orders", ConditionType::Ready, "Unknown", "PausedByUser")
        .await;
    spec["enabled"] = false.into();
    world.apply("orders", spec.clone()).await;
    eventually("the pause is observed with the new generation", PATIENCE, || async {
        let status = world.broker("orders").await.status.unwrap();
        if status.observed_generation == Some(2) {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
    let set = world.api::<StatefulSet>().get("orders-monitor").await.unwrap();
    assert_eq!(set.spec.unwrap().replicas, Some(1), "nothing changes while paused");

    brokers
        .patch("orders", &PatchParams::default(), &paused(serde_json::Value::Null))
        .await
        .unwrap();
    world
        .condition("orders", ConditionType::Paused, "False", "NotPaused")
        .await;
    world
        .condition("orders", ConditionType::Ready, "True", "Disabled")
        .await;
    world
        .condition("orders", ConditionType::MonitorAvailable, "False", "ScaledToZero")
        .await;
    world.await_gone::<Pod>("orders-monitor-0").await;
    spec["enabled"] = true.into();
    world.apply("orders", spec).await;
    world
        .condition("orders", ConditionType::Ready, "True", "AsExpected")
        .await;
    operator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_of_somebody_else_is_never_taken_over() {
    let world = World::new("foreign").await;
    let operator = Operator::start(&world, "one", &[]).await;
    let body = json!({ "metadata": { "name": "orders-monitor" }, "spec": { "ports": [{ "port": 80 }] } });
    let theirs: Service = serde_json::from_value(body).unwrap();
    world
        .api::<Service>()
        .create(&kube::api::PostParams::default(), &theirs)
        .await
        .unwrap();
    world.apply("orders", redis()).await;
    let message = world
        .condition("orders", ConditionType::Ready, "False", "ApplyFailed")
        .await;
    assert!(
        message.contains("Service orders-monitor") && message.contains("not Kanchi's"),
        "{message}"
    );
    world.delete::<Service>("orders-monitor").await;
    world
        .condition("orders", ConditionType::Ready, "True", "AsExpected")
        .await;
    operator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_63_characters_works() {
    let world = World::new("long").await;
    let operator = Operator::start(&world, "one", &[]).await;
    let name = "x".repeat(63);
    world.apply(&name, redis()).await;
    world.condition(&name, ConditionType::Ready, "True", "AsExpected").await;
    operator.stop().await.unwrap();
}
