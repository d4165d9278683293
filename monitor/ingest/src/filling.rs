//! The batch that is being filled: when it is full, and when it is due. Pure.

use std::time::{Duration, Instant};

use crate::prepare::Prepared;

/// Bounds of a batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Events after which no more messages are taken in.
    pub max_events: usize,
    /// Messages after which no more are taken in.
    pub max_messages: usize,
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
            max_bytes: 6 * 1024 * 1024,
            // The promise is 250 ms to the commit; the commit itself takes some of it.
            linger: Duration::from_millis(100),
        }
    }
}

/// The batch that is being filled.
#[derive(Debug)]
pub struct Filling {
    limits: BatchLimits,
    messages: Vec<Prepared>,
    events: usize,
    bytes: usize,
    since: Option<Instant>,
    hurried: bool,
}

impl Filling {
    /// Returns an empty batch.
    pub const fn new(limits: BatchLimits) -> Self {
        Self {
            limits,
            messages: Vec::new(),
            events: 0,
            bytes: 0,
            since: None,
            hurried: false,
        }
    }

    /// Adds a message.
    pub fn push(&mut self, message: Prepared, now: Instant) {
        self.events += message.events.len();
        self.bytes += message.bytes;
        self.since.get_or_insert(now);
        self.messages.push(message);
    }

    /// Nothing more comes before the batch is stored: a large message uses up what the broker lets us hold.
    pub const fn hurry(&mut self) {
        self.hurried = true;
    }

    /// Tells whether no more messages should be taken in.
    pub const fn is_full(&self) -> bool {
        self.hurried
            || self.events >= self.limits.max_events
            || self.messages.len() >= self.limits.max_messages
            || self.bytes >= self.limits.max_bytes
    }

    /// Tells whether nothing is in.
    pub const fn is_empty(&self) -> bool {
        self.messages.is_empty()
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
        self.limits.max_bytes.saturating_sub(self.bytes)
    }

    /// Takes all messages out.
    pub fn take(&mut self) -> Vec<Prepared> {
        self.events = 0;
        self.bytes = 0;
        self.since = None;
        self.hurried = false;
        std::mem::take(&mut self.messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use kanchi_domain::UnixMicros;

    fn message(bytes: usize) -> Prepared {
        Prepared {
            tag: 1,
            own: false,
            maybe_stored: false,
            digest: None,
            arrived: UnixMicros(0),
            events: Vec::new(),
            rejects: Vec::new(),
            head: Bytes::new(),
            bytes,
        }
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
        filling.push(message(10), start);
        filling.push(message(10), start + Duration::from_millis(90));
        assert_eq!(filling.due(), Some(start + Duration::from_millis(100)));
        assert_eq!(filling.take().len(), 2);
        assert_eq!(filling.due(), None);
    }

    #[test]
    fn is_due_at_once_when_full_by_bytes_or_by_count() {
        let start = Instant::now();
        let mut by_bytes = Filling::new(limits());
        by_bytes.push(message(1000), start);
        assert!(by_bytes.is_full() && by_bytes.due() == Some(start) && by_bytes.room() == 0);
        let mut by_count = Filling::new(limits());
        for _ in 0..3 {
            assert!(!by_count.is_full());
            by_count.push(message(1), start);
        }
        assert!(by_count.is_full());
        by_count.take();
        assert!(!by_count.is_full() && by_count.is_empty());
    }
}
