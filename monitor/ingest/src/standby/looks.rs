//! What a monitor that stands by concludes from its looks at the lease. Pure.
//!
//! Times are those of this pod's clock alone. What the writer says of itself is a length of time, and the number of a
//! renewal whose answer it had seen before: a look that did not see that renewal yet was earlier than what is said.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use kanchi_domain::UnixMicros;
use kanchi_store::{Holder, Lease};

/// The store must have answered for so long without a renewal: after an outage of the store, which keeps the writer from
/// renewing, the writer has this time to come back. A little less than the lease, which the server judges.
const SILENT: Duration = Duration::from_secs(8);

/// A monitor that would leave a gap lets one that would not go first, for so long; and twice as long one that has heard
/// more than itself.
const YIELD: Duration = Duration::from_secs(3);

/// A ring that goes back so far is as good as any.
const LONG_MICROS: i64 = 10_000_000;

/// What a take-over would miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hearing {
    /// Nothing, for sure.
    Whole,
    /// Perhaps something, before the ring, which goes back for some time.
    Long,
    /// Most likely something: the ring has just begun.
    Short,
}

impl Hearing {
    /// Judges a ring that is whole since then.
    pub const fn since(since: Option<UnixMicros>, now: UnixMicros) -> Self {
        match since {
            Some(since) if now.0.saturating_sub(since.0) >= LONG_MICROS => Self::Long,
            Some(_) | None => Self::Short,
        }
    }

    const fn patience(self) -> Duration {
        match self {
            Self::Whole => Duration::ZERO,
            Self::Long => YIELD,
            Self::Short => YIELD.saturating_mul(2),
        }
    }
}

/// What the writer had not read yet when it said that all is stored: on the way, in its socket, or while it stood still for
/// less than the lease.
const UNREAD_MICROS: i64 = 10_000_000;

/// Renewals that are remembered: what a writer says refers to the last two or three.
const REMEMBERED: usize = 32;

/// The looks so far.
#[derive(Debug, Default)]
pub struct Looks {
    /// Number of a renewal, and when the last look was begun that saw it as the newest; oldest first.
    seen: VecDeque<(i64, UnixMicros)>,
    /// The newest renewal, and since when the store shows no other.
    silent: Option<(i64, Instant)>,
    free_since: Option<Instant>,
    proven: Option<UnixMicros>,
}

impl Looks {
    /// Notes what a look saw that was begun `at`; tells whether to try to take over.
    pub fn see(&mut self, holder: Option<&Holder>, at: UnixMicros, now: Instant, hearing: Hearing) -> bool {
        let Some(holder) = holder else {
            return true;
        };
        self.prove(holder, at);
        let same = self.silent.filter(|(renewals, _)| *renewals == holder.renewals);
        let (_, silent_since) = *self.silent.insert(same.unwrap_or((holder.renewals, now)));
        if holder.lease != Lease::Free {
            self.free_since = None;
        }
        let patience = hearing.patience();
        match holder.lease {
            Lease::Alive => false,
            Lease::Free => now.duration_since(*self.free_since.get_or_insert(now)) >= patience,
            Lease::Over => now.duration_since(silent_since) >= SILENT + patience,
        }
    }

    /// The store did not answer: how long nothing was renewed is not known any more.
    pub fn failed(&mut self) {
        self.silent = None;
        self.free_since = None;
    }

    /// Tells whether all that arrived before `since` is stored, as far as the writer said.
    pub fn proves(&self, since: UnixMicros) -> bool {
        self.proven
            .is_some_and(|proven| proven.0.saturating_sub(UNREAD_MICROS) >= since.0)
    }

