//! The mounted configuration, read and read again.
//!
//! The kubelet replaces all files at once by swapping a symbolic link. Polling a handful of small files costs nothing,
//! needs no inotify and works on every kind of volume. Files whose contents did not change do nothing; a configuration
//! that cannot be read leaves the one before in force and says so.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kanchi_broker::{BrokerConnectSpec, SecretUrl, TlsFiles};
use kanchi_contract::{BrokerUrlError, MonitorConfig, PayloadStore as ConfiguredStore, ResultBackend, Transport, file};
use kanchi_domain::{PayloadPolicy, PayloadStore};
use kanchi_store::{RetentionClass, RetentionPolicy, StoreUrl};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::Xxh3;

use crate::shared::Shared;
use crate::workers::Patience;

/// How often the files are looked at.
pub const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// The kubelet's link to the directory in force.
const CURRENT: &str = "..data";

/// The files that are read; the operator may mount others.
const FILES: [&str; 8] = [
    file::CONFIG,
    file::BROKER_URL,
    file::BROKER_CA,
    file::BROKER_CERT,
    file::BROKER_KEY,
    file::RESULT_BACKEND_URL,
    file::STORE_URL,
    file::STORE_CA,
];

/// Why a configuration cannot be used. No variant's text holds a value of a secret file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that must be there is not, or cannot be read.
    #[error("failed to read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `config.yaml` was refused.
    #[error("failed to read {}", file::CONFIG)]
    Config(#[source] kanchi_contract::ConfigError),
    /// The broker's URL was refused.
    #[error("failed to parse {}", file::BROKER_URL)]
    BrokerUrl(#[source] BrokerUrlError),
    /// The result backend's URL was refused.
    #[error("failed to parse {}: {}", file::RESULT_BACKEND_URL, .0.rule())]
    ResultBackendUrl(BrokerUrlError),
    /// The store's URL was refused.
    #[error("failed to parse {}", file::STORE_URL)]
    StoreUrl(#[source] kanchi_store::Error),
    /// A retention that is no class.
    #[error("failed to use retention.{field}")]
    Retention {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        #[source]
        source: kanchi_store::Error,
    },
}

/// A configuration in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// As rendered by the operator.
    pub config: MonitorConfig,
    /// How to reach the broker.
    pub broker: BrokerConnectSpec,
    /// How to read the result backend, if there is one: URL and prefix are its own, all else is the broker's.
    pub results: Option<BrokerConnectSpec>,
    /// How to reach Postgres.
    pub store: StoreUrl,
    /// Classes of new rows.
    pub retention: RetentionPolicy,
    /// What is kept of payloads.
    pub payloads: PayloadPolicy,
}

/// Settings that every task sees change.
pub type SettingsWatch = watch::Receiver<Arc<Settings>>;

/// The bytes of all files, and what tells them from other bytes.
struct Snapshot {
    files: Vec<(&'static str, Option<Vec<u8>>)>,
    fingerprint: u128,
}

/// Settings together with what their files looked like.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// Hash of the files they came from.
    pub fingerprint: u128,
}

impl Settings {
    /// Reads the directory.
    pub fn load(directory: &Path) -> Result<Loaded, Error> {
        let snapshot = Snapshot::read(directory)?;
        let fingerprint = snapshot.fingerprint;
        Ok(Loaded {
            settings: Self::parse(&snapshot, directory)?,
            fingerprint,
        })
    }

    /// Returns how long a worker's silence is borne.
    pub fn patience(&self) -> Patience {
        Patience {
            offline_after: Duration::from_secs(self.config.workers.offline_after_seconds),
            read_only: self.config.read_only,
        }
    }

    /// Tells whether another monitor of this broker stands by, or writes while this one does.
    pub const fn has_standby(&self) -> bool {
        self.config.replicas > 1
    }

    /// Returns how long a lost worker's tasks are left as they are.
    pub const fn orphan_grace(&self) -> Duration {
        Duration::from_secs(self.config.workers.orphan_grace_seconds)
    }

    fn parse(snapshot: &Snapshot, directory: &Path) -> Result<Self, Error> {
        let config = MonitorConfig::from_yaml(&snapshot.text(directory, file::CONFIG)?).map_err(Error::Config)?;
        let url = SecretUrl::parse(snapshot.text(directory, file::BROKER_URL)?.trim()).map_err(Error::BrokerUrl)?;
        let mut store = StoreUrl::parse(snapshot.text(directory, file::STORE_URL)?.trim()).map_err(Error::StoreUrl)?;
        if let Some(pem) = snapshot.bytes(file::STORE_CA) {
            store = store.with_ca(pem.to_vec());
        }
        let tls = TlsFiles {
            ca: snapshot.bytes(file::BROKER_CA).map(<[u8]>::to_vec),
            certificate: snapshot.bytes(file::BROKER_CERT).map(<[u8]>::to_vec),
            key: snapshot.bytes(file::BROKER_KEY).map(<[u8]>::to_vec),
        };
        let broker = BrokerConnectSpec {
            url,
            tls: (tls != TlsFiles::default()).then_some(tls),
            celery: config.celery.clone(),
            read_only: config.read_only,
            broker_key: config.broker.id(),
        };
        let results = match &config.result_backend {
            Some(backend) => Some(results(
                backend,
                &broker,
                &snapshot.text(directory, file::RESULT_BACKEND_URL)?,
            )?),
            None => None,
        };
        let retention = retention(&config)?;
        let payloads = PayloadPolicy {
            store: match config.payloads.store {
                ConfiguredStore::Full => PayloadStore::Full,
                ConfiguredStore::None => PayloadStore::None,
            },
            max_bytes: usize::try_from(config.payloads.max_bytes).unwrap_or(usize::MAX),
            redact_keys: config.payloads.redact_keys.clone(),
        };
        Ok(Self {
            config,
            broker,
            results,
            store,
            retention,
            payloads,
        })
    }
}

fn results(backend: &ResultBackend, broker: &BrokerConnectSpec, url: &str) -> Result<BrokerConnectSpec, Error> {
    let url = SecretUrl::parse(url.trim()).map_err(Error::ResultBackendUrl)?;
    if url.transport() != Transport::Redis {
        let scheme = url.scheme().to_owned();
        return Err(Error::ResultBackendUrl(BrokerUrlError::UnsupportedScheme(scheme)));
    }
    let mut spec = broker.clone();
    spec.url = url;
    spec.celery.global_key_prefix.clone_from(&backend.global_key_prefix);
    Ok(spec)
}

fn retention(config: &MonitorConfig) -> Result<RetentionPolicy, Error> {
    let class = |field, days: u16| RetentionClass::from_days(days).map_err(|source| Error::Retention { field, source });
    Ok(RetentionPolicy {
        succeeded: class("succeeded", config.retention.succeeded_days)?,
        failed: class("failed", config.retention.failed_days)?,
        events: class("events", config.retention.events_days)?,
        statistics: class("statistics", config.retention.statistics_days)?,
    })
}

impl Snapshot {
    fn read(directory: &Path) -> Result<Self, Error> {
        // Resolved once, so that all files are of one version even if the kubelet swaps the link meanwhile.
        let current = directory.join(CURRENT);
        let root = std::fs::canonicalize(&current).unwrap_or_else(|_| directory.to_owned());
        let mut hasher = Xxh3::new();
        let mut files = Vec::with_capacity(FILES.len());
        for name in FILES {
            let path = root.join(name);
            let bytes = match std::fs::read(&path) {
                Ok(bytes) => Some(bytes),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(source) => return Err(Error::Read { path, source }),
            };
            hasher.update(name.as_bytes());
            hasher.update(&[u8::from(bytes.is_some())]);
            hasher.update(&bytes.as_ref().map_or(0, Vec::len).to_le_bytes());
            hasher.update(bytes.as_deref().unwrap_or_default());
            files.push((name, bytes));
        }
        Ok(Self {
            files,
            fingerprint: hasher.digest128(),
        })
    }

    fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.files
            .iter()
            .find(|(file, _)| *file == name)
            .and_then(|(_, bytes)| bytes.as_deref())
    }

    fn text(&self, directory: &Path, name: &str) -> Result<String, Error> {
        let failed = |kind: io::ErrorKind| Error::Read {
            path: directory.join(name),
            source: io::Error::from(kind),
        };
        let bytes = self.bytes(name).ok_or_else(|| failed(io::ErrorKind::NotFound))?;
        // The text of a failed conversion could quote the secret; its kind does not.
        let Ok(text) = std::str::from_utf8(bytes) else {
            return Err(failed(io::ErrorKind::InvalidData));
        };
        Ok(text.to_owned())
    }
}

