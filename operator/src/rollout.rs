//! How many monitors restart at the same time.
//!
//! A new image, or new defaults of a new operator, would restart every monitor at once. A slot is needed to change the
//! pod template of a running monitor; it is free again when that monitor is rolled out, or after [`SLOT_LIMIT`].

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A monitor that does not come back keeps its slot this long: a bad image stops after the first few, not for ever.
pub const SLOT_LIMIT: Duration = Duration::from_mins(10);

/// The slots.
#[derive(Debug)]
pub struct RolloutSlots {
    most: usize,
    /// Taken slots by uid; held for map operations only.
    taken: Mutex<HashMap<String, Instant>>,
}

impl RolloutSlots {
    /// Returns slots for so many monitors at a time.
    pub fn new(most: usize) -> Self {
        Self {
            most: most.max(1),
            taken: Mutex::default(),
        }
    }

    /// Takes a slot for a broker, or finds that it has one; false: it must wait.
    pub fn take(&self, uid: &str, now: Instant) -> bool {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.contains_key(uid) {
            return true;
        }
        // An expired slot stays with its owner, so that a rollout found under way again does not count anew.
        let busy = taken
            .values()
            .filter(|since| now.saturating_duration_since(**since) < SLOT_LIMIT)
            .count();
        if busy >= self.most {
            return false;
        }
        taken.insert(uid.to_owned(), now);
        true
    }

    /// Notes that a broker's monitor is rolling already, whoever began it: it counts, even beyond the limit.
    pub fn occupy(&self, uid: &str, now: Instant) {
        self.taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(uid.to_owned())
            .or_insert(now);
    }

    /// Gives a broker's slot back; true if it had one, so that a waiting broker can be woken.
    pub fn release(&self, uid: &str) -> bool {
        self.taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(uid)
            .is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_roll_and_the_others_wait_for_their_turn() {
        let slots = RolloutSlots::new(2);
        let now = Instant::now();
        assert!(slots.take("a", now) && slots.take("b", now) && slots.take("a", now));
        assert!(!slots.take("c", now));
        assert!(slots.release("a"));
        assert!(!slots.release("a"));
        assert!(slots.take("c", now));
    }

    #[test]
    fn a_monitor_that_never_comes_back_frees_its_slot_in_the_end() {
        let slots = RolloutSlots::new(1);
        let now = Instant::now();
        assert!(slots.take("stuck", now));
        assert!(!slots.take("next", now + SLOT_LIMIT / 2));
        assert!(slots.take("next", now + SLOT_LIMIT));
    }

    #[test]
    fn a_rollout_found_under_way_counts() {
        let slots = RolloutSlots::new(1);
        let now = Instant::now();
        slots.occupy("found", now);
        assert!(!slots.take("next", now));
    }
}
