//! The event path's connections: one, and while batches come faster than they are stored a second, so that one batch can go
//! ahead while the one before it is brought to its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kanchi_store::Epoch;
use tokio_util::sync::CancellationToken;

use crate::settings::SettingsWatch;
use crate::shared::Shared;
use crate::store::Store;

/// A second connection that was refused is tried again after this.
const TRY_AGAIN: Duration = Duration::from_mins(1);

/// A second connection that no batch needed for so long is closed.
const NEEDED: Duration = Duration::from_mins(1);

/// Two at most.
#[derive(Debug)]
pub(crate) struct Connections {
    shared: Arc<Shared>,
    settings: SettingsWatch,
    give_up: CancellationToken,
    /// Name of this process, for the epoch.
    instance: String,
    /// The epoch of a take-over; `None`: the first connection begins one.
    taken: Option<Epoch>,
    idle: Vec<Store>,
    refused: Option<Instant>,
    needed: Option<Instant>,
}

impl Connections {
    /// Nothing is connected before it is used.
    pub(crate) const fn new(
        shared: Arc<Shared>,
        settings: SettingsWatch,
        give_up: CancellationToken,
        instance: String,
        taken: Option<Epoch>,
    ) -> Self {
        Self {
            shared,
            settings,
            give_up,
            instance,
            taken,
            idle: Vec::new(),
            refused: None,
            needed: None,
        }
    }

    /// Returns the connection for a batch that nothing is under way beside.
    pub(crate) fn take(&mut self) -> Store {
        if self.needed.is_none_or(|at| at.elapsed() > NEEDED) {
            self.idle.truncate(1);
        }
        self.idle.pop().unwrap_or_else(|| self.make())
    }

    /// Returns the other connection while one is in use; `None` where it cannot be had now: a role has only so many.
    pub(crate) async fn second(&mut self) -> Option<Store> {
        self.needed = Some(Instant::now());
        if let Some(store) = self.idle.pop() {
            return Some(store);
        }
        if self.refused.is_some_and(|at| at.elapsed() < TRY_AGAIN) {
            return None;
        }
        let mut store = self.make();
        let connected = store.try_to_connect().await;
        self.refused = (!connected).then(Instant::now);
        connected.then_some(store)
    }

    /// Takes one back that no batch uses any more.
    pub(crate) fn give_back(&mut self, store: Store) {
        self.idle.push(store);
    }

    fn make(&self) -> Store {
        Store::new(
            Arc::clone(&self.shared),
            self.settings.clone(),
            self.give_up.clone(),
            self.instance.clone(),
            self.shared.epoch().or(self.taken),
        )
    }
}
