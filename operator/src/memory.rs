//! What the operator remembers of each object between passes. All of it can be lost: a new leader finds it again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use kanchi_store::BrokerKey;

use crate::controllers::celery_broker::grant::Grant;
use crate::controllers::celery_broker::observe::Observation;
use crate::controllers::celery_broker::status::WorldView;
use crate::store_link::Farewell;

/// A child and what it was when it was last applied: the hash of what was wanted and the hash of what came back.
pub type Fingerprints = HashMap<&'static str, (String, String)>;

/// A child as the last pass left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Hash of what was wanted.
    pub wanted: String,
    /// Version that the API server gave it.
    pub version: String,
    /// When it was read or written.
    pub at: Instant,
}

/// A monitor that was found as it should be: nothing but a change of what it was found from gives another finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The finding.
    pub observation: Observation,
    /// Version of the StatefulSet.
    pub stateful_set: Option<String>,
    /// Versions of the pods, of those that there are.
    pub pods: Vec<Option<String>>,
    /// Hash of the Secret that the pods were told of.
    pub config_hash: String,
}

/// Of one object, by uid.
#[derive(Clone, Debug, Default)]
pub struct Remembered {
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// Failures in a row.
    pub failures: u32,
    /// What the store was made to hold for this broker.
    pub grant: Option<Grant>,
    /// When the grant was last taken back because the monitor fell silent.
    pub regranted: Option<Instant>,
    /// Children as they were when last applied.
    pub fingerprints: Fingerprints,
    /// Children that were found or made as wanted, by kind.
    pub left: HashMap<&'static str, Left>,
    /// The monitor, once it is rolled out.
    pub found: Option<Found>,
    /// Which broker with which Celery settings this object stands for, once its URL was read, and at which generation.
    pub watches: Option<String>,
    /// Key in the store.
    pub key: Option<BrokerKey>,
    /// What the last pass made of the store's report; a change wakes the object.
    pub view: Option<WorldView>,
    /// Since when the first counts are awaited.
    pub counts_awaited: Option<Instant>,
    /// When counts were last written.
    pub counts_written: Option<Instant>,
    /// What becomes of the broker's part of the store when the object goes without a finalizer.
    pub farewell: Option<Farewell>,
    /// Uid of the namespace.
    pub namespace_uid: Option<String>,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Memory {
    /// Held for map operations only.
    objects: Mutex<HashMap<String, Remembered>>,
    /// Brokers of the store without an object, and the poll that first showed them so.
    strangers: Mutex<BTreeMap<BrokerKey, Instant>>,
}

impl Memory {
    /// Reads or changes what is remembered of an object.
    pub fn with<T>(&self, uid: &str, change: impl FnOnce(&mut Remembered) -> T) -> T {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(remembered) = objects.get_mut(uid) {
            return change(remembered);
        }
        change(objects.entry(uid.to_owned()).or_default())
    }

    /// Tells whether a child of an object has the version that the last pass left it with.
    pub fn is_left(&self, uid: &str, kind: &str, version: &str) -> bool {
        let objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        let left = objects.get(uid).and_then(|remembered| remembered.left.get(kind));
        left.is_some_and(|left| left.version == version)
    }

    /// Forgets an object; returns what was remembered.
    pub fn forget(&self, uid: &str) -> Option<Remembered> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner).remove(uid)
    }

    /// Forgets all objects that are not there any more, and returns what was remembered of them.
    pub fn take_absent(&self, is_there: impl Fn(&str) -> bool) -> Vec<(String, Remembered)> {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        objects.extract_if(|uid, _| !is_there(uid)).collect()
    }

    /// Forgets everything: somebody else may have written meanwhile.
    pub fn clear(&self) {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Takes the brokers of the store that have no object, as of a poll; returns those that had none at an earlier poll
    /// either: one that is being dismissed may be in the reports once more.
    pub fn strangers(&self, keys: &BTreeSet<BrokerKey>, polled: Instant) -> Vec<BrokerKey> {
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        strangers.retain(|key, _| keys.contains(key));
        let seen_before = |key: &&BrokerKey| *strangers.entry(**key).or_insert(polled) < polled;
        keys.iter().filter(seen_before).copied().collect()
    }

    /// Tells whether an object has this key in the store.
    pub fn has_key(&self, key: BrokerKey) -> bool {
        let objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        objects.values().any(|remembered| remembered.key == Some(key))
    }

    /// Returns the uids of other objects of a namespace that stand for the same broker.
    pub fn same_broker(&self, namespace: &str, uid: &str, watches: &str) -> Vec<(String, String)> {
        let objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |(other, remembered): &(&String, &Remembered)| {
            other.as_str() != uid && remembered.namespace == namespace && remembered.watches.as_deref() == Some(watches)
        };
        objects
            .iter()
            .filter(same)
            .map(|(uid, remembered)| (uid.clone(), remembered.name.clone()))
            .collect()
    }
}
