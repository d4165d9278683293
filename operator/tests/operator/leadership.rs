//! Only the holder of the Lease writes, and the Lease moves quickly.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kanchi_crds::ConditionType;
use serde_json::json;

use crate::support::eventually;
use crate::support::operator::Operator;
use crate::support::world::{PATIENCE, World};

async fn holder(world: &World) -> String {
    let lease = world.api::<Lease>().get_opt("kanchi-operator").await.unwrap();
    lease
        .and_then(|lease| lease.spec)
        .and_then(|spec| spec.holder_identity)
        .unwrap_or_default()
}

async fn await_holder(world: &World, replica: &str, within: Duration) {
    eventually(&format!("{replica} holds the lease"), within, || async {
        let holder = holder(world).await;
        if holder.starts_with(replica) {
            Ok(())
        } else {
            Err(holder)
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_warm_writes_nothing_and_takes_over_when_the_leader_dies() {
    let world = World::new("leader").await;
    let one = Operator::start(&world, "one", &[]).await;
    await_holder(&world, "one", PATIENCE).await;
    let two = Operator::start(&world, "two", &[]).await;
    eventually("the standby is ready", PATIENCE, || async {
        if two.health.is_ready() {
            Ok(())
        } else {
            Err("not ready".to_owned())
        }
    })
    .await;
    for number in 0..10 {
        world
            .apply(
                &format!("early-{number}"),
                json!({ "connection": { "url": format!("redis://early/{number}") } }),
            )
            .await;
    }
    world
        .condition("early-0", ConditionType::Ready, "True", "AsExpected")
        .await;
    let standby = world.cluster.writes(&two.user, "");
    assert!(standby.is_empty(), "a standby never writes: {standby:#?}");

    let user = one.user.clone();
    one.kill();
    let dead_from = Timestamp::now().to_string();
    for number in 0..10 {
        world
            .apply(
                &format!("late-{number}"),
                json!({ "connection": { "url": format!("redis://late/{number}") } }),
            )
            .await;
    }
    await_holder(&world, "two", Duration::from_secs(6 + 30)).await;
    for number in 0..10 {
        world
            .condition(&format!("early-{number}"), ConditionType::Ready, "True", "AsExpected")
            .await;
        world
            .condition(&format!("late-{number}"), ConditionType::Ready, "True", "AsExpected")
            .await;
    }
    let late: Vec<_> = world
        .cluster
        .writes(&user, &dead_from)
        .into_iter()
        .filter(|write| write.name.starts_with("late"))
        .collect();
    assert!(late.is_empty(), "{late:#?}");
    two.stop().await.unwrap();
    assert_eq!(holder(&world).await, "", "the lease is given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stops_hands_over_within_five_seconds() {
    let world = World::new("handover").await;
    let one = Operator::start(&world, "one", &[]).await;
    await_holder(&world, "one", PATIENCE).await;
    let two = Operator::start(&world, "two", &[]).await;
    eventually("the standby is ready", PATIENCE, || async {
        if two.health.is_ready() {
            Ok(())
        } else {
            Err("not ready".to_owned())
        }
    })
    .await;
    one.stop().await.unwrap();
    let stopped = Instant::now();
    await_holder(&world, "two", Duration::from_secs(5)).await;
    assert!(stopped.elapsed() < Duration::from_secs(5));
    world
        .apply("orders", json!({ "connection": { "url": "redis://cache/0" } }))
        .await;
    world
        .condition("orders", ConditionType::Ready, "True", "AsExpected")
        .await;
    two.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_lease_is_taken_ends() {
    let world = World::new("stolen").await;
    let one = Operator::start(&world, "one", &[]).await;
    await_holder(&world, "one", PATIENCE).await;
    let leases = world.api::<Lease>();
    eventually("the lease is stolen", PATIENCE, || async {
        let mut lease = leases.get("kanchi-operator").await.map_err(|error| error.to_string())?;
        lease.spec.as_mut().unwrap().holder_identity = Some("thief".into());
        leases
            .replace("kanchi-operator", &kube::api::PostParams::default(), &lease)
            .await
            .map_err(|error| error.to_string())
    })
    .await;
    let ended = tokio::time::timeout(PATIENCE, one.ended())
        .await
        .expect("it ends")
        .unwrap_err();
    assert!(ended.to_string().contains("taken by thief"), "{ended}");
}
