//! The cluster under test and what is known about it.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::Context;
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};

/// A connection to the cluster under test.
#[derive(Clone)]
pub struct Cluster {
    /// An administrator's client.
    pub client: Client,
    /// Whether this is the lab of `e2e/lab`: faults, the audit log and direct addresses exist only there.
    pub kind: Kind,
}

/// Whose cluster it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `e2e/lab`.
    Lab,
    /// One that the user has named with `CLUSTER=<context>`.
    Own,
}

/// Images that are put into manifests.
#[derive(Clone, Debug)]
pub struct Images {
    /// The sample application on the newest Celery.
    pub celery: String,
    /// The operator, `repository:tag`.
    pub operator: String,
    /// The monitor, `repository:tag`.
    pub monitor: String,
}

impl Cluster {
    /// Connects to the cluster that `e2e/lab/lab env` describes.
    pub async fn connect() -> anyhow::Result<Self> {
        let kind = match setting("KANCHI_CLUSTER")?.as_str() {
            "lab" => Kind::Lab,
            _ => Kind::Own,
        };
        // The process may have chosen one already, for its own connections.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            drop(rustls::crypto::ring::default_provider().install_default());
        }
        let file = Kubeconfig::read_from(setting("KUBECONFIG")?).context("failed to read the cluster's kubeconfig")?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
        let client = Client::try_from(config.context("failed to use the cluster's kubeconfig")?)?;
        Ok(Self { client, kind })
    }

    /// Returns the images that were loaded into the cluster.
    pub fn images(&self) -> anyhow::Result<Images> {
        Ok(Images {
            celery: setting("KANCHI_CELERY_IMAGE")?,
            operator: setting("KANCHI_OPERATOR_IMAGE")?,
            monitor: setting("KANCHI_MONITOR_IMAGE")?,
        })
    }
}

/// Returns a setting of the cluster's environment.
pub fn setting(name: &str) -> anyhow::Result<String> {
    env::var(name).with_context(|| format!("{name} is not set: run `make e2e`, or `eval \"$(e2e/lab/lab env)\"` first"))
}

/// Returns a number from the environment, or the one that the issue asks for.
pub fn number(name: &str, default: usize) -> anyhow::Result<usize> {
    match env::var(name) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{name} must be a number, not {text:?}")),
        Err(_) => Ok(default),
    }
}

/// Returns a path inside the checkout.
pub fn checkout(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}
