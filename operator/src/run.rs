//! The whole program: watches, lease, store, admin server, and their common end.
//!
//! Any task that ends before it was told to ends the process: a replica without its lease task, or without a controller,
//! must not linger. On SIGTERM the controllers drain first, and the Lease is given back last.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::Namespace;
use kanchi_runtime::{AdminServer, BuildInfo, Health, LogControl, shutdown};
use kube::api::PostParams;
use kube::{Api, Client, Config, ResourceExt};
use prometheus_client::registry::Registry;
use rand::RngExt;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::{self, call};
use crate::args::{Args, Scope};
use crate::context::{Context, Scopes, Settings};
use crate::controllers;
use crate::crd_check;
use crate::events::Events;
use crate::gate;
use crate::lease::{self, Leadership, LeaseSettings, LeaseTask};
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::names;
use crate::passes::Passes;
use crate::rollout::RolloutSlots;
use crate::secret_index::SecretIndex;
use crate::store_link::{StoreLink, StoreSource};
use crate::watched::Watched;

/// Passes under way get so long to end: less than the pod's grace period.
const DRAIN: Duration = Duration::from_secs(45);

/// A task that is silent for longer fails the liveness probe.
const PULSE: Duration = Duration::from_mins(3);

/// Why the operator ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No cluster to talk to.
    #[error("failed to find the cluster's API server")]
    Config(#[source] Box<kube::config::InferConfigError>),
    /// The client cannot be built.
    #[error("failed to build the API client")]
    Client(#[source] Box<kube::Error>),
    /// Signals cannot be received.
    #[error("{0}")]
    Signals(#[source] shutdown::Error),
    /// Probes and metrics cannot be served.
    #[error("{0}")]
    Admin(#[source] kanchi_runtime::admin::Error),
    /// The resources are not there.
    #[error("{0}")]
    Definitions(#[source] crd_check::Error),
    /// The operator's own namespace cannot be read.
    #[error("failed to name this installation")]
    Installation(#[source] api::Error),
    /// The operator's own rights are not known.
    #[error("{0}")]
    Rights(#[source] api::Error),
    /// The Lease was lost.
    #[error("{0}")]
    Lease(#[source] lease::Error),
    /// A task ended that should not.
    #[error("failed to go on: {0} ended")]
    Ended(&'static str),
    /// A task panicked.
    #[error("failed to go on: a task panicked")]
    Panicked(#[source] tokio::task::JoinError),
}

/// Runs the operator until SIGTERM.
pub async fn run(args: Args, log: LogControl) -> Result<(), Error> {
    let config = Config::infer().await.map_err(|error| Error::Config(Box::new(error)))?;
    let shutdown = shutdown::on_signal().map_err(Error::Signals)?;
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let health = Health::new();
    let admin = AdminServer::bind(args.admin_addr, Arc::new(registry), health.clone(), log);
    let admin = admin.await.map_err(Error::Admin)?;
    let serving = tokio::spawn(admin.run(CancellationToken::new()));
    let outcome = operate(args, config, metrics, health, shutdown).await;
    serving.abort();
    outcome
}

/// Runs everything but the admin server; for tests too, with a config and a token of their own.
pub async fn operate(
    args: Args,
    config: Config,
    metrics: Metrics,
    health: Health,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    BuildInfo::of(names::OPERATOR).log();
    let leadership = Leadership::candidate();
    let plain = Client::try_from(config.clone()).map_err(|error| Error::Client(Box::new(error)))?;
    let gated = gate::gated_client(config, leadership.clone()).map_err(|error| Error::Client(Box::new(error)))?;
    tokio::select! {
        checked = crd_check::wait(&plain, crd_check::PATIENCE) => checked.map_err(Error::Definitions)?,
        () = shutdown.cancelled() => return Ok(()),
    }
    let installation = installation(&args, &plain).await?;
    let outlives_namespaces = has_cluster_role(&args, &plain).await?;
    let context = Arc::new(context(&args, gated, leadership.clone(), metrics, outlives_namespaces));
    let mut tasks = JoinSet::new();
    let stop = CancellationToken::new();
    let release = CancellationToken::new();
    for scope in args.scopes() {
        let pulse = health.pulse("controller", PULSE);
        let run = controllers::run_celery_brokers(Arc::clone(&context), scope, stop.clone(), pulse);
        tasks.spawn(ended("a controller", run));
    }
    let pulse = health.pulse("feed", PULSE);
    tasks.spawn(ended(
        "the feed",
        controllers::feed::run(Arc::clone(&context), stop.clone(), pulse),
    ));
    tasks.spawn(ended(
        "the store link",
        lead_store(Arc::clone(&context), installation, stop.clone()),
    ));
    tasks.spawn(ended(
        "the readiness check",
        ready(Arc::clone(&context), args.scopes().len(), health.clone(), stop.clone()),
    ));
    let mut settings = LeaseSettings::new(
        args.pod_namespace.clone(),
        args.lease_name.clone(),
        identity(&args),
        args.lease_duration(),
    );
    settings.renew_every = settings.renew_every.min(Duration::from_secs(5));
    // A set of one: it ends with this function, however that ends.
    let mut lease = JoinSet::new();
    lease.spawn(LeaseTask::new(plain, settings, leadership).run(release.clone()));
    let early = tokio::select! {
        () = shutdown.cancelled() => None,
        held = lease.join_next() => Some(match held {
            None | Some(Ok(Ok(()))) => Error::Ended("the lease"),
            Some(Ok(Err(error))) => Error::Lease(error),
            Some(Err(panicked)) => Error::Panicked(panicked),
        }),
        task = tasks.join_next() => Some(match task {
            Some(Ok(name)) => Error::Ended(name),
            Some(Err(panicked)) => Error::Panicked(panicked),
            None => Error::Ended("everything"),
        }),
    };
    if let Some(error) = early {
        return Err(error);
    }
    health.set_not_ready();
    stop.cancel();
    let drained = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::warn!(
            passes = context.passes.count(),
            "passes did not end in time, leaving them"
        );
        tasks.abort_all();
    }
    release.cancel();
    match lease.join_next().await {
        None | Some(Ok(Ok(()))) => Ok(()),
        Some(Ok(Err(error))) => Err(Error::Lease(error)),
        Some(Err(panicked)) => Err(Error::Panicked(panicked)),
    }
}

fn context(
    args: &Args,
    client: Client,
    leadership: Leadership,
    metrics: Metrics,
    outlives_namespaces: bool,
) -> Context {
    let source = StoreSource {
        url_file: args.store_url_file.clone(),
        ca_file: args.store_ca_file.clone(),
        shared_role: args.store_shared_role.clone(),
        shared_password_file: args.store_shared_password_file.clone(),
        monitor_address: args
            .monitor_store_address
            .clone()
            .filter(|address| !address.trim().is_empty()),
    };
    Context {
        events: Events::new(client.clone(), args.pod_name.clone()),
        client,
        leadership,
        settings: Settings::of(args),
        outlives_namespaces,
        store: StoreLink::new(source),
        metrics,
        memory: Memory::default(),
        secrets: SecretIndex::default(),
        watched: Watched::default(),
        rollouts: RolloutSlots::new(usize::from(args.max_rollouts)),
        permits: Semaphore::new(usize::from(args.concurrency)),
        passes: Passes::default(),
        scopes: Scopes::default(),
    }
}

/// Differs between two runs of one pod: a restarted container must not take itself for the holder it was.
fn identity(args: &Args) -> String {
    let run: u32 = rand::rng().random();
    format!("{}_{run:08x}", args.pod_name)
}

/// Returns the installation's name in the store.
async fn installation(args: &Args, client: &Client) -> Result<String, Error> {
    if let Some(id) = args
        .installation_id
        .as_deref()
        .map(str::trim)
        .filter(|id| !id.is_empty())
    {
        return Ok(id.to_owned());
    }
    let api: Api<Namespace> = Api::all(client.clone());
    let namespace = call("read the operator's namespace", api.get_metadata(&args.pod_namespace)).await;
    Ok(namespace.map_err(Error::Installation)?.uid().unwrap_or_default())
}

/// Asks whether finalizers may be removed wherever they are; everyone may ask that of himself.
async fn has_cluster_role(args: &Args, client: &Client) -> Result<bool, Error> {
    if args.scopes().contains(&Scope::All) {
        return Ok(true);
    }
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                group: Some(kanchi_crds::GROUP.to_owned()),
                resource: Some("celerybrokers".to_owned()),
                verb: Some("patch".to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let answer = call(
        "ask for the operator's rights",
        api.create(&PostParams::default(), &review),
    )
    .await;
    Ok(answer
        .map_err(Error::Rights)?
        .status
        .is_some_and(|status| status.allowed))
}

/// Keeps the store link while this replica leads.
async fn lead_store(context: Arc<Context>, installation: String, stop: CancellationToken) {
    let mut leading = context.leadership.changes();
    loop {
        let leads = *leading.borrow_and_update();
        let link = async {
            if leads {
                context.store.run(&installation).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = link => {}
            changed = leading.changed() => if changed.is_err() { return },
        }
    }
}

/// Ready once all caches are listed; then idle until the end.
async fn ready(context: Arc<Context>, scopes: usize, health: Health, stop: CancellationToken) {
    let listed = async {
        while context.scopes.listed() < scopes {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        health.set_ready();
        tracing::info!("caches listed, ready");
    };
    tokio::select! {
        () = listed => stop.cancelled().await,
        () = stop.cancelled() => {}
    }
}

async fn ended(name: &'static str, task: impl Future<Output = ()>) -> &'static str {
    task.await;
    name
}
