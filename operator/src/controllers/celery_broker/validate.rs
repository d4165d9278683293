//! Step 2: checks the spec together with what it refers to. Pure: no client, no clock.

use kanchi_contract::{self as contract, BrokerUrl, BrokerUrlError, Encryption, file};
use kanchi_crds::{CeleryBroker, EventQueueType, MonitorPods, PayloadStore, RetentionClass, Transport};
use kanchi_store::RetentionPolicy;

use super::dereference::Dereferenced;
use crate::names;
use crate::secret_text::SecretText;

/// Why a spec cannot be followed. No variant carries text of a URL.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The literal URL is wrong.
    #[error("{0}; correct spec.connection.url")]
    Url(#[source] BrokerUrlError),
    /// The URL in the Secret is wrong.
    #[error("{source}; correct key {key} of Secret {secret}")]
    SecretUrl {
        /// Which Secret.
        secret: String,
        /// Which key.
        key: String,
        /// What is wrong.
        #[source]
        source: BrokerUrlError,
    },
    /// The scheme is unknown.
    #[error("{0}")]
    UnsupportedTransport(#[source] BrokerUrlError),
    /// A certificate or key is not PEM.
    #[error("failed to read {what} from key {key} of Secret {secret}: it is not PEM")]
    NotPem {
        /// What it should be.
        what: &'static str,
        /// Which Secret.
        secret: String,
        /// Which key.
        key: String,
    },
    /// The result backend's URL is wrong.
    #[error(
        "failed to read the URL of spec.celery.resultBackend: {}; correct key {key} of Secret {secret}",
        source.rule()
    )]
    ResultBackendUrl {
        /// Which Secret.
        secret: String,
        /// Which key.
        key: String,
        /// What is wrong.
        #[source]
        source: BrokerUrlError,
    },
    /// A result backend that is not Redis.
    #[error(
        "failed to accept spec.celery.resultBackend: the scheme of its URL is {scheme}, and only redis and rediss can be \
         read; remove the field, then gaps are repaired with what the workers answer"
    )]
    UnsupportedResultBackend {
        /// The URL's scheme.
        scheme: String,
    },
    /// TLS settings for a plain connection.
    #[error(
        "failed to accept spec.connection.tls: the URL's scheme is {scheme}, which is not encrypted; use {instead}"
    )]
    TlsOfPlainUrl {
        /// The URL's scheme.
        scheme: String,
        /// The scheme that is encrypted.
        instead: &'static str,
    },
    /// Neither a URL nor a reference to one.
    #[error("failed to find a URL: set one of spec.connection.url and spec.connection.urlSecretRef")]
    NoUrl,
    /// The other kind of broker.
    #[error(
        "failed to accept a {now} broker where the history is that of a {before} broker: create a CeleryBroker of \
         another name for it"
    )]
    TransportChanged {
        /// The transport of the history.
        before: Transport,
        /// The transport of the URL.
        now: Transport,
    },
    /// An older object is there.
    #[error(
        "failed to accept a second CeleryBroker for {endpoint} with the same Celery settings: {older} of this namespace \
         is older; delete one of the two"
    )]
    Duplicate {
        /// The endpoint of both.
        endpoint: String,
        /// The older object's name.
        older: String,
    },
}

