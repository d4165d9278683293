//! The resource definition on a real API server: what it defaults, refuses, explains, and who may own what.

use anyhow::Context;
use kanchi_e2e::cluster::{Cluster, checkout};
use kanchi_e2e::verbs::BROKER;
use kanchi_e2e::{Scope, scoped};
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use serde::Deserialize;
use serde_json::{Value, json};

/// One of `crds/tests/rules.yaml`, which the client-side evaluator judges, too.
#[derive(Deserialize)]
struct Case {
    message: String,
    old: Option<Value>,
    accepted: Value,
    refused: Value,
}

fn manifest(body: &Value) -> anyhow::Result<DynamicObject> {
    let name = body.get("name").cloned().unwrap_or_else(|| json!("probe"));
    Ok(serde_json::from_value(json!({
        "apiVersion": BROKER.0, "kind": BROKER.1, "metadata": { "name": name }, "spec": body["spec"]
    }))?)
}

fn dry_run() -> PostParams {
    PostParams {
        dry_run: true,
        ..PostParams::default()
    }
}

/// Asks the API server what it thinks of a resource, or of the update of another to it; nothing is left behind.
async fn judge(api: &Api<DynamicObject>, body: &Value, old: Option<&Value>) -> anyhow::Result<Result<(), String>> {
    let mut object = manifest(body)?;
    let answer = if let Some(old) = old {
        let first = api.create(&PostParams::default(), &manifest(old)?).await?;
        object.metadata.resource_version = first.metadata.resource_version;
        let answer = api.replace("probe", &dry_run(), &object).await;
        api.delete("probe", &kube::api::DeleteParams::default()).await?;
        answer
    } else {
        api.create(&dry_run(), &object).await
    };
    match answer {
        Ok(_) => Ok(Ok(())),
        Err(kube::Error::Api(status)) if status.code == 422 => Ok(Err(status.message)),
        Err(error) => Err(error.into()),
    }
}

async fn brokers(scope: &Scope) -> anyhow::Result<Api<DynamicObject>> {
    scope.cluster.install().await?;
    scope.cluster.api(BROKER, &scope.namespace).await
}

#[tokio::test]
async fn the_api_server_judges_every_rule_as_the_client_side_evaluator_does() -> anyhow::Result<()> {
    scoped("rules", |scope| async move {
        let api = brokers(&scope).await?;
        let text = std::fs::read_to_string(checkout("crds/tests/rules.yaml"))?;
        let cases: Vec<Case> = serde_yaml::from_str(&text).context("rules.yaml")?;
        for case in &cases {
            assert_eq!(
                judge(&api, &case.accepted, case.old.as_ref()).await?,
                Ok(()),
                "{}",
                case.accepted
            );
            let refused = judge(&api, &case.refused, case.old.as_ref()).await?;
            let said = refused
                .err()
                .with_context(|| format!("{} was accepted", case.refused))?;
            assert!(said.contains(&case.message), "{}: {said}", case.refused);
            assert!(!said.contains("canary"), "the answer repeats a password: {said}");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn defaults_are_the_servers_and_status_is_written_through_its_own_door() -> anyhow::Result<()> {
    scoped("defaults", |scope| async move {
        let api = brokers(&scope).await?;
        let body = json!({ "spec": { "enabled": false, "connection": { "url": "redis://redis:6379/0" } } });
        let mut object = manifest(&body)?;
        object.data["status"] = json!({ "endpoint": "a lie" });
        let created = api.create(&PostParams::default(), &object).await?;
        assert_eq!(created.data["spec"]["celery"]["eventExchange"], "celeryev");
        assert_eq!(created.data["spec"]["celery"]["eventQueue"]["maxLengthBytes"], "1Gi");
        assert_eq!(created.data["spec"]["retention"]["statistics"], "365d");
        assert_ne!(created.data["status"]["endpoint"], "a lie");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn two_managers_own_two_condition_types_without_erasing_each_others() -> anyhow::Result<()> {
    scoped("managers", |scope| async move {
        let api = brokers(&scope).await?;
        let body =
            json!({ "name": "two", "spec": { "enabled": false, "connection": { "url": "redis://redis:6379/0" } } });
        api.create(&PostParams::default(), &manifest(&body)?).await?;
        for (manager, condition) in [("one", "OneSays"), ("two", "TwoSays")] {
            let status = json!({
                "apiVersion": BROKER.0, "kind": BROKER.1,
                "status": { "conditions": [{
                    "type": condition, "status": "True", "reason": "Test", "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"
                }] }
            });
            api.patch_status("two", &PatchParams::apply(manager), &Patch::Apply(&status))
                .await?;
        }
        let found = api.get("two").await?;
        let types: Vec<&str> = found.data["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|condition| condition["type"].as_str())
            .collect();
        assert!(types.contains(&"OneSays") && types.contains(&"TwoSays"), "{types:?}");
        Ok(())
    })
    .await
}

/// Collects every path of a schema.
fn paths(schema: &Value, path: &str, found: &mut Vec<String>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        paths(field, &path, found);
        paths(&field["items"], &path, found);
        found.push(path);
    }
}

#[tokio::test]
async fn kubectl_explains_every_field() -> anyhow::Result<()> {
    scoped("explain", |scope| async move { explain(&scope.cluster).await }).await
}

async fn explain(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.install().await?;
    let text = std::fs::read_to_string(checkout("crds/yaml/kanchi.io_celerybrokers.yaml"))?;
    let crd: Value = serde_yaml::from_str(&text)?;
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let mut all = Vec::new();
    for part in ["spec", "status"] {
        paths(&schema["properties"][part], part, &mut all);
    }
    // Kubernetes' own types are explained by Kubernetes.
    all.retain(|path| !path.starts_with("spec.monitor.affinity.") && !path.starts_with("spec.monitor.tolerations."));
    assert!(all.len() > 50, "{all:?}");
    for path in all {
        let output = tokio::process::Command::new("kubectl")
            .args(["explain", &format!("celerybroker.{path}")])
            .output()
            .await?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && !said.contains("<empty>"), "{path}: {said}");
    }
    Ok(())
}
