//! The CeleryBroker controller: `dereference → validate → (grant) → build → apply → status`.
//!
//! | step | holds a client | does |
//! |---|---|---|
//! | [`dereference`] | yes | reads the Secrets that the spec names, by name |
//! | [`validate`] | no | parses, checks, refuses duplicates |
//! | [`grant`] | the store's | the broker's key, role and password |
//! | [`build`] | no | the children as they should be |
//! | [`apply`] | yes | sends what differs, in order; does not even read what is as it was [`left`] |
//! | [`observe`], [`status`] | no, then yes | what became of it; conditions |
//!
//! A failed step does not keep the status from being written: the facts found so far are said, and what was not looked
//! at keeps its word.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kanchi_crds::{CeleryBroker, CeleryBrokerStatus, ConditionType, ReclaimPolicy};
use kanchi_store::BrokerKey;
use kube::Resource;
use kube::runtime::controller::Action;
use serde_json::json;

use crate::api;
use crate::backoff;
use crate::context::{Context, Guarded};
use crate::lease::chain;
use crate::memory::Remembered;
use crate::metrics::{ErrorLabels, PassLabels};
use crate::names::field_manager;
use crate::store_link::Farewell;

pub mod apply;
pub mod build;
pub mod counts;
pub mod delete;
pub mod dereference;
pub mod finalizer;
pub mod grant;
pub mod left;
pub mod live;
pub mod neighbours;
pub mod observe;
pub mod status;
mod steps;
pub mod validate;

use live::Live;
use status::Facts;

/// No pass takes longer.
const PASS_LIMIT: Duration = Duration::from_secs(90);

/// A pass that runs this long is stuck: its own limit did not end it.
pub const STUCK: Duration = Duration::from_secs(150);

/// A monitor that is on the way is looked at again after this long at first, should no watch tell.
const PROGRESS: Duration = Duration::from_secs(15);

/// A monitor that waits for its turn asks again after this long.
const TURN: Duration = Duration::from_secs(5);

/// A deletion that failed is tried again: it has little time.
const DELETE_RETRY: Duration = Duration::from_secs(2);

const KIND: &str = "CeleryBroker";

