//! The operator as a process of its own.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use kanchi_test_servers::{free_port, processor_seconds};

use crate::fleet::OPERATOR_NAMESPACE;

/// Lines of an operator's log that an error shows.
const LAST_LINES: usize = 10;

/// How the operator is started.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) kubeconfig: PathBuf,
    pub(crate) store_url_file: PathBuf,
    /// Logs go here.
    pub(crate) folder: PathBuf,
}

/// A running operator; killed when dropped.
pub(crate) struct Operator {
    child: Child,
    admin: u16,
    log: PathBuf,
}

/// What a process takes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Resident memory, bytes.
    pub(crate) resident: u64,
    /// The most that was ever resident, bytes.
    pub(crate) peak: u64,
    /// Processor seconds so far.
    pub(crate) processor: f64,
}

impl Operator {
    pub(crate) fn start(settings: &Settings, pod: &str) -> Result<Self> {
        let path = settings.folder.join(format!("{pod}.log"));
        let log = File::create(&path)?;
        let admin = free_port()?;
        let child = Command::new(env!("CARGO_BIN_EXE_kanchi-operator"))
            .env("KUBECONFIG", &settings.kubeconfig)
            .args([
                format!("--pod-name={pod}"),
                format!("--pod-namespace={OPERATOR_NAMESPACE}"),
                "--monitor-image=kanchi-monitor:bench".to_owned(),
                format!("--store-url-file={}", settings.store_url_file.display()),
                format!("--admin-addr=127.0.0.1:{admin}"),
                // A busy machine may stop the API server for longer than the 10 s after which an operator gives up.
                "--lease-seconds=120".to_owned(),
            ])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("the operator does not start")?;
        Ok(Self {
            child,
            admin,
            log: path,
        })
    }

    /// Ends it as a rolling update does.
    pub(crate) fn stop(mut self) -> Result<()> {
        let told = Command::new("kill").arg(self.child.id().to_string()).status()?;
        ensure!(told.success(), "the operator was gone already");
        let ended = self.child.wait()?;
        ensure!(ended.success(), "the operator ended with {ended}");
        Ok(())
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        let page = self.metrics()?;
        Ok(Usage {
            resident: sum(&page, "process_resident_memory_bytes ") as u64,
            peak: sum(&page, "process_resident_memory_max_bytes ") as u64,
            processor: processor_seconds(self.child.id()),
        })
    }

    /// Returns how many passes it has made.
    pub(crate) fn passes(&self) -> Result<u64> {
        Ok(sum(&self.metrics()?, "kanchi_operator_reconciles_total{") as u64)
    }

    fn metrics(&self) -> Result<String> {
        let output = Command::new("curl")
            .args(["-sf", &format!("http://127.0.0.1:{}/metrics", self.admin)])
            .output()?;
        ensure!(
            output.status.success(),
            "the operator shows no metrics; its last lines:\n{}",
            self.last_lines()?
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    fn last_lines(&self) -> Result<String> {
        let log = fs::read_to_string(&self.log)?;
        let lines: Vec<_> = log.lines().collect();
        let last = lines.get(lines.len().saturating_sub(LAST_LINES)..);
        Ok(last.unwrap_or_default().join("\n"))
    }
}

/// Adds up the series of a page of metrics that begin so.
fn sum(page: &str, beginning: &str) -> f64 {
    let series = page.lines().filter(|line| line.starts_with(beginning));
    series
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