    fn prove(&mut self, holder: &Holder, at: UnixMicros) {
        let before = self.seen.iter().rev().find(|(renewals, _)| *renewals < holder.answered);
        if let (Some((_, earlier)), Some(behind)) = (before, holder.behind) {
            let behind = i64::try_from(behind.as_micros()).unwrap_or(i64::MAX);
            self.proven = self.proven.max(Some(UnixMicros(earlier.0.saturating_sub(behind))));
        }
        match self.seen.back_mut() {
            Some((renewals, last)) if *renewals == holder.renewals => *last = at,
            _ => self.seen.push_back((holder.renewals, at)),
        }
        if self.seen.len() > REMEMBERED {
            self.seen.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kanchi_store::Epoch;

    const SECOND: i64 = 1_000_000;

    fn holder(renewals: i64, lease: Lease) -> Holder {
        Holder {
            epoch: Epoch(1),
            is_own: false,
            renewals,
            lease,
            answered: renewals - 1,
            behind: Some(Duration::ZERO),
            keeps_digests: true,
        }
    }

    /// Looks once a second at what each entry shows; tells after how many seconds the take-over is tried.
    fn tried(shows: impl Iterator<Item = Option<Holder>>, hearing: Hearing) -> Option<usize> {
        let (mut looks, begin) = (Looks::default(), Instant::now());
        shows.enumerate().position(|(second, shown)| {
            let now = begin + Duration::from_secs(second as u64);
            looks.see(shown.as_ref(), UnixMicros(second as i64 * SECOND), now, hearing)
        })
    }

    #[test]
    fn a_broker_that_nobody_ever_wrote_for_is_taken_at_once() {
        assert_eq!(tried([None].into_iter(), Hearing::Short), Some(0));
    }

    #[test]
    fn a_writer_that_renews_is_left_alone_and_one_that_gave_back_replaced_at_once() {
        let alive = (0..20).map(|n| Some(holder(n / 2, Lease::Alive)));
        assert_eq!(tried(alive.clone(), Hearing::Whole), None);
        let freed = alive.chain((0..10).map(|_| Some(holder(9, Lease::Free))));
        assert_eq!(tried(freed.clone(), Hearing::Whole), Some(20));
        assert_eq!(
            tried(freed.clone(), Hearing::Long),
            Some(23),
            "one that covers goes first"
        );
        assert_eq!(tried(freed, Hearing::Short), Some(26), "then one that has heard more");
    }

    #[test]
    fn a_lease_that_is_over_is_taken_after_it_was_silent_under_our_eyes() {
        let over = || (0..20).map(|_| Some(holder(7, Lease::Over)));
        assert_eq!(tried(over(), Hearing::Whole), Some(8));
        assert_eq!(tried(over(), Hearing::Long), Some(11));
        let watched = (0..9).map(|_| Some(holder(7, Lease::Alive)));
        assert_eq!(tried(watched.chain(over()), Hearing::Whole), Some(9));
    }

    #[test]
    fn after_an_outage_of_the_store_the_writer_has_time_to_renew() {
        let (mut looks, begin) = (Looks::default(), Instant::now());
        let second = |second| begin + Duration::from_secs(second);
        let over = holder(7, Lease::Over);
        assert!(!looks.see(Some(&over), UnixMicros(0), second(0), Hearing::Whole));
        looks.failed();
        assert!(!looks.see(Some(&over), UnixMicros(0), second(60), Hearing::Whole));
        assert!(looks.see(Some(&over), UnixMicros(0), second(68), Hearing::Whole));
    }

    #[test]
    fn what_the_writer_says_counts_from_the_look_before_the_answer_it_had() {
        let (mut looks, now) = (Looks::default(), Instant::now());
        let at = |second: i64| UnixMicros(second * SECOND);
        // Renewal 6 was made with the answer to 5 in hand, but 5 may be older than this monitor.
        looks.see(Some(&holder(6, Lease::Alive)), at(100), now, Hearing::Long);
        assert!(!looks.proves(at(0)));
        // 7 was made after the answer to 6, which may be older, too.
        looks.see(Some(&holder(7, Lease::Alive)), at(102), now, Hearing::Long);
        assert!(!looks.proves(at(0)));
        // 8 was made after the answer to 7, which came after the look at 100 s.
        looks.see(Some(&holder(8, Lease::Alive)), at(104), now, Hearing::Long);
        assert!(looks.proves(at(90)) && !looks.proves(at(91)));
        // The store is behind: all is stored only until some time before.
        let slow = Holder {
            behind: Some(Duration::from_secs(30)),
            ..holder(9, Lease::Alive)
        };
        looks.see(Some(&slow), at(120), now, Hearing::Long);
        assert!(!looks.proves(at(91)), "what was proven stands, and nothing more");
        let unknown = Holder {
            behind: None,
            ..holder(10, Lease::Alive)
        };
        looks.see(Some(&unknown), at(140), now, Hearing::Long);
        assert!(!looks.proves(at(91)));
    }

    #[test]
    fn a_ring_that_has_just_begun_is_worth_less_than_one_that_goes_back() {
        let at = |second: i64| UnixMicros(second * SECOND);
        assert_eq!(Hearing::since(None, at(100)), Hearing::Short);
        assert_eq!(Hearing::since(Some(at(95)), at(100)), Hearing::Short);
        assert_eq!(Hearing::since(Some(at(90)), at(100)), Hearing::Long);
    }
}