/// Why a pass failed: one variant for each step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object could not be read.
    #[error("{0}")]
    Read(#[source] api::Error),
    /// Step 1.
    #[error("{0}")]
    Dereference(#[source] dereference::Error),
    /// The spec cannot even be parsed.
    #[error("failed to read the spec: {0}")]
    Unreadable(String),
    /// Step 2.
    #[error("{0}")]
    Validate(#[source] validate::Error),
    /// The store.
    #[error("{0}")]
    Grant(#[source] crate::store_link::Error),
    /// Step 3.
    #[error("{0}")]
    Build(#[source] build::Error),
    /// Step 4.
    #[error("{0}")]
    Apply(#[source] apply::Error),
    /// Step 5.
    #[error("{0}")]
    Status(#[source] api::Error),
    /// The finalizer.
    #[error("{0}")]
    Finalizer(#[source] api::Error),
    /// The deletion.
    #[error("{0}")]
    Delete(#[source] delete::Error),
    /// The pass as a whole.
    #[error("failed to finish within {0:?}")]
    Timeout(Duration),
}

impl Error {
    /// Returns a fixed word: the metric label.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Read(error) | Self::Status(error) | Self::Finalizer(error) => error.category(),
            Self::Dereference(error) => error.category(),
            Self::Unreadable(_) => "InvalidSpec",
            Self::Validate(error) => error.category(),
            Self::Grant(error) => error.category(),
            Self::Build(_) => "Build",
            Self::Apply(error) => error.category(),
            Self::Delete(error) => error.category(),
            Self::Timeout(_) => "Timeout",
        }
    }

    /// Whether only a change helps, of the spec, of a Secret or of a neighbour: a watch tells of it, so there is no
    /// timed retry but the ordinary second look.
    pub fn is_terminal(&self) -> bool {
        match self {
            Self::Unreadable(_) | Self::Validate(_) => true,
            Self::Dereference(error) => error.is_terminal(),
            Self::Read(_)
            | Self::Grant(_)
            | Self::Build(_)
            | Self::Apply(_)
            | Self::Status(_)
            | Self::Finalizer(_)
            | Self::Delete(_)
            | Self::Timeout(_) => false,
        }
    }

    /// Whether the pass ended for a reason that is nobody's fault: this replica does not lead (any more), or the namespace
    /// is being deleted.
    fn is_expected(&self) -> bool {
        matches!(self.category(), "NotLeader" | "NamespaceTerminating")
    }
}

/// Reconciles one CeleryBroker; called by the controller, never twice at once for one object.
pub async fn reconcile(object: Arc<Guarded>, context: Arc<Context>) -> Result<Action, Error> {
    if !context.leadership.is_leader() {
        return Ok(Action::requeue(backoff::jittered(context.settings.resync)));
    }
    let Ok(_permit) = context.permits.acquire().await else {
        return Ok(Action::await_change());
    };
    let running = context.passes.begin();
    context
        .metrics
        .running
        .set(i64::try_from(context.passes.count()).unwrap_or(i64::MAX));
    let started = Instant::now();
    let (namespace, name) = super::names_of(object.as_ref());
    let outcome = match tokio::time::timeout(PASS_LIMIT, Box::pin(pass(&context, &namespace, &name))).await {
        Ok(outcome) => outcome,
        Err(_elapsed) => Err(Error::Timeout(PASS_LIMIT)),
    };
    drop(running);
    context
        .metrics
        .running
        .set(i64::try_from(context.passes.count()).unwrap_or(i64::MAX));
    report(&context, &namespace, &name, started.elapsed(), &outcome);
    let uid = object.meta().uid.clone().unwrap_or_default();
    if outcome.is_ok() {
        context.memory.with(&uid, |remembered| remembered.failures = 0);
    }
    outcome
}

fn report(context: &Context, namespace: &str, name: &str, took: Duration, outcome: &Result<Action, Error>) {
    let duration_ms = took.as_millis() as u64;
    context.metrics.duration.observe(took.as_secs_f64());
    let result = match outcome {
        Ok(_) => "ok",
        Err(error) if error.is_expected() => "aborted",
        Err(error) if error.is_terminal() => "terminal",
        Err(_) => "error",
    };
    context
        .metrics
        .passes
        .get_or_create_owned(&PassLabels { kind: KIND, result })
        .inc();
    match outcome {
        Ok(_) => tracing::debug!(
            broker.namespace = namespace,
            broker.name = name,
            duration_ms,
            "reconciled {namespace}/{name}"
        ),
        Err(error) if error.is_expected() => tracing::debug!(
            broker.namespace = namespace,
            broker.name = name,
            duration_ms,
            reason = error.category(),
            "pass over {namespace}/{name} given up"
        ),
        Err(error) => {
            let category = error.category();
            context
                .metrics
                .errors
                .get_or_create_owned(&ErrorLabels { kind: KIND, category })
                .inc();
            tracing::warn!(
                broker.namespace = namespace, broker.name = name, duration_ms, reason = category,
                error = %chain(error), "pass over {namespace}/{name} failed"
            );
        }
    }
}

/// Decides when a failed object is looked at again. There is always a second look.
#[expect(clippy::needless_pass_by_value, reason = "the controller's signature")]
pub fn error_policy(object: Arc<Guarded>, error: &Error, context: Arc<Context>) -> Action {
    let delay = if error.is_terminal() || error.is_expected() {
        backoff::jittered(context.settings.resync)
    } else if matches!(error, Error::Delete(_)) {
        DELETE_RETRY
    } else {
        let uid = object.meta().uid.clone().unwrap_or_default();
        let failures = context.memory.with(&uid, |remembered| {
            remembered.failures = remembered.failures.saturating_add(1);
            remembered.failures
        });
        backoff::after_failures(failures)
    };
    Action::requeue(delay)
}

/// Drops all that is kept of an object that is gone.
pub fn forget(context: &Context, object: &Guarded) {
    let (namespace, name) = super::names_of(object);
    context.secrets.remove(&namespace, &name);
    context.metrics.hide(&namespace, &name);
    let uid = object.meta().uid.clone().unwrap_or_default();
    if let Some(remembered) = context.memory.forget(&uid) {
        depart(context, &uid, &remembered);
    }
}

/// Says farewell to the broker of an object that is gone, and lets its neighbours know.
pub fn depart(context: &Context, uid: &str, remembered: &Remembered) {
    context.rollouts.release(uid);
    // An object of the same name may be there already: it has the same key.
    if let Some(key) = remembered.key.filter(|key| !context.memory.has_key(*key)) {
        let farewell = remembered.farewell.unwrap_or(Farewell::Retire);
        context.store.dismiss(key, farewell, uid.to_owned());
    }
    // A younger CeleryBroker of the same broker is accepted now.
    let namespace = &remembered.namespace;
    for watches in remembered.watches.iter().filter(|watches| !watches.is_empty()) {
        for (_, other) in context.memory.same_broker(namespace, uid, watches) {
            context.scopes.wake(namespace, &other);
        }
    }
}

async fn pass(context: &Context, namespace: &str, name: &str) -> Result<Action, Error> {
    let Some(live) = Live::read(&context.client, namespace, name)
        .await
        .map_err(Error::Read)?
    else {
        return Ok(Action::await_change());
    };
    context.memory.with(live.uid(), |remembered| {
        namespace.clone_into(&mut remembered.namespace);
        name.clone_into(&mut remembered.name);
        if remembered.key.is_none() {
            remembered.key = live.status.store_key.map(BrokerKey);
        }
    });
    if live.metadata.deletion_timestamp.is_some() {
        return deletion(context, &live).await;
    }
    if live.status.observed_generation.is_none() {
        let first = status::first(live.generation(), Timestamp::now());
        write_status(context, &live, &first).await?;
    }
    let mut facts = Facts::new(live.generation());
    facts.paused = live.is_paused();
    let outcome = match &live.broker {
        Ok(broker) => Box::pin(whole(context, &live, broker, &mut facts)).await,
        Err(why) => {
            context.metrics.unreadable.inc();
            steps::unreadable(why, &mut facts)
        }
    };
    steps::explain(&outcome, &mut facts);
    if facts.observation.is_none() {
        facts.observation = steps::look(context, &live).await.map_err(Error::Apply)?;
    }
    say(context, &live, &facts).await?;
    let next = outcome?;
    Ok(Action::requeue(match next {
        Next::Settled => backoff::jittered(context.settings.resync),
        Next::Progress => backoff::jittered(progress(&live.status, Timestamp::now()).min(context.settings.resync)),
        Next::Turn => backoff::jittered(TURN),
    }))
}

/// Watches tell of everything but the passing of time, which matters less and less: what has not come up for long is looked
/// at ever more seldom.
fn progress(status: &CeleryBrokerStatus, now: Timestamp) -> Duration {
    let waiting = status
        .condition(ConditionType::MonitorAvailable)
        .filter(|condition| condition.status != "True")
        .map(|condition| now.duration_since(condition.last_transition_time.0).unsigned_abs());
    PROGRESS.max(waiting.unwrap_or_default() / 2)
}

/// When a pass that went well is followed by the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// The ordinary second look.
    Settled,
    /// The monitor is on the way.
    Progress,
    /// The monitor waits for its turn to be replaced.
    Turn,
}

async fn whole(context: &Context, live: &Live, broker: &CeleryBroker, facts: &mut Facts) -> Result<Next, Error> {
    facts.enabled = broker.spec.enabled;
    let policy = broker.spec.reclaim_policy;
    let farewell = match policy {
        ReclaimPolicy::Retain => Farewell::Retire,
        ReclaimPolicy::Delete => Farewell::Purge,
    };
    context
        .memory
        .with(live.uid(), |remembered| remembered.farewell = Some(farewell));
    finalizer::follow(context, live, policy)
        .await
        .map_err(Error::Finalizer)?;
    Box::pin(steps::run(context, live, broker, facts)).await
}

async fn deletion(context: &Context, live: &Live) -> Result<Action, Error> {
    if live.has_finalizer(kanchi_crds::HISTORY_FINALIZER) {
        let mut facts = Facts::new(live.generation());
        facts.deleting = true;
        say(context, live, &facts).await?;
    }
    delete::delete(context, live).await.map_err(Error::Delete)?;
    Ok(Action::await_change())
}

/// Computes and writes the status, and tells what changed.
async fn say(context: &Context, live: &Live, facts: &Facts) -> Result<(), Error> {
    let mut facts = facts.clone();
    let world = context.store.world();
    let key = context.memory.with(live.uid(), |remembered| remembered.key);
    let view = status::view(&world, key, facts.enabled, Instant::now());
    context
        .memory
        .with(live.uid(), |remembered| remembered.view = Some(view.clone()));
    facts.view = Some(view);
    let computed = status::compute(&live.status, &facts, Timestamp::now());
    if status::says_the_same(&live.status, &computed) {
        return Ok(());
    }
    write_status(context, live, &computed).await?;
    for told in status::transitions(&live.status, &computed) {
        let reference = live.reference();
        context
            .events
            .transition(&reference, told.good, told.type_.as_str(), &told.reason, told.message)
            .await;
    }
    Ok(())
}

async fn write_status(context: &Context, live: &Live, status: &CeleryBrokerStatus) -> Result<(), Error> {
    let namespace = live.metadata.namespace.clone().unwrap_or_default();
    let name = live.metadata.name.clone().unwrap_or_default();
    let body = json!({
        "apiVersion": CeleryBroker::api_version(&()),
        "kind": CeleryBroker::kind(&()),
        "metadata": { "name": name, "uid": live.uid() },
        "status": status,
    });
    match live::patch_status(context, &namespace, &name, field_manager::STATUS, &body).await {
        // Gone, or another of this name, meanwhile.
        Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(()),
        other => other.map_err(Error::Status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_come_up_is_looked_at_ever_more_seldom() {
        let since: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let available = |status: &str| {
            serde_json::from_value::<CeleryBrokerStatus>(json!({ "conditions": [{
                "type": "MonitorAvailable", "status": status, "reason": "Unschedulable", "message": "0/3 nodes",
                "lastTransitionTime": since.to_string()
            }] }))
            .unwrap()
        };
        let after = |status: &str, seconds: u64| progress(&available(status), since + Duration::from_secs(seconds));
        assert_eq!(after("False", 0), PROGRESS);
        assert_eq!(
            after("False", 29),
            PROGRESS,
            "a pod that was refused is noticed soon after its 30 s"
        );
        assert_eq!(after("False", 120), Duration::from_mins(1));
        assert_eq!(after("True", 120), PROGRESS, "the last pass still found it running");
        assert_eq!(progress(&CeleryBrokerStatus::default(), since), PROGRESS);
    }
}
