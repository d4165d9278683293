//! What must hold for every definition: bounded, described, small, in step with the Rust types.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use kanchi_crds::generate::{self, MAX_BYTES};
use kanchi_crds::{CeleryBroker, CeleryBrokerSpec, Connection};
use serde_json::{Value, json};

fn definition() -> Value {
    serde_json::to_value(&kanchi_crds::crds().unwrap()[0]).unwrap()
}

fn root() -> Value {
    definition()
        .pointer("/spec/versions/0/schema/openAPIV3Schema")
        .unwrap()
        .clone()
}

/// Calls `look` for every field below `spec` and `status`.
fn walk(path: &str, schema: &Value, look: &mut dyn FnMut(&str, &Value)) {
    look(path, schema);
    for (name, child) in schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        walk(&format!("{path}.{name}"), child, look);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(child) = schema.get(key) {
            walk(&format!("{path}[]"), child, look);
        }
    }
}

#[test]
fn the_committed_files_are_what_the_types_say() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    for file in generate::all().unwrap() {
        let now = std::fs::read_to_string(format!("{root}/{}", file.path)).unwrap_or_default();
        assert!(
            now == file.text,
            "{} is stale: run `cargo run -p kanchi-crds --bin crdgen`",
            file.path
        );
    }
}

#[test]
fn no_definition_passes_its_size() {
    for file in generate::all().unwrap() {
        assert!(file.text.len() < MAX_BYTES, "{}: {} bytes", file.path, file.text.len());
    }
}

#[test]
fn every_string_list_and_map_has_a_maximum() {
    let root = root();
    for part in ["spec", "status"] {
        walk(part, &root["properties"][part], &mut |path, schema| {
            let bound = match schema["type"].as_str() {
                Some("string") if schema.get("enum").is_none() && schema["format"] != "date-time" => "maxLength",
                Some("array") => "maxItems",
                Some("object") if schema.get("additionalProperties").is_some() => "maxProperties",
                _ => return,
            };
            assert!(schema.get(bound).is_some(), "{path} has no {bound}");
        });
    }
}

#[test]
fn every_field_has_a_description() {
    let root = root();
    for part in ["spec", "status"] {
        walk(part, &root["properties"][part], &mut |path, schema| {
            let named = !path.ends_with("[]");
            let text = schema["description"].as_str().unwrap_or_default();
            assert!(!named || !text.is_empty(), "{path} has no description");
            assert!(!text.contains("```") && !text.contains("{{"), "{path}: {text}");
        });
    }
}

#[test]
fn nothing_is_nullable() {
    let root = root();
    walk("", &root, &mut |path, schema| {
        assert!(schema.get("nullable").is_none(), "{path}");
    });
}

#[test]
fn names_columns_and_status_are_as_promised() {
    let crd = definition();
    assert_eq!(crd["spec"]["names"]["shortNames"], json!(["cb"]));
    assert_eq!(crd["spec"]["names"]["categories"], json!(["kanchi"]));
    let version = &crd["spec"]["versions"][0];
    assert_eq!(version["subresources"], json!({ "status": {} }));
    let columns: Vec<(&str, i64)> = version["additionalPrinterColumns"]
        .as_array()
        .unwrap()
        .iter()
        .map(|column| {
            (
                column["name"].as_str().unwrap(),
                column["priority"].as_i64().unwrap_or(0),
            )
        })
        .collect();
    let shown: Vec<&str> = columns
        .iter()
        .filter(|(_, priority)| *priority == 0)
        .map(|(name, _)| *name)
        .collect();
    assert_eq!(
        shown,
        [
            "Transport",
            "Endpoint",
            "Ready",
            "Reason",
            "Reachable",
            "Workers",
            "Queued",
            "Events/s",
            "Age"
        ]
    );
    let conditions = &root()["properties"]["status"]["properties"]["conditions"];
    assert_eq!(conditions["x-kubernetes-list-type"], "map");
    assert_eq!(conditions["x-kubernetes-list-map-keys"], json!(["type"]));
}

#[test]
fn defaults_of_the_schema_are_the_defaults_of_the_types() {
    let minimal = json!({
        "apiVersion": "kanchi.io/v1alpha1", "kind": "CeleryBroker", "metadata": {},
        "spec": { "connection": { "url": "redis://r" } }
    });
    let defaulted = kube::core::cel::apply_defaults(&root(), &minimal);
    let by_server: CeleryBroker = serde_json::from_value(defaulted.clone()).unwrap();
    let connection = Connection {
        url: Some("redis://r".into()),
        ..Connection::default()
    };
    let by_type = CeleryBrokerSpec::new(connection);
    assert_eq!(by_server.spec, by_type);
    assert_eq!(
        defaulted["spec"],
        serde_json::to_value(&by_type).unwrap(),
        "every default is in the schema"
    );
    let by_serde: CeleryBroker = serde_json::from_value(minimal).unwrap();
    assert_eq!(by_serde.spec, by_type);
    assert_eq!(defaulted["spec"]["celery"]["eventExchange"], "celeryev");
    assert_eq!(
        defaulted["spec"]["celery"]["eventQueue"],
        json!({ "type": "Classic", "maxLengthBytes": "1Gi", "expires": "24h" })
    );
    assert_eq!(
        defaulted["spec"]["retention"],
        json!({ "succeeded": "14d", "failed": "30d", "events": "7d", "statistics": "365d" })
    );
}

#[test]
fn no_secret_can_be_named_in_another_namespace() {
    walk("spec", &root()["properties"]["spec"], &mut |path, schema| {
        if path.ends_with("Ref") {
            assert!(schema["properties"].get("namespace").is_none(), "{path}");
        }
    });
}
