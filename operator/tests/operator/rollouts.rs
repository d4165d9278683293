//! New images, broken images, and changes that a StatefulSet does not take.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kanchi_crds::ConditionType;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::json;

use crate::support::operator::Operator;
use crate::support::world::World;

fn redis(number: usize) -> serde_json::Value {
    json!({ "connection": { "url": format!("redis://cache/{number}") } })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_image_reaches_few_monitors_and_is_named() {
    let world = World::new("image").await;
    let operator = Operator::start(&world, "one", &[]).await;
    for number in 0..3 {
        world.apply(&format!("broker-{number}"), redis(number)).await;
    }
    for number in 0..3 {
        world
            .condition(&format!("broker-{number}"), ConditionType::Ready, "True", "AsExpected")
            .await;
    }
    operator.stop().await.unwrap();

    let operator = Operator::start(&world, "two", &["--monitor-image=broken:2", "--max-rollouts=1"]).await;
    let broken = |set: &StatefulSet| {
        set.spec.as_ref().unwrap().template.spec.as_ref().unwrap().containers[0]
            .image
            .as_deref()
            == Some("broken:2")
    };
    let mut reached = Vec::new();
    crate::support::eventually("one crashes, two wait", crate::support::world::PATIENCE, || async {
        let mut reasons = Vec::new();
        for number in 0..3 {
            let status = world.broker(&format!("broker-{number}")).await.status.unwrap();
            reasons.push(
                status
                    .condition(ConditionType::MonitorAvailable)
                    .unwrap()
                    .reason
                    .clone(),
            );
        }
        let count = |reason: &str| reasons.iter().filter(|found| *found == reason).count();
        if (count("CrashLooping"), count("WaitingForTurn")) == (1, 2) {
            Ok(())
        } else {
            Err(format!("{reasons:?}"))
        }
    })
    .await;
    for set in world.api::<StatefulSet>().list(&ListParams::default()).await.unwrap() {
        if broken(&set) {
            reached.push(set.name_any());
        }
    }
    assert_eq!(reached.len(), 1, "{reached:?}");
    operator.stop().await.unwrap();

    let operator = Operator::start(&world, "three", &["--monitor-image=monitor:3", "--max-rollouts=1"]).await;
    for number in 0..3 {
        let name = format!("broker-{number}");
        world
            .await_object::<Pod>(&format!("{name}-monitor-0"), |pod| {
                pod.spec.as_ref().unwrap().containers[0].image.as_deref() == Some("monitor:3")
            })
            .await;
        world
            .condition(&name, ConditionType::MonitorAvailable, "True", "RolledOut")
            .await;
    }
    operator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_the_statefulset_does_not_take_leaves_the_pod_running() {
    let world = World::new("orphan").await;
    let operator = Operator::start(&world, "one", &[]).await;
    world.apply("orders", redis(0)).await;
    world
        .condition("orders", ConditionType::Ready, "True", "AsExpected")
        .await;
    operator.stop().await.unwrap();
    let sets = world.api::<StatefulSet>();
    let pod = world.api::<Pod>().get("orders-monitor-0").await.unwrap();
    let mut old = sets.get("orders-monitor").await.unwrap();
    sets.delete("orders-monitor", &DeleteParams::orphan()).await.unwrap();
    world.await_gone::<StatefulSet>("orders-monitor").await;
    old.metadata.resource_version = None;
    old.metadata.uid = None;
    old.status = None;
    old.spec.as_mut().unwrap().pod_management_policy = Some("OrderedReady".into());
    sets.create(&PostParams::default(), &old).await.unwrap();

    let operator = Operator::start(&world, "two", &[]).await;
    let parallel = |set: &StatefulSet| set.spec.as_ref().unwrap().pod_management_policy.as_deref() == Some("Parallel");
    world.await_object::<StatefulSet>("orders-monitor", parallel).await;
    world
        .condition("orders", ConditionType::Ready, "True", "AsExpected")
        .await;
    assert_eq!(
        world.api::<Pod>().get("orders-monitor-0").await.unwrap().uid(),
        pod.uid(),
        "the pod went on"
    );
    let events = world.api::<Event>().list(&ListParams::default()).await.unwrap().items;
    assert!(
        events
            .iter()
            .any(|event| event.reason.as_deref() == Some("StatefulSetRecreated")),
        "{events:#?}"
    );
    operator.stop().await.unwrap();
}
