//! Every metric of a monitor: names, help, labels. `docs/metrics.md` lists the same names; a test compares the two.
//!
//! Each label has a closed set of values, except the queue's name, of which at most [`MAX_QUEUES`] are shown. Series start
//! at zero, so that an alert on a rate does not miss the first occurrence.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};

use kanchi_broker::{ConnectReason, ConnectionState, GapCause, QueueSample};
use kanchi_domain::{EventKind, RejectReason, Repair};
use kanchi_store::{ErrorKind, GapRepair};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::intake::buffer::Fill;
use crate::workers::WorkerCounts;

/// How many queues have series of their own; the rest is only in the store.
pub const MAX_QUEUES: usize = 200;

/// A gauge of a fraction.
pub type FloatGauge = Gauge<f64, AtomicU64>;

/// Label `type`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct TypeLabel {
    r#type: &'static str,
}

/// Label `reason`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReasonLabel {
    reason: &'static str,
}

/// Label `state`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct StateLabel {
    state: &'static str,
}

/// Label `queue`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct QueueLabel {
    queue: String,
}

/// Labels `command` and `outcome`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct CommandLabel {
    command: &'static str,
    outcome: &'static str,
}

/// Label `outcome`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct OutcomeLabel {
    outcome: &'static str,
}

/// The metrics of one monitor.
#[derive(Debug)]
pub struct Metrics {
    connection: Family<StateLabel, Gauge>,
    connection_failures: Family<ReasonLabel, Counter>,
    /// Messages taken from the broker.
    pub messages: Counter,
    events: Family<TypeLabel, Counter>,
    rejects: Family<ReasonLabel, Counter>,
    repairs: Family<ReasonLabel, Counter>,
    /// Events that became dead letters because the store refused them.
    pub refused: Counter,
    /// Messages and events that had been stored before.
    pub duplicates: Counter,
    gaps: Family<ReasonLabel, Counter>,
    gap_repairs: Family<OutcomeLabel, Counter>,
    gap_repair_failures: Counter,
    gap_tasks: Family<OutcomeLabel, Counter>,
    /// Seconds from the arrival of the oldest event of the newest batch to its commit.
    pub lag: FloatGauge,
    /// Celery timestamp of the newest event stored.
    pub last_event: FloatGauge,
    /// Events of each committed batch.
    pub batch_events: Histogram,
    /// Messages of each committed batch.
    pub batch_messages: Histogram,
    /// Seconds that each commit took, retries included.
    pub batch_seconds: Histogram,
    store_errors: Family<ReasonLabel, Counter>,
    /// 1 while the last call to the store succeeded.
    pub store_up: Gauge,
    standby: Gauge,
    /// 1 while this monitor stands by and a take-over would leave no gap.
    pub standby_covers: Gauge,
    /// Times this monitor took over from another one.
    pub take_overs: Counter,
    ring_bytes: Gauge,
    spool_bytes: Gauge,
    dropped: Counter,
    damaged: Counter,
    /// Bytes of the task facts held in memory.
    pub cache_bytes: Gauge,
    /// Tasks whose facts are held in memory.
    pub cache_tasks: Gauge,
    /// Tasks that had to be looked up in the store.
    pub cache_misses: Counter,
    workers: Family<StateLabel, Gauge>,
    queue_ready: Family<QueueLabel, Gauge>,
    queue_unacked: Family<QueueLabel, Gauge>,
    queue_consumers: Family<QueueLabel, Gauge>,
    /// Queues sampled last, those without series of their own included.
    pub queues: Gauge,
    commands: Family<CommandLabel, Counter>,
    reloads: Family<OutcomeLabel, Counter>,
    /// 1 while the configuration in force is the one that is mounted.
    pub config_current: Gauge,
    shown_queues: Mutex<BTreeSet<String>>,
}

