//! Other CeleryBrokers of the namespace that stand for the same broker.
//!
//! What each stands for is remembered when its own pass reads its URL. A neighbour that has had no pass yet, after a
//! change of leader, is read here, so that a younger one is never accepted only because it came first.

use kube::ResourceExt;

use super::dereference::dereference;
use super::validate::{Claim, Validated, validate};
use crate::context::{Context, Guarded};

/// Returns the claims of others on the same broker, and notes the object's own.
pub async fn claims(context: &Context, validated: &Validated, own: &Claim) -> Vec<Claim> {
    let namespace = &validated.identity.namespace;
    note(context, validated);
    let mut same = Vec::new();
    for object in context.scopes.brokers_of(namespace) {
        let Some(claim) = claim(&object).filter(|claim| claim.uid != own.uid) else {
            continue;
        };
        let known = context.memory.with(&claim.uid, |remembered| remembered.watches.clone());
        let watches = match known {
            Some(watches) => watches,
            None if claim < *own => read(context, &object, &claim).await,
            // A younger one finds us when its own turn comes.
            None => continue,
        };
        if watches == validated.watches {
            same.push(claim);
        }
    }
    same
}

/// Returns the claim of an object.
pub fn claim(object: &Guarded) -> Option<Claim> {
    let created = object.creation_timestamp()?.0.to_string();
    Some(Claim {
        created,
        uid: object.uid()?,
        name: object.name_any(),
    })
}

/// Remembers what an object stands for, and wakes those whose claims that concerns.
fn note(context: &Context, validated: &Validated) {
    let namespace = &validated.identity.namespace;
    let now = validated.watches.clone();
    let before = context
        .memory
        .with(&validated.uid, |remembered| remembered.watches.replace(now.clone()));
    if before.as_ref() == Some(&now) {
        return;
    }
    for watches in before.iter().chain([&now]).filter(|watches| !watches.is_empty()) {
        for (_, other) in context.memory.same_broker(namespace, &validated.uid, watches) {
            context.scopes.wake(namespace, &other);
        }
    }
}

/// Reads what a neighbour stands for; empty when that cannot be told.
async fn read(context: &Context, object: &Guarded, claim: &Claim) -> String {
    let Ok(broker) = &object.0 else { return String::new() };
    let namespace = broker.namespace().unwrap_or_default();
    let found = dereference(&context.client, &namespace, &broker.spec).await;
    let watches = found
        .ok()
        .and_then(|found| validate(broker, &found).ok())
        .map(|valid| valid.watches);
    let watches = watches.unwrap_or_default();
    context.memory.with(&claim.uid, |remembered| {
        namespace.clone_into(&mut remembered.namespace);
        claim.name.clone_into(&mut remembered.name);
        remembered.watches.get_or_insert(watches).clone()
    })
}
