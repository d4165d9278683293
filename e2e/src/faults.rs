//! Faults in the lab's network: cut, thin out, heal. Only the lab has them.

use std::process::Stdio;

use anyhow::{Context, bail};
use tokio::process::Command;

use crate::cluster::setting;

/// Lets nothing pass between two places (an address, `pod/<ns>/<name>`, `svc/<ns>/<name>`, `node`, `any`).
pub async fn cut(a: &str, b: &str) -> anyhow::Result<()> {
    lab(&["cut", a, b]).await.map(drop)
}

/// Refuses TCP between two places at once.
pub async fn refuse(a: &str, b: &str) -> anyhow::Result<()> {
    lab(&["cut", a, b, "reset"]).await.map(drop)
}

/// Loses a part (0.0–1.0) of the packets between two places.
pub async fn thin(a: &str, b: &str, part: f64) -> anyhow::Result<()> {
    lab(&["thin", a, b, &part.to_string()]).await.map(drop)
}

/// Takes every fault away.
pub async fn heal() -> anyhow::Result<()> {
    lab(&["heal"]).await.map(drop)
}

/// Makes released volumes new, so that later tests find some.
pub async fn recycle_volumes() -> anyhow::Result<()> {
    lab(&["volumes"]).await.map(drop)
}

async fn lab(arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(setting("KANCHI_LAB_COMMAND")?);
    let output = command
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await
        .context("failed to start the lab's command")?;
    if !output.status.success() {
        bail!("lab {arguments:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
