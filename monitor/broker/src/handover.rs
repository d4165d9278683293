//! Between the task that reads from the broker and the one that ingests: a queue bounded in bytes, and the way back for
//! acknowledgements.
//!
//! RabbitMQ: the bound is kept by the prefetch and, for a sudden run of large messages, by pausing the socket
//! ([`Ledger`]). Redis: reading must never pause, so what does not fit is dropped, counted, and becomes a gap.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::report::{Gap, GapCause};
use crate::stream::{Delivery, DeliveryTag, StreamItem};
use crate::time::now;
use kanchi_domain::UnixMicros;

/// Takes a lock whose holder cannot leave it half-changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is taken no longer counts against the bound, so large messages are taken one by one.
const TAKEN_BYTES: usize = 1024 * 1024;

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

    /// Appends news of completeness, in the place of the last if nothing came since: they do not pile up.
    pub(crate) fn complete(&self, until: UnixMicros) {
        let mut items = lock(&self.items);
        // What is dropped just now is told as a gap later, in front of the next that fits.
        let until = items.dropped_since.map_or(until, |since| until.min(since));
        match items.queue.back_mut() {
            Some(StreamItem::Complete(last)) => *last = until,
            _ => items.queue.push_back(StreamItem::Complete(until)),
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

    /// Moves up to `limit` items, and no more than about [`TAKEN_BYTES`] of them; returns 0 once closed and empty.
    pub(crate) async fn take(&self, into: &mut Vec<StreamItem>, limit: usize) -> usize {
        loop {
            {
                let mut items = lock(&self.items);
                let (mut count, mut taken) = (0, 0);
                while count < limit.max(1)
                    && taken < TAKEN_BYTES
                    && let Some(item) = items.queue.pop_front()
                {
                    taken += size(&item);
                    count += 1;
                    into.push(item);
                }
                if count > 0 {
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
        StreamItem::Gap(_) | StreamItem::Connection(_) | StreamItem::Complete(_) => 0,
    }
}

/// Bytes between the socket and the last acknowledgement, on RabbitMQ.
///
/// `held` is exact: deliveries handed out and not acknowledged; `foreign` is the part of it that earlier channels handed
/// out. `buffered` is what the client library has read and not delivered yet; it is known to be nothing whenever the
/// library has nothing more to deliver.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    state: Mutex<LedgerState>,
}

#[derive(Debug, Default)]
struct LedgerState {
    unacked: VecDeque<(DeliveryTag, usize)>,
    held: usize,
    foreign: usize,
    /// Tags up to this one are foreign.
    base: u64,
    outstanding: Outstanding,
    buffered: usize,
    cap: usize,
    paused: Option<(Waker, Instant)>,
}

/// What the broker has handed out on the present channel and not heard back of.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outstanding {
    /// The newest tag delivered.
    pub(crate) newest: u64,
    /// The broker knows of these.
    pub(crate) acknowledged: u64,
    /// How many may be outstanding.
    pub(crate) prefetch: u64,
    /// Messages may wait at the broker.
    pub(crate) is_behind: bool,
}

impl Outstanding {
    pub(crate) const fn count(&self) -> u64 {
        self.newest.saturating_sub(self.acknowledged)
    }
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

    /// A new channel begins behind this tag: what is held now stays held, but will come a second time.
    pub(crate) fn begin(&self, base: u64) {
        let mut state = lock(&self.state);
        state.base = base;
        state.outstanding = Outstanding {
            newest: base,
            acknowledged: base,
            ..Outstanding::default()
        };
        state.foreign = state.held;
        state.buffered = 0;
        state.paused = None;
    }

    pub(crate) fn delivered(&self, tag: DeliveryTag, bytes: usize) {
        let mut state = lock(&self.state);
        state.unacked.push_back((tag, bytes));
        state.held += bytes;
        state.outstanding.newest = tag.0;
    }

    /// The broker may hand out so many; more may wait there.
    pub(crate) fn window(&self, prefetch: u16, is_behind: bool) {
        let mut state = lock(&self.state);
        state.outstanding.prefetch = u64::from(prefetch);
        state.outstanding.is_behind = is_behind;
    }

    /// The broker was told that it may forget all through this tag.
    pub(crate) fn told(&self, through: u64) {
        lock(&self.state).outstanding.acknowledged = through;
    }

    pub(crate) fn outstanding(&self) -> Outstanding {
        lock(&self.state).outstanding
    }

    pub(crate) fn acknowledged(&self, tag: DeliveryTag) {
        let mut state = lock(&self.state);
        while let Some(&(first, bytes)) = state.unacked.front() {
            if first > tag {
                break;
            }
            state.unacked.pop_front();
            state.held = state.held.saturating_sub(bytes);
            if first.0 <= state.base {
                state.foreign = state.foreign.saturating_sub(bytes);
            }
        }
        Self::resume(state);
    }

    /// The client library has handed over all it has read.
    pub(crate) fn drained(&self) {
        let mut state = lock(&self.state);
        state.buffered = 0;
        Self::resume(state);
    }

    fn resume(mut state: MutexGuard<'_, LedgerState>) {
        if state.may_read()
            && let Some((waker, _since)) = state.paused.take()
        {
            drop(state);
            waker.wake();
        }
    }

    /// Returns bytes held, bytes of them that earlier channels handed out, and the number of deliveries held.
    pub(crate) fn held(&self) -> (usize, usize, usize) {
        let state = lock(&self.state);
        (state.held, state.foreign, state.unacked.len())
    }

    /// Whether the socket may be read; if not, the waker is called when it may again.
    pub(crate) fn may_read(&self, waker: &Waker) -> bool {
        let mut state = lock(&self.state);
        if state.may_read() {
            return true;
        }
        let since = state
            .paused
            .as_ref()
            .map_or_else(Instant::now, |(_waker, since)| *since);
        state.paused = Some((waker.clone(), since));
        false
    }

    pub(crate) fn read(&self, bytes: usize) {
        lock(&self.state).buffered += bytes;
    }

    /// Returns for how long the socket has not been read.
    pub(crate) fn paused_for(&self) -> Duration {
        lock(&self.state)
            .paused
            .as_ref()
            .map_or(Duration::ZERO, |(_waker, since)| since.elapsed())
    }
}

impl LedgerState {
    /// While a channel holds nothing of its own it may read on: a message larger than the cap must pass, and a channel
    /// that opens while much is still held must hear the broker.
    fn may_read(&self) -> bool {
        let own = self.held.saturating_sub(self.foreign);
        let room = self.cap.saturating_sub(self.foreign).max(self.cap / 4);
        own == 0 || own + self.buffered <= room
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
    async fn large_messages_are_taken_one_by_one() {
        let handover = Handover::default();
        handover.push((0..3).map(|tag| delivery(tag, TAKEN_BYTES)));
        let mut taken = Vec::new();
        assert_eq!(handover.take(&mut taken, 100).await, 1);
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
        assert_eq!(ledger.held(), (600, 0, 1));
        assert!(ledger.may_read(waker));
        assert_eq!(ledger.paused_for(), Duration::ZERO);
    }

    #[test]
    fn what_an_earlier_channel_holds_leaves_less_room_and_never_deafens_the_next() {
        let ledger = Ledger::new(1000);
        let waker = Waker::noop();
        ledger.delivered(DeliveryTag(1), 5000);
        assert!(!ledger.may_read(waker));
        ledger.begin(1);
        assert!(ledger.may_read(waker));
        ledger.delivered(DeliveryTag(2), 200);
        assert!(ledger.may_read(waker));
        ledger.delivered(DeliveryTag(3), 200);
        assert!(!ledger.may_read(waker));
        ledger.acknowledged(DeliveryTag(1));
        assert_eq!(ledger.held(), (400, 0, 2));
        assert!(ledger.may_read(waker));
    }
}
