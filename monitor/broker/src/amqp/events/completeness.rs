//! Until when everything that was published is here, told by looks at the queue. Pure.
//!
//! A stream that has nothing to deliver says little: the rest of a backlog may be on its way, and is lost with a broker that
//! ends now. What a look has seen is believed only when the next one finds that nothing was dropped, and that one's answer
//! comes behind all deliveries that were sent before it was asked for.

use std::time::{Duration, Instant};

use kanchi_domain::UnixMicros;

use crate::amqp::topology::Held;

/// How often the broker is asked what waits and whether something was dropped, as long as messages come.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// How often it is asked when none comes.
const QUIET_LOOK: Duration = Duration::from_secs(15);
/// What was published so shortly before a look may not be in the queue yet: it is on its way to it, and RabbitMQ answers
/// the look first.
const ON_ITS_WAY_MICROS: i64 = 1_000_000;
/// Looks after the one that follows the last delivery: the next one reaches beyond that delivery, and one more confirms it.
const FURTHER_LOOKS: u8 = 2;

/// What the broker answered when it was asked for the state of the queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// When it was asked.
    pub(super) asked: UnixMicros,
    /// What becomes certain if nothing was dropped.
    pub(super) claim: Option<UnixMicros>,
    /// Whether something was dropped since the look before; `None`: that could not be told.
    pub(super) overflowed: Option<bool>,
    /// `None`: no answer.
    pub(super) queue: Option<Held>,
}

/// What is known of one consumer's queue.
#[derive(Debug, Default)]
pub(super) struct Completeness {
    /// Little or nothing waited in the queue, and nothing was held back since: what is published comes at once.
    caught_up: bool,
    backlog: Option<Backlog>,
    /// All that was published until then has arrived, unless it was dropped.
    arrived: Option<UnixMicros>,
    /// The newest tag when the broker was asked last, and when that was.
    last_look: Option<(u64, Instant)>,
    /// So many more looks are wanted, whatever comes.
    wanted: u8,
}

/// What waited in the queue when the broker was asked.
#[derive(Clone, Copy, Debug)]
struct Backlog {
    /// Until when all is here with it.
    complete: UnixMicros,
    /// Once this tag is here, so is all that waited.
    through: u64,
    is_small: bool,
}

/// How far a consumer is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    /// The newest tag that is here.
    pub(super) last_tag: u64,
    /// Deliveries that are not acknowledged.
    pub(super) outstanding: u64,
    pub(super) prefetch: u16,
}

impl Position {
    /// Tells whether the broker surely may send more: acknowledgements that are on their way make what is outstanding less
    /// than it counts.
    fn has_room(self) -> bool {
        self.outstanding < u64::from(self.prefetch).div_ceil(2)
    }
}

impl Completeness {
    /// Tells whether nothing is held back at the broker.
    pub(super) const fn is_caught_up(&self) -> bool {
        self.caught_up
    }

    /// Tells whether to look now.
    pub(super) fn wants_look(&self, last_tag: u64, now: Instant) -> bool {
        self.wanted > 0 || !self.caught_up || self.is_due(last_tag, now)
    }

    /// Begins a look, and returns what it can make certain.
    pub(super) fn begin_look(&mut self, last_tag: u64, now: Instant) -> Option<UnixMicros> {
        self.wanted = if self.is_due(last_tag, now) {
            FURTHER_LOOKS
        } else {
            self.wanted.saturating_sub(1)
        };
        self.last_look = Some((last_tag, now));
        self.arrived.take()
    }

    fn is_due(&self, last_tag: u64, now: Instant) -> bool {
        self.last_look
            .is_none_or(|(tag, at)| tag != last_tag || now.duration_since(at) + LOOK / 2 >= QUIET_LOOK)
    }

    /// Takes a look's answer; returns until when everything is here, if that has become certain.
    pub(super) fn found(&mut self, look: Look, at: Position) -> Option<UnixMicros> {
        if look.overflowed == Some(true) {
            // What waits may lack what was dropped.
            (self.backlog, self.arrived) = (None, None);
        }
        let (Some(overflowed), Some(queue)) = (look.overflowed, look.queue) else {
            // The next look may make it certain.
            if look.overflowed != Some(true) {
                self.arrived = self.arrived.or(look.claim);
                self.wanted = self.wanted.max(1);
            }
            return None;
        };
        let certain = look.claim.filter(|_| !overflowed);
        // What another consumer holds comes back when the broker gives it up. None at all, though we are one: a quorum queue
        // whose leader did not answer.
        if queue.consumers != 1 {
            return certain;
        }
        let complete = UnixMicros(look.asked.0 - ON_ITS_WAY_MICROS);
        if queue.ready == 0 {
            (self.caught_up, self.backlog) = (at.has_room(), None);
            self.arrived = Some(complete);
        } else {
            // Under load something always waits. What is on its way already comes before it: at most the prefetch.
            self.backlog.get_or_insert_with(|| Backlog {
                complete,
                through: at.last_tag + u64::from(at.prefetch) + u64::from(queue.ready),
                is_small: queue.ready < u32::from(at.prefetch),
            });
        }
        certain
    }

