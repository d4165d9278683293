//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use kanchi_contract::{CONFIG_DIR, SPOOL_DIR};

/// Watches one Celery broker and stores its events in Postgres.
#[derive(Debug, Parser)]
#[command(name = "kanchi-monitor", version)]
pub(crate) struct Args {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Watch one broker, as the mounted configuration says.
    Run(RunArgs),
    /// Bring the database's schema to the version of this build.
    Migrate(OwnerArgs),
    /// Make partitions ahead and drop those whose retention is over, as the operator does every ten minutes.
    Upkeep(UpkeepArgs),
}

/// Arguments of `run`.
#[derive(Debug, ClapArgs)]
pub(crate) struct RunArgs {
    /// Directory of the mounted configuration; read again when its files change.
    #[arg(long, env = "KANCHI_CONFIG_DIR", default_value = CONFIG_DIR)]
    pub(crate) config_dir: PathBuf,
    /// Directory of the disk spool; belongs to this monitor alone.
    #[arg(long, env = "KANCHI_SPOOL_DIR", default_value = SPOOL_DIR)]
    pub(crate) spool_dir: PathBuf,
    /// Bytes that the disk spool may take; nine tenths of its volume by default.
    #[arg(long, env = "KANCHI_SPOOL_BYTES", default_value_t = kanchi_contract::SPOOL_BYTES / 10 * 9)]
    pub(crate) spool_bytes: u64,
    /// Address of probes, metrics and log level.
    #[arg(long, env = "KANCHI_ADMIN_ADDR", default_value = "0.0.0.0:8080")]
    pub(crate) admin_addr: SocketAddr,
    /// Seconds that the drain may take after SIGTERM; shorter than the pod's grace period.
    #[arg(long, env = "KANCHI_DRAIN_SECONDS", default_value_t = 20)]
    pub(crate) drain_seconds: u64,
    /// How log lines look.
    #[arg(long, env = "KANCHI_LOG_FORMAT", value_enum, default_value_t = Format::Json)]
    pub(crate) log_format: Format,
    /// Name of this process, for the store.
    #[arg(long, env = "POD_NAME", default_value = "kanchi-monitor")]
    pub(crate) instance: String,
}

/// Arguments of `upkeep`.
#[derive(Debug, ClapArgs)]
pub(crate) struct UpkeepArgs {
    #[command(flatten)]
    pub(crate) owner: OwnerArgs,
    /// Change nothing: say what the last upkeep did and what the next one will drop.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Days that a dry run looks ahead.
    #[arg(long, requires = "dry_run", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=3650))]
    pub(crate) days: u16,
}

/// How the database is entered as the schema's owner.
#[derive(Debug, ClapArgs)]
pub(crate) struct OwnerArgs {
    /// File that holds the URL of the schema's owner. A file, so that no password is in the environment.
    #[arg(long, env = "DATABASE_URL_FILE")]
    pub(crate) database_url_file: PathBuf,
    /// File that holds the certificate authorities to trust, PEM.
    #[arg(long, env = "DATABASE_CA_FILE")]
    pub(crate) database_ca_file: Option<PathBuf>,
    /// How log lines look.
    #[arg(long, env = "KANCHI_LOG_FORMAT", value_enum, default_value_t = Format::Json)]
    pub(crate) log_format: Format,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// One JSON object a line.
    Json,
    /// Text.
    Text,
}

impl From<Format> for kanchi_runtime::LogFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Json => Self::Json,
            Format::Text => Self::Text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn run_needs_no_arguments_in_a_pod() {
        let args = Args::try_parse_from(["kanchi-monitor", "run"]).unwrap();
        assert!(matches!(args.command, Command::Run(run) if run.config_dir == std::path::Path::new(CONFIG_DIR)));
    }
}
