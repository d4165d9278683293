//! Where Redis messages wait: a ring in memory, then the disk spool. Both are bounded in bytes.
//!
//! Redis cuts a subscriber that falls behind, so the reader never pauses: [`Buffer::push`] does not wait. A store that is
//! slow or away fills the ring, then the spool; once something lies in the spool everything newer goes there too, so that
//! order is kept, until it was read back. When the spool is full as well, the newest messages are dropped, counted, and
//! the span becomes a gap.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use kanchi_broker::{Gap, GapCause};
use kanchi_domain::UnixMicros;
use tokio::sync::Notify;

use crate::spool::{Appended, Position, Spool};

/// Bytes that a waiting message takes besides its body.
const ENTRY_OVERHEAD: usize = 64;

/// A message that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Grows with each message taken out; what the pipeline acknowledges.
    pub tag: u64,
    /// The message as published.
    pub body: Bytes,
    /// When it was read from the connection.
    pub arrived: UnixMicros,
    /// It comes from the spool of an earlier process and may be committed already.
    pub replayed: bool,
    /// It comes from the spool: a later process may read it again.
    pub spooled: bool,
}

/// How full the buffer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    /// Bytes in memory.
    pub ring_bytes: u64,
    /// Bytes on disk, committed ones in segments that are not yet deleted included.
    pub spool_bytes: u64,
    /// Bytes that nobody has taken out yet.
    pub waiting_bytes: u64,
    /// Messages dropped so far because both were full.
    pub dropped: u64,
    /// Damaged segments met so far.
    pub damaged_segments: u64,
    /// Arrival of the oldest message in the ring.
    pub oldest: Option<UnixMicros>,
}

/// Ring and spool.
#[derive(Debug)]
pub struct Buffer {
    inner: Mutex<Inner>,
    filled: Notify,
}

#[derive(Debug)]
struct Inner {
    ring: VecDeque<(UnixMicros, Bytes)>,
    ring_bytes: usize,
    ring_budget: usize,
    /// `None` where no disk can be used: then only the ring buffers.
    spool: Option<Spool>,
    /// Messages read from the spool and not yet committed: which tag lies where.
    uncommitted: VecDeque<(u64, Position)>,
    next_tag: u64,
    dropped: u64,
    dropping: Option<Dropping>,
    gaps: Vec<Gap>,
    closed: bool,
}

#[derive(Debug)]
struct Dropping {
    from: UnixMicros,
    messages: u64,
}

impl Buffer {
    /// Makes a buffer; the spool's old messages come out first.
    pub fn new(ring_budget: usize, spool: Option<Spool>) -> Self {
        Self {
            inner: Mutex::new(Inner {
                ring: VecDeque::new(),
                ring_bytes: 0,
                ring_budget,
                spool,
                uncommitted: VecDeque::new(),
                next_tag: 1,
                dropped: 0,
                dropping: None,
                gaps: Vec::new(),
                closed: false,
            }),
            filled: Notify::new(),
        }
    }

    /// Takes a message without ever waiting for its reader.
    pub fn push(&self, arrived: UnixMicros, body: Bytes) {
        self.lock().push(arrived, body);
        self.filled.notify_one();
    }

