//! What goes wrong, and the order in which it does.

use std::fmt;
use std::time::Duration;

use kanchi_test_load::Dice;

/// Shortest time that a fault lasts, unless it says otherwise.
const LEAST_MILLIS: u64 = 200;

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// The monitor is killed, and started again afterwards.
    KillMonitor,
    /// The monitor is told to end, and started again.
    EndMonitor,
    /// The monitor stands still.
    FreezeMonitor,
    /// The second monitor of the broker is killed, and started again afterwards.
    KillSecond,
    /// The second monitor is told to end, and started again.
    EndSecond,
    /// The second monitor stands still for longer than its lease, should it write.
    FreezeSecond,
    /// Postgres crashes.
    CrashStore,
    /// Postgres crashes, and stays away until the memory before it is full and its spool is needed.
    OutlastMemory,
    /// Postgres stands still.
    FreezeStore,
    /// Postgres's disk is full.
    FillStoreDisk,
    /// Connections to Postgres end.
    CutStore,
    /// Nothing passes to Postgres.
    SilenceStore,
    /// Little passes to Postgres.
    SlowStore,
    /// Postgres does what it is told, and its answers are lost: whether a batch was committed is not known.
    MuteStore,
    /// Nothing passes between Postgres and one monitor of two, for longer than its lease.
    LoseStore,
    /// The broker is killed.
    KillBroker,
    /// The broker stands still.
    FreezeBroker,
    /// Connections to the broker end.
    CutBroker,
    /// Nothing passes from the broker.
    SilenceBroker,
    /// Little passes from the broker.
    SlowBroker,
    /// The broker gets what the monitor sends, and what it sends is lost.
    MuteBroker,
    /// The disk of the spool is full, and Postgres away so that it is needed.
    FillSpoolDisk,
    /// The operator's upkeep of the store is killed while it works.
    KillUpkeep,
}

/// Where a fault is. Two faults at once are at different places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Monitor,
    Second,
    Store,
    StoreLink,
    Broker,
    BrokerLink,
    Operator,
}

impl Fault {
    /// All that can happen with any broker.
    pub(crate) const ALL: &[Self] = &[
        Self::KillMonitor,
        Self::EndMonitor,
        Self::FreezeMonitor,
        Self::CrashStore,
        Self::FreezeStore,
        Self::FillStoreDisk,
        Self::CutStore,
        Self::SilenceStore,
        Self::SlowStore,
        Self::MuteStore,
        Self::KillBroker,
        Self::FreezeBroker,
        Self::CutBroker,
        Self::SilenceBroker,
        Self::SlowBroker,
        Self::MuteBroker,
        Self::KillUpkeep,
    ];

    /// What can happen to two monitors of one broker; most of the rest is the same with one. The links that fail are those of the
    /// first one, which writes or stands by, as it comes.
    pub(crate) const OF_TWO: &[Self] = &[
        Self::KillMonitor,
        Self::EndMonitor,
        Self::FreezeMonitor,
        Self::KillSecond,
        Self::EndSecond,
        Self::FreezeSecond,
        Self::CrashStore,
        Self::SilenceStore,
        Self::MuteStore,
        Self::LoseStore,
        Self::CutBroker,
        Self::SilenceBroker,
    ];

    /// What can happen to the store, which nobody who only listens may notice.
    pub(crate) const OF_STORE: &[Self] = &[
        Self::CrashStore,
        Self::OutlastMemory,
        Self::FreezeStore,
        Self::FillStoreDisk,
        Self::CutStore,
        Self::SilenceStore,
        Self::SlowStore,
        Self::MuteStore,
        Self::KillUpkeep,
    ];

