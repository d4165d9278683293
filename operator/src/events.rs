//! Kubernetes Events: one for each change that a user would want to know of, each fact with a reason of its own.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use crate::lease::chain;
use crate::names;

/// An Event is news, not work: a pass does not wait longer for it.
const LIMIT: Duration = Duration::from_secs(5);

/// Notes are cut here, on a character boundary; the API server refuses more than 1 kB.
const NOTE_BYTES: usize = 1000;

/// Facts that no condition tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// A change that a StatefulSet does not take: it was deleted, its pod left alone, and made again.
    StatefulSetRecreated,
    /// The CeleryBroker goes, and its history after it.
    HistoryPurgeOrdered,
    /// The CeleryBroker went before its history could be deleted.
    HistoryNotDeleted,
}

impl Fact {
    /// Every fact.
    pub const ALL: [Self; 3] = [
        Self::StatefulSetRecreated,
        Self::HistoryPurgeOrdered,
        Self::HistoryNotDeleted,
    ];

    /// Returns the Event's reason.
    pub fn reason(self) -> &'static str {
        match self {
            Self::StatefulSetRecreated => "StatefulSetRecreated",
            Self::HistoryPurgeOrdered => "HistoryPurgeOrdered",
            Self::HistoryNotDeleted => "HistoryNotDeleted",
        }
    }

    fn severity(self) -> EventType {
        match self {
            Self::StatefulSetRecreated | Self::HistoryPurgeOrdered => EventType::Normal,
            Self::HistoryNotDeleted => EventType::Warning,
        }
    }
}

/// Publishes Events. One recorder for the whole process, so that repeats fold into series.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    /// Returns a publisher that reports as this pod.
    pub fn new(client: Client, pod: String) -> Self {
        let reporter = Reporter {
            controller: names::OPERATOR.to_owned(),
            instance: Some(pod),
        };
        Self {
            recorder: Recorder::new(client, reporter),
        }
    }

    /// Tells a fact about an object.
    pub async fn tell(&self, object: &ObjectReference, fact: Fact, note: String) {
        self.publish(object, fact.severity(), fact.reason(), "Reconcile", note)
            .await;
    }

    /// Tells that a condition changed: its reason is the Event's, its type the action.
    pub async fn transition(&self, object: &ObjectReference, good: bool, action: &str, reason: &str, note: String) {
        let severity = if good { EventType::Normal } else { EventType::Warning };
        self.publish(object, severity, reason, action, note).await;
    }

    async fn publish(&self, object: &ObjectReference, type_: EventType, reason: &str, action: &str, note: String) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(shortened(note)),
            action: action.to_owned(),
            secondary: None,
        };
        // A namespace that is being deleted takes no Events: that is no reason to fail.
        match tokio::time::timeout(LIMIT, self.recorder.publish(&event, object)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(reason, error = %chain(&error), "event not published"),
            Err(_elapsed) => tracing::debug!(reason, "event not published in time"),
        }
    }
}

fn shortened(mut note: String) -> String {
    if note.len() > NOTE_BYTES {
        let end = (0..=NOTE_BYTES)
            .rev()
            .find(|end| note.is_char_boundary(*end))
            .unwrap_or(0);
        note.truncate(end);
        note.push('…');
    }
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_unique_and_no_condition_uses_them() {
        let mut seen = std::collections::BTreeSet::new();
        for fact in Fact::ALL {
            assert!(seen.insert(fact.reason()), "{fact:?}");
            assert!(fact.reason().parse::<kanchi_crds::Reason>().is_err(), "{fact:?}");
            assert_eq!(fact.reason(), format!("{fact:?}"));
        }
    }

    #[test]
    fn a_long_note_is_cut_between_characters() {
        let note = shortened("ö".repeat(1000));
        assert!(note.len() <= 1024 && note.ends_with('…'), "{}", note.len());
        assert_eq!(shortened("short".into()), "short");
    }
}
