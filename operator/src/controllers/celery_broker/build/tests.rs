use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kanchi_contract::file;
use kanchi_crds::{CeleryBrokerSpec, Connection, ResultBackend};
use kanchi_store::{BrokerKey, RoleMode};

use super::*;
use crate::controllers::celery_broker::dereference::Dereferenced;
use crate::controllers::celery_broker::validate::validate;
use crate::secret_text::SecretText;

fn settings() -> Settings {
    Settings {
        monitor_image: "registry.example/kanchi-monitor:1.2.3".into(),
        monitor_image_pull_policy: "IfNotPresent".into(),
        monitor_image_pull_secrets: vec!["pull".into()],
        resync: std::time::Duration::from_mins(5),
    }
}

fn grant() -> Grant {
    Grant::for_tests(
        BrokerKey(42),
        Some(RoleMode::Own),
        "postgres://kanchi_m_16384_42:generated@db/kanchi",
        None,
    )
}

fn broker(name: &str) -> CeleryBroker {
    let connection = Connection {
        url: Some("amqp://rabbit.shop.svc/orders".into()),
        ..Connection::default()
    };
    let mut broker = CeleryBroker::new(name, CeleryBrokerSpec::new(connection));
    broker.metadata.namespace = Some("shop".into());
    broker.metadata.uid = Some("0b4c7a2e-0000-4000-8000-000000000001".into());
    broker
}

fn children(broker: &CeleryBroker) -> Children<Prepared> {
    let validated = validate(broker, &Dereferenced::default()).unwrap();
    build(broker, &validated, &grant(), &settings()).unwrap()
}

/// The objects as they are sent. The names differ from the product's, so that swapped labels show.
#[test]
fn children_are_as_reviewed() {
    let children = children(&broker("orders-rabbit"));
    let mut secret = serde_json::to_value(&children.secret).unwrap();
    // Base64 would hide the text from the reviewer.
    secret["data"] = children
        .secret
        .data
        .iter()
        .flatten()
        .map(|(key, value)| (key.clone(), String::from_utf8_lossy(&value.0).into_owned().into()))
        .collect::<serde_json::Map<_, _>>()
        .into();
    insta::assert_yaml_snapshot!("secret", secret);
    insta::assert_yaml_snapshot!("service", children.service);
    insta::assert_yaml_snapshot!("network_policy", children.network_policy);
    insta::assert_yaml_snapshot!("disruption_budget", children.disruption_budget);
    insta::assert_yaml_snapshot!("stateful_set", children.stateful_set);
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let bytes = |broker: &CeleryBroker| {
        let Children {
            secret,
            service,
            network_policy,
            disruption_budget,
            stateful_set,
            config_hash,
            ..
        } = children(broker);
        let all = (
            &secret,
            &service,
            &network_policy,
            &disruption_budget,
            &stateful_set,
            config_hash,
        );
        serde_json::to_string(&all).unwrap()
    };
    let mut one = broker("orders");
    let mut two = broker("orders");
    one.spec.monitor.node_selector = [("a", "1"), ("b", "2")].map(|(k, v)| (k.into(), v.into())).into();
    two.spec.monitor.node_selector = [("b", "2"), ("a", "1")].map(|(k, v)| (k.into(), v.into())).into();
    assert_eq!(bytes(&one), bytes(&two));
    // Metadata that is not ours makes no difference.
    two.metadata.resource_version = Some("7".into());
    two.metadata.labels = Some([("env".to_owned(), "prod".to_owned())].into());
    assert_eq!(bytes(&one), bytes(&two));
}

/// A rotated password must never restart a monitor.
#[test]
fn a_changed_secret_leaves_the_pod_template_alone() {
    let broker = broker("orders");
    let before = children(&broker);
    let mut validated = validate(&broker, &Dereferenced::default()).unwrap();
    validated.url = SecretText::new("amqp://new:password@rabbit.shop.svc/orders");
    let after = build(&broker, &validated, &grant(), &settings()).unwrap();
    assert_ne!(before.config_hash, after.config_hash);
    assert_eq!(before.stateful_set, after.stateful_set);
}

