//! The batch that is being filled: when it is full, and when it is due. Pure.

use std::time::{Duration, Instant};

use kanchi_domain::{Decoded, Event, UnixMicros};

use crate::intake::gather::{Gathered, Gathering, LARGE};
use crate::intake::message::Message;

/// Bounds of a batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Events after which no more messages are taken in.
    pub max_events: u64,
    /// Messages after which no more are taken in.
    pub max_messages: u64,
    /// Bytes of memory after which no more messages are taken in.
    pub max_bytes: usize,
    /// A quiet broker's events wait at most so long.
    pub linger: Duration,
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self {
            // A commit costs about the same for 10 or 10,000 events; beyond that latency grows and nothing is gained.
            max_events: 8_192,
            max_messages: 8_192,
            // Three are in memory at most. Smaller ones cost more: at every border tasks take the way through the live table.
            max_bytes: 5 * 1024 * 1024,
            // The promise is 250 ms to the commit; the commit itself takes some of it.
            linger: Duration::from_millis(100),
        }
    }
}

/// The batch that is being filled.
#[derive(Debug)]
pub struct Filling {
    limits: BatchLimits,
    gathering: Gathering,
    since: Option<Instant>,
    /// Nothing more comes before the batch is stored.
    hurried: bool,
}

impl Filling {
    /// Returns an empty batch.
    pub fn new(limits: BatchLimits) -> Self {
        Self {
            limits,
            gathering: Gathering::default(),
            since: None,
            hurried: false,
        }
    }

    /// Tells whether a message may come into this batch. A large one comes alone: it uses up what the broker lets us hold.
    pub fn takes(&self, message: &Message) -> bool {
        !self.is_full() && (message.body.len() <= LARGE || self.is_empty()) && self.gathering.suits(message)
    }

    /// Adds a message and what was read of it.
    pub fn push(&mut self, message: Message, decoded: &mut Decoded, now: Instant) {
        self.since.get_or_insert(now);
        self.hurried |= message.body.len() > LARGE;
        self.gathering.push(message, decoded);
    }

    /// Adds events of our own. `tag`: that of the message read last, which stays the newest.
    pub fn push_own(&mut self, events: Vec<Event>, tag: u64, at: UnixMicros, now: Instant) {
        self.since.get_or_insert(now);
        self.gathering.push_own(events, tag, at);
    }

    /// Tells whether no more messages should be taken in.
    pub const fn is_full(&self) -> bool {
        self.hurried
            || self.gathering.events() >= self.limits.max_events
            || self.gathering.messages() >= self.limits.max_messages
            || self.gathering.bytes() >= self.limits.max_bytes
    }

    /// Tells whether nothing is in.
    pub const fn is_empty(&self) -> bool {
        self.gathering.is_empty()
    }

    /// Returns when the batch is due: at once when it is full, after the linger else; `None` while it is empty.
    pub fn due(&self) -> Option<Instant> {
        let since = self.since?;
        Some(if self.is_full() {
            since
        } else {
            since + self.limits.linger
        })
    }

    /// Returns how many bytes may still be taken in.
    pub const fn room(&self) -> usize {
        self.limits.max_bytes.saturating_sub(self.gathering.bytes())
    }

    /// Takes everything out.
    pub fn take(&mut self) -> Gathered {
        self.since = None;
        self.hurried = false;
        self.gathering.finish()
    }

    /// Takes out a batch that others will follow at once: its youngest tasks may stay, to be stored with the rest of their
    /// lives. They are due after the linger like all else.
    pub fn take_full(&mut self, now: Instant) -> Gathered {
        self.hurried = false;
        let full = self.gathering.finish_but_young();
        self.since = (!self.is_empty()).then_some(now);
        full
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kanchi_broker::Framing;
    use kanchi_domain::UnixMicros;

    fn message(bytes: usize) -> Message {
        Message {
            tag: 1,
            maybe_stored: false,
            may_repeat: false,
            arrived: UnixMicros(0),
            body: vec![b' '; bytes].into(),
            framing: Framing::Envelope,
        }
    }

    fn push(filling: &mut Filling, bytes: usize, now: Instant) {
        filling.push(message(bytes), &mut Decoded::default(), now);
    }

    fn limits() -> BatchLimits {
        BatchLimits {
            max_events: 10,
            max_messages: 3,
            max_bytes: 1000,
            linger: Duration::from_millis(100),
        }
    }

    #[test]
    fn is_due_after_the_linger_of_its_first_message() {
        let mut filling = Filling::new(limits());
        let start = Instant::now();
        assert_eq!(filling.due(), None);
        push(&mut filling, 10, start);
        push(&mut filling, 10, start + Duration::from_millis(90));
        assert_eq!(filling.due(), Some(start + Duration::from_millis(100)));
        assert_eq!(filling.take().receipt.messages, 2);
        assert_eq!(filling.due(), None);
    }

    #[test]
    fn is_due_at_once_when_full_by_bytes_or_by_count() {
        let start = Instant::now();
        let mut by_bytes = Filling::new(limits());
        let kept = Message {
            maybe_stored: true,
            ..message(1000)
        };
        by_bytes.push(kept, &mut Decoded::default(), start);
        assert!(by_bytes.is_full() && by_bytes.due() == Some(start) && by_bytes.room() == 0);
        let mut by_count = Filling::new(limits());
        for _ in 0..3 {
            assert!(!by_count.is_full());
            push(&mut by_count, 1, start);
        }
        assert!(by_count.is_full());
        by_count.take();
        assert!(!by_count.is_full() && by_count.is_empty());
    }

    #[test]
    fn a_large_message_comes_alone() {
        let (start, mut filling) = (Instant::now(), Filling::new(BatchLimits::default()));
        let large = message(LARGE + 1);
        assert!(filling.takes(&large));
        push(&mut filling, 10, start);
        assert!(!filling.takes(&large) && filling.takes(&message(10)));
        filling.take();
        push(&mut filling, LARGE + 1, start);
        assert!(filling.is_full() && !filling.takes(&message(10)));
    }
}
