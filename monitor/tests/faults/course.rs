//! What the monitor tells of as missing, held against what went wrong: a gap that no fault explains is needless, and one
//! that goes far beyond its fault hides losses. Pure.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use crate::fault::{Fault, Place, Played};
use crate::ledger::{Fates, Gap, Gaps, ON_ITS_WAY};
use crate::scene::{Monitors, SpoolDisk};

const SECOND: i64 = 1_000_000;

/// A monitor that reads notes it within milliseconds. On a busy machine it or the publisher may get no processor for so long.
const NOTICED: i64 = 3 * SECOND;

/// A restart's gap begins where the last process said that all was stored. That one says it every five seconds, once it has
/// caught up; where faults follow each other closely, each new connection must find that out anew, and a minute may pass. What
/// the store had at the begin of the fault's round binds it more closely.
const SAID_COMPLETE: i64 = 90 * SECOND;

/// A pause of a second at most before the next attempt, and the attempt itself, which nothing stands in the way of.
const RECONNECTED: i64 = 5 * SECOND;

/// A process that begins asks the store for five seconds, and then connects; RabbitMQ is tried again after five seconds.
const RESTARTED: i64 = 10 * SECOND;

/// A pause of five seconds at most before the store is tried again; then memory and a scarce spool must be stored before
/// there is room.
const ROOM_AGAIN: i64 = 15 * SECOND;

/// Other faults that follow closely keep a monitor from connecting or storing for so long at most: a run of five or more.
const HELD: i64 = 30 * SECOND;

/// What a broker does with events for which no monitor is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeps {
    Nothing,
    UntilItRestarts,
    All,
}

/// Why the monitor says that events may be missing, as far as it may in these runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    SubscriberCut,
    MonitorRestart,
    SpoolFull,
    BrokerRestart,
    /// Nothing here lets a queue expire or overflow.
    Other,
}

impl Cause {
    fn parse(text: &str) -> Self {
        match text {
            "SubscriberCut" => Self::SubscriberCut,
            "MonitorRestart" => Self::MonitorRestart,
            "SpoolFull" => Self::SpoolFull,
            "BrokerRestart" => Self::BrokerRestart,
            _ => Self::Other,
        }
    }

    /// The longest time from a gap's begin to that of its fault.
    const fn before(self) -> i64 {
        match self {
            // It begins when the last bytes came.
            Self::SubscriberCut | Self::SpoolFull | Self::Other => NOTICED,
            Self::MonitorRestart | Self::BrokerRestart => SAID_COMPLETE,
        }
    }

    /// The longest time from the end of the last fault that held a gap open to its own.
    const fn after(self) -> i64 {
        match self {
            Self::SubscriberCut | Self::Other => RECONNECTED,
            Self::MonitorRestart | Self::BrokerRestart => RESTARTED,
            Self::SpoolFull => ROOM_AGAIN,
        }
    }
}

/// What went wrong in a run, and what that may do.
#[derive(Debug)]
pub(crate) struct Course {
    keeps: Keeps,
    monitors: Monitors,
    spool: SpoolDisk,
    /// By their begin.
    played: Vec<Played>,
}

impl Course {
    pub(crate) const fn new(keeps: Keeps, monitors: Monitors, spool: SpoolDisk) -> Self {
        Self {
            keeps,
            monitors,
            spool,
            played: Vec::new(),
        }
    }

    /// Notes the faults of a round.
    pub(crate) fn played(&mut self, faults: Vec<Played>) {
        self.played.extend(faults);
    }

    /// Returns how often each fault was there.
    pub(crate) fn counts(&self) -> String {
        let mut counts: BTreeMap<Fault, u32> = BTreeMap::new();
        for played in &self.played {
            *counts.entry(played.fault).or_default() += 1;
        }
        let counts: Vec<String> = counts
            .iter()
            .map(|(fault, count)| format!("{fault:?} {count}"))
            .collect();
        counts.join(", ")
    }

