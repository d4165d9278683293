//! Every name the operator gives: children, labels, annotations, field managers.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use sha2::{Digest, Sha256};

/// The operator, as controller and reporter of events.
pub const OPERATOR: &str = "kanchi-operator";

/// Server-side apply field managers: one for each kind of write, listed here and nowhere else.
pub mod field_manager {
    /// The Secret, Service, PodDisruptionBudget, NetworkPolicy and StatefulSet of a broker.
    pub const CHILDREN: &str = "kanchi-operator-children";
    /// Conditions and facts in the status of a CeleryBroker.
    pub const STATUS: &str = "kanchi-operator-status";
    /// Counts in the status of a CeleryBroker, at most once a minute.
    pub const COUNTS: &str = "kanchi-operator-counts";
    /// The annotation on a monitor pod that makes the kubelet sync its Secret.
    pub const POD_SYNC: &str = "kanchi-operator-pod-sync";
    /// All of them.
    pub const ALL: [&str; 4] = [CHILDREN, STATUS, COUNTS, POD_SYNC];
}

/// Annotations on what the operator makes.
pub mod annotation {
    /// Name of the CeleryBroker, on children and pods: a label value could not hold every name.
    pub const BROKER: &str = "kanchi.io/broker";
    /// Hash of the object as the operator wants it: a change that only removes a field shows here.
    pub const DESIRED: &str = "kanchi.io/desired-hash";
    /// On the StatefulSet: hash of the pod template, so that a change which restarts the monitor is known before it is made.
    pub const TEMPLATE: &str = "kanchi.io/template-hash";
    /// On the pod: hash of the mounted Secret. Its change makes the kubelet sync the volume at once.
    pub const CONFIG: &str = "kanchi.io/config-hash";
}

/// Label that selects everything the operator makes.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// The label selector for watches of children and pods.
pub const MANAGED_SELECTOR: &str = "app.kubernetes.io/managed-by=kanchi-operator,app.kubernetes.io/component=monitor";

/// Longest name of a StatefulSet: its pods carry `<name>-<revision>` in a label of at most 63 characters, and a revision
/// has 10.
const STATEFUL_SET_NAME: usize = 52;

const SUFFIX: &str = "-monitor";

/// Characters of the hash that keeps shortened names apart.
const HASH: usize = 8;

/// Returns the name of a broker's children: `<broker>-monitor`, shortened with a hash where that would be too long.
///
/// The suffix keeps clear of the user's own objects: a Service called like the CeleryBroker often is the broker itself.
pub fn child(broker: &str) -> String {
    let plain = format!("{broker}{SUFFIX}");
    // A dot is legal in a resource's name, but not in the name of a Service.
    let flat = plain.replace('.', "-");
    if flat.len() <= STATEFUL_SET_NAME && flat == plain && starts_with_a_letter(&flat) {
        return flat;
    }
    let digest = hash(broker.as_bytes());
    let digest = digest.get(..HASH).unwrap_or(&digest);
    let prefix = if starts_with_a_letter(&flat) { "" } else { "b-" };
    let room = STATEFUL_SET_NAME - SUFFIX.len() - 1 - digest.len() - prefix.len();
    let head: String = broker.replace('.', "-").chars().take(room).collect();
    format!("{prefix}{}-{digest}{SUFFIX}", head.trim_end_matches('-'))
}

/// A Service's name must begin with a letter; a custom resource's may begin with a digit.
fn starts_with_a_letter(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_lowercase())
}

/// Returns the name of one of the monitor's pods, counted from 0.
pub fn pod(child: &str, number: usize) -> String {
    format!("{child}-{number}")
}

/// Returns the smallest set of labels that selects the pods of one monitor. Never a version: it cannot be changed later.
pub fn selector(child: &str) -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/name", "kanchi-monitor"),
        ("app.kubernetes.io/instance", child),
        ("app.kubernetes.io/component", "monitor"),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

/// Returns the labels of children and pods.
pub fn labels(child: &str) -> BTreeMap<String, String> {
    let mut labels = selector(child);
    labels.insert(MANAGED_BY.to_owned(), OPERATOR.to_owned());
    labels.insert("app.kubernetes.io/part-of".to_owned(), "kanchi".to_owned());
    labels
}

/// Returns the SHA-256 of some bytes as hexadecimal text.
pub fn hash(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(bytes) {
        // Writing to a String cannot fail.
        let _infallible = write!(text, "{byte:02x}");
    }
    text
}

/// Returns the hash of an object's JSON, short enough to read.
pub fn hash_of<T: serde::Serialize>(object: &T) -> Result<String, serde_json::Error> {
    let mut text = hash(&serde_json::to_vec(object)?);
    text.truncate(16);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid(name: &str) -> bool {
        name.len() <= STATEFUL_SET_NAME
            && starts_with_a_letter(name)
            && name.ends_with(|last: char| last.is_ascii_alphanumeric())
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    }

    #[test]
    fn a_short_name_stays_readable() {
        assert_eq!(child("orders-rabbit"), "orders-rabbit-monitor");
        assert_eq!(child(&"a".repeat(44)), format!("{}-monitor", "a".repeat(44)));
    }

    #[test]
    fn every_name_up_to_253_characters_gives_a_valid_and_stable_one() {
        for length in 1..=253 {
            for pattern in ["a", "a-", "a.", "1", "ab-c.d"] {
                let name: String = pattern.chars().cycle().take(length).collect();
                let name = name.trim_end_matches(['-', '.']);
                assert!(valid(&child(name)), "{name} gives {}", child(name));
                assert_eq!(child(name), child(name));
            }
        }
    }

    #[test]
    fn names_of_63_characters_that_differ_at_the_end_stay_apart() {
        let one = child(&format!("{}1", "x".repeat(62)));
        let two = child(&format!("{}2", "x".repeat(62)));
        assert_ne!(one, two);
        assert!(valid(&one) && valid(&two), "{one} {two}");
        assert_ne!(child("a.b"), child("a-b"));
    }

    #[test]
    fn field_managers_are_unique() {
        let unique: std::collections::BTreeSet<_> = field_manager::ALL.into_iter().collect();
        assert_eq!(unique.len(), field_manager::ALL.len());
    }

    #[test]
    fn selectors_carry_no_version() {
        assert!(selector("x").keys().all(|key| !key.contains("version")));
        assert!(
            selector("x")
                .iter()
                .all(|(key, value)| labels("x").get(key) == Some(value))
        );
    }
}
