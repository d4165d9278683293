//! Between the task that reads from the broker and the one that ingests: a queue bounded in bytes, and the way back for
//! acknowledgements.
//!
//! RabbitMQ: the bound is kept by the prefetch and, for a sudden run of large messages, by pausing the socket
//! ([`Ledger`]). Redis: reading must never pause, so what does not fit is dropped, counted, and becomes a gap.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use tokio::sync::Notify;

use crate::report::{Gap, GapCause};
use crate::stream::{Delivery, DeliveryTag, StreamItem};
use crate::time::now;
use kanchi_domain::UnixMicros;

/// Takes a lock whose holder cannot leave it half-changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
struct Items {
    queue: VecDeque<StreamItem>,
    bytes: usize,
    dropped: u64,
    dropped_since: Option<UnixMicros>,
    closed: bool,
}

/// The queue itself, shared by reader and ingester.
#[derive(Debug, Default)]
pub(crate) struct Handover {
    items: Mutex<Items>,
    filled: Notify,
    acked: Mutex<Option<DeliveryTag>>,
    pub(crate) ack_arrived: Notify,
}

impl Handover {
    /// Appends items without a bound of its own: the caller keeps it.
    pub(crate) fn push(&self, new: impl IntoIterator<Item = StreamItem>) {
        let mut items = lock(&self.items);
        for item in new {
            items.bytes += size(&item);
            items.queue.push_back(item);
        }
        drop(items);
        self.filled.notify_one();
    }

    /// Appends items up to a bound; what does not fit is dropped and told as one gap in front of the next that fits.
    pub(crate) fn push_bounded(&self, new: impl IntoIterator<Item = StreamItem>, budget: usize) {
        let mut items = lock(&self.items);
        for item in new {
            let size = size(&item);
            if items.bytes > 0 && items.bytes + size > budget {
                items.dropped += 1;
                items.dropped_since.get_or_insert_with(now);
                continue;
            }
            if let Some(from) = items.dropped_since.take() {
                let estimated_events = Some(std::mem::take(&mut items.dropped));
                let gap = Gap {
                    from,
                    to: Some(now()),
                    cause: GapCause::SpoolFull,
                    estimated_events,
                };
                items.queue.push_back(StreamItem::Gap(gap));
            }
            items.bytes += size;
            items.queue.push_back(item);
        }
        drop(items);
        self.filled.notify_one();
    }

    /// Moves up to `limit` items; `None` once closed and empty.
    pub(crate) async fn take(&self, into: &mut Vec<StreamItem>, limit: usize) -> usize {
        loop {
            {
                let mut items = lock(&self.items);
                let count = items.queue.len().min(limit.max(1));
                if count > 0 {
                    let start = into.len();
                    into.extend(items.queue.drain(..count));
                    let taken: usize = into.iter().skip(start).map(size).sum();
                    items.bytes = items.bytes.saturating_sub(taken);
                    if items.queue.is_empty() && items.queue.capacity() > 16_384 {
                        items.queue.shrink_to(1024);
                    }
                    return count;
                }
                if items.closed {
                    return 0;
                }
            }
            self.filled.notified().await;
        }
    }

    pub(crate) fn close(&self) {
        lock(&self.items).closed = true;
        self.filled.notify_one();
    }

    pub(crate) fn acknowledge(&self, tag: DeliveryTag) {
        let mut acked = lock(&self.acked);
        if acked.is_none_or(|old| old < tag) {
            *acked = Some(tag);
        }
        drop(acked);
        self.ack_arrived.notify_one();
    }

    /// The highest tag acknowledged so far.
    pub(crate) fn acknowledged(&self) -> Option<DeliveryTag> {
        *lock(&self.acked)
    }
}

fn size(item: &StreamItem) -> usize {
    match item {
        // A delivery costs more than its bytes; empty messages must not come for free.
        StreamItem::Delivery(delivery) => delivery.body.len() + size_of::<Delivery>(),
        StreamItem::Gap(_) | StreamItem::Connection(_) => 0,
    }
}

/// Bytes between the socket and the last acknowledgement, on RabbitMQ.
///
/// `held` is exact: deliveries handed out and not acknowledged, of earlier connections too. `buffered` is what the client
/// library has read and not delivered yet; it is known to be nothing whenever the library has nothing more to deliver.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    state: Mutex<LedgerState>,
}

