//! A batch that is ready for its end: its events are at the store, as far as they could be sent, in a transaction that is open;
//! its changes are made.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kanchi_domain::UnixMicros;
use kanchi_store::{BatchHead, Ending, Stored, TaskChanges};
use tokio::sync::watch;

use crate::commit::Error;
use crate::commit::sieve;
use crate::commit::store::{Outcome, Store};
use crate::intake::gather::{Gathered, Receipt};
use crate::shared::Shared;

/// A batch, and the connection that it is on.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) store: Store,
    pub(crate) head: BatchHead,
    pub(crate) changes: TaskChanges,
    pub(crate) about: About,
}

/// What is told of a batch once it is durable.
#[derive(Clone, Copy, Debug)]
pub(crate) struct About {
    pub(crate) receipt: Receipt,
    pub(crate) events: u64,
    /// Celery timestamp of the newest event.
    pub(crate) newest: Option<UnixMicros>,
    /// What it has taken so far, without what it waited for the batch before it.
    pub(crate) took: Duration,
}

impl About {
    pub(crate) fn new(gathered: &Gathered) -> Self {
        Self {
            receipt: gathered.receipt,
            events: gathered.events,
            newest: gathered.newest,
            took: Duration::ZERO,
        }
    }
}

impl Ready {
    /// Does more of it than sending its events, as far as that depends on no batch before.
    pub(crate) async fn go_ahead(&mut self) {
        let began = Instant::now();
        self.store.go_ahead(&self.head, &self.changes).await;
        self.about.took += began.elapsed();
    }

    /// Brings it to its end, and tells so. One with nothing to store is only acknowledged.
    pub(crate) async fn end(&mut self, told: Told) -> Result<Outcome, Error> {
        let began = Instant::now();
        let outcome = if self.head.chunks.is_empty() && self.head.dead_letters.is_empty() {
            Outcome::Stored(Stored::Now {
                live: Vec::new(),
                left: Vec::new(),
            })
        } else {
            // With what came after them, if not before: who finds that stored believes that nothing is missing before it.
            self.head.gaps = told.shared.waiting_gaps();
            let outcome = self.store.commit(&self.head, &self.changes, Ending::Commit).await?;
            self.about.took += began.elapsed();
            if let Outcome::Stored(_) = &outcome {
                told.stored(&self.about, &self.head);
            }
            outcome
        };
        if let Outcome::Stored(_) = &outcome {
            told.acknowledge(&self.about.receipt);
        }
        Ok(outcome)
    }

    /// Takes everything back, since the batch before it is not stored as it was: its events are read back from what was sent.
    /// The connection still has its transaction.
    pub(crate) fn undo(self) -> (Store, Gathered) {
        let arrived = self.about.receipt.oldest.unwrap_or_default();
        let (events, letters) = sieve::read_back(&self.head.chunks, arrived);
        let gathered = Gathered {
            receipt: self.about.receipt,
            digests: self.head.digests,
            dead_letters: [self.head.dead_letters, letters].concat(),
            ..Gathered::of(&events)
        };
        (self.store, gathered)
    }
}

/// Who is told of what is stored.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) shared: Arc<Shared>,
    /// The newest tag that is durable.
    pub(crate) acknowledge: watch::Sender<u64>,
}

impl Told {
    /// A batch is durable.
    pub(crate) fn stored(&self, about: &About, head: &BatchHead) {
        let metrics = &self.shared.metrics;
        metrics.batch_events.observe(about.events as f64);
        metrics.batch_messages.observe(about.receipt.messages as f64);
        metrics.batch_seconds.observe(about.took.as_secs_f64());
        self.shared.committed(about.events, about.newest, about.receipt.oldest);
        for gap in &head.gaps {
            self.shared.gap_stored(gap);
        }
    }

    /// All that was read until this batch is durable.
    pub(crate) fn acknowledge(&self, receipt: &Receipt) {
        if let Some(through) = receipt.through {
            self.acknowledge.send_replace(through);
        }
        if let Some(at) = receipt.stored_through() {
            self.shared.stored_through(at);
        }
        self.shared.own_stored(receipt.own);
    }
}
