//! What a pass needs, built once and passed explicitly.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use kanchi_crds::CeleryBroker;
use kube::Client;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::Store;
use tokio::sync::Semaphore;

use crate::args::{Args, Scope};
use crate::events::Events;
use crate::lease::Leadership;
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::passes::Passes;
use crate::rollout::RolloutSlots;
use crate::secret_index::SecretIndex;
use crate::store_link::StoreLink;
use crate::wake::WakeQueue;
use crate::watched::Watched;

/// A `CeleryBroker` that may be unreadable: one bad object must not stop the others.
pub type Guarded = DeserializeGuard<CeleryBroker>;

/// What monitors are made of, and how often things are looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Image of the monitors.
    pub monitor_image: String,
    /// Its pull policy.
    pub monitor_image_pull_policy: String,
    /// Secrets to pull it with.
    pub monitor_image_pull_secrets: Vec<String>,
    /// When a settled object is looked at again.
    pub resync: Duration,
}

impl Settings {
    /// Takes the settings from the command line.
    pub fn of(args: &Args) -> Self {
        let named = |name: &&String| !name.trim().is_empty();
        Self {
            monitor_image: args.monitor_image.clone(),
            monitor_image_pull_policy: args.monitor_image_pull_policy.clone(),
            monitor_image_pull_secrets: args.monitor_image_pull_secrets.iter().filter(named).cloned().collect(),
            resync: Duration::from_secs(args.resync_seconds),
        }
    }
}

/// Shared by all passes.
pub struct Context {
    /// A client that writes only with the Lease.
    pub client: Client,
    /// Whether we hold it.
    pub leadership: Leadership,
    /// What monitors are made of.
    pub settings: Settings,
    /// Whether our rights come from a ClusterRole: those of a Role go with its namespace.
    pub outlives_namespaces: bool,
    /// The store.
    pub store: StoreLink,
    /// Metrics.
    pub metrics: Metrics,
    /// Kubernetes Events.
    pub events: Events,
    /// What is remembered between passes.
    pub memory: Memory,
    /// From Secrets to brokers.
    pub secrets: SecretIndex,
    /// Versions of children and pods.
    pub watched: Watched,
    /// How many monitors restart at a time.
    pub rollouts: RolloutSlots,
    /// How many passes run at a time, over all scopes.
    pub permits: Semaphore,
    /// The passes under way.
    pub passes: Passes,
    /// Caches and wake queues, one for each scope.
    pub scopes: Scopes,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Context")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// A scope's cache and wake queue.
type Entry = (Scope, Store<Guarded>, Arc<WakeQueue>);

/// The caches of all scopes.
#[derive(Debug, Default)]
pub struct Scopes {
    /// Written once per scope at start; read by all passes.
    entries: RwLock<Vec<Entry>>,
    /// How many caches have been listed. The stores' own `wait_until_ready` wakes one waiter only, and that is the
    /// controller.
    listed: AtomicUsize,
}

impl Scopes {
    /// Adds a scope.
    pub fn add(&self, scope: Scope, store: Store<Guarded>, wake: Arc<WakeQueue>) {
        self.entries
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push((scope, store, wake));
    }

    /// Returns every cached object.
    pub fn brokers(&self) -> Vec<Arc<Guarded>> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.iter().flat_map(|(_, store, _)| store.state()).collect()
    }

    /// Returns every cached object of a namespace.
    pub fn brokers_of(&self, namespace: &str) -> Vec<Arc<Guarded>> {
        use kube::Resource as _;
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let in_scope = entries.iter().filter(|(scope, _, _)| scope.covers(namespace));
        in_scope
            .flat_map(|(_, store, _)| store.state())
            .filter(|object| object.meta().namespace.as_deref() == Some(namespace))
            .collect()
    }

    /// Tells whether a namespace is watched.
    pub fn cover(&self, namespace: &str) -> bool {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.iter().any(|(scope, _, _)| scope.covers(namespace))
    }

    /// Tells whether every cache has been listed: what is in none of them is not there.
    pub fn are_listed(&self) -> bool {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        !entries.is_empty() && self.listed() >= entries.len()
    }

    /// Asks for an object to be looked at.
    pub fn wake(&self, namespace: &str, name: &str) {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        for (_, _, queue) in entries.iter().filter(|(scope, _, _)| scope.covers(namespace)) {
            queue.push(namespace, name);
        }
    }

    /// Notes that a scope's cache is listed for the first time.
    pub fn note_listed(&self) {
        self.listed.fetch_add(1, Ordering::Release);
    }

    /// Returns how many caches have been listed.
    pub fn listed(&self) -> usize {
        self.listed.load(Ordering::Acquire)
    }
}
