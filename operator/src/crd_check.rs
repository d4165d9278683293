//! Whether the API server serves our resources with every field this build needs.
//!
//! The check reads the OpenAPI document of the group, which every authenticated client may read: an operator with Roles
//! only needs no right on CustomResourceDefinitions.

use std::time::{Duration, Instant};

use kube::Client;
use serde_json::Value;

use crate::api;
use crate::lease::chain;

/// How long a start waits for a chart that installs definitions and operator at the same time.
pub const PATIENCE: Duration = Duration::from_mins(1);

const DOCUMENT: &str = "/openapi/v3/apis/kanchi.io/v1alpha1";

/// What the API server lacks.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The definitions are not installed.
    #[error(
        "failed to find the CeleryBroker resource in this cluster: install Kanchi's CustomResourceDefinitions \
         (the chart's crds.enabled, or manifests/crds) and start again"
    )]
    Missing,
    /// The definitions are of an older release.
    #[error(
        "failed to start: the CeleryBroker resource in this cluster is older than this operator and lacks {fields}; \
         upgrade Kanchi's CustomResourceDefinitions and start again"
    )]
    TooOld {
        /// The paths that are missing.
        fields: String,
    },
    /// The API server does not answer.
    #[error("failed to ask the API server for the CeleryBroker resource")]
    Ask(#[source] api::Error),
    /// Our own definition could not be made.
    #[error("failed to read this build's own definition of CeleryBroker")]
    Own(#[source] serde_json::Error),
}

/// Waits, at most `patience`, until the API server serves every field this build needs.
pub async fn wait(client: &Client, patience: Duration) -> Result<(), Error> {
    let deadline = Instant::now() + patience;
    loop {
        let Err(error) = check(client).await else { return Ok(()) };
        if Instant::now() >= deadline || matches!(error, Error::Own(_)) {
            return Err(error);
        }
        tracing::info!(error = %chain(&error), "waiting for the CustomResourceDefinitions");
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

async fn check(client: &Client) -> Result<(), Error> {
    let request = http::Request::get(DOCUMENT)
        .body(Vec::new())
        .map_err(kube::Error::HttpError);
    let answer = match request {
        Ok(request) => {
            api::call(
                "read the API server's OpenAPI document",
                client.request::<Value>(request),
            )
            .await
        }
        Err(source) => Err(api::Error::Call {
            what: "write a request",
            source: Box::new(source),
        }),
    };
    let served = match answer {
        Ok(document) => document,
        Err(error) if error.code() == Some(404) => return Err(Error::Missing),
        Err(error) => return Err(Error::Ask(error)),
    };
    let schema = served_schema(&served).ok_or(Error::Missing)?;
    let missing = missing_fields(&own_schema()?, schema);
    if missing.is_empty() {
        Ok(())
    } else {
        Err(Error::TooOld {
            fields: missing.join(", "),
        })
    }
}

fn served_schema(document: &Value) -> Option<&Value> {
    let schemas = document.pointer("/components/schemas")?.as_object()?;
    schemas
        .iter()
        .find(|(name, _)| name.ends_with(".CeleryBroker"))
        .map(|(_, schema)| schema)
}

fn own_schema() -> Result<Value, Error> {
    let definitions = kanchi_crds::crds().map_err(Error::Own)?;
    let schema = definitions
        .into_iter()
        .filter(|crd| crd.spec.names.kind == "CeleryBroker")
        .flat_map(|crd| crd.spec.versions)
        .find_map(|version| version.schema)
        .map(|schema| serde_json::to_value(schema.open_api_v3_schema))
        .transpose()
        .map_err(Error::Own)?;
    Ok(schema.unwrap_or_default())
}

/// Returns the first missing paths of `spec` and `status`, at most five.
fn missing_fields(needed: &Value, served: &Value) -> Vec<String> {
    let mut missing = Vec::new();
    for root in ["spec", "status"] {
        let path = format!("/properties/{root}");
        if let Some(needed) = needed.pointer(&path) {
            match served.pointer(&path) {
                Some(served) => compare(needed, served, root, &mut missing),
                None => missing.push(root.to_owned()),
            }
        }
    }
    missing.truncate(5);
    missing
}

fn compare(needed: &Value, served: &Value, path: &str, missing: &mut Vec<String>) {
    let own = needed.get("properties").and_then(Value::as_object);
    for (name, child) in own.into_iter().flatten() {
        let path = format!("{path}.{name}");
        match served.pointer(&format!("/properties/{name}")) {
            Some(served) => compare(child, served, &path, missing),
            None => missing.push(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn this_build_finds_every_field_of_its_own_definition() {
        let own = own_schema().unwrap();
        assert!(own.pointer("/properties/spec/properties/connection").is_some());
        assert_eq!(missing_fields(&own, &own), Vec::<String>::new());
    }

    #[test]
    fn names_the_fields_that_an_older_definition_lacks() {
        let own = own_schema().unwrap();
        let mut older = own.clone();
        older["properties"]["spec"]["properties"]["connection"]["properties"]
            .as_object_mut()
            .unwrap()
            .remove("tls");
        older["properties"]["spec"]["properties"]
            .as_object_mut()
            .unwrap()
            .remove("payloads");
        assert_eq!(missing_fields(&own, &older), ["spec.connection.tls", "spec.payloads"]);
        assert_eq!(missing_fields(&own, &json!({})), ["spec", "status"]);
    }
}
