//! What is sent and what is left alone.

use super::*;

#[test]
fn what_others_added_is_left_alone_and_what_they_changed_is_seen() {
    let wanted =
        json!({ "spec": { "ports": [{ "name": "admin", "port": 8080 }] }, "metadata": { "labels": { "a": "1" } } });
    let defaulted = json!({
        "spec": { "ports": [{ "name": "admin", "port": 8080, "protocol": "TCP" }], "type": "ClusterIP" },
        "metadata": { "labels": { "a": "1", "theirs": "x" }, "resourceVersion": "7" }
    });
    assert!(covers(&defaulted, &wanted));
    let mut edited = defaulted.clone();
    edited["spec"]["ports"][0]["port"] = 1.into();
    assert!(!covers(&edited, &wanted));
    let mut extended = defaulted.clone();
    extended["spec"]["ports"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "port": 1 }));
    assert!(!covers(&extended, &wanted));
    let mut removed = defaulted;
    removed["metadata"]["labels"].as_object_mut().unwrap().remove("a");
    assert!(!covers(&removed, &wanted));
}

#[test]
fn fingerprints_ignore_status_and_versions_and_nothing_else() {
    let wanted = json!({});
    let one = json!({ "metadata": { "name": "x", "resourceVersion": "1", "generation": 1 }, "status": { "a": 1 } });
    let two = json!({ "metadata": { "name": "x", "resourceVersion": "2", "generation": 2 }, "status": { "a": 2 } });
    let other = json!({ "metadata": { "name": "x" }, "spec": {} });
    assert_eq!(
        fingerprints("k", &wanted, &one).unwrap(),
        fingerprints("k", &wanted, &two).unwrap()
    );
    assert_ne!(
        fingerprints("k", &wanted, &one).unwrap(),
        fingerprints("k", &wanted, &other).unwrap()
    );
}

#[test]
fn objects_of_others_are_never_taken_over() {
    let meta = |value: Value| serde_json::from_value::<ObjectMeta>(value).unwrap();
    let owner = |kind: &str, name: &str, uid: &str| json!([{ "apiVersion": "v1", "kind": kind, "name": name, "uid": uid, "controller": true }]);
    let whose = |value: Value| ownership(&meta(value), "uid", "orders");
    assert_eq!(whose(json!({})), Ownership::Foreign);
    assert_eq!(
        whose(json!({ "ownerReferences": owner("CeleryBroker", "orders", "uid") })),
        Ownership::Ours
    );
    assert_eq!(
        whose(json!({ "ownerReferences": owner("CeleryBroker", "orders", "old") })),
        Ownership::EarlierLife
    );
    assert_eq!(
        whose(json!({ "ownerReferences": owner("Deployment", "orders", "x") })),
        Ownership::Foreign
    );
    let abandoned = json!({
        "labels": { "app.kubernetes.io/managed-by": "kanchi-operator" },
        "annotations": { "kanchi.io/broker": "orders" }
    });
    assert_eq!(whose(abandoned.clone()), Ownership::Abandoned);
    assert_eq!(ownership(&meta(abandoned), "uid", "mails"), Ownership::Foreign);
}

#[test]
fn only_a_new_template_of_a_running_monitor_restarts_it() {
    let set = |replicas: i32, hash: &str| {
        serde_json::from_value::<StatefulSet>(json!({
            "metadata": { "annotations": { "kanchi.io/template-hash": hash } },
            "spec": { "replicas": replicas, "selector": {}, "serviceName": "s", "template": {} }
        }))
        .unwrap()
    };
    assert!(restarts(&set(1, "a"), &set(1, "b")));
    assert!(!restarts(&set(1, "a"), &set(1, "a")));
    assert!(!restarts(&set(0, "a"), &set(1, "b")));
    assert!(!restarts(&set(1, "a"), &set(0, "b")));
}
