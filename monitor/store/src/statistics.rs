//! Counts and histograms: what monitors add per minute, how the leader rolls it up, how charts read it.
//!
//! A batch appends one row for each minute it has transitions of (`kanchi.statistic_delta`), written with everything else of
//! the batch. [`StoreAdmin::roll_up`](crate::StoreAdmin::roll_up) takes such rows and adds them to the minute, hour and day
//! they belong to (`kanchi.statistic`) in one transaction. Whoever reads adds both up, so that a chart is exact at once.
//! `docs/adr/0004-statistics.md` has the figures.

mod codec;
mod histogram;
mod names;
mod range;
mod read;
mod rollup;

use kanchi_domain::UnixMicros;

pub use histogram::{BUCKETS, Histogram, bucket_bounds, bucket_of};
pub use range::{MAX_POINTS, Resolution};
pub use read::{Chart, Figures, MAX_KEYS, Point, Select, Series, StatisticsQuery};
pub use rollup::RolledUp;

pub(crate) use codec::encode;

/// The key that counts for all keys beyond a bound: [`KEYS_PER_BATCH`] of a monitor, the same of a roll-up.
pub const OTHER: &str = "(other)";

/// Keys of one dimension that a batch, or a step of the roll-up within one minute, hour or day, tells apart.
pub const KEYS_PER_BATCH: usize = 1_000;

/// What a row of statistics is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Dimension {
    /// Everything of the broker; its key is empty.
    All,
    /// The name of the task.
    Task,
    /// The queue; known where clients send `task-sent`.
    Queue,
    /// The node name of the worker; `sent` is not counted there.
    Worker,
}

impl Dimension {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::All, Self::Task, Self::Queue, Self::Worker];

    /// Returns the word used in the store and the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Task => "task",
            Self::Queue => "queue",
            Self::Worker => "worker",
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|dimension| *dimension as u8 == number)
    }
}

/// A step in a task's life that is counted. The numbers are stored in delta rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Transition {
    /// A `task-sent` was seen.
    Sent,
    /// A `task-received`.
    Received,
    /// A `task-started`.
    Started,
    /// A `task-retried`.
    Retried,
    /// The task ended in `SUCCESS`.
    Succeeded,
    /// It ended in `FAILURE`.
    Failed,
    /// It ended in `REVOKED`.
    Revoked,
    /// It ended in `REJECTED`.
    Rejected,
    /// It ended in `EXPIRED`, and a worker said so.
    Expired,
    /// It is `ORPHANED`; taken back when it heals.
    Orphaned,
    /// Of those that succeeded: marked `RECOVERED`.
    Recovered,
    /// Of those that failed: marked `CRITICAL`.
    Critical,
}

/// How many transitions there are.
pub const TRANSITIONS: usize = 12;

impl Transition {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; TRANSITIONS] = [
        Self::Sent,
        Self::Received,
        Self::Started,
        Self::Retried,
        Self::Succeeded,
        Self::Failed,
        Self::Revoked,
        Self::Rejected,
        Self::Expired,
        Self::Orphaned,
        Self::Recovered,
        Self::Critical,
    ];

    /// Returns the word used in the store, where it is the name of a column, and in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Received => "received",
            Self::Started => "started",
            Self::Retried => "retried",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Revoked => "revoked",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::Orphaned => "orphaned",
            Self::Recovered => "recovered",
            Self::Critical => "critical",
        }
    }
}

/// How often each transition happened; negative where more was taken back than counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts([i64; TRANSITIONS]);

impl Counts {
    /// Returns the count of a transition.
    pub fn get(&self, transition: Transition) -> i64 {
        self.0.get(transition as usize).copied().unwrap_or_default()
    }

    /// Adds to the count of a transition; stops at the ends of the range.
    pub fn add(&mut self, transition: Transition, count: i64) {
        if let Some(known) = self.0.get_mut(transition as usize) {
            *known = known.saturating_add(count);
        }
    }

    fn merge(&mut self, other: &Self) {
        for transition in Transition::ALL {
            self.add(transition, other.get(transition));
        }
    }
}

/// Durations: their histogram, and their exact sum.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// How many were how long.
    pub histogram: Histogram,
    /// Sum in microseconds.
    pub sum_micros: i64,
}

impl Durations {
    fn merge(&mut self, other: &Self) {
        self.histogram.merge(&other.histogram);
        self.sum_micros = self.sum_micros.saturating_add(other.sum_micros);
    }

    fn is_zero(&self) -> bool {
        self.sum_micros == 0 && self.histogram.is_empty()
    }

    /// Returns the mean in seconds; `None` where nothing is known.
    pub fn mean_seconds(&self) -> Option<f64> {
        let count = self.histogram.count();
        (count > 0).then(|| self.sum_micros.max(0) as f64 / 1e6 / count as f64)
    }
}

/// What is counted under one key. Adding up is commutative and associative, and what is taken back cancels exactly.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measures {
    /// Transitions.
    pub counts: Counts,
    /// How long tasks that succeeded ran, as their workers measured it.
    pub runtime: Durations,
    /// From `task-sent` (`task-received` where clients do not send it), or from the eta, until `task-started`.
    pub wait: Durations,
}

impl Measures {
    /// Adds `other`.
    pub fn merge(&mut self, other: &Self) {
        self.counts.merge(&other.counts);
        self.runtime.merge(&other.runtime);
        self.wait.merge(&other.wait);
    }

    /// Tells whether it changes nothing.
    pub fn is_zero(&self) -> bool {
        self.counts == Counts::default() && self.runtime.is_zero() && self.wait.is_zero()
    }
}

/// What a batch adds to one minute under one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatisticDelta {
    /// Start of the minute of the transitions, by Celery's timestamps.
    pub minute: UnixMicros,
    /// What the key names.
    pub dimension: Dimension,
    /// For example a task name, at most 255 bytes; empty when unknown.
    pub key: String,
    /// What is added.
    pub measures: Measures,
}
