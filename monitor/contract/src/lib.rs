//! What the operator renders and the monitor parses.
//!
//! Both sides share these types and names, so that they cannot drift apart. The operator writes one Secret per broker;
//! the kubelet mounts it as a directory ([`CONFIG_DIR`]); the monitor reads the files named in [`file`] and reads them
//! again when they change. Durations are whole seconds and sizes are bytes: the operator has parsed the user's text.

pub mod broker_url;
pub mod config;

pub use broker_url::{BrokerUrl, BrokerUrlError, Encryption, Transport, Verification};
pub use config::{
    Celery, ConfigError, EventQueue, EventQueueType, Identity, MonitorConfig, PayloadStore, Payloads, Queues,
    ResultBackend, Retention, Workers,
};

/// Directory where the operator mounts the broker's Secret in a monitor pod.
pub const CONFIG_DIR: &str = "/etc/kanchi";

/// Directory of the monitor's bounded disk spool: an `emptyDir` with a size limit.
pub const SPOOL_DIR: &str = "/var/spool/kanchi";

/// Size of the spool volume in bytes; the monitor uses at most nine tenths of it.
pub const SPOOL_BYTES: u64 = 1024 * 1024 * 1024;

/// Port of the admin server (probes, metrics, log level) of the operator and of a monitor.
pub const ADMIN_PORT: u16 = 8080;

/// Files in [`CONFIG_DIR`].
pub mod file {
    /// [`MonitorConfig`](crate::MonitorConfig) as YAML; holds no secret.
    pub const CONFIG: &str = "config.yaml";
    /// The broker's URL with its credentials.
    pub const BROKER_URL: &str = "broker-url";
    /// Certificate authorities for the broker, PEM; absent: the public ones.
    pub const BROKER_CA: &str = "broker-ca.crt";
    /// Client certificate for the broker, PEM.
    pub const BROKER_CERT: &str = "broker-tls.crt";
    /// Key of the client certificate, PEM.
    pub const BROKER_KEY: &str = "broker-tls.key";
    /// URL of the result backend with its credentials.
    pub const RESULT_BACKEND_URL: &str = "result-backend-url";
    /// Postgres URL with the credentials of this broker's own role.
    pub const STORE_URL: &str = "store-url";
    /// Certificate authorities for Postgres, PEM.
    pub const STORE_CA: &str = "store-ca.crt";
}

/// Reason in the last heartbeat of a monitor that was stopped in order: nothing is wrong with its broker.
pub const MONITOR_STOPPED: &str = "MonitorStopped";

/// Paths of the admin server.
pub mod path {
    /// Answers 200 while the process can still do its work.
    pub const LIVE: &str = "/livez";
    /// Answers 200 once the configuration was read.
    pub const READY: &str = "/readyz";
    /// Prometheus text.
    pub const METRICS: &str = "/metrics";
    /// `PUT` a filter such as `debug` or `info,kanchi_broker=trace`; reachable from loopback only.
    pub const LOG_LEVEL: &str = "/log-level";
}
