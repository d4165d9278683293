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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use kanchi_contract::{EventQueue, EventQueueType};

    pub(crate) fn spec(url: &str) -> BrokerConnectSpec {
        BrokerConnectSpec {
            url: BrokerUrl::parse(url).unwrap(),
            tls: None,
            celery: Celery {
                event_exchange: "celeryev".into(),
                control_exchange: "celery".into(),
                enable_events: true,
                global_key_prefix: String::new(),
                event_queue: EventQueue {
                    queue_type: EventQueueType::Classic,
                    max_length_bytes: 1 << 30,
                    expires_seconds: 86_400,
                },
            },
            read_only: false,
            broker_key: "shop/orders".into(),
        }
    }

    #[test]
    fn debug_shows_neither_password_nor_key() {
        let mut spec = spec("amqp://user:canary-password@h");
        spec.tls = Some(TlsFiles {
            ca: None,
            certificate: None,
            key: Some(b"canary-key".to_vec()),
        });
        let shown = format!("{spec:?}");
        assert!(!shown.contains("canary"), "{shown}");
    }
}
