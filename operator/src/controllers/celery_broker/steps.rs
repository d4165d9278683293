//! The steps in their order, and what each outcome means for the conditions.

use k8s_openapi::jiff::Timestamp;
use kanchi_contract::file;
use kanchi_crds::{CeleryBroker, Reason};
use kube::ResourceExt;

use super::build::{Applied, Children};
use super::dereference::{self, Dereferenced};
use super::grant::{Existing, grant};
use super::left::{self, OwnSecret};
use super::live::Live;
use super::observe::{Observation, observe};
use super::status::{Facts, Status, Verdict};
use super::validate::{self, Claim, Validated};
use super::{Error, Next, apply, build, neighbours};
use crate::context::Context;
use crate::events::Fact;
use crate::memory::Found;
use crate::secret_text::SecretText;

/// Runs all steps; `facts` holds what was found, also when a step fails.
pub(super) async fn run(
    context: &Context,
    live: &Live,
    broker: &CeleryBroker,
    facts: &mut Facts,
) -> Result<Next, Error> {
    let validated = accept(context, live, broker, facts).await?;
    if facts.paused {
        return Ok(Next::Settled);
    }
    let namespace_uid = namespace_uid(context, &validated).await?;
    let own_secret = left::own_secret(context, &validated).await.map_err(Error::Read)?;
    let existing = existing(live, &own_secret);
    let grant = grant(context, &validated, &namespace_uid, existing.as_ref())
        .await
        .map_err(Error::Grant)?;
    facts.role = grant.mode;
    facts.key = Some(grant.key.0);
    let prepared = build::build(broker, &validated, &grant, &context.settings).map_err(Error::Build)?;
    let found = left::found(context, &validated, &prepared);
    let (applied, deeds) = Box::pin(apply::apply(context, &validated, prepared, own_secret, found.as_ref()))
        .await
        .map_err(Error::Apply)?;
    if deeds.recreated {
        let note = "the StatefulSet was made again for a change it does not take; its pod went on".to_owned();
        context
            .events
            .tell(&live.reference(), Fact::StatefulSetRecreated, note)
            .await;
    }
    let seen = match found {
        Some(found) => found,
        None => look_closely(context, &validated, &applied)
            .await
            .map_err(Error::Apply)?,
    };
    let next = turn(context, &validated.uid, &seen, applied.waits_for_turn);
    facts.observation = Some(seen);
    Ok(next)
}

/// Reads the pods, tells them of their configuration, and judges them with their StatefulSet.
async fn look_closely(
    context: &Context,
    validated: &Validated,
    applied: &Children<Applied>,
) -> apply::Result<Observation> {
    let count = usize::from(validated.pods.replicas);
    let pods = apply::pods(context, &validated.identity.namespace, &validated.child, count).await?;
    let mut versions = Vec::with_capacity(count);
    for pod in &pods {
        versions.push(apply::sync_pod(context, pod.as_ref(), &applied.config_hash).await?);
    }
    let waits = applied.waits_for_turn;
    let seen = observe(Some(&applied.stateful_set), &pods, waits, Timestamp::now());
    // Anything else changes by itself, with time or with other monitors' rollouts.
    let lasts = matches!(seen.verdict.reason, Reason::RolledOut | Reason::ScaledToZero);
    let found = lasts.then(|| Found {
        observation: seen.clone(),
        stateful_set: applied.stateful_set.resource_version(),
        pods: versions,
        config_hash: applied.config_hash.clone(),
    });
    left::remember(context, &validated.uid, found);
    Ok(seen)
}

/// Steps 1 and 2: what the spec says and refers to, and whether it may be followed.
async fn accept(context: &Context, live: &Live, broker: &CeleryBroker, facts: &mut Facts) -> Result<Validated, Error> {
    let namespace = live.metadata.namespace.clone().unwrap_or_default();
    let name = live.metadata.name.clone().unwrap_or_default();
    context
        .secrets
        .set(&namespace, &name, dereference::secret_names(&broker.spec));
    let found = dereference::dereference(&context.client, &namespace, &broker.spec).await;
    let found = found
        .map_err(Error::Dereference)
        .inspect_err(|_| no_claim(context, live))?;
    facts.references = Some(Verdict::new(
        Status::True,
        Reason::AllFound,
        "every Secret and key is there",
    ));
    let validated = validated(broker, &found, facts).inspect_err(|_| no_claim(context, live))?;
    let own = Claim {
        created: live
            .metadata
            .creation_timestamp
            .as_ref()
            .map(|time| time.0.to_string())
            .unwrap_or_default(),
        uid: validated.uid.clone(),
        name,
    };
    let others = neighbours::claims(context, &validated, &own).await;
    if let Err(refused) = validate::refuse_duplicate(&own, &validated, &others) {
        if !facts.paused {
            apply::withdraw(context, &namespace, &own.name, &own.uid)
                .await
                .map_err(Error::Apply)?;
        }
        return Err(Error::Validate(refused));
    }
    facts.accepted = Some(Verdict::new(Status::True, Reason::Valid, "the spec is valid"));
    Ok(validated)
}

fn validated(broker: &CeleryBroker, found: &Dereferenced, facts: &mut Facts) -> Result<Validated, Error> {
    let validated = validate::validate(broker, found).map_err(Error::Validate)?;
    facts.transport = Some(validated.transport);
    facts.endpoint = Some(validated.endpoint.clone());
    Ok(validated)
}

