//! The middle of the event path: decode while the batch before is being committed.

use std::sync::Arc;
use std::time::Instant;

use kanchi_domain::{Event, EventKind, Limits};
use kanchi_store::EventChunk;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::filling::{BatchLimits, Filling};
use crate::prepare::{Message, Prepared, prepare};
use crate::reduce::chunks;
use crate::settings::SettingsWatch;
use crate::shared::Shared;
use crate::source::Source;

/// Bytes of messages taken in before other tasks get a turn.
const PORTION_BYTES: usize = 512 * 1024;

/// A message beyond this does not wait for others.
const LARGE: usize = 1024 * 1024;

/// Messages for one transaction, and their events as they are stored.
#[derive(Debug)]
pub struct Filled {
    /// The messages, in order.
    pub messages: Vec<Prepared>,
    /// Their events.
    pub chunks: Vec<EventChunk>,
}

impl Filled {
    /// Makes the chunks of messages.
    pub fn of(messages: Vec<Prepared>) -> Self {
        Self {
            chunks: chunks(&messages),
            messages,
        }
    }
}

/// Decodes messages and hands over batches.
#[derive(Debug)]
pub struct Decoder {
    /// Shared state.
    pub shared: Arc<Shared>,
    /// Settings in force.
    pub settings: SettingsWatch,
    /// Bounds of a batch.
    pub batch: BatchLimits,
    /// What is read of a message.
    pub limits: Limits,
    /// Ends at once, without the rest.
    pub give_up: CancellationToken,
}

impl Decoder {
    /// Runs until the source ends; the last batch is handed over.
    pub async fn run(mut self, mut source: Source, batches: mpsc::Sender<Filled>) {
        let mut filling = Filling::new(self.batch);
        let mut incoming: Vec<Message> = Vec::new();
        let mut open = true;
        while open || !filling.is_empty() {
            let due = filling.due();
            let ready = !filling.is_empty() && (!open || due.is_some_and(|due| due <= Instant::now()));
            tokio::select! {
                biased;
                () = self.give_up.cancelled() => return,
                permit = batches.reserve(), if ready => match permit {
                    Ok(permit) => permit.send(Filled::of(filling.take())),
                    Err(_) => return,
                },
                more = source.take(&mut incoming, PORTION_BYTES.min(filling.room().max(1))), if open && !filling.is_full() => {
                    open = more;
                    for message in incoming.drain(..) {
                        self.read(&message, &mut filling);
                    }
                    if source.is_idle() {
                        self.shared.stream_drained();
                    }
                }
                () = sleep_until(due), if !ready && due.is_some() => {}
                // Nothing came for a while: that is being caught up, too.
                () = tokio::time::sleep(IDLE), if filling.is_empty() => {
                    if source.is_idle() {
                        self.shared.stream_drained();
                    }
                }
            }
        }
    }

    fn read(&mut self, message: &Message, filling: &mut Filling) {
        let settings = self.settings.borrow_and_update();
        let (prepared, heartbeats) = prepare(message, &settings.payloads, &self.limits);
        drop(settings);
        self.count(&prepared, &heartbeats);
        filling.push(prepared, Instant::now());
        if message.body.len() > LARGE {
            filling.hurry();
        }
    }

    fn count(&self, prepared: &Prepared, heartbeats: &[Event]) {
        let live = self.shared.is_caught_up();
        let metrics = &self.shared.metrics;
        let mut counts = [0_u64; EventKind::ALL.len()];
        {
            let mut workers = self.shared.workers();
            for event in prepared.events.iter().chain(heartbeats) {
                if let Some(count) = counts.get_mut(event.kind as usize) {
                    *count += 1;
                }
                workers.observe(event, live);
                for repair in event.repairs.iter() {
                    metrics.repaired(repair);
                }
            }
        }
        for (kind, count) in EventKind::ALL.into_iter().zip(counts) {
            if count > 0 {
                metrics.events(kind, count);
            }
        }
        for event in prepared.events.iter().filter(|event| event.kind == EventKind::TaskSent) {
            if let Some(queue) = event.queue.as_deref() {
                self.shared.queue_seen(queue);
            }
        }
        for reject in &prepared.rejects {
            metrics.rejected(reject.reason, reject.count);
        }
    }
}

const IDLE: std::time::Duration = std::time::Duration::from_secs(1);

async fn sleep_until(due: Option<Instant>) {
    if let Some(due) = due {
        tokio::time::sleep_until(due.into()).await;
    }
}