    /// Takes note of deliveries.
    pub(super) fn delivered(&mut self, at: Position) {
        // Below the prefetch nothing is held back.
        self.caught_up &= at.outstanding < u64::from(at.prefetch);
        if let Some(backlog) = self.backlog.take_if(|backlog| at.last_tag >= backlog.through) {
            self.arrived = Some(backlog.complete);
            self.caught_up = backlog.is_small && at.has_room();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFETCH: u16 = 100;

    fn at(last_tag: u64, outstanding: u64) -> Position {
        Position {
            last_tag,
            outstanding,
            prefetch: PREFETCH,
        }
    }

    fn seconds(seconds: i64) -> UnixMicros {
        UnixMicros(seconds * 1_000_000)
    }

    /// A look at a second.
    fn look(second: i64, claim: Option<UnixMicros>, ready: u32) -> Look {
        Look {
            asked: seconds(second),
            claim,
            overflowed: Some(false),
            queue: Some(Held { ready, consumers: 1 }),
        }
    }

    fn caught_up() -> Completeness {
        let mut known = Completeness::default();
        assert_eq!(known.begin_look(0, Instant::now()), None);
        assert_eq!(known.found(look(10, None, 0), at(0, 0)), None);
        assert!(known.is_caught_up());
        known
    }

    #[test]
    fn an_empty_queue_is_believed_at_the_next_look() {
        let mut known = caught_up();
        let claim = known.begin_look(0, Instant::now());
        assert_eq!(claim, Some(seconds(9)));
        assert_eq!(known.found(look(20, claim, 0), at(0, 0)), Some(seconds(9)));
    }

    #[test]
    fn what_comes_after_it_was_caught_up_is_no_news_of_the_rest() {
        let mut known = caught_up();
        known.delivered(at(5, 5));
        let claim = known.begin_look(5, Instant::now());
        assert_eq!(known.found(look(20, claim, 50), at(5, 5)), Some(seconds(9)));
        known.delivered(at(154, 10));
        assert_eq!(known.begin_look(154, Instant::now()), None);
        known.delivered(at(155, 10));
        assert_eq!(known.begin_look(155, Instant::now()), Some(seconds(19)));
    }

    #[test]
    fn what_was_dropped_makes_nothing_certain() {
        let mut known = caught_up();
        let claim = known.begin_look(0, Instant::now());
        let overflowed = Look {
            overflowed: Some(true),
            ..look(20, claim, 3)
        };
        assert_eq!(known.found(overflowed, at(0, 0)), None);
    }

    #[test]
    fn another_consumer_makes_nothing_certain() {
        let mut known = caught_up();
        let claim = known.begin_look(0, Instant::now());
        let consumers = |consumers| Look {
            queue: Some(Held { ready: 0, consumers }),
            ..look(20, claim, 0)
        };
        assert_eq!(known.found(consumers(2), at(0, 0)), Some(seconds(9)));
        assert_eq!(known.begin_look(1, Instant::now()), None);
        // A quorum queue whose leader does not answer in time is said to be empty and without consumers.
        known.found(consumers(0), at(0, 0));
        assert_eq!(known.begin_look(2, Instant::now()), None);
    }

    #[test]
    fn a_look_without_an_answer_is_made_up_for() {
        let mut known = caught_up();
        let claim = known.begin_look(0, Instant::now());
        let failed = Look {
            queue: None,
            ..look(20, claim, 0)
        };
        assert_eq!(known.found(failed, at(0, 0)), None);
        assert!(known.wants_look(0, Instant::now()));
        let claim = known.begin_look(0, Instant::now());
        assert_eq!(known.found(look(21, claim, 0), at(0, 0)), Some(seconds(9)));
    }

    #[test]
    fn a_full_prefetch_is_not_caught_up_until_half_of_it_is_free() {
        let mut known = caught_up();
        known.delivered(at(100, 100));
        assert!(!known.is_caught_up());
        known.found(look(20, None, 0), at(100, 50));
        assert!(!known.is_caught_up());
        known.found(look(30, None, 0), at(100, 49));
        assert!(known.is_caught_up());
    }

    #[test]
    fn a_quiet_queue_is_looked_at_until_all_is_certain_and_then_seldom() {
        let (mut known, start) = (caught_up(), Instant::now());
        let looks = |known: &mut Completeness, tag: u64, after: u64| {
            let now = start + Duration::from_secs(after);
            let wanted = known.wants_look(tag, now);
            if wanted {
                known.begin_look(tag, now);
            }
            wanted
        };
        assert!(looks(&mut known, 0, 1) && looks(&mut known, 0, 2));
        assert!(!looks(&mut known, 0, 3));
        assert!(looks(&mut known, 0, 17) && looks(&mut known, 0, 18) && looks(&mut known, 0, 19));
        assert!(!looks(&mut known, 0, 20));
        assert!(looks(&mut known, 1, 21), "something came");
    }
}