    /// Checks that a fault explains each gap.
    pub(crate) fn explain_all(&self, gaps: &Gaps, fates: &Fates) -> Result<()> {
        let needless: Vec<Gap> = gaps
            .0
            .iter()
            .filter(|gap| !self.explains(gap, fates))
            .cloned()
            .collect();
        ensure!(
            needless.is_empty(),
            "no fault that was there explains these gaps, or not their length:\n  {}",
            self.tell(&Gaps(needless))
        );
        Ok(())
    }

    /// Returns gaps and faults, in seconds since the first fault began.
    pub(crate) fn tell(&self, gaps: &Gaps) -> String {
        let origin = self.played.first().map_or(0, |first| first.begin);
        let at = |moment: i64| (moment - origin) as f64 / 1e6;
        let gaps = gaps
            .0
            .iter()
            .map(|gap| format!("gap {} from {:.1} s to {:.1} s", gap.cause, at(gap.from), at(gap.to)));
        let faults = self.played.iter().map(|played| {
            let complete = match played.complete_until {
                i64::MIN => "unknown".to_owned(),
                until => format!("{:.1} s", at(until)),
            };
            let (fault, begin, end) = (played.fault, at(played.begin), at(played.end));
            format!("{fault:?} from {begin:.1} s to {end:.1} s, complete until {complete}")
        });
        gaps.chain(faults).collect::<Vec<_>>().join("\n  ")
    }

    fn explains(&self, gap: &Gap, fates: &Fates) -> bool {
        let cause = Cause::parse(&gap.cause);
        let openers = self.played.iter().filter(|played| self.opens(cause, played.fault));
        openers.into_iter().any(|fault| {
            self.is_near(gap, cause, fault, fates)
                && begins_where_it_was_complete(gap, cause, fault)
                && self.is_silent(gap, cause, fault, fates)
        })
    }

    /// Says whether a fault may open a gap of this cause.
    fn opens(&self, cause: Cause, fault: Fault) -> bool {
        let place = fault.place();
        match (self.keeps, cause) {
            // Whatever is in the way of the bytes, be it a monitor that takes none.
            (Keeps::Nothing, Cause::SubscriberCut) => {
                matches!(place, Place::Broker | Place::BrokerLink)
                    || matches!(fault, Fault::FreezeMonitor | Fault::FreezeSecond)
            }
            (Keeps::Nothing, Cause::MonitorRestart) => match self.monitors {
                Monitors::One => matches!(fault, Fault::KillMonitor | Fault::EndMonitor),
                // Another one takes over from a monitor that is gone, stands still, or cannot renew its lease since the store is
                // away; whether its ring reaches back far enough depends on when it was cut off or started itself.
                Monitors::Two => true,
            },
            (Keeps::Nothing, Cause::SpoolFull) => match self.spool {
                SpoolDisk::Scarce => matches!(place, Place::Store | Place::StoreLink),
                SpoolDisk::Ample => fault == Fault::FillSpoolDisk,
            },
            (Keeps::UntilItRestarts, Cause::BrokerRestart) => fault == Fault::KillBroker,
            (Keeps::Nothing | Keeps::UntilItRestarts | Keeps::All, _) => false,
        }
    }

    /// Says whether a gap overlaps a fault, and exceeds it by no more than there is a reason for.
    fn is_near(&self, gap: &Gap, cause: Cause, fault: &Played, fates: &Fates) -> bool {
        // A standby takes over later, and has listened since before.
        let early = match self.monitors {
            Monitors::One => 0,
            Monitors::Two => cause.before(),
        };
        // What waited in a queue is lost with it, however long before it was published.
        let lost = match cause {
            Cause::BrokerRestart => fates.lost.range((gap.from, i64::MIN)..).next(),
            Cause::SubscriberCut | Cause::MonitorRestart | Cause::SpoolFull | Cause::Other => None,
        };
        let begin = lost.map_or(fault.begin, |(from, _)| fault.begin.min(*from));
        gap.from >= begin - cause.before()
            && gap.from <= fault.end + cause.after()
            && gap.to >= fault.begin - early
            && gap.to <= self.held_until(cause, fault)
    }

