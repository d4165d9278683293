//! How the tasks of a stream live: everything about a task is a function of the seed and its number.

use crate::dice::mixed;

/// Task names are made of these.
const MODULES: [&str; 8] = [
    "shop.orders",
    "shop.stock",
    "billing.cards",
    "billing.invoices",
    "mail.out",
    "reports.daily",
    "search.index",
    "media.images",
];
const VERBS: [&str; 6] = ["confirm", "ship", "charge", "refund", "send", "rebuild"];

/// How tasks live.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Tells one stream's tasks from another's.
    pub seed: u64,
    /// Half of the tasks take a second or longer from received to final; else all end within milliseconds.
    pub half_long: bool,
    /// One task in so many is retried once; 0: none.
    pub retried_in: u64,
    /// One task in so many stays open, and in its place one that began before the stream ends; 0: none.
    pub older_in: u64,
    /// Workers that the tasks are spread over.
    pub workers: usize,
}

/// How a task ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// `task-succeeded`.
    Succeeded,
    /// `task-failed`.
    Failed,
    /// `task-revoked`, terminated while it ran.
    Revoked,
    /// `task-rejected`, not put back.
    Rejected,
}

impl Outcome {
    /// Returns the state that the task's row must have.
    pub const fn state(self) -> &'static str {
        match self {
            Self::Succeeded => "SUCCESS",
            Self::Failed => "FAILURE",
            Self::Revoked => "REVOKED",
            Self::Rejected => "REJECTED",
        }
    }
}

impl Workload {
    /// Tasks that begin and end within moments.
    pub const fn short(seed: u64) -> Self {
        Self {
            seed,
            half_long: false,
            retried_in: 0,
            older_in: 0,
            workers: 40,
        }
    }

    /// Tasks of all lengths: half of them a second or longer, one in a hundred older than the stream, one in twenty
    /// retried.
    pub const fn realistic(seed: u64) -> Self {
        Self {
            seed,
            half_long: true,
            retried_in: 20,
            older_in: 100,
            workers: 40,
        }
    }

    /// Returns one of its tasks.
    pub(crate) const fn task(self, number: u64) -> Task {
        Task {
            workload: self,
            number,
            bits: mixed(self.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ mixed(number.wrapping_add(1))),
        }
    }
}

/// Tasks that began before the stream have numbers from here.
pub(crate) const OLDER: u64 = 1 << 40;

/// Where a task is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Sent,
    Received,
    Started,
    SentAgain,
    ReceivedAgain,
    Retried,
    StartedAgain,
    Ended,
}

/// One task.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    workload: Workload,
    pub(crate) number: u64,
    bits: u64,
}

impl Task {
    /// Writes the id: a UUID of version 4.
    pub(crate) fn write_id(self, id: &mut String) {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let numbers = [self.bits, mixed(self.bits ^ self.number)];
        id.clear();
        for (place, number) in numbers.into_iter().enumerate() {
            for digit in 0..16 {
                let index = place * 16 + digit;
                if matches!(index, 8 | 12 | 16 | 20) {
                    id.push('-');
                }
                let nibble = (number >> (60 - digit * 4)) & 0xf;
                id.push(char::from(match index {
                    12 => b'4',
                    16 => HEX[(8 | nibble & 3) as usize],
                    _ => HEX[nibble as usize],
                }));
            }
        }
    }

    pub(crate) fn worker(self) -> usize {
        (self.bits >> 8) as usize % self.workload.workers
    }

    /// Some names are frequent, some rare.
    pub(crate) fn name(self) -> (&'static str, &'static str) {
        let spread = (self.bits >> 16) % 64 * ((self.bits >> 24) % 64);
        let place = (spread as usize) * MODULES.len() * VERBS.len() / 4096;
        (MODULES[place % MODULES.len()], VERBS[place / MODULES.len()])
    }

