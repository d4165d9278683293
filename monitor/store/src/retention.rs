//! Retention classes: a row is written into one, and a whole partition of that class is dropped when it is over.

use crate::error::{Error, ErrorKind, Result};

/// How long a row is kept, from a fixed set, so that the number of partitions depends on neither brokers nor outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RetentionClass {
    /// One day.
    Days1,
    /// Three days.
    Days3,
    /// A week.
    Days7,
    /// Two weeks.
    Days14,
    /// Thirty days.
    Days30,
    /// Ninety days.
    Days90,
    /// A year.
    Days365,
}

impl RetentionClass {
    /// All classes, shortest first.
    pub const ALL: [Self; 7] = [
        Self::Days1,
        Self::Days3,
        Self::Days7,
        Self::Days14,
        Self::Days30,
        Self::Days90,
        Self::Days365,
    ];

    /// Returns the class of a number of days, which must be one of the set.
    pub fn from_days(days: u16) -> Result<Self> {
        Self::ALL.into_iter().find(|class| class.days() == days).ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                "choose a retention class",
                format!("{days} days is none of 1, 3, 7, 14, 30, 90, 365"),
            )
        })
    }

    /// Returns the days a row of this class is kept at least.
    pub fn days(self) -> u16 {
        match self {
            Self::Days1 => 1,
            Self::Days3 => 3,
            Self::Days7 => 7,
            Self::Days14 => 14,
            Self::Days30 => 30,
            Self::Days90 => 90,
            Self::Days365 => 365,
        }
    }

    /// Returns the days that one partition of this class spans: long classes have wider ones, to keep them few.
    pub fn partition_days(self) -> u16 {
        match self {
            Self::Days1 | Self::Days3 | Self::Days7 | Self::Days14 | Self::Days30 => 1,
            Self::Days90 => 7,
            Self::Days365 => 30,
        }
    }
}

/// The classes a broker's rows go to. A change applies to new rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// Tasks that succeeded.
    pub succeeded: RetentionClass,
    /// Tasks that ended in any other way.
    pub failed: RetentionClass,
    /// Single events.
    pub events: RetentionClass,
    /// Counts and histograms by day; by hour 90 days, by minute 14 at most.
    pub statistics: RetentionClass,
}

impl Default for RetentionPolicy {
    fn default() -> Self {
        Self {
            succeeded: RetentionClass::Days14,
            failed: RetentionClass::Days30,
            events: RetentionClass::Days7,
            statistics: RetentionClass::Days365,
        }
    }
}
