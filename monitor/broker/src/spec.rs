//! What is needed to reach a broker.

use std::fmt;

use kanchi_contract::{BrokerUrl, Celery};

/// Contents of the mounted PEM files. Held by value, so that a changed file is a changed spec.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate authorities; `None`: the public ones.
    pub ca: Option<Vec<u8>>,
    /// Client certificate chain.
    pub certificate: Option<Vec<u8>>,
    /// Key of the client certificate.
    pub key: Option<Vec<u8>>,
}

impl fmt::Debug for TlsFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsFiles")
            .field("ca", &self.ca.as_ref().map(Vec::len))
            .field("certificate", &self.certificate.as_ref().map(Vec::len))
            .field("key", &self.key.as_ref().map(|_| "<redacted>"))
            .finish()
    }
}

/// Everything that shapes the connection to a broker and what travels on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerConnectSpec {
    /// Where, as whom.
    pub url: BrokerUrl,
    /// Certificates; used when the URL's scheme asks for TLS.
    pub tls: Option<TlsFiles>,
    /// Celery's own settings.
    pub celery: Celery,
    /// Publish nothing.
    pub read_only: bool,
    /// Stable id of the `CeleryBroker`, `namespace/name`: part of the names of the monitor's own queues.
    pub broker_key: String,
}