/// Watches the directory until the token ends it.
pub async fn watch_directory(
    directory: PathBuf,
    mut known: u128,
    settings: watch::Sender<Arc<Settings>>,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
) {
    let mut refused = None;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
        let path = directory.clone();
        let Ok(snapshot) = tokio::task::spawn_blocking(move || Snapshot::read(&path)).await else {
            continue;
        };
        let outcome = match snapshot {
            Ok(snapshot) if snapshot.fingerprint == known => {
                // Back to what is in force, after something that was refused.
                if refused.take().is_some() {
                    shared.config_refused(None);
                }
                continue;
            }
            Ok(snapshot) if refused == Some(snapshot.fingerprint) => continue,
            Ok(snapshot) => (Settings::parse(&snapshot, &directory), snapshot.fingerprint),
            Err(_) if refused == Some(0) => continue,
            Err(error) => (Err(error), 0),
        };
        match outcome {
            (Ok(new), fingerprint) => {
                known = fingerprint;
                refused = None;
                shared.config_refused(None);
                let changed = settings.send_if_modified(|current| {
                    let differs = **current != new;
                    if differs {
                        *current = Arc::new(new);
                    }
                    differs
                });
                if changed {
                    shared.metrics.config_reloaded(true);
                    tracing::info!(config.fingerprint = %format_args!("{fingerprint:032x}"), "configuration reloaded");
                }
            }
            (Err(error), fingerprint) => {
                refused = Some(fingerprint);
                let text = crate::error_chain(&error);
                tracing::error!(error = %text, "the changed configuration was refused; the one before stays in force");
                shared.config_refused(Some(text));
            }
        }
    }
}

#[cfg(test)]
mod tests;
