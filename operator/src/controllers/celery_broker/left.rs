//! Children as an earlier pass left them: what the watches say has not changed since is not read again.
//!
//! A pass over a settled CeleryBroker so reads the object itself and the Secrets it names, and no child. The watches may be a
//! moment behind: then the change wakes the object when it comes. After [`TRUST`] everything is read once more.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Resource, ResourceExt};

use super::build::{Children, Prepared};
use super::grant::Grant;
use super::observe::Observation;
use super::validate::Validated;
use crate::api::{self, call};
use crate::context::Context;
use crate::memory::{Found, Left};
use crate::names::{self, annotation};

/// A child is read again after this long, whatever the watches tell.
const TRUST: Duration = Duration::from_hours(1);

/// The monitor's Secret before it is applied.
#[derive(Clone, Debug)]
pub enum OwnSecret {
    /// It is as an earlier pass left it, with this grant, and was not read.
    AsLeft(Box<Grant>),
    /// It was read; `None`: there is none.
    Read(Option<Box<Secret>>),
}

/// Reads the monitor's Secret, unless it is as an earlier pass left it.
pub async fn own_secret(context: &Context, validated: &Validated) -> api::Result<OwnSecret> {
    let grant = context.memory.with(&validated.uid, |object| object.grant.clone());
    // A grant that was taken back is made again from what the Secret holds.
    if let Some(grant) = grant.filter(|_| wanted_then(context, validated, "Secret").is_some()) {
        return Ok(OwnSecret::AsLeft(Box::new(grant)));
    }
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &validated.identity.namespace);
    let secret = call("read the monitor's Secret", api.get_opt(&validated.child)).await?;
    Ok(OwnSecret::Read(secret.map(Box::new)))
}

/// Returns what an earlier pass found of the monitor, where nothing has changed since: neither StatefulSet nor pods have
/// to be read.
pub fn found(context: &Context, validated: &Validated, children: &Children<Prepared>) -> Option<Observation> {
    if !is_left(context, validated, "StatefulSet", &children.stateful_set) {
        return None;
    }
    let found = context.memory.with(&validated.uid, |object| object.found.clone())?;
    let version = |kind, name: &str| context.watched.version(kind, &validated.identity.namespace, name);
    // A pass may have left another StatefulSet and failed before it looked at the monitor.
    let same = found.stateful_set == version("StatefulSet", &validated.child)
        && found.pods.len() == usize::from(validated.pods.replicas)
        && found
            .pods
            .iter()
            .enumerate()
            .all(|(number, pod)| *pod == version("Pod", &names::pod(&validated.child, number)))
        && found.config_hash == children.config_hash;
    same.then_some(found.observation)
}

/// Whether a child is as an earlier pass left it, and the same is wanted now.
pub fn is_left<K: Resource>(context: &Context, validated: &Validated, kind: &'static str, desired: &K) -> bool {
    let wanted = desired.annotations().get(annotation::DESIRED);
    wanted.is_some() && wanted_then(context, validated, kind).as_ref() == wanted
}

/// Notes a child that is as wanted.
pub fn leave<K: Resource>(context: &Context, validated: &Validated, kind: &'static str, desired: &K, live: &K) {
    let (Some(wanted), Some(version)) = (desired.annotations().get(annotation::DESIRED), live.resource_version())
    else {
        return;
    };
    let left = Left {
        wanted: wanted.clone(),
        version,
        at: Instant::now(),
    };
    context
        .memory
        .with(&validated.uid, |object| object.left.insert(kind, left));
}

/// Remembers what was found of a rolled-out monitor; `None`: it has to be looked at again.
pub fn remember(context: &Context, uid: &str, found: Option<Found>) {
    context.memory.with(uid, |object| object.found = found);
}

/// Returns the hash of what was wanted of a child that is as an earlier pass left it.
fn wanted_then(context: &Context, validated: &Validated, kind: &'static str) -> Option<String> {
    let left = context
        .memory
        .with(&validated.uid, |object| object.left.get(kind).cloned())?;
    let now = context
        .watched
        .version(kind, &validated.identity.namespace, &validated.child);
    (now.as_ref() == Some(&left.version) && left.at.elapsed() < TRUST).then_some(left.wanted)
}
