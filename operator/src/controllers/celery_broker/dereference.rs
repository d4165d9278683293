//! Step 1: reads what the spec refers to. Values of Secrets are read by name, here and now, and kept nowhere.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Namespace, Secret};
use kanchi_contract::file;
use kanchi_crds::CeleryBrokerSpec;
use kube::{Api, Client};

use crate::api;
use crate::secret_text::SecretText;

/// What the spec refers to could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A Secret does not exist.
    #[error("failed to find Secret {namespace}/{name}, which spec.{field} names: create it")]
    SecretNotFound {
        /// Where.
        namespace: String,
        /// Which.
        name: String,
        /// Who names it.
        field: &'static str,
    },
    /// A Secret lacks a key. Names of keys are safe to print; values never are.
    #[error("failed to find key {key} in Secret {namespace}/{name}, which spec.{field} names; found: {found}")]
    KeyMissing {
        /// Where.
        namespace: String,
        /// Which.
        name: String,
        /// The key that is not there.
        key: String,
        /// The keys that are.
        found: String,
        /// Who names it.
        field: &'static str,
    },
    /// The operator may not read a Secret.
    #[error("failed to read Secret {namespace}/{name}, which spec.{field} names: the operator may not")]
    Forbidden {
        /// Where.
        namespace: String,
        /// Which.
        name: String,
        /// Who names it.
        field: &'static str,
    },
    /// The API server did not answer.
    #[error("{0}")]
    Api(#[source] api::Error),
}

/// The step's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A key of a Secret that the spec names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Name of the Secret.
    pub secret: String,
    /// Key within it.
    pub key: String,
    /// Field of the spec that names it.
    pub field: &'static str,
    /// File of the monitor that it becomes.
    pub file: &'static str,
}

/// What the spec refers to.
#[derive(Clone, Debug, Default)]
pub struct Dereferenced {
    /// The values of the needed keys, by the file they become.
    pub values: BTreeMap<&'static str, SecretText>,
}

impl Dereferenced {
    /// Returns the value that becomes a file.
    pub fn value(&self, file: &str) -> Option<&SecretText> {
        self.values.get(file)
    }
}

/// Lists the keys that a spec needs.
pub fn needs(spec: &CeleryBrokerSpec) -> Vec<Need> {
    let mut needs = Vec::new();
    let mut need = |secret: &str, key: &str, field, file| {
        needs.push(Need {
            secret: secret.to_owned(),
            key: key.to_owned(),
            field,
            file,
        });
    };
    if let Some(reference) = &spec.connection.url_secret_ref {
        need(
            &reference.name,
            &reference.key,
            "connection.urlSecretRef",
            file::BROKER_URL,
        );
    }
    if let Some(tls) = &spec.connection.tls {
        if let Some(reference) = &tls.ca_secret_ref {
            need(
                &reference.name,
                &reference.key,
                "connection.tls.caSecretRef",
                file::BROKER_CA,
            );
        }
        if let Some(reference) = &tls.client_secret_ref {
            let field = "connection.tls.clientSecretRef";
            need(&reference.name, &reference.certificate_key, field, file::BROKER_CERT);
            need(&reference.name, &reference.private_key_key, field, file::BROKER_KEY);
        }
    }
    if let Some(backend) = &spec.celery.result_backend {
        let (reference, field) = (&backend.url_secret_ref, "celery.resultBackend.urlSecretRef");
        need(&reference.name, &reference.key, field, file::RESULT_BACKEND_URL);
    }
    needs
}

/// Returns the names of the Secrets that a spec needs.
pub fn secret_names(spec: &CeleryBrokerSpec) -> BTreeSet<String> {
    needs(spec).into_iter().map(|need| need.secret).collect()
}

/// Reads the values of all needed keys; each Secret once.
pub async fn dereference(client: &Client, namespace: &str, spec: &CeleryBrokerSpec) -> Result<Dereferenced> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let mut read: BTreeMap<String, Secret> = BTreeMap::new();
    let mut values = BTreeMap::new();
    for need in needs(spec) {
        let secret = match read.remove(&need.secret) {
            Some(secret) => secret,
            None => fetch(&api, namespace, &need).await?,
        };
        let value = pick(&secret, namespace, &need)?;
        values.insert(need.file, value);
        read.insert(need.secret, secret);
    }
    Ok(Dereferenced { values })
}