/// An object whose URL cannot be read stands for no broker.
fn no_claim(context: &Context, live: &Live) {
    let before = context
        .memory
        .with(live.uid(), |remembered| remembered.watches.replace(String::new()));
    let namespace = live.metadata.namespace.clone().unwrap_or_default();
    for watches in before.iter().filter(|watches| !watches.is_empty()) {
        for (_, other) in context.memory.same_broker(&namespace, live.uid(), watches) {
            context.scopes.wake(&namespace, &other);
        }
    }
}

/// A namespace keeps its uid for as long as the object in it lives.
async fn namespace_uid(context: &Context, validated: &Validated) -> Result<String, Error> {
    let known = context
        .memory
        .with(&validated.uid, |remembered| remembered.namespace_uid.clone());
    if let Some(uid) = known {
        return Ok(uid);
    }
    let uid = dereference::namespace_uid(&context.client, &validated.identity.namespace).await;
    let uid = uid.map_err(Error::Dereference)?;
    context.memory.with(&validated.uid, |remembered| {
        remembered.namespace_uid = Some(uid.clone());
    });
    Ok(uid)
}

/// Returns what the operator-owned Secret holds of an earlier grant.
fn existing(live: &Live, own_secret: &OwnSecret) -> Option<Existing> {
    let key = live.status.store_key;
    let secret = match own_secret {
        OwnSecret::AsLeft(grant) => {
            let (url, ca) = (grant.url.clone(), grant.ca.clone());
            return Some(Existing { url, ca, key });
        }
        OwnSecret::Read(secret) => secret.as_ref()?,
    };
    let text = |key: &str| {
        let value = secret.data.as_ref()?.get(key)?;
        Some(SecretText::new(value.0.clone()))
    };
    Some(Existing {
        url: text(file::STORE_URL)?,
        ca: text(file::STORE_CA),
        key,
    })
}

/// Keeps the books of the rollout slots, and says when to look again.
fn turn(context: &Context, uid: &str, seen: &Observation, waits: bool) -> Next {
    if waits {
        return Next::Turn;
    }
    if seen.rolling {
        context.rollouts.occupy(uid, std::time::Instant::now());
    } else {
        context.rollouts.release(uid);
    }
    if matches!(seen.verdict.reason, Reason::RolledOut | Reason::ScaledToZero) {
        Next::Settled
    } else {
        Next::Progress
    }
}

/// Looks at the monitor where a failed, paused or refused pass has not.
pub(super) async fn look(context: &Context, live: &Live) -> apply::Result<Option<Observation>> {
    let namespace = live.metadata.namespace.clone().unwrap_or_default();
    let name = live.metadata.name.clone().unwrap_or_default();
    let (set, pods) = apply::look(context, &namespace, &name).await?;
    Ok(Some(observe(set.as_ref(), &pods, false, Timestamp::now())))
}

/// A spec that cannot be parsed was let in by an older schema.
pub(super) fn unreadable(why: &str, facts: &mut Facts) -> Result<Next, Error> {
    facts.accepted = None;
    Err(Error::Unreadable(why.to_owned()))
}

/// Says in the conditions what an error means.
pub(super) fn explain(outcome: &Result<Next, Error>, facts: &mut Facts) {
    let Err(error) = outcome else { return };
    let no = |reason, error: &dyn std::error::Error| Some(Verdict::new(Status::False, reason, error.to_string()));
    match error {
        Error::Dereference(error) => {
            let reason = match error {
                dereference::Error::SecretNotFound { .. } => Reason::SecretNotFound,
                dereference::Error::KeyMissing { .. } => Reason::SecretKeyMissing,
                dereference::Error::Forbidden { .. } => Reason::SecretForbidden,
                // Nothing new is known, and nothing said before is wrong; but this generation is not carried out either.
                dereference::Error::Api(_) => {
                    facts.blocked = Some(Verdict::new(Status::Unknown, Reason::Progressing, error.to_string()));
                    return;
                }
            };
            facts.references = no(reason, error);
        }
        Error::Unreadable(_) => {
            facts.accepted = no(Reason::InvalidSpec, error);
            facts.stalled = true;
        }
        Error::Validate(error) => {
            facts.stalled = true;
            let reason = match error {
                validate::Error::Url(_) | validate::Error::TlsOfPlainUrl { .. } | validate::Error::NoUrl => {
                    Reason::InvalidSpec
                }
                validate::Error::UnsupportedTransport(_) | validate::Error::UnsupportedResultBackend { .. } => {
                    Reason::UnsupportedTransport
                }
                validate::Error::TransportChanged { .. } => Reason::TransportChanged,
                validate::Error::Duplicate { .. } => Reason::DuplicateBroker,
                validate::Error::SecretUrl { .. }
                | validate::Error::NotPem { .. }
                | validate::Error::ResultBackendUrl { .. } => {
                    facts.references = no(Reason::SecretValueInvalid, error);
                    return;
                }
            };
            facts.accepted = no(reason, error);
        }
        Error::Grant(error) => facts.blocked = no(Reason::StoreNotPrepared, error),
        // Nothing is wrong with the spec, but this generation is not carried out yet.
        Error::Read(_) | Error::Timeout(_) | Error::Apply(apply::Error::StillDeleting { .. }) => {
            facts.blocked = Some(Verdict::new(Status::Unknown, Reason::Progressing, error.to_string()));
        }
        Error::Apply(error) => facts.blocked = no(Reason::ApplyFailed, error),
        Error::Build(error) => facts.blocked = no(Reason::ApplyFailed, error),
        Error::Status(_) | Error::Finalizer(_) | Error::Delete(_) => {}
    }
}
