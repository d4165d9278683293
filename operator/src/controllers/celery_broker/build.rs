//! Step 3: the children as they should be. Pure and deterministic: the same input gives the same bytes.

use std::marker::PhantomData;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kanchi_contract::ConfigError;
use kanchi_crds::CeleryBroker;
use kube::Resource;

use super::grant::Grant;
use super::validate::Validated;
use crate::context::Settings;
use crate::names::{self, annotation};

mod disruption_budget;
mod network_policy;
mod secret;
mod service;
mod stateful_set;

/// Children could not be written down.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The monitor's configuration.
    #[error("{0}")]
    Config(#[source] ConfigError),
    /// An object's JSON, for its hash.
    #[error("failed to hash {what}")]
    Hash {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// The step's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Children as built, not yet sent.
#[derive(Clone, Copy, Debug)]
pub struct Prepared;

/// Children as the API server has them.
#[derive(Clone, Copy, Debug)]
pub struct Applied;

/// The children of one CeleryBroker. A status can be derived from applied ones only.
#[derive(Clone, Debug)]
pub struct Children<State> {
    /// Configuration and credentials, mounted by the monitor.
    pub secret: Secret,
    /// Gives the pods their names.
    pub service: Service,
    /// Who may reach the pods.
    pub network_policy: NetworkPolicy,
    /// One disruption at a time.
    pub disruption_budget: PodDisruptionBudget,
    /// The monitor.
    pub stateful_set: StatefulSet,
    /// Hash of the Secret's data: what the pod has to have.
    pub config_hash: String,
    /// Whether the StatefulSet's pod template is still the earlier one, since too many others restart just now.
    pub waits_for_turn: bool,
    pub(super) state: PhantomData<State>,
}

impl Children<Prepared> {
    /// Marks the children as applied; for the apply step only.
    pub(super) fn applied(self) -> Children<Applied> {
        let Self {
            secret,
            service,
            network_policy,
            disruption_budget,
            stateful_set,
            config_hash,
            waits_for_turn,
            ..
        } = self;
        Children {
            secret,
            service,
            network_policy,
            disruption_budget,
            stateful_set,
            config_hash,
            waits_for_turn,
            state: PhantomData,
        }
    }
}

/// Builds all children.
pub fn build(
    broker: &CeleryBroker,
    validated: &Validated,
    grant: &Grant,
    settings: &Settings,
) -> Result<Children<Prepared>> {
    let meta = Meta {
        owner: broker.controller_owner_ref(&()),
        validated,
    };
    let secret = secret::build(&meta, grant)?;
    let config_hash = names::hash_of(&secret.data).map_err(|source| Error::Hash {
        what: "the Secret",
        source,
    })?;
    Ok(Children {
        secret: hashed(secret, "the Secret")?,
        service: hashed(service::build(&meta), "the Service")?,
        network_policy: hashed(network_policy::build(&meta), "the NetworkPolicy")?,
        disruption_budget: hashed(disruption_budget::build(&meta), "the PodDisruptionBudget")?,
        stateful_set: hashed(stateful_set::build(&meta, settings)?, "the StatefulSet")?,
        config_hash,
        waits_for_turn: false,
        state: PhantomData,
    })
}

/// What all children's metadata is made of.
struct Meta<'a> {
    owner: Option<OwnerReference>,
    validated: &'a Validated,
}

impl Meta<'_> {
    fn object(&self) -> ObjectMeta {
        ObjectMeta {
            name: Some(self.validated.child.clone()),
            namespace: Some(self.validated.identity.namespace.clone()),
            labels: Some(names::labels(&self.validated.child)),
            annotations: Some([(annotation::BROKER.to_owned(), self.validated.identity.name.clone())].into()),
            owner_references: self.owner.clone().map(|owner| vec![owner]),
            ..ObjectMeta::default()
        }
    }
}

/// Adds the hash of the object to its annotations, so that a removed field makes a difference that is seen.
fn hashed<K: Resource + serde::Serialize>(mut object: K, what: &'static str) -> Result<K> {
    let hash = names::hash_of(&object).map_err(|source| Error::Hash { what, source })?;
    object
        .meta_mut()
        .annotations
        .get_or_insert_default()
        .insert(annotation::DESIRED.to_owned(), hash);
    Ok(object)
}

#[cfg(test)]
mod tests;
