//! Every CEL rule, with an accepted and a refused example, run by the client-side evaluator.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;

use kube::core::cel::Validator;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Case {
    message: String,
    old: Option<Value>,
    accepted: Value,
    refused: Value,
}

fn cases() -> Vec<Case> {
    serde_yaml::from_str(include_str!("rules.yaml")).unwrap()
}

fn schema() -> Value {
    let crds = kanchi_crds::crds().unwrap();
    let value = serde_json::to_value(&crds[0]).unwrap();
    value
        .pointer("/spec/versions/0/schema/openAPIV3Schema")
        .unwrap()
        .clone()
}

fn resource(body: &Value) -> Value {
    let name = body.get("name").cloned().unwrap_or_else(|| json!("orders"));
    json!({
        "apiVersion": "kanchi.io/v1alpha1", "kind": "CeleryBroker",
        "metadata": { "name": name, "namespace": "shop" },
        "spec": body["spec"]
    })
}

/// Returns the messages of the broken rules.
fn judge(schema: &Value, body: &Value, old: Option<&Value>) -> Vec<String> {
    let (object, old) = (resource(body), old.map(resource));
    match Validator::new().validate_with_defaults(schema, &object, old.as_ref()) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.into_vec().into_iter().map(|error| error.message).collect(),
    }
}

fn messages(schema: &Value, found: &mut BTreeSet<String>) {
    for rule in schema
        .get("x-kubernetes-validations")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        found.insert(rule["message"].as_str().unwrap().to_owned());
    }
    let children = schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(|p| p.values());
    for child in children
        .chain(schema.get("items"))
        .chain(schema.get("additionalProperties"))
    {
        messages(child, found);
    }
}

#[test]
fn each_accepted_example_is_accepted() {
    let schema = schema();
    for case in cases() {
        let broken = judge(&schema, &case.accepted, case.old.as_ref());
        assert!(broken.is_empty(), "{}: {:?}", case.accepted, broken);
    }
}

#[test]
fn each_refused_example_is_refused_by_its_rule_alone() {
    let schema = schema();
    for case in cases() {
        let broken = judge(&schema, &case.refused, case.old.as_ref());
        assert!(
            broken.len() == 1 && broken[0].starts_with(&case.message),
            "{}: {:?}",
            case.refused,
            broken
        );
    }
}

#[test]
fn every_rule_has_an_example_and_every_example_a_rule() {
    let mut rules = BTreeSet::new();
    messages(&schema(), &mut rules);
    let cases = cases();
    for rule in &rules {
        assert!(
            cases.iter().any(|case| rule.starts_with(&case.message)),
            "no example for: {rule}"
        );
    }
    for case in &cases {
        assert!(
            rules.iter().any(|rule| rule.starts_with(&case.message)),
            "no rule for: {}",
            case.message
        );
    }
}
