//! Deletion under `reclaimPolicy: Delete`: the order to delete the history is committed, then the CeleryBroker goes. The
//! rows follow later, in small steps: a large history holds up neither a resource nor a namespace.
//!
//! It needs neither the Secret nor the broker nor a readable spec, all of which may be gone already. Past the deadline
//! it lets go, so that a namespace is never held up by a store that is away.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kanchi_crds::HISTORY_FINALIZER;
use kanchi_store::BrokerKey;

use super::live::Live;
use super::{apply, finalizer};
use crate::api;
use crate::context::Context;
use crate::events::Fact;
use crate::lease::chain;
use crate::store_link::{self, REQUEST_LIMIT, bounded};

/// From the request to delete until the CeleryBroker is let go in any case. With a namespace's own minute in mind.
pub const DEADLINE: Duration = Duration::from_secs(40);

/// The order could not be given yet.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or was away.
    #[error("{0}")]
    Api(#[source] api::Error),
    /// The monitor could not be stopped.
    #[error("{0}")]
    Stop(#[source] apply::Error),
    /// The store was away.
    #[error("failed to order the end of the history: {0}")]
    Store(#[source] store_link::Error),
}

/// Orders the purge and lets the CeleryBroker go.
pub async fn delete(context: &Context, live: &Live) -> Result<(), Error> {
    if !live.has_finalizer(HISTORY_FINALIZER) {
        return Ok(());
    }
    let outcome = match remaining(live, Timestamp::now()) {
        Some(remaining) => order_purge(context, live, remaining).await,
        None => Err(Error::Store(store_link::Error::Down(
            "the deadline has passed".to_owned(),
        ))),
    };
    match outcome {
        Ok(()) => {
            let note = "the history is being deleted in the background".to_owned();
            context
                .events
                .tell(&live.reference(), Fact::HistoryPurgeOrdered, note)
                .await;
        }
        Err(error) if remaining(live, Timestamp::now()).is_some() => return Err(error),
        Err(error) => let_go(context, live, &chain(&error)).await,
    }
    finalizer::remove(context, live).await.map_err(Error::Api)
}

/// Says that the history stays for now. This process gives the order once the store is back ([`super::depart`]); nobody does for one
/// that ends before: an operator that knows of no CeleryBroker may be one that was told to look elsewhere, and must not purge for it.
async fn let_go(context: &Context, live: &Live, why: &str) {
    let limit = DEADLINE.as_secs();
    let note = format!(
        "the history could not be deleted within {limit} s: it goes once Postgres is back, or with its retention should this operator end before: {why}"
    );
    tracing::warn!(
        broker.namespace = live.metadata.namespace.as_deref().unwrap_or_default(),
        broker.name = live.metadata.name.as_deref().unwrap_or_default(),
        error = why,
        "history not deleted, letting go"
    );
    context
        .events
        .tell(&live.reference(), Fact::HistoryNotDeleted, note)
        .await;
}

async fn order_purge(context: &Context, live: &Live, remaining: Duration) -> Result<(), Error> {
    let namespace = live.metadata.namespace.as_deref().unwrap_or_default();
    let name = live.metadata.name.as_deref().unwrap_or_default();
    apply::withdraw(context, namespace, name, live.uid())
        .await
        .map_err(Error::Stop)?;
    let remembered = context.memory.with(live.uid(), |object| object.key);
    // A broker that never got a key has no history.
    let Some(key) = remembered.or(live.status.store_key.map(BrokerKey)) else {
        return Ok(());
    };
    let (admin, _) = context.store.admin().map_err(Error::Store)?;
    let ordering = admin.order_purge(key);
    bounded("order the purge", REQUEST_LIMIT.min(remaining), ordering)
        .await
        .map_err(Error::Store)
}

fn remaining(live: &Live, now: Timestamp) -> Option<Duration> {
    let asked = live.metadata.deletion_timestamp.as_ref()?.0;
    let elapsed = u64::try_from(now.as_second() - asked.as_second()).unwrap_or(0);
    DEADLINE
        .checked_sub(Duration::from_secs(elapsed))
        .filter(|left| !left.is_zero())
}

impl Error {
    /// Returns a fixed word for metrics.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Api(error) => error.category(),
            Self::Stop(error) => error.category(),
            Self::Store(error) => error.category(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

    #[test]
    fn lets_go_within_a_namespaces_minute() {
        let asked = Timestamp::from_second(1_800_000_000).unwrap();
        let live = Live {
            metadata: ObjectMeta {
                deletion_timestamp: Some(Time(asked)),
                ..ObjectMeta::default()
            },
            status: kanchi_crds::CeleryBrokerStatus::default(),
            broker: Err("gone".into()),
        };
        let at = |second: i64| Timestamp::from_second(1_800_000_000 + second).unwrap();
        assert_eq!(remaining(&live, at(0)), Some(DEADLINE));
        assert_eq!(remaining(&live, at(-5)), Some(DEADLINE), "a clock that is behind");
        assert_eq!(remaining(&live, at(30)), Some(Duration::from_secs(10)));
        assert_eq!(remaining(&live, at(40)), None);
        assert!(DEADLINE + REQUEST_LIMIT < Duration::from_mins(1));
    }
}
