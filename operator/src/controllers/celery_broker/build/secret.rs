//! The operator-owned Secret: the monitor's whole configuration, with copies of just the keys in use.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kanchi_contract::{MonitorConfig, file};

use super::{Error, Meta, Result};
use crate::controllers::celery_broker::grant::Grant;
use crate::secret_text::SecretText;

pub(super) fn build(meta: &Meta<'_>, grant: &Grant) -> Result<Secret> {
    let validated = meta.validated;
    let config = MonitorConfig {
        broker: validated.identity.clone(),
        broker_key: grant.key.0,
        read_only: validated.read_only,
        celery: validated.celery.clone(),
        result_backend: validated.result_backend.clone(),
        queues: validated.queues.clone(),
        workers: validated.workers.clone(),
        payloads: validated.payloads.clone(),
        retention: validated.retention.clone(),
        replicas: validated.pods.replicas,
        log_level: validated.pods.log_level.clone(),
    };
    let config = config.to_yaml().map_err(Error::Config)?;
    let mut data = BTreeMap::new();
    let mut add = |name: &str, value: &SecretText| data.insert(name.to_owned(), ByteString(value.expose().to_vec()));
    add(file::CONFIG, &SecretText::new(config));
    add(file::BROKER_URL, &validated.url);
    for (name, value) in &validated.files {
        add(name, value);
    }
    add(file::STORE_URL, &grant.url);
    if let Some(ca) = &grant.ca {
        add(file::STORE_CA, ca);
    }
    Ok(Secret {
        metadata: meta.object(),
        type_: Some("Opaque".to_owned()),
        data: Some(data),
        ..Secret::default()
    })
}