    pub(crate) const fn outcome(self) -> Outcome {
        match self.number % 200 {
            21 => Outcome::Revoked,
            121 => Outcome::Rejected,
            // Half of them have been retried, where tasks are.
            rest if rest % 50 == 27 => Outcome::Failed,
            _ => Outcome::Succeeded,
        }
    }

    pub(crate) const fn is_retried(self) -> bool {
        self.workload.retried_in > 0 && self.number % self.workload.retried_in == 7
    }

    /// The task that has called this one: a fifth of all are called by the one before them.
    pub(crate) const fn parent(self) -> Option<Self> {
        if self.number < OLDER && self.number % 5 == 1 {
            Some(self.workload.task(self.number - 1))
        } else {
            None
        }
    }

    /// Stays open; an older one ends in its place.
    pub(crate) const fn stays_open(self) -> bool {
        self.workload.older_in > 0 && (self.number >= OLDER || self.number % self.workload.older_in == 3)
    }

    /// Microseconds that it runs.
    pub(crate) const fn runtime(self) -> i64 {
        let fraction = (self.bits >> 32) as i64 & 0xffff;
        if self.workload.half_long && self.bits & 1 == 0 {
            1_000_000 + fraction * 2_000_000 / 0x1_0000
        } else {
            2_000 + fraction * 10_000 / 0x1_0000
        }
    }

    /// Returns the step after this one, and how many microseconds later it comes.
    pub(crate) const fn next(self, step: Step) -> Option<(Step, i64)> {
        Some(match step {
            Step::Sent => (Step::Received, 2_000),
            Step::Received => (Step::Started, 2_000),
            Step::Started if self.is_retried() && self.number < OLDER => (Step::SentAgain, 1_000),
            Step::SentAgain => (Step::ReceivedAgain, 2_000),
            Step::ReceivedAgain => (Step::Retried, 1_000),
            Step::Retried => (Step::StartedAgain, 500_000),
            Step::Started | Step::StartedAgain if !self.stays_open() => (Step::Ended, self.runtime()),
            Step::Started | Step::StartedAgain | Step::Ended => return None,
        })
    }
}

/// Returns the id of a task of a seed.
pub fn task_id(seed: u64, number: u64) -> String {
    let mut id = String::with_capacity(36);
    Workload::short(seed).task(number).write_id(&mut id);
    id
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn ids_are_uuids_and_no_two_are_alike() {
        let ids: BTreeSet<String> = (0..10_000).map(|number| task_id(number % 3, number / 3)).collect();
        assert_eq!(ids.len(), 10_000);
        for id in &ids {
            let bytes = id.as_bytes();
            assert!(
                id.len() == 36 && bytes[14] == b'4' && b"89ab".contains(&bytes[19]),
                "{id}"
            );
        }
    }

    #[test]
    fn the_realistic_shares_are_those_that_are_promised() {
        let tasks: Vec<Task> = (0..20_000).map(|number| Workload::realistic(7).task(number)).collect();
        let share = |is: &dyn Fn(&Task) -> bool| tasks.iter().filter(|task| is(task)).count() as f64 / 20_000.0;
        assert!((share(&|task| task.runtime() >= 1_000_000) - 0.5).abs() < 0.02);
        assert!((share(&|task| task.is_retried()) - 0.05).abs() < 1e-9);
        assert!((share(&|task| task.stays_open()) - 0.01).abs() < 1e-9);
        assert!((share(&|task| task.outcome() == Outcome::Failed) - 0.02).abs() < 1e-9);
        assert!((share(&|task| task.outcome() == Outcome::Failed && task.is_retried()) - 0.01).abs() < 1e-9);
        assert!((share(&|task| task.parent().is_some()) - 0.2).abs() < 1e-9);
        let names: BTreeSet<_> = tasks.iter().map(|task| task.name()).collect();
        let workers: BTreeSet<_> = tasks.iter().map(|task| task.worker()).collect();
        assert!(
            names.len() > 30 && workers.len() == 40,
            "{} {}",
            names.len(),
            workers.len()
        );
    }
}
