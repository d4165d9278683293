//! The event path's connections: one, and while batches come faster than they are stored another one, so that one batch can
//! go ahead while the one before it is brought to its end.

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::commit::store::Store;

/// Another connection that was refused is tried again after this.
const TRY_AGAIN: Duration = Duration::from_mins(1);

/// Another connection that no batch needed for so long is closed.
const NEEDED: Duration = Duration::from_mins(1);

/// Two at most.
#[derive(Debug)]
pub(crate) struct Connections {
    /// What all are made like; never connected itself.
    model: Store,
    idle: Vec<Store>,
    /// How many there are.
    count: usize,
    /// One that is being made. Nothing waits for it.
    coming: Option<JoinHandle<Option<Store>>>,
    refused: Option<Instant>,
    needed: Option<Instant>,
}

impl Connections {
    /// Nothing is connected before it is used. `model`: what all are made like.
    pub(crate) const fn new(model: Store) -> Self {
        Self {
            model,
            idle: Vec::new(),
            count: 0,
            coming: None,
            refused: None,
            needed: None,
        }
    }

    /// Returns the connection for a batch that nothing is under way beside.
    pub(crate) fn take(&mut self) -> Store {
        if self.needed.is_none_or(|at| at.elapsed() > NEEDED) {
            while self.idle.len() > 1 {
                self.idle.pop();
                self.count -= 1;
            }
        }
        self.idle.pop().unwrap_or_else(|| {
            self.count += 1;
            self.model.another()
        })
    }

    /// Returns the other connection while one is in use; `None` while it is being made, and where it cannot be had: a role has
    /// only so many.
    pub(crate) async fn other(&mut self) -> Option<Store> {
        self.needed = Some(Instant::now());
        if let Some(store) = self.idle.pop() {
            return Some(store);
        }
        if let Some(coming) = self.coming.take_if(|coming| coming.is_finished()) {
            let store = coming.await.ok().flatten();
            self.refused = store.is_none().then(Instant::now);
            self.count += usize::from(store.is_some());
            return store;
        }
        if self.coming.is_none() && self.refused.is_none_or(|at| at.elapsed() > TRY_AGAIN) {
            let mut store = self.model.another();
            self.coming = Some(tokio::spawn(
                async move { store.try_to_connect().await.then_some(store) },
            ));
        }
        None
    }

    /// Takes one back that no batch uses any more.
    pub(crate) fn give_back(&mut self, store: Store) {
        self.idle.push(store);
    }

    /// One of them is lost, and dropped by whoever used it.
    pub(crate) const fn lost(&mut self) {
        self.count -= 1;
    }

    /// Tells whether there is another one than the one in use.
    pub(crate) const fn has_other(&self) -> bool {
        self.count > 1
    }
}