    /// Says where it is.
    pub(crate) const fn place(self) -> Place {
        match self {
            Self::KillMonitor | Self::EndMonitor | Self::FreezeMonitor => Place::Monitor,
            Self::KillSecond | Self::EndSecond | Self::FreezeSecond => Place::Second,
            Self::CrashStore | Self::OutlastMemory | Self::FreezeStore | Self::FillStoreDisk | Self::FillSpoolDisk => {
                Place::Store
            }
            Self::CutStore | Self::SilenceStore | Self::SlowStore | Self::MuteStore | Self::LoseStore => {
                Place::StoreLink
            }
            Self::KillBroker | Self::FreezeBroker => Place::Broker,
            Self::CutBroker | Self::SilenceBroker | Self::SlowBroker | Self::MuteBroker => Place::BrokerLink,
            Self::KillUpkeep => Place::Operator,
        }
    }

    /// Says whether much more is published meanwhile, so that the memory before the spool is full within some five seconds.
    pub(crate) const fn wants_ballast(self) -> bool {
        matches!(self, Self::FillSpoolDisk | Self::OutlastMemory)
    }

    /// Shortest time that shows anything.
    const fn at_least(self) -> u64 {
        if matches!(self, Self::FillSpoolDisk) {
            // Until the memory before it is full.
            10_000
        } else if matches!(self, Self::OutlastMemory) {
            7_000
        } else if matches!(self, Self::FreezeSecond | Self::LoseStore) {
            15_000
        } else {
            LEAST_MILLIS
        }
    }
}

/// How fast one round follows the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Faults last until timeouts strike.
    Usual,
    /// Each fault once within half a minute: no second one prolongs a round.
    Quick,
}

impl Pace {
    /// Longest quiet time before a round.
    const fn pause_millis(self) -> u64 {
        match self {
            Self::Usual => 2_000,
            Self::Quick => 500,
        }
    }

    /// Longest time that a fault lasts, unless it says otherwise.
    const fn most_millis(self) -> u64 {
        match self {
            Self::Usual => 6_000,
            Self::Quick => 1_500,
        }
    }
}

/// A fault that was there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Played {
    pub(crate) fault: Fault,
    /// Just before it came: microseconds since 1970.
    pub(crate) begin: i64,
    /// When it had gone.
    pub(crate) end: i64,
    /// Until when the store called the history complete when its round began; `i64::MIN`: it did not, or could not be asked.
    pub(crate) complete_until: i64,
}

/// Faults at once, the quiet time before them, and how long they last.
#[derive(Clone, Debug)]
pub(crate) struct Round {
    pub(crate) pause: Duration,
    pub(crate) faults: Vec<Fault>,
    pub(crate) lasts: Duration,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {:?} {:?} for {:?}", self.pause, self.faults, self.lasts)
    }
}

/// Rounds without end: each fault once in random order, a third of them with a second one, and again.
#[derive(Debug)]
pub(crate) struct Plan {
    dice: Dice,
    pace: Pace,
    faults: Vec<Fault>,
    left: Vec<Fault>,
    rounds: usize,
}

impl Plan {
    pub(crate) fn new(dice: Dice, faults: Vec<Fault>, pace: Pace) -> Self {
        Self {
            dice,
            pace,
            faults,
            left: Vec::new(),
            rounds: 0,
        }
    }

    /// Says whether each fault was there once.
    pub(crate) fn is_through(&self) -> bool {
        self.rounds >= self.faults.len()
    }

    pub(crate) fn next_round(&mut self) -> Round {
        self.rounds += 1;
        if self.left.is_empty() {
            self.left.clone_from(&self.faults);
        }
        let index = self.dice.below(self.left.len() as u64) as usize;
        let first = self.left.swap_remove(index);
        let mut faults = vec![first];
        if self.dice.below(3) == 0 {
            let other = self.faults[self.dice.below(self.faults.len() as u64) as usize];
            let prolongs = self.pace == Pace::Quick && other.at_least() > LEAST_MILLIS;
            if other.place() != first.place() && !prolongs {
                faults.push(other);
            }
        }
        let at_least = faults.iter().map(|fault| fault.at_least()).max().unwrap_or_default();
        let lasts = at_least.max(LEAST_MILLIS + self.dice.below(self.pace.most_millis() - LEAST_MILLIS));
        Round {
            pause: Duration::from_millis(self.dice.below(self.pace.pause_millis())),
            faults,
            lasts: Duration::from_millis(lasts),
        }
    }
}