#[derive(Debug, Default)]
struct LedgerState {
    unacked: VecDeque<(DeliveryTag, usize)>,
    held: usize,
    buffered: usize,
    cap: usize,
    paused: Option<Waker>,
}

impl Ledger {
    pub(crate) fn new(cap: usize) -> Arc<Self> {
        let state = LedgerState {
            cap,
            ..LedgerState::default()
        };
        Arc::new(Self {
            state: Mutex::new(state),
        })
    }

    pub(crate) fn delivered(&self, tag: DeliveryTag, bytes: usize) {
        let mut state = lock(&self.state);
        state.unacked.push_back((tag, bytes));
        state.held += bytes;
    }

    pub(crate) fn acknowledged(&self, tag: DeliveryTag) {
        let mut state = lock(&self.state);
        while let Some(&(first, bytes)) = state.unacked.front() {
            if first > tag {
                break;
            }
            state.unacked.pop_front();
            state.held = state.held.saturating_sub(bytes);
        }
        Self::wake(state);
    }

    /// The client library has handed over all it has read.
    pub(crate) fn drained(&self) {
        let mut state = lock(&self.state);
        state.buffered = 0;
        Self::wake(state);
    }

    fn wake(mut state: MutexGuard<'_, LedgerState>) {
        let waker = state.paused.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn held(&self) -> usize {
        lock(&self.state).held
    }

    pub(crate) fn unacked(&self) -> usize {
        lock(&self.state).unacked.len()
    }

    /// Whether the socket may be read. While nothing is held it always may: a message larger than the cap must pass.
    pub(crate) fn may_read(&self, waker: &Waker) -> bool {
        let mut state = lock(&self.state);
        if state.held > 0 && state.held + state.buffered > state.cap {
            state.paused = Some(waker.clone());
            return false;
        }
        true
    }

    pub(crate) fn read(&self, bytes: usize) {
        lock(&self.state).buffered += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::Framing;
    use bytes::Bytes;

    fn delivery(tag: u64, bytes: usize) -> StreamItem {
        StreamItem::Delivery(Delivery {
            tag: DeliveryTag(tag),
            redelivered: false,
            arrived: UnixMicros(0),
            body: Bytes::from(vec![0; bytes]),
            framing: Framing::Envelope,
        })
    }

    #[tokio::test]
    async fn what_does_not_fit_is_dropped_and_told_as_one_gap() {
        let handover = Handover::default();
        handover.push_bounded((0..10).map(|tag| delivery(tag, 1000)), 3500);
        let mut taken = Vec::new();
        assert_eq!(handover.take(&mut taken, 100).await, 3);
        handover.push_bounded([delivery(11, 10)], 3500);
        taken.clear();
        assert_eq!(handover.take(&mut taken, 100).await, 2);
        let [StreamItem::Gap(gap), StreamItem::Delivery(after)] = taken.as_slice() else {
            panic!("{taken:?}")
        };
        assert_eq!((gap.cause, gap.estimated_events), (GapCause::SpoolFull, Some(7)));
        assert_eq!(after.tag, DeliveryTag(11));
    }

    #[tokio::test]
    async fn a_message_larger_than_the_budget_passes_when_it_is_alone() {
        let handover = Handover::default();
        handover.push_bounded([delivery(1, 1_000_000)], 1000);
        let mut taken = Vec::new();
        assert_eq!(handover.take(&mut taken, 100).await, 1);
        handover.close();
        assert_eq!(handover.take(&mut taken, 100).await, 0);
    }

    #[test]
    fn the_socket_is_paused_over_the_cap_but_never_while_nothing_is_held() {
        let ledger = Ledger::new(1000);
        let waker = Waker::noop();
        ledger.read(5000);
        assert!(ledger.may_read(waker));
        ledger.delivered(DeliveryTag(1), 600);
        assert!(!ledger.may_read(waker));
        ledger.drained();
        assert!(ledger.may_read(waker));
        ledger.delivered(DeliveryTag(2), 600);
        assert!(!ledger.may_read(waker));
        ledger.acknowledged(DeliveryTag(1));
        assert_eq!((ledger.held(), ledger.unacked()), (600, 1));
        assert!(ledger.may_read(waker));
    }
}
