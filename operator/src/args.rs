//! Command line and environment. No secret is ever a value here: secrets come from files.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use kanchi_runtime::LogFormat;

/// Runs the monitors of all `CeleryBroker` resources.
#[derive(Clone, Debug, Parser)]
#[command(name = "kanchi-operator", version, about)]
pub struct Args {
    /// Namespaces to serve; empty: all of them.
    #[arg(long, env = "KANCHI_NAMESPACES", value_delimiter = ',')]
    pub namespaces: Vec<String>,
    /// Name of this pod; tells replicas apart.
    #[arg(long, env = "POD_NAME")]
    pub pod_name: String,
    /// Namespace of this pod; holds the Lease.
    #[arg(long, env = "POD_NAMESPACE")]
    pub pod_namespace: String,
    /// Name of the Lease that elects the leader.
    #[arg(long, env = "KANCHI_LEASE_NAME", default_value = "kanchi-operator")]
    pub lease_name: String,
    /// Seconds after which a leader that vanished is replaced.
    #[arg(long, env = "KANCHI_LEASE_SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(3..=300))]
    pub lease_seconds: u64,
    /// Image of the monitors.
    #[arg(long, env = "KANCHI_MONITOR_IMAGE")]
    pub monitor_image: String,
    /// When nodes pull that image: Always, IfNotPresent or Never.
    #[arg(long, env = "KANCHI_MONITOR_IMAGE_PULL_POLICY", default_value = "IfNotPresent")]
    pub monitor_image_pull_policy: String,
    /// Secrets, in each broker's namespace, that the image is pulled with.
    #[arg(long, env = "KANCHI_MONITOR_IMAGE_PULL_SECRETS", value_delimiter = ',')]
    pub monitor_image_pull_secrets: Vec<String>,
    /// File with the Postgres URL of the role that owns the store.
    #[arg(
        long,
        env = "KANCHI_STORE_URL_FILE",
        default_value = "/etc/kanchi-operator/store/url"
    )]
    pub store_url_file: PathBuf,
    /// File with the certificate authorities of Postgres, PEM.
    #[arg(long, env = "KANCHI_STORE_CA_FILE")]
    pub store_ca_file: Option<PathBuf>,
    /// Role that all monitors share where the store's role may not create one for each: `kanchi_m_shared` or
    /// `kanchi_m_shared_<word>`.
    #[arg(long, env = "KANCHI_STORE_SHARED_ROLE", default_value = "kanchi_m_shared")]
    pub store_shared_role: String,
    /// File with that role's password; without it no role is shared.
    #[arg(long, env = "KANCHI_STORE_SHARED_PASSWORD_FILE")]
    pub store_shared_password_file: Option<PathBuf>,
    /// `host[:port]` of Postgres as monitors reach it, where that differs from the URL.
    #[arg(long, env = "KANCHI_MONITOR_STORE_ADDRESS")]
    pub monitor_store_address: Option<String>,
    /// Name of this installation in the store; by default the uid of the operator's namespace.
    #[arg(long, env = "KANCHI_INSTALLATION_ID")]
    pub installation_id: Option<String>,
    /// Brokers that are reconciled at the same time.
    #[arg(long, env = "KANCHI_CONCURRENCY", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,
    /// Monitors that a new image or new pod settings restart at the same time.
    #[arg(long, env = "KANCHI_MAX_ROLLOUTS", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub max_rollouts: u16,
    /// Seconds after which a settled broker is looked at again.
    #[arg(long, env = "KANCHI_RESYNC_SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub resync_seconds: u64,
    /// Address of probes and metrics.
    #[arg(long, env = "KANCHI_ADMIN_ADDR", default_value = "0.0.0.0:8080")]
    pub admin_addr: SocketAddr,
    /// What is logged, for example `info` or `info,kanchi_operator=debug`.
    #[arg(long, env = "KANCHI_LOG", default_value = "info")]
    pub log_level: String,
    /// How a log line looks.
    #[arg(long, env = "KANCHI_LOG_FORMAT", default_value = "json")]
    pub log_format: Format,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// Text for people.
    Text,
}

impl From<Format> for LogFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Json => Self::Json,
            Format::Text => Self::Text,
        }
    }
}

impl Args {
    /// Returns the namespaces to serve, without blanks and repetitions; empty: all.
    pub fn scopes(&self) -> Vec<Scope> {
        let mut names: Vec<&str> = self
            .namespaces
            .iter()
            .map(|name| name.trim())
            .filter(|name| !name.is_empty())
            .collect();
        names.sort_unstable();
        names.dedup();
        if names.is_empty() {
            return vec![Scope::All];
        }
        names
            .into_iter()
            .map(|name| Scope::Namespace(name.to_owned()))
            .collect()
    }

    /// Returns the lease's duration.
    pub fn lease_duration(&self) -> Duration {
        Duration::from_secs(self.lease_seconds)
    }
}

/// What one set of watches covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The whole cluster: needs a ClusterRole.
    All,
    /// One namespace: a Role there is enough.
    Namespace(String),
}

impl Scope {
    /// Tells whether a namespace belongs to it.
    pub fn covers(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Namespace(name) => name == namespace,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(extra: &[&str]) -> Args {
        let base = [
            "kanchi-operator",
            "--pod-name=p",
            "--pod-namespace=n",
            "--monitor-image=i",
        ];
        Args::parse_from(base.iter().chain(extra))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn no_namespace_means_all_and_a_list_is_cleaned() {
        assert_eq!(parse(&[]).scopes(), [Scope::All]);
        assert_eq!(parse(&["--namespaces="]).scopes(), [Scope::All]);
        let list = parse(&["--namespaces=b, a,b,"]).scopes();
        assert_eq!(list, [Scope::Namespace("a".into()), Scope::Namespace("b".into())]);
    }
}
