//! The operator itself, as a task of the test, under a user of its own with just the rights it documents.

use clap::Parser;
use kanchi_operator::args::Args;
use kanchi_operator::metrics::Metrics;
use kanchi_operator::run;
use kanchi_runtime::Health;
use prometheus_client::registry::Registry;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::world::World;

/// Among the arguments: rights that do not end with a namespace.
pub(crate) const CLUSTER_ROLE: &str = "(with a ClusterRole)";

/// A running operator.
pub(crate) struct Operator {
    pub(crate) user: String,
    pub(crate) health: Health,
    registry: Registry,
    stop: CancellationToken,
    task: JoinHandle<Result<(), run::Error>>,
}

impl Operator {
    /// Starts a replica that serves the namespace it lives in.
    pub(crate) async fn start(world: &World, replica: &str, extra: &[&str]) -> Self {
        Self::start_over(world, &[world], replica, extra).await
    }

    /// Starts a replica that lives in one namespace and serves others.
    pub(crate) async fn start_over(world: &World, served: &[&World], replica: &str, extra: &[&str]) -> Self {
        let (config, user) = world.cluster.new_user();
        world.grant(&user).await;
        if extra.contains(&CLUSTER_ROLE) {
            world.grant_everywhere(&user).await;
        }
        let extra = extra.iter().filter(|argument| **argument != CLUSTER_ROLE);
        let mut namespaces = Vec::new();
        for other in served {
            if other.namespace != world.namespace {
                other.grant(&user).await;
            }
            namespaces.push(other.namespace.clone());
        }
        let mut arguments = vec![
            "kanchi-operator".to_owned(),
            format!("--namespaces={}", namespaces.join(",")),
            format!("--pod-namespace={}", world.namespace),
            format!("--pod-name={replica}"),
            "--lease-seconds=6".to_owned(),
            format!("--store-url-file={}", world.store_url_file().display()),
        ];
        if !extra.clone().any(|argument| argument.starts_with("--monitor-image=")) {
            arguments.push("--monitor-image=monitor:1".to_owned());
        }
        arguments.extend(extra.map(|argument| (*argument).to_owned()));
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let health = Health::new();
        let stop = CancellationToken::new();
        let args = Args::parse_from(arguments);
        let task = tokio::spawn(run::operate(args, config, metrics, health.clone(), stop.clone()));
        Self {
            user,
            health,
            registry,
            stop,
            task,
        }
    }

    /// Returns the metrics as Prometheus sees them.
    pub(crate) fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }

    /// Ends it as SIGTERM does.
    pub(crate) async fn stop(self) -> Result<(), run::Error> {
        self.stop.cancel();
        self.task.await.expect("no panic")
    }

    /// Waits until it ends by itself.
    pub(crate) async fn ended(self) -> Result<(), run::Error> {
        self.task.await.expect("no panic")
    }

    /// Ends it as SIGKILL does.
    pub(crate) fn kill(self) {
        self.task.abort();
    }
}
