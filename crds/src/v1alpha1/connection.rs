//! How the monitor reaches the broker.

#![expect(unreachable_pub, reason = "the derive copies public types into function bodies")]

use std::fmt;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How to reach the broker: exactly one of `url` and `urlSecretRef`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.url) != has(self.urlSecretRef)")
        .message("connection needs exactly one of url (a URL without a password) and urlSecretRef (a Secret's key that holds the URL): set one and remove the other"),
    validation = Rule::new("!has(self.url) || self.url.matches('^(amqp|pyamqp|amqps|redis|rediss)://([^/@]*@)?[^/@:?#]')")
        .message("connection.url must begin with amqp://, pyamqp://, amqps://, redis:// or rediss:// and name a host, for example amqp://rabbit.shop.svc:5672/orders"),
    validation = Rule::new("!has(self.url) || !(self.url.matches('^[^:]*://[^@]*:[^@]*@') || self.url.matches('[?&]password='))")
        .message("connection.url must not hold a password, since every reader of this resource would see it: put the whole URL into a Secret and name it in connection.urlSecretRef"),
    validation = Rule::new("!has(self.url) || !has(self.tls) || self.url.matches('^(amqps|rediss)://')")
        .message("connection.tls needs a URL that begins with amqps:// or rediss://: change the URL or remove connection.tls"),
    validation = Rule::new("!has(self.url) || !has(oldSelf.url) || self.url.startsWith('redis') == oldSelf.url.startsWith('redis')")
        .message("connection.url cannot change between RabbitMQ and Redis, since the history kept under this name belongs to the old broker: create a CeleryBroker with another name for the new broker")
)]
pub struct Connection {
    /// URL of the broker without a password, for example `redis://redis.shop.svc:6379/0`. Schemes: amqp, pyamqp, amqps (RabbitMQ),
    /// redis, rediss (Redis). A URL with a password belongs into a Secret: see `urlSecretRef`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub url: Option<String>,
    /// Key of a Secret in the same namespace that holds the whole URL with its credentials, as Celery's `broker_url`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_secret_ref: Option<SecretKeyRef>,
    /// TLS settings for amqps and rediss. Unset: the public certificate authorities, no client certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

/// TLS towards the broker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// Key of a Secret that holds the certificate authorities (PEM) the broker's certificate must come from. Unset: the
    /// public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKeyRef>,
    /// Secret with the client certificate that is shown to the broker, as cert-manager writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_secret_ref: Option<ClientCertificateRef>,
}

/// One key of a Secret in the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of the Secret, in the namespace of this resource.
    #[schemars(length(min = 1, max = 253), pattern(r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Key within the Secret's data.
    #[schemars(length(min = 1, max = 253), pattern(r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// A Secret in the same namespace with a certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClientCertificateRef {
    /// Name of the Secret, in the namespace of this resource.
    #[schemars(length(min = 1, max = 253), pattern(r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Key of the certificate (PEM).
    #[serde(default = "tls_crt")]
    #[schemars(length(min = 1, max = 253), pattern(r"^[-._a-zA-Z0-9]+$"))]
    pub certificate_key: String,
    /// Key of the private key (PEM).
    #[serde(default = "tls_key")]
    #[schemars(length(min = 1, max = 253), pattern(r"^[-._a-zA-Z0-9]+$"))]
    pub private_key_key: String,
}

fn tls_crt() -> String {
    "tls.crt".into()
}

fn tls_key() -> String {
    "tls.key".into()
}

/// Kind of broker behind the URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Transport {
    /// AMQP 0-9-1.
    RabbitMQ,
    /// Redis, Valkey and others that speak its protocol.
    Redis,
}

impl Transport {
    /// Returns the transport of a URL's scheme, or nothing for a scheme that Kanchi does not know.
    pub fn of_scheme(scheme: &str) -> Option<Self> {
        match scheme {
            "amqp" | "pyamqp" | "amqps" => Some(Self::RabbitMQ),
            "redis" | "rediss" => Some(Self::Redis),
            _ => None,
        }
    }

    /// Returns the name as status and metrics show it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RabbitMQ => "RabbitMQ",
            Self::Redis => "Redis",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
