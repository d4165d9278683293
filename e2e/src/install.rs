//! Kanchi itself in the cluster, by its chart, on a Postgres that outlives it.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::sync::Mutex;

use crate::cluster::{Cluster, checkout};
use crate::scope::ensure_namespace;
use crate::services::Service;
use crate::verbs::DEPLOYMENT;

/// Where the operator runs.
pub const NAMESPACE: &str = "kanchi-system";

/// Where Postgres runs.
pub const STORE_NAMESPACE: &str = "kanchi-store";

/// The release, the operator's Deployment, its service account and its Lease.
pub const RELEASE: &str = "kanchi";

/// Values of the release as this process has installed it.
static INSTALLED: Mutex<Option<Value>> = Mutex::const_new(None);

/// Name of the Secret with the store's URL.
const STORE_SECRET: &str = "kanchi-store";

impl Cluster {
    /// Installs Kanchi with the images under test unless it runs just so, and waits for the operator.
    pub async fn install(&self) -> anyhow::Result<()> {
        self.install_with(json!({})).await
    }

    /// Installs or upgrades Kanchi with some more values.
    pub async fn install_with(&self, more: Value) -> anyhow::Result<()> {
        let mut values = self.values()?;
        merge(&mut values, more);
        let mut installed = INSTALLED.lock().await;
        if installed.as_ref() != Some(&values) {
            *installed = None;
            self.upgrade(&values).await?;
            *installed = Some(values);
        }
        drop(installed);
        self.await_rollout(DEPLOYMENT, &self.operator().await?, NAMESPACE, Duration::from_secs(120))
            .await
    }

    async fn upgrade(&self, values: &Value) -> anyhow::Result<()> {
        ensure_namespace(self, NAMESPACE, &[]).await?;
        ensure_namespace(self, STORE_NAMESPACE, &[]).await?;
        self.start(STORE_NAMESPACE, &[Service::Postgres]).await?;
        let url = format!("postgresql://kanchi:storing@postgres.{STORE_NAMESPACE}.svc.cluster.local:5432/kanchi");
        let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": STORE_SECRET }, "stringData": { "url": url } });
        self.apply(secret, NAMESPACE).await?;
        let chart = checkout("charts/kanchi").display().to_string();
        let arguments = [
            "upgrade",
            "--install",
            RELEASE,
            &chart,
            "--namespace",
            NAMESPACE,
            "--values",
            "-",
        ];
        helm(&arguments, &values.to_string()).await.map(drop)
    }

    /// Uninstalls the release; what the chart keeps, stays.
    pub async fn uninstall(&self) -> anyhow::Result<()> {
        *INSTALLED.lock().await = None;
        helm(&["uninstall", RELEASE, "--namespace", NAMESPACE, "--wait"], "")
            .await
            .map(drop)
    }

    /// Returns the name of the operator's Deployment.
    pub async fn operator(&self) -> anyhow::Result<String> {
        let labels = "app.kubernetes.io/component=operator";
        let found = self.list(DEPLOYMENT, NAMESPACE, labels).await?;
        let name = found.into_iter().find_map(|deployment| deployment.metadata.name);
        name.with_context(|| format!("no Deployment with {labels} in {NAMESPACE}"))
    }

    fn values(&self) -> anyhow::Result<Value> {
        let images = self.images()?;
        let split = |image: &str| -> anyhow::Result<Value> {
            let (repository, tag) = image.rsplit_once(':').with_context(|| format!("{image} has no tag"))?;
            Ok(json!({ "repository": repository, "tag": tag }))
        };
        Ok(json!({
            "operator": { "image": split(&images.operator)? },
            "monitor": { "image": split(&images.monitor)? },
            "store": { "urlSecretRef": { "name": STORE_SECRET, "key": "url" } },
        }))
    }
}

fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more,
    }
}

/// Runs helm with values on its standard input.
pub async fn helm(arguments: &[&str], values: &str) -> anyhow::Result<String> {
    let mut command = Command::new("helm");
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().context("failed to start helm")?;
    if let Some(mut stdin) = child.stdin.take() {
        tokio::io::AsyncWriteExt::write_all(&mut stdin, values.as_bytes())
            .await
            .context("helm does not read")?;
    }
    let output = child.wait_with_output().await.context("failed to wait for helm")?;
    if !output.status.success() {
        bail!("helm {arguments:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
