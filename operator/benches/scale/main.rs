//! The operator with many CeleryBrokers: what it asks of the API server and of Postgres, what memory it takes, and how soon
//! everything is settled.
//!
//! A real kube-apiserver with etcd, the real controllers of StatefulSets and garbage, a real Postgres, and the operator as a
//! process of its own with the rights of `manifests/`. There are no nodes: pods are created for real and scheduled nowhere,
//! and this program sets their statuses as a kubelet would. It also writes the monitors' heartbeats into the store. Calls are
//! counted in the API server's audit log. `docs/performance.md` says how to run it and shows the figures.

mod calls;
mod census;
#[expect(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "shared with the tests, which use all of it"
)]
#[path = "../../tests/operator/support/cluster.rs"]
mod cluster;
mod figures;
mod fleet;
mod kubelet;
#[path = "../../tests/operator/support/log.rs"]
mod log;
mod monitors;
mod phases;
mod process;
mod statements;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use kanchi_test_servers::postgres::{Postgres, PostgresOptions};

use crate::cluster::Cluster;
use crate::figures::{Figures, say};
use crate::kubelet::Pods;
use crate::phases::Bench;

/// How much is measured; each has an environment variable.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    /// CeleryBrokers.
    brokers: usize,
    /// Namespaces that they are spread over.
    namespaces: usize,
    /// How long nothing changes, and how long every count does.
    quiet: Duration,
    /// What becomes of pods.
    pods: Pods,
}

impl Sizes {
    fn from_environment() -> Result<Self> {
        let size = |name: &str, default: usize| match std::env::var(name) {
            Ok(text) => text
                .parse()
                .with_context(|| format!("{name} must be a number, not {text:?}")),
            Err(_) => Ok(default),
        };
        Ok(Self {
            brokers: size("KANCHI_BENCH_BROKERS", 1000)?.max(1),
            namespaces: size("KANCHI_BENCH_NAMESPACES", 10)?.max(1),
            quiet: Duration::from_secs(size("KANCHI_BENCH_SECONDS", 180)? as u64),
            pods: match std::env::var("KANCHI_BENCH_PODS").as_deref() {
                Ok("unscheduled") => Pods::Unscheduled,
                Ok("ready") | Err(_) => Pods::Ready,
                Ok(other) => bail!("KANCHI_BENCH_PODS must be ready or unscheduled, not {other:?}"),
            },
        })
    }
}

fn main() -> Result<()> {
    let sizes = Sizes::from_environment()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    say(&format!("{sizes:?}"));
    let began = Instant::now();
    let options = PostgresOptions {
        fsync: true,
        settings: vec![("shared_preload_libraries".to_owned(), "pg_stat_statements".to_owned())],
        ..PostgresOptions::default()
    };
    let cluster = Arc::new(Cluster::start(Postgres::with(&options)?));
    let figures: Figures = runtime.block_on(async {
        cluster.prepare().await;
        Bench::prepare(Arc::clone(&cluster), sizes).await?.measure().await
    })?;
    say(&figures.table());
    say(&format!("\nall of it took {:.0} s", began.elapsed().as_secs_f64()));
    let missed = figures.missed();
    ensure!(missed.is_empty(), "missed what is required: {}", missed.join(", "));
    Ok(())
}
