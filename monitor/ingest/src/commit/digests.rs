//! Which messages are in the store already: asked only for messages that may have been delivered before. What this process has stored
//! itself may come again from RabbitMQ alone: nothing of Redis is read twice by one process.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

/// Messages of this process that are remembered, in 1.6 MiB at most. What is committed and not yet acknowledged at the broker is within
/// the prefetch, which is 10,000 at most.
const REMEMBERED: usize = 24_576;

/// What the store told is forgotten when no redelivered message was seen for so long.
const KEEP_LOADED: Duration = Duration::from_mins(1);

/// Digests of stored messages.
#[derive(Debug, Default)]
pub struct Digests {
    recent: HashSet<u128>,
    order: VecDeque<u128>,
    loaded: Option<HashSet<u128>>,
    /// What earlier processes stored was asked for once; it does not change any more.
    asked: Option<Instant>,
}

impl Digests {
    /// Tells whether the store must be asked before redelivered messages can be judged.
    pub const fn needs_load(&self) -> bool {
        self.asked.is_none()
    }

    /// What the store told.
    pub fn load(&mut self, digests: HashSet<u128>, now: Instant) {
        self.loaded = Some(digests);
        self.asked = Some(now);
    }

    /// Tells whether a message is stored.
    pub fn contains(&mut self, digest: u128, now: Instant) -> bool {
        if self.asked.is_some() {
            self.asked = Some(now);
        }
        self.recent.contains(&digest) || self.loaded.as_ref().is_some_and(|loaded| loaded.contains(&digest))
    }

    /// These messages are stored now, and may be delivered to this process again.
    pub fn remember(&mut self, digests: &[u128]) {
        for digest in digests {
            if !self.recent.insert(*digest) {
                continue;
            }
            // Before one is added: a full queue would double.
            if self.order.len() == REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.recent.remove(&oldest);
            }
            self.order.push_back(*digest);
        }
    }

    /// Frees what the store told once it was not needed for a while; it is asked for again when it is.
    pub fn tidy(&mut self, now: Instant) {
        if self.loaded.is_some() && self.asked.is_some_and(|asked| now.duration_since(asked) > KEEP_LOADED) {
            self.loaded = None;
            self.asked = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_what_it_stored_and_what_the_store_told() {
        let now = Instant::now();
        let mut digests = Digests::default();
        assert!(digests.needs_load());
        digests.load([1, 2].into(), now);
        digests.remember(&[3]);
        assert!(digests.contains(1, now) && digests.contains(3, now) && !digests.contains(4, now));
        digests.tidy(now + KEEP_LOADED * 2);
        assert!(digests.needs_load());
        assert!(digests.contains(3, now));
    }

    #[test]
    fn is_bounded() {
        let mut digests = Digests::default();
        for digest in 0..(REMEMBERED as u128 + 10) {
            digests.remember(&[digest]);
        }
        assert_eq!(digests.recent.len(), REMEMBERED);
        assert!(!digests.contains(9, Instant::now()) && digests.contains(10, Instant::now()));
        for digest in 0..(20 * REMEMBERED as u128) {
            digests.remember(&[digest]);
        }
        assert!(digests.order.capacity() <= 1 << 15, "{}", digests.order.capacity());
        assert!(digests.recent.capacity() <= 1 << 16, "{}", digests.recent.capacity());
    }
}
