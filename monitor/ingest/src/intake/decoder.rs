//! The middle of the event path: decode while the batches before are being stored.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use kanchi_domain::{Event, EventKind, Limits};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;

use crate::intake::filling::{BatchLimits, Filling};
use crate::intake::gather::Gathered;
use crate::intake::message::{Message, Reading};
use crate::intake::source::Source;
use crate::settings::SettingsWatch;
use crate::shared::Shared;

/// Bytes of messages read before other tasks get a turn: a millisecond or two. Who was woken last waits for this task to
/// yield, however idle the other threads of the runtime are.
const PORTION_BYTES: usize = 128 * 1024;

/// Batches that are under way at most: one is brought to its end, one goes ahead.
const UNDER_WAY: u32 = 2;

/// Where batches are handed over. Two are under way and one is made meanwhile: never more are in memory.
#[derive(Debug)]
pub struct Turns {
    batches: mpsc::Sender<(Gathered, Turn)>,
    free: Arc<Semaphore>,
}

/// The turn of a batch, until it is stored.
#[derive(Debug)]
pub struct Turn {
    _permit: OwnedSemaphorePermit,
}

/// Returns both ends.
pub fn turns() -> (Turns, mpsc::Receiver<(Gathered, Turn)>) {
    let (batches, receiver) = mpsc::channel(1);
    let free = Arc::new(Semaphore::new(UNDER_WAY as usize));
    (Turns { batches, free }, receiver)
}

impl Turns {
    /// Waits for the next turn; `None` when nobody stores any more. A batch that is not full yet goes on growing while another
    /// one is under way. May be cancelled.
    async fn next(&self, is_full: bool) -> Option<Turn> {
        let permits = if is_full { 1 } else { UNDER_WAY };
        let mut permit = tokio::select! {
            permit = Arc::clone(&self.free).acquire_many_owned(permits) => permit.ok()?,
            () = self.batches.closed() => return None,
        };
        drop(permit.split(permits as usize - 1));
        Some(Turn { _permit: permit })
    }

    async fn hand_over(&self, gathered: Gathered, turn: Turn) -> bool {
        self.batches.send((gathered, turn)).await.is_ok()
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
    /// Events that the monitor itself makes of what it found out.
    pub own: mpsc::Receiver<Vec<Event>>,
    /// Ends at once, without the rest.
    pub give_up: CancellationToken,
}

/// Messages on their way into a batch.
#[derive(Debug, Default)]
struct Intake {
    /// Taken from the source and not read yet.
    incoming: VecDeque<Message>,
    reading: Reading,
    /// Tag of the message that was read last.
    newest: u64,
}

impl Decoder {
    /// Runs until the source ends; the last batch is handed over.
    pub async fn run(mut self, mut source: Source, turns: Turns) {
        let mut filling = Filling::new(self.batch);
        let mut full: Option<Gathered> = None;
        let mut intake = Intake::default();
        let mut open = true;
        while open || !filling.is_empty() || full.is_some() {
            if full.is_none() {
                self.read(&mut intake, &mut filling);
                if filling.is_full() || !intake.incoming.is_empty() {
                    full = Some(filling.take_full(Instant::now()));
                }
            }
            let due = filling.due();
            let ready =
                full.is_some() || !filling.is_empty() && (!open || due.is_some_and(|due| due <= Instant::now()));
            tokio::select! {
                biased;
                () = self.give_up.cancelled() => return,
                turn = turns.next(full.is_some()), if ready => {
                    let Some(turn) = turn else { return };
                    let gathered = full.take().unwrap_or_else(|| filling.take());
                    if !turns.hand_over(gathered, turn).await {
                        return;
                    }
                    yield_now().await;
                }
                // Few and small; before the source, which may never be empty.
                Some(events) = self.own.recv(), if open && full.is_none() => {
                    self.count_events(&events);
                    filling.push_own(events, intake.newest, self.shared.now(), Instant::now());
                }
                more = source.take(&mut intake.incoming, PORTION_BYTES.min(filling.room().max(1))), if open && full.is_none() => {
                    open = more;
                    self.read(&mut intake, &mut filling);
                    yield_now().await;
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

    /// Reads messages as far as the batch takes them.
    fn read(&mut self, intake: &mut Intake, filling: &mut Filling) {
        let settings = Arc::clone(&self.settings.borrow_and_update());
        let Intake {
            incoming,
            reading,
            newest,
        } = intake;
        while let Some(message) = incoming.pop_front_if(|message| filling.takes(message)) {
            *newest = message.tag;
            reading.read(&message, &settings.payloads, &self.limits);
            self.count(reading);
            filling.push(message, &mut reading.decoded, Instant::now());
        }
    }

    fn count(&self, reading: &Reading) {
        let live = self.shared.is_caught_up();
        let metrics = &self.shared.metrics;
        let replayed = {
            let mut workers = self.shared.workers();
            for event in reading.events() {
                workers.observe(event, live);
                for repair in event.repairs.iter() {
                    metrics.repaired(repair);
                }
            }
            workers.take_replayed()
        };
        if replayed {
            self.shared.unsettled();
        }
        self.count_events(reading.events());
        for event in reading.events().filter(|event| event.kind == EventKind::TaskSent) {
            if let Some(queue) = event.queue.as_deref() {
                self.shared.queue_seen(queue);
            }
        }
        for reject in &reading.decoded.rejects {
            metrics.rejected(reject.reason, reject.count);
        }
    }

    fn count_events<'e>(&self, events: impl IntoIterator<Item = &'e Event>) {
        let mut counts = [0_u64; EventKind::ALL.len()];
        for event in events {
            if let Some(count) = counts.get_mut(event.kind as usize) {
                *count += 1;
            }
        }
        for (kind, count) in EventKind::ALL.into_iter().zip(counts) {
            if count > 0 {
                self.shared.metrics.events(kind, count);
            }
        }
    }
}

const IDLE: std::time::Duration = std::time::Duration::from_secs(1);

async fn sleep_until(due: Option<Instant>) {
    if let Some(due) = due {
        tokio::time::sleep_until(due.into()).await;
    }
}
