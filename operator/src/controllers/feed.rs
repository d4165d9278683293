//! From the store's reports to objects, counts and metrics.
//!
//! At each poll, and every few seconds between, the reports are compared with what was last made of them: an object whose
//! news changed is woken, counts that changed are written (rounded, at most once a minute, by a field manager of their
//! own), and the metrics show what is there now. Series of objects that are gone end with the next round.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::jiff::Timestamp;
use kanchi_crds::{CeleryBroker, CeleryBrokerStatus, ConditionType};
use kanchi_runtime::Pulse;
use kanchi_store::BrokerKey;
use kube::{Resource, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::celery_broker::status::{self, STALE};
use super::celery_broker::{self, counts, live};
use crate::context::{Context, Guarded};
use crate::lease::chain;
use crate::metrics::BrokerSample;
use crate::names::field_manager;
use crate::store_link::{LinkState, World};

/// Between two polls: a heartbeat ages without anybody telling.
const ROUND: Duration = Duration::from_secs(5);

/// Counts of one object are not written more often.
const COUNTS_EVERY: Duration = Duration::from_mins(1);

/// The first counts wait so long for workers to be found and queues to be sampled, as the next ones come a minute later.
const FIRST_COUNTS_WITHIN: Duration = Duration::from_secs(20);

/// Counts that are written at the same time.
const WRITES: usize = 8;

/// A monitor that runs and has been silent for so long may have lost its role.
const SILENT: Duration = Duration::from_mins(2);

/// A role is set again at most this often.
const REGRANT_EVERY: Duration = Duration::from_mins(5);

/// Runs until it is told to stop; does nothing without the Lease.
pub async fn run(context: Arc<Context>, stop: CancellationToken, pulse: Pulse) {
    let mut world = context.store.changes();
    loop {
        pulse.beat();
        context.metrics.leader.set(i64::from(context.leadership.is_leader()));
        if context.leadership.is_leader() {
            round(&context, &pulse).await;
        } else {
            context.metrics.show(BTreeMap::new());
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(ROUND) => {}
            changed = world.changed() => if changed.is_err() { return },
        }
    }
}

async fn round(context: &Context, pulse: &Pulse) {
    let world = context.store.world();
    let now = Instant::now();
    let brokers = context.scopes.brokers();
    let mut samples = BTreeMap::new();
    let mut writes = Vec::new();
    for object in &brokers {
        let Ok(broker) = &object.0 else { continue };
        compare(context, broker, &world, now);
        samples.insert(super::names_of(broker), sample(context, broker, &world, now));
        writes.extend(due(context, broker, &world, now));
    }
    context.metrics.store_up.set(i64::from(world.link == LinkState::Up));
    context.metrics.show_store(&world, now);
    let shared = |object: &&Arc<Guarded>| is_condition(object, ConditionType::StoreIsolated, "False");
    context
        .metrics
        .shared_roles
        .set(brokers.iter().filter(shared).count() as i64);
    context.metrics.show(samples);
    let uids: BTreeSet<_> = brokers.iter().filter_map(|object| object.uid()).collect();
    // A deletion that no watch told of, since it fell between two lists.
    for (uid, remembered) in context.memory.take_absent(|uid| uids.contains(uid)) {
        celery_broker::depart(context, &uid, &remembered);
    }
    retire_strangers(context, &brokers, &world);
    futures::stream::iter(writes)
        .for_each_concurrent(WRITES, |write| async move {
            write_counts(context, write).await;
            pulse.beat();
        })
        .await;
}

/// Retires brokers whose CeleryBroker was deleted while no operator was there to see it: their roles could still log in.
fn retire_strangers(context: &Context, brokers: &[Arc<Guarded>], world: &World) {
    // One that cannot be read may be among them, and what is not listed yet is not gone.
    if world.link != LinkState::Up || !context.scopes.are_listed() || brokers.iter().any(|object| object.0.is_err()) {
        return;
    }
    let here: BTreeSet<_> = brokers.iter().map(|object| super::names_of(object.as_ref())).collect();
    let strangers = world.reports.values().filter(|report| {
        context.scopes.cover(&report.namespace)
            && !here.contains(&(report.namespace.clone(), report.name.clone()))
            && !context.memory.has_key(report.key)
    });
    let strangers = strangers.map(|report| report.key).collect();
    for key in context.memory.strangers(&strangers, world.taken) {
        tracing::info!(
            store.key = key.0,
            "a broker of the store has no CeleryBroker any more: its role is locked, its history stays"
        );
        context.store.retire_stranger(key);
    }
}

fn is_condition(object: &Guarded, type_: ConditionType, status: &str) -> bool {
    let known = object.0.as_ref().ok().and_then(|broker| broker.status.as_ref());
    known
        .and_then(|known| known.condition(type_))
        .is_some_and(|condition| condition.status == status)
}

/// Wakes an object whose news changed, and takes back the grant of a monitor that runs but stays silent.
fn compare(context: &Context, broker: &CeleryBroker, world: &World, now: Instant) {
    let Some(uid) = broker.uid() else { return };
    let status = broker.status.clone().unwrap_or_default();
    let available = status.condition(ConditionType::MonitorAvailable);
    let runs = available.is_some_and(|condition| condition.status == "True");
    let ran_for = available.map_or(0, |condition| {
        Timestamp::now().as_second() - condition.last_transition_time.0.as_second()
    });
    let long = runs && u64::try_from(ran_for).is_ok_and(|seconds| seconds > SILENT.as_secs());
    let wake = context.memory.with(&uid, |remembered| {
        let view = status::view(world, remembered.key, broker.spec.enabled, now);
        let age = remembered
            .key
            .and_then(|key| world.report(key, now))
            .and_then(|(_, age)| age);
        let silent = world.link == LinkState::Up && age.is_none_or(|age| age > SILENT);
        let again = remembered
            .regranted
            .is_none_or(|at| now.saturating_duration_since(at) > REGRANT_EVERY);
        if long && silent && again && remembered.grant.is_some() {
            remembered.regranted = Some(now);
            remembered.grant = None;
            return true;
        }
        // An object without a pass of its own has one coming.
        remembered
            .view
            .as_ref()
            .is_some_and(|before| !before.is_same_news(&view))
    });
    if wake {
        let (namespace, name) = super::names_of(broker);
        context.scopes.wake(&namespace, &name);
    }
}

fn sample(context: &Context, broker: &CeleryBroker, world: &World, now: Instant) -> BrokerSample {
    let uid = broker.uid().unwrap_or_default();
    let conditions = broker.status.iter().flat_map(|status| &status.conditions);
    let conditions = conditions
        .map(|condition| (condition.type_.clone(), condition.status.clone()))
        .collect();
    let key = key_of(context, broker, &uid);
    let report = key.and_then(|key| world.report(key, now));
    let age = report.as_ref().and_then(|(_, age)| *age);
    let fresh = report.and_then(|(report, age)| {
        report
            .heartbeat
            .as_ref()
            .filter(|_| age.is_some_and(|age| age <= STALE))
    });
    BrokerSample {
        conditions,
        workers: fresh.and_then(|heartbeat| heartbeat.workers_online),
        queued: fresh.and_then(|heartbeat| heartbeat.messages_queued),
        events_per_second: fresh.and_then(|heartbeat| heartbeat.events_per_second),
        // Without a monitor nobody is silent.
        heartbeat_age: age.filter(|_| broker.spec.enabled).map(|age| age.as_secs_f64()),
    }
}

/// Returns an object's key in the store. A new leader has not come to every object yet: until then the status knows it.
fn key_of(context: &Context, broker: &CeleryBroker, uid: &str) -> Option<BrokerKey> {
    let remembered = context.memory.with(uid, |remembered| remembered.key);
    remembered.or_else(|| broker.status.as_ref()?.store_key.map(BrokerKey))
}

/// Counts that are to be written.
struct Write {
    namespace: String,
    name: String,
    uid: String,
    counts: CeleryBrokerStatus,
}

fn due(context: &Context, broker: &CeleryBroker, world: &World, now: Instant) -> Option<Write> {
    // While the link is being made nothing is known, and nothing that was said is wrong yet.
    if world.link == LinkState::Connecting || broker.meta().deletion_timestamp.is_some() {
        return None;
    }
    let uid = broker.uid()?;
    let live = broker.status.clone().unwrap_or_default();
    let written = context.memory.with(&uid, |remembered| remembered.counts_written);
    let key = key_of(context, broker, &uid);
    let counts = counts::of(world, key.filter(|_| broker.spec.enabled), now);
    match counts::change(&live, &counts) {
        counts::Change::Same => return None,
        counts::Change::Other => {
            if live.last_hour.is_none() && !counts::are_whole(&counts) {
                let since = context
                    .memory
                    .with(&uid, |remembered| *remembered.counts_awaited.get_or_insert(now));
                if now.saturating_duration_since(since) < FIRST_COUNTS_WITHIN {
                    return None;
                }
            }
            if written.is_some_and(|at| now.saturating_duration_since(at) < COUNTS_EVERY) {
                return None;
            }
        }
        // A number that is not known any more goes at once.
        counts::Change::Gone => {}
    }
    let (namespace, name) = super::names_of(broker);
    Some(Write {
        namespace,
        name,
        uid,
        counts,
    })
}

async fn write_counts(context: &Context, write: Write) {
    let body = json!({
        "apiVersion": CeleryBroker::api_version(&()),
        "kind": CeleryBroker::kind(&()),
        "metadata": { "name": write.name, "uid": write.uid },
        "status": write.counts,
    });
    let written = live::patch_status(context, &write.namespace, &write.name, field_manager::COUNTS, &body).await;
    match written {
        Ok(()) => context.memory.with(&write.uid, |remembered| {
            remembered.counts_written = Some(Instant::now());
        }),
        Err(error) if matches!(error.code(), Some(404 | 409)) => {}
        Err(error) => tracing::warn!(
            broker.namespace = %write.namespace, broker.name = %write.name, error = %chain(&error),
            "counts of {}/{} not written", write.namespace, write.name
        ),
    }
}
