//! Counts in the status: rounded, so that they change seldom, and absent when they are not known. Pure.

use std::time::Instant;

use kanchi_crds::{CeleryBrokerStatus, HourCounts, QueueStatus};
use kanchi_store::BrokerKey;

use super::status::STALE;
use crate::store_link::World;

/// Most queues that are shown.
const TOP_QUEUES: usize = 10;

/// A rate that differs by less than this part of itself is the same: a heartbeat more or less within the window.
const SAME_RATE: f64 = 0.3;

/// Returns the counts of a broker; all absent when its monitor has not reported lately.
pub fn of(world: &World, key: Option<BrokerKey>, now: Instant) -> CeleryBrokerStatus {
    let nothing = CeleryBrokerStatus::default();
    let Some(key) = key else { return nothing };
    let Some((report, Some(age))) = world.report(key, now) else {
        return nothing;
    };
    let Some(heartbeat) = report.heartbeat.as_ref().filter(|_| age <= STALE) else {
        return nothing;
    };
    let hour = world.hours.get(&key).copied().unwrap_or_default();
    let mut top_queues: Vec<QueueStatus> = report
        .top_queues
        .iter()
        .take(TOP_QUEUES)
        .map(|queue| QueueStatus {
            name: queue.name.clone(),
            ready: rounded(queue.ready),
            unacked: None,
            consumers: queue.consumers.map(rounded),
        })
        .collect();
    top_queues.sort_by(|one, two| two.ready.cmp(&one.ready).then_with(|| one.name.cmp(&two.name)));
    CeleryBrokerStatus {
        workers_online: heartbeat.workers_online.map(whole),
        messages_queued: heartbeat.messages_queued.map(rounded),
        events_per_second: heartbeat.events_per_second.map(two_digits),
        last_hour: Some(HourCounts {
            succeeded: rounded(hour.succeeded),
            failed: rounded(hour.failed),
            retried: rounded(hour.retried),
        }),
        top_queues,
        gaps: Some(whole(report.gaps_last_day)),
        ..nothing
    }
}

/// Tells whether a monitor that has just connected has found what there is: workers, and its queues' depth.
pub fn are_whole(counts: &CeleryBrokerStatus) -> bool {
    counts.workers_online.is_some_and(|workers| workers > 0) && counts.messages_queued.is_some()
}

/// How new counts differ from those in the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Not enough to be written.
    Same,
    /// They do.
    Other,
    /// Counts that are there are not known any more.
    Gone,
}

/// Compares counts with those in the status.
pub fn change(live: &CeleryBrokerStatus, counts: &CeleryBrokerStatus) -> Change {
    let gone = (live.workers_online.is_some() && counts.workers_online.is_none())
        || (live.messages_queued.is_some() && counts.messages_queued.is_none())
        || (live.events_per_second.is_some() && counts.events_per_second.is_none())
        || (live.last_hour.is_some() && counts.last_hour.is_none())
        || (live.gaps.is_some() && counts.gaps.is_none());
    if gone {
        return Change::Gone;
    }
    let by_name = |status: &CeleryBrokerStatus| {
        let mut queues = status.top_queues.clone();
        queues.sort_by(|one, two| one.name.cmp(&two.name));
        queues
    };
    let same = live.workers_online == counts.workers_online
        && live.messages_queued == counts.messages_queued
        && is_same_rate(live.events_per_second, counts.events_per_second)
        && live.last_hour == counts.last_hour
        && live.gaps == counts.gaps
        && by_name(live) == by_name(counts);
    if same { Change::Same } else { Change::Other }
}

fn is_same_rate(before: Option<f64>, now: Option<f64>) -> bool {
    match (before, now) {
        (None, None) => true,
        (Some(before), Some(now)) => (now - before).abs() <= SAME_RATE * before.abs().max(now.abs()),
        (None, Some(_)) | (Some(_), None) => false,
    }
}

fn whole(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Below 100 as it is, above to two digits.
fn rounded(count: u64) -> i64 {
    let mut scale = 1_u64;
    while count / scale >= 100 {
        scale = scale.saturating_mul(10);
    }
    whole((count + scale / 2) / scale * scale)
}

fn two_digits(rate: f64) -> f64 {
    if !rate.is_finite() || rate <= 0.0 {
        return 0.0;
    }
    // Through text, so that 0.30000000000000004 is 0.3.
    format!("{rate:.1e}").parse().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store_link::LinkState;
    use kanchi_store::{Heartbeat, MonitorReport, TopQueue};
    use std::collections::HashMap;
    use std::time::Duration;

    fn world(age: u64, rate: f64) -> World {
        let report = MonitorReport {
            key: BrokerKey(1),
            namespace: "shop".into(),
            name: "orders".into(),
            heartbeat_age: Some(Duration::from_secs(age)),
            heartbeat: Some(Heartbeat {
                workers_online: Some(3),
                messages_queued: Some(12_345),
                events_per_second: Some(rate),
                ..Heartbeat::default()
            }),
            top_queues: vec![TopQueue {
                name: "celery".into(),
                ready: 12_345,
                consumers: Some(2),
            }],
            gaps_last_day: 0,
            gaps_open: 0,
        };
        World {
            link: LinkState::Up,
            reports: [(BrokerKey(1), report)].into(),
            hours: HashMap::new(),
            purges_pending: 0,
            upkeep: None,
            taken: Instant::now(),
        }
    }

    fn counts(world: &World) -> CeleryBrokerStatus {
        of(world, Some(BrokerKey(1)), world.taken)
    }

    #[test]
    fn large_numbers_are_rounded_to_two_digits() {
        let values = [0, 7, 99, 100, 104, 105, 149, 12_345, 99_600, u64::MAX / 4].map(rounded);
        assert_eq!(values[..9], [0, 7, 99, 100, 100, 110, 150, 12_000, 100_000]);
        let rates = [0.0, 0.466, 1.26, 1234.0, 0.1 + 0.2, f64::NAN].map(|rate| two_digits(rate).to_string());
        assert_eq!(rates, ["0", "0.47", "1.3", "1200", "0.3", "0"]);
    }

    #[test]
    fn a_silent_monitor_has_no_counts_instead_of_old_ones() {
        let fresh = counts(&world(5, 1.0));
        assert_eq!((fresh.workers_online, fresh.messages_queued), (Some(3), Some(12_000)));
        let stale = counts(&world(31, 1.0));
        assert_eq!(stale, CeleryBrokerStatus::default());
        assert_eq!(change(&fresh, &stale), Change::Gone);
        assert_eq!(change(&stale, &stale), Change::Same);
    }

    #[test]
    fn first_counts_wait_for_workers_and_queues() {
        let mut early = counts(&world(1, 0.5));
        assert!(are_whole(&early));
        early.workers_online = Some(0);
        assert!(!are_whole(&early));
        early.workers_online = Some(3);
        early.messages_queued = None;
        assert!(!are_whole(&early));
    }

    #[test]
    fn a_heartbeat_more_or_less_writes_nothing() {
        let before = counts(&world(1, 0.5));
        assert_eq!(change(&before, &counts(&world(1, 0.4))), Change::Same);
        assert_eq!(change(&before, &counts(&world(1, 0.63))), Change::Same);
        assert_eq!(change(&before, &counts(&world(1, 5.0))), Change::Other);
        assert_eq!(change(&before, &counts(&world(1, 0.0))), Change::Other);
        assert_eq!(change(&CeleryBrokerStatus::default(), &before), Change::Other);
    }
}
