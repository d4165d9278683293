//! Commands in pods, and their logs.

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{AttachParams, LogParams};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::cluster::Cluster;

impl Cluster {
    /// Runs a command in a pod's first container and returns what it printed; fails when it fails.
    pub async fn exec(&self, namespace: &str, pod: &str, command: &[&str]) -> anyhow::Result<String> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let params = AttachParams::default()
            .stdin(false)
            .stdout(true)
            .stderr(true)
            .max_stdout_buf_size(64 * 1024);
        let attached = api.exec(pod, command.iter().copied(), &params).await;
        let mut process = attached.with_context(|| format!("failed to run {command:?} in {namespace}/{pod}"))?;
        let (stdout, stderr, status) = (process.stdout(), process.stderr(), process.take_status());
        let (stdout, stderr) = tokio::try_join!(text(stdout), text(stderr))?;
        let status = match status {
            Some(status) => status.await,
            None => None,
        };
        let succeeded = status.as_ref().and_then(|status| status.status.as_deref()) == Some("Success");
        if !succeeded {
            let why = status.and_then(|status| status.message).unwrap_or_default();
            bail!("{command:?} in {namespace}/{pod} failed: {why}\n{stdout}\n{stderr}");
        }
        Ok(stdout)
    }

    /// Returns what a pod of Kanchi shows on `/metrics`, through the API server.
    pub async fn metrics(&self, namespace: &str, pod: &str) -> anyhow::Result<String> {
        let uri = format!("/api/v1/namespaces/{namespace}/pods/{pod}:8080/proxy/metrics");
        let request = http::Request::get(uri).body(Vec::new()).context("not a path")?;
        self.client
            .request_text(request)
            .await
            .with_context(|| format!("failed to read the metrics of {namespace}/{pod}"))
    }

    /// Returns the last lines that a pod's containers logged; `previous` looks at the containers before a restart.
    pub async fn logs(&self, namespace: &str, pod: &str, lines: i64, previous: bool) -> anyhow::Result<String> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let params = LogParams {
            tail_lines: Some(lines),
            previous,
            ..Default::default()
        };
        api.logs(pod, &params)
            .await
            .with_context(|| format!("failed to read the log of {namespace}/{pod}"))
    }
}

async fn text(stream: Option<impl AsyncRead + Unpin>) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        stream
            .read_to_end(&mut bytes)
            .await
            .context("the connection to the pod broke")?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