    /// Returns until when a gap may last that a fault has opened: others that follow closely hold it open.
    fn held_until(&self, cause: Cause, fault: &Played) -> i64 {
        let mut until = fault.end + cause.after();
        let most = until + HELD;
        for other in &self.played {
            let holds = match cause {
                Cause::SubscriberCut => self.opens(cause, other.fault),
                Cause::MonitorRestart | Cause::BrokerRestart | Cause::SpoolFull | Cause::Other => {
                    other.fault.place() != Place::Operator
                }
            };
            if holds && other.begin <= until {
                until = until.max(other.end + cause.after());
            }
        }
        until.min(most)
    }

    /// Redis: from the moment at which nobody listened any more until one did again nothing can have been heard. What is
    /// stored of that time proves that the gap is too wide.
    fn is_silent(&self, gap: &Gap, cause: Cause, fault: &Played, fates: &Fates) -> bool {
        // Another monitor may have heard it, and a broker that keeps events collects them again before a monitor comes.
        if self.monitors == Monitors::Two || self.keeps != Keeps::Nothing {
            return true;
        }
        let since = match cause {
            Cause::SubscriberCut | Cause::SpoolFull | Cause::Other => gap.from,
            // Until then the process read, and stored some of it.
            Cause::MonitorRestart => gap.from.max(fault.begin),
            Cause::BrokerRestart => return true,
        };
        // The last ones may have come with the answer to the new subscription, or late.
        let (since, until) = (since + NOTICED, gap.to - ON_ITS_WAY);
        since >= until
            || !fates
                .heard
                .range((since, i64::MIN)..(until, i64::MIN))
                .any(|(_, to)| *to < until)
    }
}

