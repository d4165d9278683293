//! Where Redis messages wait: a ring in memory, then the disk spool. Both are bounded in bytes.
//!
//! Redis cuts a subscriber that falls behind, so the reader never pauses: [`Buffer::push`] does not wait. A store that is
//! slow or away fills the ring, then the spool; once something lies in the spool everything newer goes there too, so that
//! order is kept, until it was read back. When the spool is full as well, the newest messages are dropped, counted, and
//! the span becomes a gap.
//!
//! While another monitor writes, this one stands by: its ring drops the oldest, which that one has long stored, and knows
//! since when it is whole.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use kanchi_broker::{Gap, GapCause};
use kanchi_domain::UnixMicros;
use tokio::sync::Notify;

use crate::intake::message::digest_of;
use crate::intake::spool::{Appended, Position, Spool};

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
    /// An earlier process, or the monitor that wrote before, may have committed it already.
    pub maybe_stored: bool,
    /// A later process may read it again from the spool, or another monitor has it, too.
    pub may_repeat: bool,
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
    /// Messages are missing of which nobody has [taken](Buffer::take_gaps) the gap yet.
    pub hides_gap: bool,
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
    /// When the newest message arrived that was taken out.
    taken_until: Option<UnixMicros>,
    /// Since then the spool has lost messages: a segment that this process wrote could not be read back. What an earlier process wrote
    /// lies in the gap that its end has left.
    damaged_since: Option<UnixMicros>,
    gaps: Vec<Gap>,
    closed: bool,
    /// Another monitor writes.
    standing_by: bool,
    /// Another monitor may read the same: digests must be kept.
    keep_digests: bool,
    /// Standing by: since when nothing is missing in the ring. `None`: there was no connection yet.
    whole_since: Option<UnixMicros>,
    /// What arrived until then may have been stored by the monitor that wrote before.
    doubtful_until: UnixMicros,
    /// A gap begins here and ends with the first connection.
    owed: Option<UnixMicros>,
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
                taken_until: None,
                damaged_since: None,
                gaps: Vec::new(),
                closed: false,
                standing_by: false,
                keep_digests: false,
                whole_since: None,
                doubtful_until: UnixMicros(i64::MIN),
                owed: None,
            }),
            filled: Notify::new(),
        }
    }

    /// Makes the buffer of a monitor that stands by: the newest `ring_budget` bytes are kept, in memory alone. Nobody reads
    /// it before [`Self::begin_writing`].
    pub fn standing_by(ring_budget: usize) -> Self {
        let buffer = Self::new(ring_budget, None);
        buffer.lock().standing_by = true;
        buffer
    }

    /// Another monitor may read the same: digests of all messages must be kept from now on, not only of spooled ones. For
    /// good: that monitor may still be there when the configuration does not know it any more.
    pub fn keep_digests(&self) {
        self.lock().keep_digests = true;
    }

    /// The other monitor keeps no digests: what it may have stored until now cannot be told from what is new.
    pub fn forget(&self, now: UnixMicros) {
        let mut inner = self.lock();
        if inner.standing_by {
            inner.ring.clear();
            inner.ring_bytes = 0;
            inner.whole_since = inner.whole_since.map(|since| since.max(now));
        }
    }

    /// This monitor writes from now on. What waits, and what arrives until `doubtful_until`, may have been stored by the one
    /// before; where the spool holds records of an earlier process, what waits goes behind them. Returns since when the
    /// ring is whole; `None`: there was no connection yet.
    pub fn begin_writing(
        &self,
        ring_budget: usize,
        spool: Option<Spool>,
        doubtful_until: UnixMicros,
    ) -> Option<UnixMicros> {
        let mut inner = self.lock();
        inner.standing_by = false;
        inner.doubtful_until = doubtful_until;
        // Without a spool nothing takes what is beyond the budget.
        if let Some(spool) = spool {
            inner.ring_budget = ring_budget;
            let replays = spool.unread_bytes() > 0;
            inner.spool = Some(spool);
            if replays {
                inner.ring_bytes = 0;
                for (arrived, body) in std::mem::take(&mut inner.ring) {
                    inner.push(arrived, body);
                }
            }
        }
        let since = inner.whole_since;
        drop(inner);
        self.filled.notify_one();
        since
    }

    /// Returns since when nothing is missing in the ring of a monitor that stands by.
    pub fn whole_since(&self) -> Option<UnixMicros> {
        self.lock().whole_since
    }

    /// Tells whether one of the messages behind which nothing is missing in the ring has one of these digests.
    pub fn holds_any(&self, digests: &HashSet<u128>) -> bool {
        let inner = self.lock();
        let Some(since) = inner.whole_since else { return false };
        let whole = inner.ring.iter().filter(|(arrived, _)| *arrived >= since);
        whole.into_iter().any(|(_, body)| digests.contains(&digest_of(body)))
    }

    /// The stream lost something. Tells whether that is no gap, because another monitor writes.
    pub fn hides(&self, gap: &Gap) -> bool {
        let mut inner = self.lock();
        if inner.standing_by {
            inner.whole_since = inner.whole_since.max(gap.to);
        }
        inner.standing_by
    }

    /// The connection stands; returns the gap that ends with that.
    pub fn connected(&self, at: UnixMicros) -> Option<Gap> {
        let mut inner = self.lock();
        inner.whole_since.get_or_insert(at);
        let from = inner.owed.take()?;
        Some(restart_gap(from, at))
    }

    /// A gap begins at `from` and ends when the ring is whole: returns it if it is, else it is told with the connection.
    pub fn gap_from(&self, from: UnixMicros) -> Option<Gap> {
        let mut inner = self.lock();
        let to = inner.whole_since;
        inner.owed = to.is_none().then_some(from);
        to.map(|to| restart_gap(from, to))
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

    /// Returns the gaps that dropping and damage have made since the last call. One still open ends at `now` if nothing waits any
    /// more, although nothing came since, or if this is the `end`.
    pub fn take_gaps(&self, now: UnixMicros, end: bool) -> Vec<Gap> {
        let mut inner = self.lock();
        let unread = inner.spool.as_ref().map_or(0, Spool::unread_bytes);
        if end || (inner.ring.is_empty() && unread == 0) {
            inner.end_dropping(now);
            inner.end_damage(now);
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
            hides_gap: inner.damaged_since.is_some() || !inner.gaps.is_empty(),
            oldest: inner.ring.front().map(|(arrived, _)| *arrived),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Between what one monitor stored and what the next one heard. The clocks of their pods may differ.
fn restart_gap(from: UnixMicros, to: UnixMicros) -> Gap {
    Gap {
        from: from.min(to),
        to: Some(to),
        cause: GapCause::MonitorRestart,
        estimated_events: None,
    }
}

impl Inner {
    fn push(&mut self, arrived: UnixMicros, body: Bytes) {
        let size = body.len() + ENTRY_OVERHEAD;
        if self.standing_by {
            self.ring_bytes += size;
            self.ring.push_back((arrived, body));
            self.drop_oldest();
            return;
        }
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

    fn drop_oldest(&mut self) {
        while self.ring_bytes > self.ring_budget && self.ring.len() > 1 {
            let Some((arrived, body)) = self.ring.pop_front() else {
                return;
            };
            self.ring_bytes = self.ring_bytes.saturating_sub(body.len() + ENTRY_OVERHEAD);
            self.whole_since = self.whole_since.max(Some(arrived));
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
            self.taken_until = Some(arrived);
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
                maybe_stored: replayed || arrived <= self.doubtful_until,
                may_repeat: spooled || self.keep_digests,
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
            self.end_damage(arrived);
            return Some((arrived, body, false, None));
        }
        let spool = self.spool.as_mut()?;
        let damaged = spool.own_damaged_segments();
        let record = loop {
            match spool.read_next() {
                Ok(record) => break record,
                Err(error) => {
                    tracing::error!(%error, "the spool cannot be read; its segment is given up");
                    spool.skip_segment();
                }
            }
        };
        if spool.own_damaged_segments() > damaged {
            self.damaged_since = self.damaged_since.or(self.taken_until);
        }
        let record = record?;
        let arrived = UnixMicros(record.arrived);
        self.end_damage(arrived);
        Some((arrived, record.body, record.replayed, Some(record.position)))
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

    fn end_damage(&mut self, to: UnixMicros) {
        if let Some(from) = self.damaged_since.take() {
            self.gaps.push(Gap {
                from: from.min(to),
                to: Some(to),
                cause: GapCause::SpoolDamaged,
                estimated_events: None,
            });
        }
    }
}

#[cfg(test)]
mod tests;
