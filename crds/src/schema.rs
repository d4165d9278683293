//! The definitions as clusters get them: what the derive gives, made fit for the API server.
//!
//! Bounds are added where embedded Kubernetes types have none, so that the API server can estimate the cost of CEL rules;
//! `nullable` goes, so that `has()` in a rule means what it says and a null counts as unset.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Map, Value};

use crate::CeleryBroker;

/// Longest text of a field that has no bound of its own.
const MAX_TEXT: u64 = 1024;

/// Most items or entries of a list or map that has no bound of its own.
const MAX_ITEMS: u64 = 64;

/// Why the definitions could not be made.
pub type Error = serde_json::Error;

/// Returns every definition, in the order in which they are written.
pub fn crds() -> Result<Vec<CustomResourceDefinition>, Error> {
    Ok(vec![finish(CeleryBroker::crd())?])
}

/// Adds bounds to the schema of a derived definition and removes what the API server does not need.
fn finish(crd: CustomResourceDefinition) -> Result<CustomResourceDefinition, Error> {
    let mut value = serde_json::to_value(crd)?;
    if let Some(versions) = value.pointer_mut("/spec/versions").and_then(Value::as_array_mut) {
        for version in versions {
            if let Some(root) = version.pointer_mut("/schema/openAPIV3Schema") {
                bound(root);
            }
        }
    }
    serde_json::from_value(value)
}

/// Walks a schema, properties and items included.
fn bound(schema: &mut Value) {
    let Some(node) = schema.as_object_mut() else { return };
    node.remove("nullable");
    if let Some(text) = node.get("description").and_then(Value::as_str) {
        let text = unwrapped(text);
        node.insert("description".into(), text.into());
    }
    // Integers of Rust types would otherwise be bounded by formats that the API server does not know.
    if let Some("uint32" | "uint16" | "uint64" | "uint8") = node.get("format").and_then(Value::as_str) {
        node.remove("format");
    }
    if node.get("type").and_then(Value::as_str) == Some("string")
        && !node.contains_key("enum")
        && !node.contains_key("format")
    {
        or_insert(node, "maxLength", MAX_TEXT);
    }
    if node.get("type").and_then(Value::as_str) == Some("array") {
        or_insert(node, "maxItems", MAX_ITEMS);
    }
    if node.get("additionalProperties").is_some_and(Value::is_object) {
        or_insert(node, "maxProperties", MAX_ITEMS);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(child) = node.get_mut(key) {
            bound(child);
        }
    }
    if let Some(properties) = node.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(bound);
    }
}

/// Joins the lines of a paragraph: kubectl wraps by itself.
fn unwrapped(text: &str) -> String {
    text.split("\n\n")
        .map(|paragraph| paragraph.replace('\n', " "))
        .collect::<Vec<_>>()
        .join("\n\n")
}

fn or_insert(node: &mut Map<String, Value>, key: &str, value: u64) {
    node.entry(key).or_insert_with(|| value.into());
}