/// What the store called complete before the fault stays so; only what was on its way then may be missing.
fn begins_where_it_was_complete(gap: &Gap, cause: Cause, fault: &Played) -> bool {
    match cause {
        Cause::MonitorRestart | Cause::BrokerRestart => gap.from >= fault.complete_until.saturating_sub(ON_ITS_WAY),
        Cause::SubscriberCut | Cause::SpoolFull | Cause::Other => true,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn redis(spool: SpoolDisk, played: &[(Fault, i64, i64)]) -> Course {
        let mut course = Course::new(Keeps::Nothing, Monitors::One, spool);
        let second = |(fault, begin, end): &(Fault, i64, i64)| Played {
            fault: *fault,
            begin: begin * SECOND,
            end: end * SECOND,
            complete_until: (begin - 5) * SECOND,
        };
        course.played(played.iter().map(second).collect());
        course
    }

    fn gap(cause: &str, from: i64, to: i64) -> Gaps {
        Gaps(vec![Gap {
            from: from * SECOND,
            to: to * SECOND,
            cause: cause.into(),
        }])
    }

    /// An event in each second, of those that were stored.
    fn heard(seconds: impl IntoIterator<Item = i64>) -> Fates {
        let sent = |second: i64| (second * SECOND, second * SECOND);
        Fates {
            heard: seconds.into_iter().map(sent).collect(),
            lost: BTreeSet::new(),
        }
    }

    #[test]
    fn a_gap_is_explained_by_the_fault_that_cut_the_stream() {
        let course = redis(
            SpoolDisk::Scarce,
            &[(Fault::CrashStore, 10, 12), (Fault::KillBroker, 20, 24)],
        );
        let heard = heard((0..20).chain(26..60));
        course.explain_all(&gap("SubscriberCut", 20, 26), &heard).unwrap();
        assert!(course.explain_all(&gap("SubscriberCut", 10, 12), &heard).is_err());
        assert!(course.explain_all(&gap("SubscriberCut", 15, 26), &heard).is_err());
        assert!(course.explain_all(&gap("SubscriberCut", 20, 31), &heard).is_err());
        assert!(course.explain_all(&gap("QueueOverflow", 20, 26), &heard).is_err());
    }

    #[test]
    fn a_gap_over_the_whole_run_is_not_explained_however_many_faults_there_were() {
        let kinds = [
            Fault::KillMonitor,
            Fault::KillBroker,
            Fault::FillSpoolDisk,
            Fault::CutBroker,
        ];
        let played: Vec<_> = (0..20)
            .map(|round: i64| (kinds[round as usize % kinds.len()], round * 4, round * 4 + 3))
            .collect();
        let course = redis(SpoolDisk::Scarce, &played);
        let heard = heard((0..80).filter(|second| second % 4 == 3));
        for cause in ["MonitorRestart", "SubscriberCut", "SpoolFull"] {
            assert!(course.explain_all(&gap(cause, 0, 80), &heard).is_err(), "{cause}");
        }
    }

    #[test]
    fn a_restart_begins_where_the_store_was_complete_and_ends_when_somebody_listens() {
        let course = redis(SpoolDisk::Scarce, &[(Fault::KillMonitor, 60, 63)]);
        let heard = heard((0..60).chain(65..90));
        course.explain_all(&gap("MonitorRestart", 55, 65), &heard).unwrap();
        assert!(course.explain_all(&gap("MonitorRestart", 46, 65), &heard).is_err());
        assert!(course.explain_all(&gap("MonitorRestart", 55, 74), &heard).is_err());
        assert!(course.explain_all(&gap("MonitorRestart", 30, 50), &heard).is_err());
    }

    #[test]
    fn a_run_of_faults_holds_a_gap_open_as_long_as_nothing_is_heard() {
        let faults = [
            (Fault::KillBroker, 10, 16),
            (Fault::CutBroker, 17, 23),
            (Fault::SilenceBroker, 24, 30),
        ];
        let course = redis(SpoolDisk::Scarce, &faults);
        course
            .explain_all(&gap("SubscriberCut", 10, 31), &heard(31..40))
            .unwrap();
        assert!(
            course
                .explain_all(&gap("SubscriberCut", 10, 31), &heard(17..40))
                .is_err()
        );
    }

    #[test]
    fn an_outage_of_the_store_alone_fills_a_scarce_spool_only() {
        let outage = [(Fault::OutlastMemory, 10, 22)];
        let (told, heard) = (gap("SpoolFull", 20, 25), heard(0..20));
        redis(SpoolDisk::Scarce, &outage).explain_all(&told, &heard).unwrap();
        let ample = redis(SpoolDisk::Ample, &outage);
        assert!(ample.explain_all(&told, &heard).is_err());
        let told = ample.explain_all(&told, &heard).unwrap_err().to_string();
        assert!(told.contains("gap SpoolFull from 10.0 s to 15.0 s"), "{told}");
        assert!(told.contains("OutlastMemory from 0.0 s to 12.0 s"), "{told}");
    }

    #[test]
    fn only_a_classic_queue_loses_events_and_only_with_its_broker() {
        for (keeps, fault, is_explained) in [
            (Keeps::UntilItRestarts, Fault::KillBroker, true),
            (Keeps::UntilItRestarts, Fault::FreezeBroker, false),
            (Keeps::UntilItRestarts, Fault::KillMonitor, false),
            (Keeps::All, Fault::KillBroker, false),
        ] {
            let mut course = Course::new(keeps, Monitors::One, SpoolDisk::Scarce);
            course.played(vec![Played {
                fault,
                begin: 10 * SECOND,
                end: 14 * SECOND,
                complete_until: i64::MIN,
            }]);
            let explained = course.explain_all(&gap("BrokerRestart", 6, 20), &heard(0..40));
            assert_eq!(explained.is_ok(), is_explained, "{keeps:?} {fault:?}");
        }
    }

    #[test]
    fn what_waited_in_a_queue_and_was_lost_with_it_makes_the_gap_longer() {
        let mut course = Course::new(Keeps::UntilItRestarts, Monitors::One, SpoolDisk::Scarce);
        course.played(vec![Played {
            fault: Fault::KillBroker,
            begin: 190 * SECOND,
            end: 194 * SECOND,
            complete_until: 10 * SECOND,
        }]);
        let (told, mut fates) = (gap("BrokerRestart", 10, 196), heard(0..50));
        assert!(course.explain_all(&told, &fates).is_err());
        fates.lost.insert((50 * SECOND, 50 * SECOND));
        course.explain_all(&told, &fates).unwrap();
    }
}
