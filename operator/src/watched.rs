//! Versions of children and pods, as the metadata watches last told them.
//!
//! What still has the version that a pass left it with needs no second read: with many resources nearly all reads would
//! find nothing new. A version that is not known, since a watch is being made again, is simply another one.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use k8s_openapi::NamespaceResourceScope;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};

use crate::args::Scope;
use crate::names;

/// Namespace and name.
type Key = (String, String);

/// Resource versions by kind. Bounded by the number of children: other objects are not noted.
#[derive(Debug, Default)]
pub struct Watched {
    /// Held for map operations only.
    versions: Mutex<HashMap<String, HashMap<Key, String>>>,
}

impl Watched {
    /// Notes what a watch tells.
    pub fn note<K>(&self, scope: &Scope, event: &Event<PartialObjectMeta<K>>)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        let mut kinds = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        let versions = kinds.entry(K::kind(&()).into_owned()).or_default();
        match event {
            // What went while nobody watched is not listed.
            Event::Init => versions.retain(|(namespace, _), _| !scope.covers(namespace)),
            Event::InitApply(object) | Event::Apply(object) if is_ours(object) => {
                let version = object.resource_version().unwrap_or_default();
                versions.insert(key(object), version);
            }
            Event::InitApply(object) | Event::Apply(object) | Event::Delete(object) => {
                versions.remove(&key(object));
            }
            Event::InitDone => {}
        }
    }

    /// Returns the version that an object had last; `None`: there is none, or nobody knows.
    pub fn version(&self, kind: &str, namespace: &str, name: &str) -> Option<String> {
        let kinds = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.get(kind)?.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }
}

fn key<K: Resource>(object: &PartialObjectMeta<K>) -> Key {
    let metadata = &object.metadata;
    (
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}

fn is_ours<K: Resource>(object: &PartialObjectMeta<K>) -> bool {
    let label = object
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(names::MANAGED_BY));
    label.is_some_and(|by| by == names::OPERATOR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Secret;
    use serde_json::json;

    fn secret(namespace: &str, name: &str, by: &str, version: &str) -> PartialObjectMeta<Secret> {
        serde_json::from_value(json!({ "metadata": {
            "namespace": namespace, "name": name, "resourceVersion": version, "labels": { "app.kubernetes.io/managed-by": by }
        } }))
        .unwrap()
    }

    #[test]
    fn knows_the_newest_version_of_what_is_ours_and_nothing_of_what_went() {
        let watched = Watched::default();
        let ours = |version| secret("shop", "orders-monitor", "kanchi-operator", version);
        let version = || watched.version("Secret", "shop", "orders-monitor");
        watched.note(&Scope::All, &Event::InitApply(ours("1")));
        watched.note(&Scope::All, &Event::Apply(ours("2")));
        watched.note(&Scope::All, &Event::Apply(secret("shop", "theirs", "helm", "3")));
        assert_eq!(version().as_deref(), Some("2"));
        assert_eq!(watched.version("Secret", "shop", "theirs"), None);
        assert_eq!(watched.version("Service", "shop", "orders-monitor"), None);
        watched.note(&Scope::All, &Event::Delete(ours("4")));
        assert_eq!(version(), None);
    }

    /// A watch that is made again lists what is there: nothing it does not list may stay known.
    #[test]
    fn a_watch_that_begins_anew_forgets_its_own_scope_only() {
        let watched = Watched::default();
        for namespace in ["shop", "mail"] {
            let object = secret(namespace, "orders-monitor", "kanchi-operator", "1");
            watched.note(&Scope::Namespace(namespace.to_owned()), &Event::InitApply(object));
        }
        watched.note::<Secret>(&Scope::Namespace("shop".to_owned()), &Event::Init);
        assert_eq!(watched.version("Secret", "shop", "orders-monitor"), None);
        assert!(watched.version("Secret", "mail", "orders-monitor").is_some());
    }
}