impl Metrics {
    /// Makes the metrics and registers all of them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::new();
        metrics.describe_stream(registry);
        metrics.describe_gaps(registry);
        metrics.describe_store(registry);
        metrics.describe_world(registry);
        metrics.start_at_zero();
        metrics
    }

    fn new() -> Self {
        Self {
            connection: Family::default(),
            connection_failures: Family::default(),
            messages: Counter::default(),
            events: Family::default(),
            rejects: Family::default(),
            repairs: Family::default(),
            refused: Counter::default(),
            duplicates: Counter::default(),
            gaps: Family::default(),
            gap_repairs: Family::default(),
            gap_repair_failures: Counter::default(),
            gap_tasks: Family::default(),
            lag: Gauge::default(),
            last_event: Gauge::default(),
            batch_events: Histogram::new(exponential_buckets(1.0, 4.0, 8)),
            batch_messages: Histogram::new(exponential_buckets(1.0, 4.0, 8)),
            batch_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            store_errors: Family::default(),
            store_up: Gauge::default(),
            standby: Gauge::default(),
            standby_covers: Gauge::default(),
            take_overs: Counter::default(),
            ring_bytes: Gauge::default(),
            spool_bytes: Gauge::default(),
            dropped: Counter::default(),
            damaged: Counter::default(),
            cache_bytes: Gauge::default(),
            cache_tasks: Gauge::default(),
            cache_misses: Counter::default(),
            workers: Family::default(),
            queue_ready: Family::default(),
            queue_unacked: Family::default(),
            queue_consumers: Family::default(),
            queues: Gauge::default(),
            commands: Family::default(),
            reloads: Family::default(),
            config_current: Gauge::default(),
            shown_queues: Mutex::default(),
        }
    }

    fn describe_stream(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("kanchi_monitor");
        r.register(
            "connection",
            "1 for the state the broker connection is in",
            self.connection.clone(),
        );
        r.register(
            "connection_failures",
            "Times the broker connection was lost or refused, by reason",
            self.connection_failures.clone(),
        );
        r.register("messages", "Messages taken from the broker", self.messages.clone());
        r.register("events", "Events read, by type", self.events.clone());
        r.register(
            "rejects",
            "Input that is no event, by reason; kept as dead letters",
            self.rejects.clone(),
        );
        r.register(
            "repairs",
            "Faults of events that were kept, by kind",
            self.repairs.clone(),
        );
        r.register(
            "duplicates",
            "Messages that had been stored before",
            self.duplicates.clone(),
        );
        r.register("ring_bytes", "Bytes waiting in memory (Redis)", self.ring_bytes.clone());
        r.register(
            "spool_bytes",
            "Bytes in the disk spool (Redis)",
            self.spool_bytes.clone(),
        );
        r.register(
            "dropped_messages",
            "Messages dropped because ring and spool were full",
            self.dropped.clone(),
        );
        r.register(
            "spool_damaged_segments",
            "Spool segments with a damaged or cut off record",
            self.damaged.clone(),
        );
    }

    fn describe_gaps(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("kanchi_monitor");
        r.register(
            "gaps",
            "Spans of time of which events may be missing, by cause",
            self.gaps.clone(),
        );
        r.register(
            "gap_repairs",
            "Gaps whose repair has ended, by outcome",
            self.gap_repairs.clone(),
        );
        r.register(
            "gap_repair_failures",
            "Times that gaps could not be repaired and were put off",
            self.gap_repair_failures.clone(),
        );
        r.register(
            "gap_tasks",
            "Tasks that the repair of gaps was about, by what became of them",
            self.gap_tasks.clone(),
        );
    }

    fn describe_store(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("kanchi_monitor");
        r.register(
            "lag_seconds",
            "Arrival to commit of the oldest event of the newest batch",
            self.lag.clone(),
        );
        r.register(
            "last_event_timestamp_seconds",
            "Celery timestamp of the newest event stored",
            self.last_event.clone(),
        );
        r.register(
            "batch_events",
            "Events in each committed batch",
            self.batch_events.clone(),
        );
        r.register(
            "batch_messages",
            "Messages in each committed batch",
            self.batch_messages.clone(),
        );
        r.register(
            "batch_seconds",
            "Seconds that each commit took, retries included",
            self.batch_seconds.clone(),
        );
        r.register(
            "refused_events",
            "Events that the store refused; dead letters",
            self.refused.clone(),
        );
        r.register(
            "store_errors",
            "Failed calls to the store, by kind",
            self.store_errors.clone(),
        );
        r.register(
            "store_up",
            "1 while the last call to the store succeeded",
            self.store_up.clone(),
        );
        r.register(
            "standby",
            "1 while another monitor of this broker writes, or may",
            self.standby.clone(),
        );
        r.register(
            "standby_covers",
            "1 while this monitor stands by and a take-over would leave no gap",
            self.standby_covers.clone(),
        );
        r.register(
            "take_overs",
            "Times this monitor began to write after standing by",
            self.take_overs.clone(),
        );
        r.register("cache_bytes", "Bytes of task facts in memory", self.cache_bytes.clone());
        r.register(
            "cache_tasks",
            "Tasks whose facts are in memory",
            self.cache_tasks.clone(),
        );
        r.register(
            "cache_misses",
            "Tasks looked up in the store",
            self.cache_misses.clone(),
        );
    }

    fn describe_world(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("kanchi_monitor");
        r.register("workers", "Celery workers, by state", self.workers.clone());
        r.register("queues", "Queues sampled", self.queues.clone());
        r.register(
            "queue_messages_ready",
            "Messages waiting in a queue",
            self.queue_ready.clone(),
        );
        r.register(
            "queue_messages_unacked",
            "Messages delivered and not acknowledged",
            self.queue_unacked.clone(),
        );
        r.register("queue_consumers", "Consumers of a queue", self.queue_consumers.clone());
        r.register(
            "commands",
            "Remote-control commands sent to workers",
            self.commands.clone(),
        );
        r.register(
            "config_reloads",
            "Changes of the mounted configuration, by outcome",
            self.reloads.clone(),
        );
        r.register(
            "config_current",
            "1 while the mounted configuration is in force",
            self.config_current.clone(),
        );
    }

    fn start_at_zero(&self) {
        self.set_connection(ConnectionState::Connecting);
        for kind in EventKind::ALL {
            drop(self.events.get_or_create(&TypeLabel { r#type: kind.as_str() }));
        }
        for reason in RejectReason::ALL {
            drop(self.rejects.get_or_create(&ReasonLabel {
                reason: reason.as_str(),
            }));
        }
        for repair in Repair::ALL {
            drop(self.repairs.get_or_create(&ReasonLabel {
                reason: repair.as_str(),
            }));
        }
        for cause in GAP_CAUSES {
            drop(self.gaps.get_or_create(&ReasonLabel { reason: cause.as_str() }));
        }
        for outcome in ["Done", "Partial", "GivenUp"] {
            drop(self.gap_repairs.get_or_create(&OutcomeLabel { outcome }));
        }
        for outcome in ["repaired", "found", "unknown"] {
            drop(self.gap_tasks.get_or_create(&OutcomeLabel { outcome }));
        }
        for state in ["online", "offline", "lost", "unknown"] {
            drop(self.workers.get_or_create(&StateLabel { state }));
        }
        for outcome in ["applied", "refused"] {
            drop(self.reloads.get_or_create(&OutcomeLabel { outcome }));
        }
        self.config_current.set(1);
    }

    /// The connection is in this state.
    pub fn set_connection(&self, state: ConnectionState) {
        for other in [
            ConnectionState::Connecting,
            ConnectionState::Connected,
            ConnectionState::Disconnected,
        ] {
            self.connection
                .get_or_create(&StateLabel { state: other.as_str() })
                .set(i64::from(other == state));
        }
    }

    /// The connection was lost or refused.
    pub fn connection_failed(&self, reason: ConnectReason) {
        self.connection_failures
            .get_or_create(&ReasonLabel {
                reason: reason.as_str(),
            })
            .inc();
    }

    /// So many events of a kind were read.
    pub fn events(&self, kind: EventKind, count: u64) {
        self.events
            .get_or_create(&TypeLabel { r#type: kind.as_str() })
            .inc_by(count);
    }

    /// Input was refused.
    pub fn rejected(&self, reason: RejectReason, count: u64) {
        self.rejects
            .get_or_create(&ReasonLabel {
                reason: reason.as_str(),
            })
            .inc_by(count);
    }

    /// An event had a fault that did not cost it its place.
    pub fn repaired(&self, repair: Repair) {
        self.repairs
            .get_or_create(&ReasonLabel {
                reason: repair.as_str(),
            })
            .inc();
    }

    /// A gap was found.
    pub fn gap(&self, cause: GapCause) {
        self.gaps.get_or_create(&ReasonLabel { reason: cause.as_str() }).inc();
    }

    /// The repair of a gap has ended.
    pub fn gap_repaired(&self, repair: &GapRepair) {
        let outcome = match repair.outcome.as_str() {
            "Done" => "Done",
            "Partial" => "Partial",
            _ => "GivenUp",
        };
        self.gap_repairs.get_or_create(&OutcomeLabel { outcome }).inc();
        let tasks = [
            ("repaired", repair.repaired),
            ("found", repair.found),
            ("unknown", repair.unknown),
        ];
        for (outcome, count) in tasks {
            self.gap_tasks.get_or_create(&OutcomeLabel { outcome }).inc_by(count);
        }
    }

    /// Gaps could not be repaired just now.
    pub fn gap_repair_failed(&self) {
        self.gap_repair_failures.inc();
    }

    /// A call to the store failed.
    pub fn store_failed(&self, kind: ErrorKind) {
        self.store_up.set(0);
        self.store_errors
            .get_or_create(&ReasonLabel { reason: kind.as_str() })
            .inc();
    }

    /// A remote-control command was sent, or could not be.
    pub fn command(&self, command: &'static str, sent: bool) {
        let outcome = if sent { "sent" } else { "failed" };
        self.commands.get_or_create(&CommandLabel { command, outcome }).inc();
    }

    /// A changed configuration was applied or refused.
    pub fn config_reloaded(&self, applied: bool) {
        let outcome = if applied { "applied" } else { "refused" };
        self.reloads.get_or_create(&OutcomeLabel { outcome }).inc();
        self.config_current.set(i64::from(applied));
    }

    /// This monitor stands by from now on, or writes. What it does not see meanwhile is not shown as it was.
    pub fn stand_by(&self, stands_by: bool) {
        self.standby.set(i64::from(stands_by));
        self.standby_covers.set(0);
        if stands_by {
            self.workers(&WorkerCounts::default());
            self.queues(&[]);
        }
    }

    /// Tells whether this monitor stands by.
    pub fn stands_by(&self) -> bool {
        self.standby.get() == 1
    }

    /// How full the Redis buffer is.
    pub fn buffer(&self, fill: &Fill) {
        self.ring_bytes.set(fill.ring_bytes as i64);
        self.spool_bytes.set(fill.spool_bytes as i64);
        self.dropped.inc_by(fill.dropped.saturating_sub(self.dropped.get()));
        self.damaged
            .inc_by(fill.damaged_segments.saturating_sub(self.damaged.get()));
    }

    /// How many workers are in which state.
    pub fn workers(&self, counts: &WorkerCounts) {
        let by_state = [
            ("online", counts.online),
            ("offline", counts.offline),
            ("lost", counts.lost),
            ("unknown", counts.unknown),
        ];
        for (state, count) in by_state {
            self.workers.get_or_create(&StateLabel { state }).set(count as i64);
        }
    }

    /// The newest sample of all queues; series of queues that are gone go too.
    pub fn queues(&self, samples: &[QueueSample]) {
        self.queues.set(samples.len() as i64);
        let mut shown = self.shown_queues.lock().unwrap_or_else(PoisonError::into_inner);
        // The fullest ones are what people look for when there are too many to show all.
        let mut order: Vec<&QueueSample> = samples.iter().collect();
        order.sort_by(|a, b| b.ready.cmp(&a.ready).then_with(|| a.name.cmp(&b.name)));
        let now: BTreeSet<String> = order
            .iter()
            .take(MAX_QUEUES)
            .map(|sample| sample.name.clone())
            .collect();
        for queue in shown.difference(&now) {
            let label = QueueLabel { queue: queue.clone() };
            self.queue_ready.remove(&label);
            self.queue_unacked.remove(&label);
            self.queue_consumers.remove(&label);
        }
        for sample in order.into_iter().take(MAX_QUEUES) {
            let label = QueueLabel {
                queue: sample.name.clone(),
            };
            set(&self.queue_ready, &label, sample.ready);
            set(&self.queue_unacked, &label, sample.unacked);
            set(&self.queue_consumers, &label, sample.consumers);
        }
        *shown = now;
    }
}

/// What is not known has no series: never a zero.
fn set(family: &Family<QueueLabel, Gauge>, label: &QueueLabel, value: Option<u64>) {
    match value {
        Some(value) => {
            family
                .get_or_create(label)
                .set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        None => {
            family.remove(label);
        }
    }
}

const GAP_CAUSES: [GapCause; 7] = [
    GapCause::BrokerRestart,
    GapCause::QueueExpired,
    GapCause::QueueOverflow,
    GapCause::SubscriberCut,
    GapCause::SpoolFull,
    GapCause::SpoolDamaged,
    GapCause::MonitorRestart,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text
    }

    fn sample(name: String, ready: u64) -> QueueSample {
        QueueSample {
            name,
            ready: Some(ready),
            unacked: None,
            consumers: Some(1),
        }
    }

    #[test]
    fn what_is_registered_is_what_the_page_lists() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        // A family without series has no lines at all.
        metrics.connection_failed(ConnectReason::Timeout);
        metrics.store_failed(ErrorKind::Timeout);
        metrics.command("ping", true);
        metrics.queues(&[QueueSample {
            unacked: Some(1),
            ..sample("celery".into(), 1)
        }]);
        let registered: BTreeSet<String> = encoded(&registry)
            .lines()
            .filter_map(|line| line.strip_prefix("# HELP "))
            .filter_map(|line| line.split(' ').next())
            .map(str::to_owned)
            .collect();
        let page = include_str!("../../../docs/metrics.md");
        let documented: BTreeSet<String> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `kanchi_monitor_"))
            .filter_map(|line| line.split(['`', '{']).next())
            .map(|name| format!("kanchi_monitor_{}", name.trim_end_matches("_total")))
            .collect();
        assert_eq!(registered, documented);
    }

    #[test]
    fn shows_the_fullest_queues_only_and_forgets_the_ones_that_are_gone() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let many: Vec<_> = (0..1000)
            .map(|number| sample(format!("queue-{number:04}"), number))
            .collect();
        metrics.queues(&many);
        let text = encoded(&registry);
        assert_eq!(text.matches("kanchi_monitor_queue_messages_ready{").count(), MAX_QUEUES);
        assert!(text.contains("kanchi_monitor_queue_messages_ready{queue=\"queue-0999\"} 999"));
        assert!(text.contains("kanchi_monitor_queues 1000"));
        assert!(
            !text.contains("kanchi_monitor_queue_messages_unacked{"),
            "unknown is not zero"
        );
        metrics.queues(&[sample("only".into(), 0)]);
        let text = encoded(&registry);
        assert_eq!(
            text.matches("kanchi_monitor_queue_messages_ready{").count(),
            1,
            "{text}"
        );
    }

    #[test]
    fn shows_exactly_one_state_of_the_connection() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.set_connection(ConnectionState::Connected);
        let text = encoded(&registry);
        assert!(
            text.contains("kanchi_monitor_connection{state=\"Connected\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("kanchi_monitor_connection{state=\"Connecting\"} 0"),
            "{text}"
        );
    }
}
