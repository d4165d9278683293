//! Depth of queues: which queues there are, how full, stored and shown.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kanchi_broker::{QueueSample, QueueSampler};
use kanchi_store::QueueRow;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::settings::SettingsWatch;
use crate::shared::Shared;

/// Queues sampled in one turn; beyond it the configured ones come first.
const MAX_QUEUES: usize = 2_000;

/// A sample that takes longer is given up: the next one is due.
const SAMPLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The newest sample, for whoever stores it.
pub type Samples = watch::Receiver<Option<Arc<Vec<QueueRow>>>>;

/// Samples the queues of one broker.
#[derive(Debug)]
pub struct Sampler {
    /// Shared state.
    pub shared: Arc<Shared>,
    /// Settings in force.
    pub settings: SettingsWatch,
    /// The client.
    pub queues: QueueSampler,
    /// Where samples go.
    pub samples: watch::Sender<Option<Arc<Vec<QueueRow>>>>,
    /// Ends it.
    pub shutdown: CancellationToken,
}

impl Sampler {
    /// Runs until the token ends it.
    pub async fn run(mut self) {
        let mut next = tokio::time::Instant::now() + Duration::from_secs(1);
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                Ok(()) = self.settings.changed() => {
                    let spec = self.settings.borrow_and_update().broker.clone();
                    self.queues.reload(spec);
                }
                () = tokio::time::sleep_until(next) => {
                    let interval = self.settings.borrow().config.queues.sample_interval_seconds.max(1);
                    next = tokio::time::Instant::now() + Duration::from_secs(interval);
                    let shutdown = self.shutdown.clone();
                    tokio::select! {
                        () = shutdown.cancelled() => return,
                        sampled = tokio::time::timeout(SAMPLE_TIMEOUT, self.sample()) => {
                            if sampled.is_err() {
                                tracing::debug!("sampling queues took too long");
                                self.unknown();
                            }
                        }
                    }
                }
            }
        }
    }

    async fn sample(&mut self) {
        if !self.shared.is_connected() {
            self.unknown();
            return;
        }
        let discovered = self.queues.discover().await.unwrap_or_default();
        let names = self.names(discovered);
        match self.queues.sample(&names).await {
            Ok(samples) => self.publish(&samples),
            Err(error) => {
                tracing::debug!(%error, "queues could not be sampled");
                self.unknown();
            }
        }
    }

    fn names(&self, discovered: BTreeSet<String>) -> BTreeSet<String> {
        let mut names: BTreeSet<String> = self.settings.borrow().config.queues.include.iter().cloned().collect();
        let others = [self.shared.workers().queues(), self.shared.queues_seen(), discovered];
        for name in others.into_iter().flatten() {
            if names.len() >= MAX_QUEUES {
                break;
            }
            names.insert(name);
        }
        names
    }

    fn publish(&self, samples: &[QueueSample]) {
        self.shared.metrics.queues(samples);
        let rows: Vec<QueueRow> = samples
            .iter()
            .filter_map(|sample| {
                Some(QueueRow {
                    name: sample.name.clone(),
                    ready: sample.ready?,
                    unacked: sample.unacked,
                    consumers: sample.consumers,
                })
            })
            .collect();
        // As long as no queue is known, nothing is known of the messages in it.
        let total = rows.iter().map(|row| row.ready).sum();
        self.shared.messages_queued((!rows.is_empty()).then_some(total));
        self.samples.send_replace(Some(Arc::new(rows)));
    }

    /// What is not known is not shown: never a zero, never an old number.
    fn unknown(&self) {
        self.shared.metrics.queues(&[]);
        self.shared.messages_queued(None);
    }
}
