//! Which brokers use which Secrets: the way back from a changed Secret to the objects it concerns.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

/// A namespaced name.
pub type Key = (String, String);

/// The reverse index. Names only: no value of a Secret is ever held here.
#[derive(Debug, Default)]
pub struct SecretIndex {
    /// Guards both directions together; held for map operations only.
    maps: Mutex<Maps>,
}

#[derive(Debug, Default)]
struct Maps {
    users: HashMap<Key, BTreeSet<String>>,
    uses: BTreeMap<Key, BTreeSet<String>>,
}

impl SecretIndex {
    /// Notes that a broker uses exactly these Secrets of its namespace.
    pub fn set(&self, namespace: &str, broker: &str, secrets: BTreeSet<String>) {
        let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (namespace.to_owned(), broker.to_owned());
        let before = maps.uses.insert(key.clone(), secrets.clone()).unwrap_or_default();
        for gone in before.difference(&secrets) {
            maps.unlink(namespace, gone, broker);
        }
        for secret in secrets {
            maps.users
                .entry((namespace.to_owned(), secret))
                .or_default()
                .insert(broker.to_owned());
        }
        if maps.uses.get(&key).is_some_and(BTreeSet::is_empty) {
            maps.uses.remove(&key);
        }
    }

    /// Forgets a broker.
    pub fn remove(&self, namespace: &str, broker: &str) {
        self.set(namespace, broker, BTreeSet::new());
    }

    /// Returns the brokers that use a Secret.
    pub fn users(&self, namespace: &str, secret: &str) -> Vec<String> {
        let maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        maps.users
            .get(&(namespace.to_owned(), secret.to_owned()))
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }
}

impl Maps {
    fn unlink(&mut self, namespace: &str, secret: &str, broker: &str) {
        let key = (namespace.to_owned(), secret.to_owned());
        if let Some(users) = self.users.get_mut(&key) {
            users.remove(broker);
            if users.is_empty() {
                self.users.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn follows_a_broker_from_one_secret_to_another() {
        let index = SecretIndex::default();
        index.set("shop", "orders", names(&["url", "ca"]));
        index.set("shop", "mails", names(&["ca"]));
        assert_eq!(index.users("shop", "ca"), ["mails", "orders"]);
        index.set("shop", "orders", names(&["url"]));
        assert_eq!(index.users("shop", "ca"), ["mails"]);
        assert!(index.users("other", "url").is_empty());
        index.remove("shop", "orders");
        index.remove("shop", "mails");
        let maps = index.maps.lock().unwrap();
        assert!(
            maps.users.is_empty() && maps.uses.is_empty(),
            "nothing is left: {maps:?}"
        );
    }
}
