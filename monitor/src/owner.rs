//! What the schema's owner does: `kanchi-monitor migrate` and `kanchi-monitor upkeep`, for installations without the operator
//! and for a look.

use std::process::ExitCode;

use kanchi_ingest::error_chain;
use kanchi_runtime::{BuildInfo, clock, telemetry};
use kanchi_store::{ErrorKind, StoreAdmin, StoreUrl, UnixMicros, Upkeep};

use crate::BAD_CONFIGURATION;
use crate::args::{OwnerArgs, UpkeepArgs};
use crate::run::refuse_without_log;

const DAY_MICROS: i64 = 86_400_000_000;

/// Brings the schema to the version of this build.
pub(crate) fn migrate(args: &OwnerArgs) -> ExitCode {
    as_owner(args, "migrated", async |admin| {
        admin.migrate().await?;
        tracing::info!(store.version = kanchi_store::SCHEMA_VERSION, "the schema is up to date");
        Ok(())
    })
}

/// Does the upkeep, or tells what it will do.
pub(crate) fn upkeep(args: &UpkeepArgs) -> ExitCode {
    let now = UnixMicros(clock::now_micros());
    if args.dry_run {
        let until = UnixMicros(now.0 + i64::from(args.days) * DAY_MICROS);
        return as_owner(&args.owner, "looked", async |admin| look_ahead(&admin, until).await);
    }
    as_owner(&args.owner, "upkeep done", async |admin| {
        tell(admin.upkeep(now).await?, "this upkeep");
        let mut taken = 0;
        loop {
            let done = admin.roll_up().await?;
            taken += done.taken;
            if !done.more {
                break;
            }
        }
        tracing::info!(taken, "statistics rolled up");
        admin.advance_generation().await?;
        admin.make_room().await.map(drop)
    })
}

fn tell(done: Upkeep, which: &str) {
    tracing::info!(
        created = done.created,
        dropped = done.dropped,
        pruned = done.pruned,
        postponed = done.postponed,
        "{which}: partitions made, partitions dropped, rows deleted, partitions left for the next time"
    );
}

/// Says what the last upkeep did and what one at that time will drop.
async fn look_ahead(admin: &StoreAdmin, until: UnixMicros) -> kanchi_store::Result<()> {
    if let Some((age, done)) = admin.last_upkeep().await? {
        tell(done, &format!("the last upkeep, {} s ago", age.as_secs()));
    } else {
        tracing::info!("no upkeep was done yet");
    }
    for one in admin.expiring(until).await? {
        tracing::info!(partition = one.partition, bytes = one.bytes, "will be dropped");
    }
    Ok(())
}

fn as_owner(
    args: &OwnerArgs,
    done: &'static str,
    work: impl AsyncFnOnce(StoreAdmin) -> kanchi_store::Result<()>,
) -> ExitCode {
    if let Err(error) = telemetry::init(args.log_format.into(), "info") {
        return refuse_without_log(&error);
    }
    BuildInfo::of("kanchi-monitor").log();
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider was installed before");
    }
    let url = match read_url(args) {
        Ok(url) => url,
        Err(error) => {
            tracing::error!(error = %format_args!("{error:#}"), "the database URL cannot be used");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(async { work(StoreAdmin::connect(&url).await?).await }) {
        Ok(()) => {
            tracing::info!(store.endpoint = url.endpoint(), "{done}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!(reason = error.kind().as_str(), error = %error_chain(&error), "not {done}");
            if error.kind() == ErrorKind::Invalid {
                ExitCode::from(BAD_CONFIGURATION)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn read_url(args: &OwnerArgs) -> anyhow::Result<StoreUrl> {
    use anyhow::Context;
    let path = &args.database_url_file;
    let text = std::fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
    let url = StoreUrl::parse(text.trim())?;
    let Some(path) = &args.database_ca_file else {
        return Ok(url);
    };
    let pem = std::fs::read(path).with_context(|| format!("failed to read {}", path.display()))?;
    Ok(url.with_ca(pem))
}