    /// Nothing more will be pushed: readers end once it is empty.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        if let Some(spool) = inner.spool.as_mut()
            && let Err(error) = spool.flush()
        {
            tracing::warn!(%error, "the end of the spool was not written");
        }
        drop(inner);
        self.filled.notify_one();
    }

    /// Writes buffered spool records to their file; called when the stream pauses.
    pub fn flush(&self) {
        if let Some(spool) = self.lock().spool.as_mut()
            && let Err(error) = spool.flush()
        {
            tracing::warn!(%error, "the spool could not be flushed");
        }
    }

    /// Appends what waits to `into`, at least one message and at most about `max_bytes`; waits for the first. Returns
    /// `false` at the end. Cancel-safe: a message is taken only when it is handed over.
    pub async fn take(&self, into: &mut Vec<Waiting>, max_bytes: usize) -> bool {
        loop {
            let filled = self.filled.notified();
            let (taken, closed) = {
                let mut inner = self.lock();
                (inner.take(into, max_bytes), inner.closed)
            };
            if taken > 0 {
                return true;
            }
            if closed {
                return false;
            }
            filled.await;
        }
    }

    /// Everything up to this tag is committed: the spool may forget it.
    pub fn release_through(&self, tag: u64) {
        let mut inner = self.lock();
        let mut last = None;
        while let Some((oldest, position)) = inner.uncommitted.front().copied() {
            if oldest > tag {
                break;
            }
            inner.uncommitted.pop_front();
            last = Some(position);
        }
        if let (Some(position), Some(spool)) = (last, inner.spool.as_mut()) {
            spool.release_through(position);
        }
    }

    /// Returns the gaps that dropping has made since the last call; one still open ends at `now`.
    pub fn take_gaps(&self, now: UnixMicros, end: bool) -> Vec<Gap> {
        let mut inner = self.lock();
        if end {
            inner.end_dropping(now);
        }
        std::mem::take(&mut inner.gaps)
    }

    /// Returns how full it is.
    pub fn fill(&self) -> Fill {
        let inner = self.lock();
        let (spool_bytes, unread, damaged) = inner.spool.as_ref().map_or((0, 0, 0), |spool| {
            (spool.bytes(), spool.unread_bytes(), spool.damaged_segments())
        });
        Fill {
            ring_bytes: inner.ring_bytes as u64,
            spool_bytes,
            waiting_bytes: inner.ring_bytes as u64 + unread,
            dropped: inner.dropped,
            damaged_segments: damaged,
            oldest: inner.ring.front().map(|(arrived, _)| *arrived),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn push(&mut self, arrived: UnixMicros, body: Bytes) {
        let size = body.len() + ENTRY_OVERHEAD;
        let spooling = self.spool.as_ref().is_some_and(|spool| spool.unread_bytes() > 0);
        // Without a spool a message larger than the ring is still taken when nothing else waits.
        let alone = self.spool.is_none() && self.ring.is_empty();
        if !spooling && (self.ring_bytes + size <= self.ring_budget || alone) {
            self.end_dropping(arrived);
            self.ring_bytes += size;
            self.ring.push_back((arrived, body));
            return;
        }
        match self.spool.as_mut().map(|spool| spool.append(arrived.0, &body)) {
            Some(Ok(Appended::Stored)) => self.end_dropping(arrived),
            Some(Ok(Appended::Full)) | None => self.drop_newest(arrived),
            Some(Err(error)) => {
                if self.dropping.is_none() {
                    tracing::error!(%error, "the spool cannot be written; events are being dropped");
                }
                self.drop_newest(arrived);
            }
        }
    }

    fn take(&mut self, into: &mut Vec<Waiting>, max_bytes: usize) -> usize {
        let (mut taken, mut bytes) = (0, 0);
        while taken == 0 || bytes < max_bytes {
            let Some((arrived, body, replayed, position)) = self.pop() else {
                break;
            };
            bytes += body.len();
            taken += 1;
            let tag = self.next_tag;
            self.next_tag += 1;
            let spooled = position.is_some();
            if let Some(position) = position {
                self.uncommitted.push_back((tag, position));
            }
            into.push(Waiting {
                tag,
                body,
                arrived,
                replayed,
                spooled,
            });
        }
        taken
    }

    fn pop(&mut self) -> Option<(UnixMicros, Bytes, bool, Option<Position>)> {
        // The ring is filled only while nothing in the spool is unread: what it holds is older than what the spool holds,
        // and it stays empty until the records of an earlier process were read.
        if let Some((arrived, body)) = self.ring.pop_front() {
            self.ring_bytes = self.ring_bytes.saturating_sub(body.len() + ENTRY_OVERHEAD);
            if self.ring.is_empty() {
                self.ring.shrink_to(1024);
            }
            return Some((arrived, body, false, None));
        }
        match self.spool.as_mut()?.read_next() {
            Ok(record) => record.map(|record| {
                (
                    UnixMicros(record.arrived),
                    record.body,
                    record.replayed,
                    Some(record.position),
                )
            }),
            Err(error) => {
                tracing::error!(%error, "the spool cannot be read; its segment is given up");
                self.spool.as_mut()?.skip_segment();
                None
            }
        }
    }

    fn drop_newest(&mut self, arrived: UnixMicros) {
        self.dropped += 1;
        let dropping = self.dropping.get_or_insert_with(|| {
            tracing::error!("ring and spool are full: the newest events are dropped and a gap is recorded");
            Dropping {
                from: arrived,
                messages: 0,
            }
        });
        dropping.messages += 1;
    }

    fn end_dropping(&mut self, now: UnixMicros) {
        if let Some(dropping) = self.dropping.take() {
            self.gaps.push(Gap {
                from: dropping.from,
                to: Some(now),
                cause: GapCause::SpoolFull,
                estimated_events: Some(dropping.messages),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::SpoolOptions;

    fn spool(directory: &tempfile::TempDir, max_bytes: u64) -> Spool {
        let directory = directory.path().to_owned();
        Spool::open(SpoolOptions {
            directory,
            max_bytes,
            segment_bytes: 4096,
        })
        .unwrap()
    }

    fn push(buffer: &Buffer, from: i64, to: i64) {
        for number in from..to {
            buffer.push(UnixMicros(number), Bytes::from(vec![7; 200]));
        }
    }

    async fn take_all(buffer: &Buffer) -> Vec<Waiting> {
        let mut all = Vec::new();
        while buffer.fill().waiting_bytes > 0 && buffer.take(&mut all, 1000).await {}
        all
    }

    #[tokio::test]
    async fn keeps_order_from_ring_through_spool_and_back_to_the_ring() {
        let directory = tempfile::tempdir().unwrap();
        let buffer = Buffer::new(2_000, Some(spool(&directory, 1 << 20)));
        push(&buffer, 0, 50);
        let fill = buffer.fill();
        assert!(fill.ring_bytes <= 2_000 && fill.spool_bytes > 0, "{fill:?}");
        let mut taken = Vec::new();
        assert!(buffer.take(&mut taken, 5_000).await);
        // The ring has room again, but older messages lie in the spool: newer ones must queue behind them.
        push(&buffer, 50, 60);
        taken.extend(take_all(&buffer).await);
        let arrived: Vec<_> = taken.iter().map(|message| message.arrived.0).collect();
        assert_eq!(arrived, (0..60).collect::<Vec<_>>());
        assert!(taken.windows(2).all(|pair| pair[0].tag < pair[1].tag));
        buffer.release_through(taken.last().unwrap().tag);
        assert_eq!(buffer.fill().spool_bytes, 0);
        push(&buffer, 60, 61);
        assert_eq!(buffer.fill().spool_bytes, 0, "back to memory");
    }

    #[tokio::test]
    async fn drops_the_newest_when_all_is_full_and_tells_the_gap() {
        let directory = tempfile::tempdir().unwrap();
        let buffer = Buffer::new(1_000, Some(spool(&directory, 10_000)));
        push(&buffer, 0, 100);
        let dropped = buffer.fill().dropped;
        assert!(dropped > 0);
        let taken = take_all(&buffer).await;
        assert_eq!(taken.len() as u64 + dropped, 100);
        assert_eq!(
            taken.last().unwrap().arrived.0,
            taken.len() as i64 - 1,
            "the oldest are kept"
        );
        assert!(buffer.take_gaps(UnixMicros(100), false).is_empty(), "still open");
        buffer.release_through(taken.last().unwrap().tag);
        push(&buffer, 100, 101);
        let gaps = buffer.take_gaps(UnixMicros(101), false);
        assert_eq!(gaps.len(), 1);
        assert_eq!(gaps[0].from.0, taken.len() as i64);
        assert_eq!(
            (gaps[0].to, gaps[0].estimated_events),
            (Some(UnixMicros(100)), Some(dropped))
        );
        assert_eq!(gaps[0].cause, GapCause::SpoolFull);
    }

    #[tokio::test]
    async fn replays_the_old_spool_before_anything_new() {
        let directory = tempfile::tempdir().unwrap();
        let buffer = Buffer::new(500, Some(spool(&directory, 1 << 20)));
        push(&buffer, 0, 20);
        buffer.close();
        drop(buffer);
        let buffer = Buffer::new(1 << 20, Some(spool(&directory, 1 << 20)));
        push(&buffer, 20, 25);
        let taken = take_all(&buffer).await;
        let arrived: Vec<_> = taken.iter().map(|message| message.arrived.0).collect();
        // 0 and 1 were in the ring of the process that ended: a restart is a gap on Redis.
        assert_eq!(arrived.last(), Some(&24));
        assert!(arrived.windows(2).all(|pair| pair[0] < pair[1]), "{arrived:?}");
        assert!(
            taken
                .iter()
                .filter(|message| message.arrived.0 < 20)
                .all(|message| message.replayed)
        );
        assert!(
            taken
                .iter()
                .filter(|message| message.arrived.0 >= 20)
                .all(|message| !message.replayed)
        );
    }

    #[tokio::test]
    async fn takes_even_a_message_that_is_larger_than_the_ring() {
        let directory = tempfile::tempdir().unwrap();
        for buffer in [
            Buffer::new(100, Some(spool(&directory, 1 << 20))),
            Buffer::new(100, None),
        ] {
            buffer.push(UnixMicros(1), Bytes::from(vec![1; 10_000]));
            let mut taken = Vec::new();
            assert!(buffer.take(&mut taken, 10).await);
            assert_eq!(taken.len(), 1);
            buffer.release_through(taken[0].tag);
        }
    }

    #[tokio::test]
    async fn ends_when_closed_and_empty() {
        let buffer = Buffer::new(1_000, None);
        push(&buffer, 0, 2);
        buffer.close();
        let mut taken = Vec::new();
        assert!(buffer.take(&mut taken, 1).await);
        assert!(buffer.take(&mut taken, 1).await);
        assert!(!buffer.take(&mut taken, 1).await);
        assert_eq!(taken.len(), 2);
    }
}
