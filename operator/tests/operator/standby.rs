//! Two monitors for one broker.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kanchi_contract::MonitorConfig;
use kanchi_crds::ConditionType;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::operator::Operator;
use crate::support::world::World;

/// Returns the objects of the example, of which only the namespace is another here.
fn example() -> Vec<Value> {
    let text = include_str!("../../../examples/fail-over/redis.yaml");
    serde_yaml::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).unwrap())
        .filter(Value::is_object)
        .collect()
}

fn config_hash(pod: &Pod) -> Option<String> {
    pod.annotations().get("kanchi.io/config-hash").cloned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_runs_two_pods_and_one_of_them_is_enough_to_be_available() {
    let world = World::new("standby").await;
    let operator = Operator::start(&world, "one", &[]).await;
    for object in example() {
        let name = object["metadata"]["name"].as_str().unwrap();
        match object["kind"].as_str().unwrap() {
            "Secret" => world.secret(name, object["stringData"].clone()).await,
            "CeleryBroker" => drop(world.apply(name, object["spec"].clone()).await),
            other => panic!("what is a {other}?"),
        }
    }
    world
        .condition("alerts", ConditionType::Ready, "True", "AsExpected")
        .await;
    let config = MonitorConfig::from_yaml(&world.mounted("alerts", "config.yaml").await).unwrap();
    assert_eq!(config.replicas, 2);
    let pods = ["alerts-monitor-0", "alerts-monitor-1"];
    for name in pods {
        world.await_object::<Pod>(name, |pod| config_hash(pod).is_some()).await;
    }

    // A changed Secret reaches both.
    let before = world.api::<Pod>().get(pods[1]).await.unwrap();
    let url = json!({ "url": "redis://kanchi:changed@redis.shop.svc.cluster.local:6379/1" });
    world.secret("alerts-broker", url).await;
    for name in pods {
        let changed = |pod: &Pod| config_hash(pod).is_some() && config_hash(pod) != config_hash(&before);
        world.await_object::<Pod>(name, changed).await;
    }

    let status = |ready: &str| {
        let conditions = [
            json!({ "type": "Ready", "status": ready }),
            json!({ "type": "PodScheduled", "status": "True" }),
        ];
        Patch::Strategic(json!({ "status": { "conditions": conditions } }))
    };
    let parameters = PatchParams::default();
    for name in pods {
        let api = world.api::<Pod>();
        api.patch_status(name, &parameters, &status("False")).await.unwrap();
        world
            .condition("alerts", ConditionType::MonitorAvailable, "True", "StandbyNotReady")
            .await;
        world
            .condition("alerts", ConditionType::Ready, "False", "StandbyNotReady")
            .await;
        api.patch_status(name, &parameters, &status("True")).await.unwrap();
        world
            .condition("alerts", ConditionType::Ready, "True", "AsExpected")
            .await;
    }

    // Back to one.
    world
        .apply(
            "alerts",
            json!({ "connection": { "urlSecretRef": { "name": "alerts-broker", "key": "url" } } }),
        )
        .await;
    world
        .await_object::<StatefulSet>("alerts-monitor", |set| set.spec.as_ref().unwrap().replicas == Some(1))
        .await;
    world.await_gone::<Pod>(pods[1]).await;
    world
        .condition("alerts", ConditionType::Ready, "True", "AsExpected")
        .await;
    operator.stop().await.unwrap();
}