#[test]
fn settings_of_the_resource_reach_the_pod() {
    let mut broker = broker("orders");
    broker.spec.enabled = false;
    broker.spec.monitor.tolerations = vec![Toleration {
        operator: Some("Exists".into()),
        ..Toleration::default()
    }];
    broker.spec.monitor.resources.limits = BTreeMap::from([("memory".to_owned(), Quantity("256Mi".into()))]);
    let spec = children(&broker).stateful_set.spec.unwrap();
    assert_eq!(spec.replicas, Some(0));
    let pod = spec.template.spec.unwrap();
    assert_eq!(pod.tolerations.unwrap().len(), 1);
    let limits = pod.containers[0].resources.clone().unwrap().limits.unwrap();
    assert_eq!(limits["memory"], Quantity("256Mi".into()));
}

#[test]
fn no_credential_leaves_the_secret() {
    let mut broker = broker("orders");
    broker.spec.connection.url = Some("amqp://canary:canary@rabbit".into());
    broker.spec.celery.result_backend = Some(ResultBackend::default());
    let found = Dereferenced {
        values: [(file::RESULT_BACKEND_URL, SecretText::new("redis://:canary@cache/3"))].into(),
    };
    let validated = validate(&broker, &found).unwrap();
    let grant = Grant::for_tests(BrokerKey(1), None, "postgres://canary:canary@db/kanchi", Some("canary"));
    let built = build(&broker, &validated, &grant, &settings()).unwrap();
    let data = built.secret.data.clone().unwrap();
    assert_eq!(data[file::RESULT_BACKEND_URL].0, b"redis://:canary@cache/3");
    assert!(!String::from_utf8_lossy(&data[file::CONFIG].0).contains("canary"));
    let Children {
        service,
        network_policy,
        disruption_budget,
        stateful_set,
        config_hash,
        ..
    } = &built;
    let others =
        serde_json::to_string(&(service, network_policy, disruption_budget, stateful_set, config_hash)).unwrap();
    assert!(!others.contains("canary"), "{others}");
    assert_eq!(
        serde_json::to_string(&built.secret.metadata)
            .unwrap()
            .matches("canary")
            .count(),
        0
    );
}

#[test]
fn a_name_of_63_characters_gives_objects_the_api_server_accepts() {
    let children = children(&broker(&"x".repeat(63)));
    let name = children.stateful_set.metadata.name.unwrap();
    assert!(name.len() <= 52, "{name}");
    assert_eq!(
        children.stateful_set.spec.unwrap().service_name.as_deref(),
        Some(name.as_str())
    );
    assert!(
        children
            .service
            .metadata
            .labels
            .unwrap()
            .values()
            .all(|value| value.len() <= 63)
    );
}

#[test]
fn two_monitors_keep_apart_and_are_replaced_one_after_the_other() {
    let mut broker = broker("orders");
    let one = children(&broker);
    broker.spec.monitor.replicas = 2;
    let two = children(&broker);
    let spec = two.stateful_set.spec.unwrap();
    assert_eq!((spec.replicas, spec.min_ready_seconds), (Some(2), Some(20)));
    let affinity = |spec: k8s_openapi::api::apps::v1::StatefulSetSpec| spec.template.spec.unwrap().affinity;
    let apart = affinity(spec).unwrap().pod_anti_affinity.unwrap();
    let terms = apart.preferred_during_scheduling_ignored_during_execution.unwrap();
    let selector = terms[0].pod_affinity_term.label_selector.clone().unwrap();
    assert_eq!(selector.match_labels.unwrap(), names::selector("orders-monitor"));
    assert_eq!(affinity(one.stateful_set.spec.unwrap()), None);
    let config =
        |secret: &Secret| String::from_utf8_lossy(&secret.data.as_ref().unwrap()["config.yaml"].0).into_owned();
    assert!(config(&two.secret).contains("replicas: 2"));
    assert!(config(&one.secret).contains("replicas: 1"));

    // The user's own rule stands; what it says of nodes does not keep the pods together.
    let own: k8s_openapi::api::core::v1::Affinity =
        serde_json::from_value(serde_json::json!({ "podAntiAffinity": {} })).unwrap();
    broker.spec.monitor.affinity = Some(own.clone());
    assert_eq!(affinity(children(&broker).stateful_set.spec.unwrap()), Some(own));
    let nodes = serde_json::json!({ "nodeAffinity": {} });
    broker.spec.monitor.affinity = serde_json::from_value(nodes).unwrap();
    let both = affinity(children(&broker).stateful_set.spec.unwrap()).unwrap();
    assert!(both.node_affinity.is_some() && both.pod_anti_affinity.is_some());
    broker.spec.enabled = false;
    assert_eq!(children(&broker).stateful_set.spec.unwrap().replicas, Some(0));
}
