//! Pauses between two tries: doubling, capped, and jittered so that fifty monitors do not come back in one instant.

use std::time::Duration;

use rand::RngExt;

/// State of one series of tries.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    /// Starts a series whose first pause is about `base` and whose longest is `cap`.
    pub const fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, failures: 0 }
    }

    /// Returns how long to wait before the next try.
    pub fn pause(&mut self) -> Duration {
        self.pause_with(rand::rng().random_range(0.0..1.0))
    }

    /// A try succeeded: the next failure starts from the beginning.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// Returns how many tries have failed in a row.
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// Between half and the whole of the doubled pause; `fraction` is in 0..1.
    fn pause_with(&mut self, fraction: f64) -> Duration {
        let doubled = self
            .base
            .saturating_mul(2_u32.saturating_pow(self.failures.min(20)))
            .min(self.cap);
        self.failures = self.failures.saturating_add(1);
        doubled.mul_f64(fraction.mul_add(0.5, 0.5))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_cap_and_starts_over_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let pauses: Vec<_> = (0..6).map(|_| backoff.pause_with(0.999_999).as_millis()).collect();
        assert_eq!(pauses, [99, 199, 399, 799, 999, 999]);
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_millis(100));
        assert_eq!(backoff.failures(), 1);
    }

    #[test]
    fn never_waits_less_than_half() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        assert_eq!(backoff.pause_with(0.0), Duration::from_millis(50));
    }
}
