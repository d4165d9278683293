//! Waiting between attempts to connect: doubling, capped, jittered, so that many monitors do not return at once.

use std::time::Duration;

/// Times between attempts.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    attempt: u32,
    cap: Duration,
}

const FIRST: Duration = Duration::from_millis(100);

impl Backoff {
    pub(crate) fn new(cap: Duration) -> Self {
        Self { attempt: 0, cap }
    }

    /// A connection was established: the next wait is short again.
    pub(crate) fn reset(&mut self) {
        self.attempt = 0;
    }

    /// Returns the next wait: half of it fixed, half random.
    pub(crate) fn next_delay(&mut self) -> Duration {
        let full = FIRST.saturating_mul(1 << self.attempt.min(16)).min(self.cap);
        self.attempt = self.attempt.saturating_add(1);
        full.mul_f64(0.5 + rand::random::<f64>() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_stay_under_the_cap_and_start_again_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_secs(5));
        let first = backoff.next_delay();
        assert!(first <= FIRST && first >= FIRST / 2, "{first:?}");
        for _ in 0..40 {
            assert!(backoff.next_delay() <= Duration::from_secs(5));
        }
        assert!(backoff.next_delay() >= Duration::from_millis(2500));
        backoff.reset();
        assert!(backoff.next_delay() <= FIRST);
    }
}
