//! `kanchi-monitor run`: one broker, until SIGTERM.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kanchi_ingest::commit::Error as RunError;
use kanchi_ingest::settings::Loaded;
use kanchi_ingest::{Metrics, Monitor, MonitorLimits, Settings, Shared, error_chain};
use kanchi_runtime::{AdminServer, BuildInfo, Health, LogControl, clock, process, shutdown, telemetry};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::args::RunArgs;
use crate::{BAD_CONFIGURATION, REPLACED};

/// Decoding and committing go on side by side; more threads would only cost memory.
const WORKER_THREADS: usize = 2;

/// The runtime is stuck when its own timer stands still for so long; the kubelet then restarts the process.
const STUCK_AFTER: Duration = Duration::from_secs(30);

pub(crate) fn run(args: &RunArgs) -> ExitCode {
    let loaded = Settings::load(&args.config_dir);
    let filter = loaded
        .as_ref()
        .map_or("info", |loaded| loaded.settings.config.log_level.as_str());
    let log = match telemetry::init(args.log_format.into(), filter) {
        Ok(log) => log,
        Err(error) => return refuse_without_log(&error),
    };
    let build = BuildInfo::of("kanchi-monitor");
    build.log();
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            tracing::error!(error = %error_chain(&error), "the configuration cannot be used");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider was installed before");
    }
    let mut registry = Registry::default();
    process::register(&mut registry, build);
    let metrics = Arc::new(Metrics::register(&mut registry));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        // Only the configuration's files are read there.
        .max_blocking_threads(2)
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(serve(args, loaded, metrics, Arc::new(registry), log));
            // A task that does not end must not hold up the process.
            runtime.shutdown_timeout(Duration::from_secs(1));
            code
        }
        Err(error) => {
            tracing::error!(%error, "no runtime");
            ExitCode::FAILURE
        }
    }
}

/// Returns a monitor that begins anew; only the metrics go on.
fn monitor(args: &RunArgs, loaded: Loaded, metrics: &Arc<Metrics>) -> Monitor {
    Monitor {
        config_directory: args.config_dir.clone(),
        spool_directory: args.spool_dir.clone(),
        limits: MonitorLimits {
            spool_bytes: args.spool_bytes,
            grace: Duration::from_secs(args.drain_seconds),
            ..MonitorLimits::default()
        },
        shared: Arc::new(Shared::new(Arc::clone(metrics), clock::now_micros)),
        instance: args.instance.clone(),
        version: BuildInfo::of("kanchi-monitor").version.to_owned(),
        loaded,
    }
}

async fn serve(
    args: &RunArgs,
    loaded: Loaded,
    metrics: Arc<Metrics>,
    registry: Arc<Registry>,
    log: LogControl,
) -> ExitCode {
    let token = match shutdown::on_signal() {
        Ok(token) => token,
        Err(error) => return failed(&error),
    };
    let health = Health::new();
    let admin = match AdminServer::bind(args.admin_addr, registry, health.clone(), log.clone()).await {
        Ok(admin) => tokio::spawn(admin.run(token.clone())),
        Err(error) => {
            tracing::error!(error = %error_chain(&error), "the admin port cannot be used");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    let broker = &loaded.settings;
    tracing::info!(
        broker.namespace = broker.config.broker.namespace,
        broker.name = broker.config.broker.name,
        broker.endpoint = broker.broker.url.endpoint(),
        store.endpoint = broker.store.endpoint(),
        "configuration read"
    );
    // Ready means that the configuration was read; broker and store are conditions, not probes.
    health.set_ready();
    let beating = tokio::spawn(beat(health.clone(), Arc::clone(&metrics)));
    let result = watch_broker(args, loaded, &metrics, &log, &token).await;
    health.set_not_ready();
    token.cancel();
    beating.abort();
    match admin.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(error = %error_chain(&error), "the admin server ended badly"),
        Err(error) => tracing::warn!(%error, "the admin server ended badly"),
    }
    match result {
        Ok(()) => {
            tracing::info!("drained");
            ExitCode::SUCCESS
        }
        Err(error @ RunError::Fenced) => {
            tracing::error!(%error, "ending");
            ExitCode::from(REPLACED)
        }
        Err(error @ RunError::Panicked) => failed(&error),
    }
}

/// Tells the probes that the runtime turns, and whether another monitor writes.
async fn beat(health: Health, metrics: Arc<Metrics>) {
    let pulse = health.pulse("runtime", STUCK_AFTER);
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        pulse.beat();
        health.set_standing_by(metrics.stands_by());
    }
}

/// Runs the monitor until it ends; one of several that another has followed stands by again.
async fn watch_broker(
    args: &RunArgs,
    mut loaded: Loaded,
    metrics: &Arc<Metrics>,
    log: &LogControl,
    token: &CancellationToken,
) -> Result<(), RunError> {
    let in_force = Arc::new(Mutex::new(loaded.settings.config.log_level.clone()));
    loop {
        let (level, in_force) = (log.clone(), Arc::clone(&in_force));
        let follow = move |settings: &Settings| follow_log_level(settings, &level, &in_force);
        let monitor = monitor(args, loaded.clone(), metrics);
        let result = monitor.run(token.clone(), follow).await;
        if let Ok(newest) = Settings::load(&args.config_dir) {
            loaded = newest;
        }
        match result {
            Err(RunError::Fenced) if loaded.settings.has_standby() && !token.is_cancelled() => {
                tracing::warn!("another monitor has taken over; standing by");
            }
            result => return result,
        }
    }
}

/// A level set by hand stays until the configuration's own level changes.
fn follow_log_level(settings: &Settings, log: &LogControl, in_force: &Mutex<String>) {
    let mut in_force = in_force.lock().unwrap_or_else(PoisonError::into_inner);
    if *in_force == settings.config.log_level {
        return;
    }
    in_force.clone_from(&settings.config.log_level);
    if let Err(error) = log.set(&settings.config.log_level) {
        tracing::error!(error = %error_chain(&error), "the configured log level was refused");
    }
}

fn failed(error: &(dyn std::error::Error + 'static)) -> ExitCode {
    tracing::error!(error = %error_chain(error), "ending");
    ExitCode::FAILURE
}

/// The one message that cannot go through the log.
#[expect(clippy::print_stderr, reason = "there is no log to write to")]
pub(crate) fn refuse_without_log(error: &(dyn std::error::Error + 'static)) -> ExitCode {
    eprintln!("{}", error_chain(error));
    ExitCode::from(BAD_CONFIGURATION)
}
