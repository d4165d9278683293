//! Growing, jittered delays: how long a failed object waits, and when a settled one is looked at again.

use std::time::Duration;

use rand::RngExt;

/// The delay after the first failure.
const FIRST: Duration = Duration::from_secs(1);

/// No failure waits longer than this.
pub const CAP: Duration = Duration::from_mins(5);

/// A fifth up or down, so that many objects that failed together do not come back together.
const JITTER: f64 = 0.2;

/// Returns the delay after this many failures in a row: 1 s doubling up to [`CAP`], jittered.
pub fn after_failures(failures: u32) -> Duration {
    jittered(undisturbed(failures))
}

/// Returns a jittered form of the interval, at most a fifth away from it.
pub fn jittered(interval: Duration) -> Duration {
    let factor = rand::rng().random_range(1.0 - JITTER..=1.0 + JITTER);
    interval.mul_f64(factor)
}

fn undisturbed(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    FIRST.saturating_mul(1 << doublings).min(CAP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_from_a_second_to_the_cap() {
        let seconds: Vec<u64> = (1..=12).map(|failures| undisturbed(failures).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        assert_eq!(undisturbed(u32::MAX), CAP);
    }

    #[test]
    fn jitter_stays_within_a_fifth_and_differs() {
        let delays: Vec<Duration> = (0..100).map(|_| jittered(Duration::from_secs(100))).collect();
        assert!(
            delays.iter().all(|delay| (80..=120).contains(&delay.as_secs())),
            "{delays:?}"
        );
        assert!(delays.iter().any(|delay| delay != &delays[0]));
    }
}
