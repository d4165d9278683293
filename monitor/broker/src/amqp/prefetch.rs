//! How many messages may be under way, so that their bytes stay within the budget.

/// More would only make a reconnect expensive: all of them are delivered again.
const MOST: u16 = 10_000;
/// Before anything is known: 64 KiB a message.
const FIRST_GUESS: f64 = 65_536.0;
/// The running mean is of about so many messages; until so many have come, of all.
const MEMORY: u32 = 64;
/// Changing the prefetch costs a cancelled consumer; it is not done for every message.
const PATIENCE: u32 = 32;

/// The running mean of message sizes and the prefetch that follows.
#[derive(Debug)]
pub(super) struct Prefetch {
    budget: usize,
    mean: f64,
    /// Messages that the mean is of, [`MEMORY`] at most.
    known: u32,
    since_change: u32,
}

impl Prefetch {
    pub(super) fn new(budget: usize) -> Self {
        Self {
            budget,
            mean: FIRST_GUESS,
            known: 0,
            since_change: 0,
        }
    }

    pub(super) fn seen(&mut self, bytes: usize) {
        self.known = (self.known + 1).min(MEMORY);
        self.mean += (bytes.max(64) as f64 - self.mean) / f64::from(self.known);
        self.since_change = self.since_change.saturating_add(1);
    }

    /// Returns the prefetch for now; `foreign` bytes of earlier connections are still held.
    pub(super) fn wanted(&self, foreign: usize) -> u16 {
        let room = self.budget.saturating_sub(foreign) as f64;
        (room / self.mean).clamp(1.0, f64::from(MOST)) as u16
    }

    /// Returns the new prefetch if the present one is off by a factor of two, or too much is held by it.
    pub(super) fn change(&mut self, present: u16, held: usize, unacked: usize, foreign: usize) -> Option<u16> {
        if held > self.budget && unacked > 0 {
            self.mean = self.mean.max(held as f64 / unacked as f64);
        } else if self.since_change < PATIENCE {
            return None;
        }
        let wanted = self.wanted(foreign);
        let off = wanted < present.div_ceil(2) || wanted / 2 > present || (wanted == 1 && present > 1);
        if off {
            self.since_change = 0;
        }
        off.then_some(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    #[test]
    fn small_messages_raise_the_prefetch_and_large_ones_lower_it() {
        let mut prefetch = Prefetch::new(16 * MIB);
        assert_eq!(prefetch.wanted(0), 256);
        for _ in 0..1000 {
            prefetch.seen(500);
        }
        let many = prefetch.change(256, 0, 0, 0).unwrap();
        assert_eq!(many, MOST);
        for _ in 0..300 {
            prefetch.seen(MIB);
        }
        let few = prefetch.change(many, 0, 0, 0).unwrap();
        assert!((10..=20).contains(&few), "{few}");
    }

    #[test]
    fn too_many_bytes_held_lower_it_at_once() {
        let mut prefetch = Prefetch::new(16 * MIB);
        assert_eq!(prefetch.change(256, 20 * MIB, 2, 0), Some(1));
    }

    #[test]
    fn bytes_of_earlier_connections_leave_less_room_but_never_none() {
        let prefetch = Prefetch::new(16 * MIB);
        assert_eq!(prefetch.wanted(8 * MIB), 128);
        assert_eq!(prefetch.wanted(64 * MIB), 1);
    }

    #[test]
    fn a_small_drift_changes_nothing() {
        let mut prefetch = Prefetch::new(16 * MIB);
        for _ in 0..200 {
            prefetch.seen(50_000);
        }
        assert_eq!(prefetch.change(256, 0, 0, 0), None);
    }
}