/// The step's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A spec that can be followed, with every text parsed.
#[derive(Clone, Debug)]
pub struct Validated {
    /// Namespace and name.
    pub identity: contract::Identity,
    /// Uid of the CeleryBroker.
    pub uid: String,
    /// Name of all children.
    pub child: String,
    /// Name for people.
    pub display_name: Option<String>,
    /// Whether the monitor runs.
    pub enabled: bool,
    /// Never publish.
    pub read_only: bool,
    /// Kind of broker.
    pub transport: Transport,
    /// Where it is, without credentials.
    pub endpoint: String,
    /// The URL as the monitor gets it.
    pub url: SecretText,
    /// Files beside the URL: certificates, the result backend's URL.
    pub files: Vec<(&'static str, SecretText)>,
    /// Celery's settings.
    pub celery: contract::Celery,
    /// Celery's result backend, if it is to be read.
    pub result_backend: Option<contract::ResultBackend>,
    /// Queue sampling.
    pub queues: contract::Queues,
    /// Worker liveness.
    pub workers: contract::Workers,
    /// Payload policy.
    pub payloads: contract::Payloads,
    /// Retention, as the monitor reads it.
    pub retention: contract::Retention,
    /// Retention, as the store reads it.
    pub retention_policy: RetentionPolicy,
    /// Pod settings.
    pub pods: MonitorPods,
    /// Stands for this broker with these Celery settings; equal for duplicates.
    pub watches: String,
}

/// Checks everything but duplicates, which need the neighbours: see [`refuse_duplicate`].
pub fn validate(broker: &CeleryBroker, found: &Dereferenced) -> Result<Validated> {
    let spec = &broker.spec;
    let namespace = broker.metadata.namespace.clone().unwrap_or_default();
    let name = broker.metadata.name.clone().unwrap_or_default();
    let (text, url) = broker_url(broker, found)?;
    let transport = transport(&url);
    if let Some(before) = broker.status.as_ref().and_then(|status| status.transport)
        && before != transport
    {
        return Err(Error::TransportChanged { before, now: transport });
    }
    if spec.connection.tls.is_some() && url.encryption() == Encryption::Plain {
        let instead = match transport {
            Transport::RabbitMQ => "amqps",
            Transport::Redis => "rediss",
        };
        return Err(Error::TlsOfPlainUrl {
            scheme: url.scheme().to_owned(),
            instead,
        });
    }
    let celery = celery(broker);
    let mut files = certificates(broker, found)?;
    let result_backend = result_backend::validate(spec, found, &mut files)?;
    Ok(Validated {
        child: names::child(&name),
        uid: broker.metadata.uid.clone().unwrap_or_default(),
        display_name: spec.display_name.clone(),
        enabled: spec.enabled,
        read_only: spec.read_only,
        transport,
        endpoint: url.endpoint(),
        url: text,
        files,
        watches: watches(&namespace, &url, &celery),
        celery,
        result_backend,
        queues: contract::Queues {
            include: spec.queues.include.clone(),
            sample_interval_seconds: spec.queues.sample_interval.seconds(),
        },
        workers: contract::Workers {
            offline_after_seconds: spec.workers.offline_after.seconds(),
            orphan_grace_seconds: spec.workers.orphan_grace.seconds(),
        },
        payloads: payloads(broker),
        retention: contract::Retention {
            succeeded_days: spec.retention.succeeded.days(),
            failed_days: spec.retention.failed.days(),
            events_days: spec.retention.events.days(),
            statistics_days: spec.retention.statistics.days(),
        },
        retention_policy: RetentionPolicy {
            succeeded: store_class(spec.retention.succeeded),
            failed: store_class(spec.retention.failed),
            events: store_class(spec.retention.events),
            statistics: store_class(spec.retention.statistics),
        },
        pods: spec.monitor.clone(),
        identity: contract::Identity { namespace, name },
    })
}

fn broker_url(broker: &CeleryBroker, found: &Dereferenced) -> Result<(SecretText, BrokerUrl)> {
    let connection = &broker.spec.connection;
    if let Some(literal) = &connection.url {
        let url = BrokerUrl::parse(literal).map_err(|source| classified(source, Error::Url))?;
        return Ok((SecretText::new(literal.trim()), url));
    }
    let (Some(reference), Some(value)) = (&connection.url_secret_ref, found.value(file::BROKER_URL)) else {
        return Err(Error::NoUrl);
    };
    let in_secret = |source| Error::SecretUrl {
        secret: reference.name.clone(),
        key: reference.key.clone(),
        source,
    };
    let text = value
        .expose_str()
        .ok_or_else(|| in_secret(BrokerUrlError::BadEncoding))?
        .trim();
    let url = BrokerUrl::parse(text).map_err(|source| classified(source, in_secret))?;
    Ok((SecretText::new(text), url))
}

fn classified(source: BrokerUrlError, other: impl Fn(BrokerUrlError) -> Error) -> Error {
    match source {
        BrokerUrlError::UnsupportedScheme(_) => Error::UnsupportedTransport(source),
        BrokerUrlError::Empty
        | BrokerUrlError::NoScheme
        | BrokerUrlError::ServerList
        | BrokerUrlError::NoHost
        | BrokerUrlError::BadPort
        | BrokerUrlError::BadEncoding
        | BrokerUrlError::BadDatabase
        | BrokerUrlError::BadCertReqs
        | BrokerUrlError::BadCharacter => other(source),
    }
}

fn transport(url: &BrokerUrl) -> Transport {
    match url.transport() {
        contract::Transport::Amqp => Transport::RabbitMQ,
        contract::Transport::Redis => Transport::Redis,
    }
}

fn certificates(broker: &CeleryBroker, found: &Dereferenced) -> Result<Vec<(&'static str, SecretText)>> {
    let mut files = Vec::new();
    for need in super::dereference::needs(&broker.spec) {
        let (what, marker) = match need.file {
            file::BROKER_CA => ("certificate authorities", "CERTIFICATE-----"),
            file::BROKER_CERT => ("a certificate", "CERTIFICATE-----"),
            file::BROKER_KEY => ("a private key", "PRIVATE KEY-----"),
            _ => continue,
        };
        let Some(value) = found.value(need.file) else { continue };
        let is_pem = value
            .expose_str()
            .is_some_and(|text| text.contains("-----BEGIN") && text.contains(marker));
        if !is_pem {
            return Err(Error::NotPem {
                what,
                secret: need.secret,
                key: need.key,
            });
        }
        files.push((need.file, value.clone()));
    }
    Ok(files)
}

fn celery(broker: &CeleryBroker) -> contract::Celery {
    let celery = &broker.spec.celery;
    contract::Celery {
        event_exchange: celery.event_exchange.clone(),
        control_exchange: celery.control_exchange.clone(),
        enable_events: celery.enable_events,
        global_key_prefix: celery.global_key_prefix.clone(),
        event_queue: contract::EventQueue {
            queue_type: match celery.event_queue.queue_type {
                EventQueueType::Classic => contract::EventQueueType::Classic,
                EventQueueType::Quorum => contract::EventQueueType::Quorum,
            },
            max_length_bytes: celery.event_queue.max_length_bytes.bytes(),
            expires_seconds: celery.event_queue.expires.seconds(),
        },
    }
}

fn payloads(broker: &CeleryBroker) -> contract::Payloads {
    let payloads = &broker.spec.payloads;
    contract::Payloads {
        store: match payloads.store {
            PayloadStore::Full => contract::PayloadStore::Full,
            PayloadStore::None => contract::PayloadStore::None,
        },
        max_bytes: u64::from(payloads.max_bytes),
        redact_keys: payloads.redact_keys.clone(),
    }
}

fn store_class(class: RetentionClass) -> kanchi_store::RetentionClass {
    use kanchi_store::RetentionClass as Store;
    match class {
        RetentionClass::Days1 => Store::Days1,
        RetentionClass::Days3 => Store::Days3,
        RetentionClass::Days7 => Store::Days7,
        RetentionClass::Days14 => Store::Days14,
        RetentionClass::Days30 => Store::Days30,
        RetentionClass::Days90 => Store::Days90,
        RetentionClass::Days365 => Store::Days365,
    }
}

/// Returns a text that is equal for two specs that watch the same broker with the same Celery settings.
///
/// Inside a cluster one Service has many names; those that differ by the search path only are the same.
fn watches(namespace: &str, url: &BrokerUrl, celery: &contract::Celery) -> String {
    let host = url.host().to_ascii_lowercase();
    let host = host.trim_end_matches('.');
    let host = host.strip_suffix(".cluster.local").unwrap_or(host);
    let host = host.strip_suffix(".svc").unwrap_or(host);
    let host = host.strip_suffix(&format!(".{namespace}")).unwrap_or(host);
    let parts = [
        url.transport().as_str(),
        host,
        &url.port().to_string(),
        url.vhost(),
        &url.database().to_string(),
        &celery.event_exchange,
        &celery.control_exchange,
        &celery.global_key_prefix,
    ];
    names::hash(parts.join("\u{0}").as_bytes())
}

/// Another CeleryBroker of the namespace that stands for the same broker.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// `metadata.creationTimestamp`, RFC 3339: sorts by time.
    pub created: String,
    /// Breaks ties, the same way for both sides.
    pub uid: String,
    /// Name of the object.
    pub name: String,
}

/// Refuses a spec if one of the other claims on the same broker is older.
pub fn refuse_duplicate(own: &Claim, validated: &Validated, others: &[Claim]) -> Result<()> {
    match others.iter().filter(|other| *other < own).min() {
        None => Ok(()),
        Some(older) => Err(Error::Duplicate {
            endpoint: validated.endpoint.clone(),
            older: older.name.clone(),
        }),
    }
}

impl Error {
    /// Returns a fixed word for metrics.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Url(_) | Self::TlsOfPlainUrl { .. } | Self::NoUrl => "InvalidSpec",
            Self::SecretUrl { .. } | Self::NotPem { .. } | Self::ResultBackendUrl { .. } => "SecretValueInvalid",
            Self::UnsupportedTransport(_) | Self::UnsupportedResultBackend { .. } => "UnsupportedTransport",
            Self::TransportChanged { .. } => "TransportChanged",
            Self::Duplicate { .. } => "DuplicateBroker",
        }
    }
}

mod result_backend;
#[cfg(test)]
mod tests;
