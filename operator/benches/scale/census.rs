//! What the statuses of all CeleryBrokers say, by a watch.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use futures::StreamExt;
use kanchi_crds::{CeleryBroker, ConditionType, Reason};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::task::JoinSet;

use crate::kubelet::Pods;

/// What the last event said of one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// Generation of its spec.
    pub(crate) generation: i64,
    /// The status is of that generation, `Ready` is as the pods are, and `BrokerReachable` is true.
    pub(crate) settled: bool,
    /// It has all counts.
    pub(crate) counted: bool,
    /// When it was first seen settled.
    pub(crate) settled_at: Option<Instant>,
}

type Map = Arc<Mutex<HashMap<(String, String), Seen>>>;

/// All CeleryBrokers by namespace and name.
pub(crate) struct Census {
    seen: Map,
    // Ends with this.
    _watch: JoinSet<()>,
}

impl Census {
    pub(crate) fn begin(client: Client, pods: Pods) -> Self {
        let seen = Map::default();
        let mut watch = JoinSet::new();
        watch.spawn(follow(client, pods, Arc::clone(&seen)));
        Self { seen, _watch: watch }
    }

    /// Waits until a check of all holds; an error with what it last said when it does not in time.
    pub(crate) async fn until(
        &self,
        what: &str,
        within: Duration,
        holds: impl Fn(&HashMap<(String, String), Seen>) -> bool,
    ) -> Result<Instant> {
        let deadline = Instant::now() + within;
        loop {
            {
                let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
                if holds(&seen) {
                    return Ok(Instant::now());
                }
                if Instant::now() > deadline {
                    let settled = seen.values().filter(|one| one.settled).count();
                    let counted = seen.values().filter(|one| one.counted).count();
                    bail!(
                        "{what}: not within {within:?}; of {} {settled} are settled, {counted} counted",
                        seen.len()
                    );
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Returns when each was first seen settled.
    pub(crate) fn settled_at(&self) -> Vec<Instant> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.values().filter_map(|one| one.settled_at).collect()
    }
}

async fn follow(client: Client, pods: Pods, seen: Map) {
    let mut events = pin!(watcher(Api::<CeleryBroker>::all(client), watcher::Config::default()));
    while let Some(event) = events.next().await {
        // A watch that breaks begins anew by itself.
        let Ok(Event::Apply(broker) | Event::InitApply(broker)) = event else {
            continue;
        };
        let key = (broker.namespace().unwrap_or_default(), broker.name_any());
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = seen.get(&key).and_then(|one| one.settled_at);
        let mut now = judge(&broker, pods);
        now.settled_at = before.or_else(|| now.settled.then(Instant::now));
        seen.insert(key, now);
    }
}

fn judge(broker: &CeleryBroker, pods: Pods) -> Seen {
    let generation = broker.metadata.generation.unwrap_or_default();
    let Some(status) = &broker.status else {
        return Seen::default();
    };
    let is_true = |type_| {
        status
            .condition(type_)
            .is_some_and(|condition| condition.status == "True")
    };
    let as_expected = match pods {
        Pods::Ready => is_true(ConditionType::Ready),
        Pods::Unscheduled => status
            .condition(ConditionType::Ready)
            .is_some_and(|condition| condition.reason == Reason::Unschedulable.as_str()),
    };
    Seen {
        generation,
        settled: status.observed_generation == Some(generation)
            && as_expected
            && is_true(ConditionType::BrokerReachable),
        counted: status.messages_queued.is_some() && status.last_hour.is_some(),
        settled_at: None,
    }
}
