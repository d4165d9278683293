//! Names of kombu's channels and keys on Redis, for every version and option that can be met without configuration.
//!
//! A channel is `global_keyprefix + fanout_prefix(db) + exchange [+ "/" + routing_key]`. The key prefix is configured; the
//! fanout prefix is `/<db>.` (the default), nothing (`fanout_prefix: false`), or the literal text `/{db}.` (Sentinel with
//! kombu before 5.4); the routing key is missing with `fanout_patterns: false`. A publisher uses exactly one of these, so
//! subscribing to all of them neither doubles an event nor lets in another database's, unless that has no prefix either.

use crate::spec::BrokerConnectSpec;

/// Separates the parts of a binding, and queue and priority in a list's name.
pub(super) const SEPARATOR: &str = "\u{6}\u{16}";

/// Returns the patterns to subscribe to for events.
pub(super) fn event_patterns(spec: &BrokerConnectSpec) -> Vec<String> {
    fanout_prefixes(spec.url.database())
        .into_iter()
        .flat_map(|fanout| {
            let name = format!(
                "{}{fanout}{}",
                spec.celery.global_key_prefix, spec.celery.event_exchange
            );
            let exact = escape_glob(&name);
            [format!("{exact}/*"), exact]
        })
        .collect()
}

/// Returns the channels on which workers may listen for control requests, the likeliest first.
pub(super) fn control_channels(spec: &BrokerConnectSpec) -> Vec<String> {
    fanout_prefixes(spec.url.database())
        .into_iter()
        .map(|fanout| {
            format!(
                "{}{fanout}{}.pidbox",
                spec.celery.global_key_prefix, spec.celery.control_exchange
            )
        })
        .collect()
}

fn fanout_prefixes(database: u32) -> [String; 3] {
    [format!("/{database}."), String::new(), "/{db}.".to_owned()]
}

/// Returns all lists of a queue: kombu's priority steps are any of 0 to 9, and step 0 is the bare name.
pub(super) fn priority_lists(prefix: &str, queue: &str) -> Vec<String> {
    std::iter::once(format!("{prefix}{queue}"))
        .chain((1..=9).map(|step| format!("{prefix}{queue}{SEPARATOR}{step}")))
        .collect()
}

/// Returns the queue of a member of `_kombu.binding.<exchange>`.
pub(super) fn bound_queue(member: &str) -> Option<&str> {
    member
        .rsplit_once(SEPARATOR)
        .map(|(_key_and_pattern, queue)| queue)
        .filter(|queue| !queue.is_empty())
}

/// Makes a name match itself only in `PSUBSCRIBE` and `SCAN MATCH`.
pub(super) fn escape_glob(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for character in name.chars() {
        if matches!(character, '*' | '?' | '[' | ']' | '\\') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::spec;

    #[test]
    fn every_row_of_the_channel_table_has_its_pattern() {
        let patterns = event_patterns(&spec("redis://h/5"));
        for expected in [
            "/5.celeryev/*",
            "/5.celeryev",
            "celeryev/*",
            "celeryev",
            "/{db}.celeryev/*",
        ] {
            assert!(patterns.contains(&expected.to_owned()), "{expected} in {patterns:?}");
        }
        assert!(!patterns.iter().any(|pattern| pattern.starts_with('*')));
    }

    #[test]
    fn prefix_and_exchange_cannot_act_as_globs() {
        let mut spec = spec("redis://h/0");
        spec.celery.global_key_prefix = "a*b[1]:".into();
        spec.celery.event_exchange = "my?ev".into();
        assert_eq!(event_patterns(&spec)[0], r"a\*b\[1\]:/0.my\?ev/*");
        assert_eq!(control_channels(&spec)[0], "a*b[1]:/0.celery.pidbox");
    }

    #[test]
    fn the_queue_is_the_last_part_of_a_binding() {
        assert_eq!(bound_queue("qq\u{6}\u{16}^qq$\u{6}\u{16}orders"), Some("orders"));
        assert_eq!(
            bound_queue("\u{6}\u{16}\u{6}\u{16}w@h.celery.pidbox"),
            Some("w@h.celery.pidbox")
        );
        assert_eq!(bound_queue("nonsense"), None);
    }
}