async fn fetch(api: &Api<Secret>, namespace: &str, need: &Need) -> Result<Secret> {
    let named = || (namespace.to_owned(), need.secret.clone());
    match api::call("read a Secret", api.get_opt(&need.secret)).await {
        Ok(Some(secret)) => Ok(secret),
        Ok(None) => {
            let (namespace, name) = named();
            Err(Error::SecretNotFound {
                namespace,
                name,
                field: need.field,
            })
        }
        Err(error) if error.code() == Some(403) => {
            let (namespace, name) = named();
            Err(Error::Forbidden {
                namespace,
                name,
                field: need.field,
            })
        }
        Err(error) => Err(Error::Api(error)),
    }
}

fn pick(secret: &Secret, namespace: &str, need: &Need) -> Result<SecretText> {
    let data = secret.data.clone().unwrap_or_default();
    match data.get(&need.key) {
        Some(value) => Ok(SecretText::new(value.0.clone())),
        None => Err(Error::KeyMissing {
            namespace: namespace.to_owned(),
            name: need.secret.clone(),
            key: need.key.clone(),
            found: if data.is_empty() {
                "none".to_owned()
            } else {
                data.keys().map(String::as_str).take(20).collect::<Vec<_>>().join(", ")
            },
            field: need.field,
        }),
    }
}

/// Returns the uid of a namespace: part of a broker's identity in the store.
pub async fn namespace_uid(client: &Client, namespace: &str) -> Result<String> {
    let api: Api<Namespace> = Api::all(client.clone());
    let found = api::call("read the namespace", api.get_metadata(namespace))
        .await
        .map_err(Error::Api)?;
    Ok(found.metadata.uid.unwrap_or_default())
}

impl Error {
    /// Returns a fixed word for metrics.
    pub fn category(&self) -> &'static str {
        match self {
            Self::SecretNotFound { .. } => "SecretNotFound",
            Self::KeyMissing { .. } => "SecretKeyMissing",
            Self::Forbidden { .. } => "SecretForbidden",
            Self::Api(error) => error.category(),
        }
    }

    /// Whether only a change of the Secret or the spec helps: the watch on Secrets wakes the object then.
    pub fn is_terminal(&self) -> bool {
        match self {
            Self::SecretNotFound { .. } | Self::KeyMissing { .. } => true,
            Self::Forbidden { .. } | Self::Api(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kanchi_crds::{ClientCertificateRef, Connection, ResultBackend, SecretKeyRef, Tls};

    fn reference(name: &str, key: &str) -> SecretKeyRef {
        SecretKeyRef {
            name: name.into(),
            key: key.into(),
        }
    }

    fn spec() -> CeleryBrokerSpec {
        let mut spec = CeleryBrokerSpec::new(Connection {
            url: None,
            url_secret_ref: Some(reference("orders", "url")),
            tls: Some(Tls {
                ca_secret_ref: Some(reference("ca", "ca.crt")),
                client_secret_ref: Some(ClientCertificateRef {
                    name: "client".into(),
                    certificate_key: "tls.crt".into(),
                    private_key_key: "tls.key".into(),
                }),
            }),
        });
        spec.celery.result_backend = Some(ResultBackend {
            url_secret_ref: reference("orders", "backend"),
            global_key_prefix: String::new(),
        });
        spec
    }

    #[test]
    fn lists_every_key_the_spec_names_and_the_file_it_becomes() {
        let files: Vec<_> = needs(&spec())
            .into_iter()
            .map(|need| (need.secret, need.key, need.file))
            .collect();
        let expected = [
            ("orders", "url", "broker-url"),
            ("ca", "ca.crt", "broker-ca.crt"),
            ("client", "tls.crt", "broker-tls.crt"),
            ("client", "tls.key", "broker-tls.key"),
            ("orders", "backend", "result-backend-url"),
        ];
        assert_eq!(
            files,
            expected.map(|(secret, key, file)| (secret.to_owned(), key.to_owned(), file))
        );
    }

    #[test]
    fn a_missing_key_is_named_with_the_keys_that_are_there() {
        let mut secret = Secret::default();
        let data = [("pass", "canary"), ("user", "canary")];
        secret.data = Some(
            data.map(|(key, value)| (key.to_owned(), k8s_openapi::ByteString(value.into())))
                .into(),
        );
        let need = needs(&spec()).remove(0);
        let error = pick(&secret, "shop", &need).unwrap_err();
        let expected =
            "failed to find key url in Secret shop/orders, which spec.connection.urlSecretRef names; found: pass, user";
        assert_eq!(error.to_string(), expected);
        assert!(error.is_terminal());
    }
}
