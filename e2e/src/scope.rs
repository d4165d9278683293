//! A namespace per test, and a report when the test fails.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use futures::FutureExt;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;
use tokio::sync::RwLock;
use uuid::Uuid;

use crate::cluster::{Cluster, Kind};
use crate::{faults, report};

/// Held by every test: shared by those that stay in their namespace, alone by those that touch what all share.
static SHARED_GROUND: RwLock<()> = RwLock::const_new(());

/// What a test works in.
#[derive(Clone)]
pub struct Scope {
    /// The cluster.
    pub cluster: Cluster,
    /// The test's own namespace.
    pub namespace: String,
    /// When the test began.
    pub began: Instant,
}

/// Runs a test in a namespace of its own, prints what was there if it fails, and takes the namespace away. Others may run
/// beside it: it must leave alone what is not in its namespace.
///
/// `KANCHI_KEEP=1` leaves the namespace of a failed test for a look.
pub async fn scoped<F, R>(test: &str, body: F) -> anyhow::Result<()>
where
    F: FnOnce(Scope) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    let _shared = SHARED_GROUND.read().await;
    run(test, body).await
}

/// The same for a test beside which no other may run: it stops the operator or Postgres, or counts what everybody does.
pub async fn scoped_alone<F, R>(test: &str, body: F) -> anyhow::Result<()>
where
    F: FnOnce(Scope) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    let _alone = SHARED_GROUND.write().await;
    run(test, body).await
}

async fn run<F, R>(test: &str, body: F) -> anyhow::Result<()>
where
    F: FnOnce(Scope) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    let cluster = Cluster::connect().await?;
    let scope = Scope {
        namespace: create_namespace(&cluster, test).await?,
        cluster,
        began: Instant::now(),
    };
    let outcome = AssertUnwindSafe(body(scope.clone())).catch_unwind().await;
    let outcome = outcome.unwrap_or_else(|panic| {
        let owned = panic.downcast_ref::<String>().cloned();
        let said = owned.or_else(|| panic.downcast_ref::<&str>().map(|literal| (*literal).to_owned()));
        Err(anyhow!("the test panicked: {}", said.unwrap_or_default()))
    });
    if outcome.is_err() {
        report::print(test, &scope).await;
    }
    let kept = outcome.is_err() && std::env::var("KANCHI_KEEP").is_ok();
    if !kept {
        delete_namespace(&scope.cluster, &scope.namespace).await?;
        if scope.cluster.kind == Kind::Lab {
            faults::recycle_volumes().await?;
        }
    }
    outcome
}

async fn create_namespace(cluster: &Cluster, test: &str) -> anyhow::Result<String> {
    let id = Uuid::new_v4().simple().to_string();
    let word: String = test
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .collect();
    let word: String = word.chars().take(40).collect();
    let name = format!("t-{}-{}", word.trim_matches('-'), id.get(..6).unwrap_or_default());
    ensure_namespace(cluster, &name, &[("kanchi.io/test", word.trim_matches('-'))]).await?;
    Ok(name)
}

/// Creates a namespace that enforces the Pod Security level `restricted`, unless it exists.
pub async fn ensure_namespace(cluster: &Cluster, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<()> {
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    let mut all = serde_json::Map::from_iter([("pod-security.kubernetes.io/enforce".to_owned(), json!("restricted"))]);
    all.extend(labels.iter().map(|(key, value)| ((*key).to_owned(), json!(value))));
    let object = serde_json::from_value(json!({ "metadata": { "name": name, "labels": all } }))?;
    match api.create(&PostParams::default(), &object).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(()),
        Err(error) => Err(error).with_context(|| format!("failed to create namespace {name}")),
    }
}

/// Deletes a namespace with all that is in it and waits until it is gone.
pub async fn delete_namespace(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("failed to delete namespace {name}")),
    }
    crate::until(&format!("namespace {name} gone"), Duration::from_secs(120), || async {
        Ok(match api.get_opt(name).await? {
            None => crate::wait::Look::Done(()),
            Some(left) => crate::wait::Look::NotYet(serde_json::to_string(&left.status)?),
        })
    })
    .await
}
