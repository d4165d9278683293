//! `kanchi-monitor migrate`: the schema, for installations without the operator.

use std::process::ExitCode;

use kanchi_ingest::error_chain;
use kanchi_runtime::{BuildInfo, telemetry};
use kanchi_store::{ErrorKind, StoreAdmin, StoreUrl};

use crate::BAD_CONFIGURATION;
use crate::args::MigrateArgs;
use crate::run::refuse_without_log;

pub(crate) fn migrate(args: &MigrateArgs) -> ExitCode {
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
    let done = runtime.block_on(async {
        let admin = StoreAdmin::connect(&url).await?;
        admin.migrate().await
    });
    match done {
        Ok(()) => {
            tracing::info!(
                store.endpoint = url.endpoint(),
                store.version = kanchi_store::SCHEMA_VERSION,
                "migrated"
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!(reason = error.kind().as_str(), error = %error_chain(&error), "not migrated");
            if error.kind() == ErrorKind::Invalid {
                ExitCode::from(BAD_CONFIGURATION)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn read_url(args: &MigrateArgs) -> anyhow::Result<StoreUrl> {
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
