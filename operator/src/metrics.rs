//! Every metric of the operator. No label holds free text; series of an object go when the object goes.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use kanchi_runtime::BuildInfo;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::store_link::World;

/// What one pass came to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PassLabels {
    /// Kind of the resource.
    pub kind: &'static str,
    /// `ok`, `terminal`, `error` or `aborted`.
    pub result: &'static str,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ErrorLabels {
    /// Kind of the resource.
    pub kind: &'static str,
    /// The error's category: a fixed set of words.
    pub category: &'static str,
}

/// What is shown of one CeleryBroker.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BrokerSample {
    /// Type and status of each condition.
    pub conditions: Vec<(String, String)>,
    /// Workers online; `None`: unknown, and no series.
    pub workers: Option<u64>,
    /// Messages waiting.
    pub queued: Option<u64>,
    /// Events a second.
    pub events_per_second: Option<f64>,
    /// Seconds since the monitor's last report.
    pub heartbeat_age: Option<f64>,
}

/// Samples by namespace and name.
type Samples = Arc<Mutex<BTreeMap<(String, String), BrokerSample>>>;

/// All metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Passes by kind and result.
    pub passes: Family<PassLabels, Counter>,
    /// Errors by kind and category.
    pub errors: Family<ErrorLabels, Counter>,
    /// Seconds of a pass.
    pub duration: Histogram,
    /// Passes under way.
    pub running: Gauge,
    /// 1 while this replica holds the Lease.
    pub leader: Gauge,
    /// 1 while the store can be used; leader only.
    pub store_up: Gauge,
    /// Brokers whose monitors share one database role.
    pub shared_roles: Gauge,
    purges_pending: Gauge,
    upkeep_age: Gauge<f64, AtomicU64>,
    upkeep_postponed: Gauge,
    /// Watches that failed and were started again.
    pub watch_errors: Counter,
    /// Resources that could not be parsed.
    pub unreadable: Counter,
    samples: Samples,
}

/// Seconds: a settled pass takes some milliseconds, the longest is bounded by its limit.
const BUCKETS: [f64; 9] = [0.005, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0, 20.0, 60.0];

impl Metrics {
    /// Creates all metrics and adds them, with those of the process, to the registry.
    pub fn register(registry: &mut Registry) -> Self {
        kanchi_runtime::process::register(registry, BuildInfo::of(crate::names::OPERATOR));
        let metrics = Self {
            passes: Family::default(),
            errors: Family::default(),
            duration: Histogram::new(BUCKETS),
            running: Gauge::default(),
            leader: Gauge::default(),
            store_up: Gauge::default(),
            shared_roles: Gauge::default(),
            purges_pending: Gauge::default(),
            upkeep_age: Gauge::default(),
            upkeep_postponed: Gauge::default(),
            watch_errors: Counter::default(),
            unreadable: Counter::default(),
            samples: Samples::default(),
        };
        let operator = registry.sub_registry_with_prefix("kanchi_operator");
        operator.register("reconciles", "Passes over resources", metrics.passes.clone());
        operator.register("reconcile_errors", "Failed passes by category", metrics.errors.clone());
        operator.register(
            "reconcile_duration_seconds",
            "Duration of a pass",
            metrics.duration.clone(),
        );
        operator.register("reconciles_running", "Passes under way", metrics.running.clone());
        operator.register("leader", "1 while this replica holds the lease", metrics.leader.clone());
        operator.register("store_up", "1 while the store can be used", metrics.store_up.clone());
        operator.register(
            "store_shared_roles",
            "Brokers whose monitors share one database role, so that tenants are not isolated",
            metrics.shared_roles.clone(),
        );
        operator.register(
            "store_purges_pending",
            "Deleted CeleryBrokers whose history is still being deleted",
            metrics.purges_pending.clone(),
        );
        operator.register(
            "store_upkeep_age_seconds",
            "Seconds since partitions were last made ahead and dropped by retention",
            metrics.upkeep_age.clone(),
        );
        operator.register(
            "store_upkeep_postponed",
            "Partitions that the last upkeep could not make or drop because they were in use",
            metrics.upkeep_postponed.clone(),
        );
        operator.register(
            "watch_errors",
            "Watches that failed and were started again",
            metrics.watch_errors.clone(),
        );
        operator.register(
            "unreadable_resources",
            "Resources that could not be parsed",
            metrics.unreadable.clone(),
        );
        registry.register_collector(Box::new(SampleCollector {
            samples: Arc::clone(&metrics.samples),
        }));
        metrics
    }

    /// Shows what the store said of itself.
    pub fn show_store(&self, world: &World, now: Instant) {
        self.purges_pending
            .set(i64::try_from(world.purges_pending).unwrap_or(i64::MAX));
        if let Some((age, done)) = world.upkeep {
            let age = age + now.saturating_duration_since(world.taken);
            self.upkeep_age.set(age.as_secs_f64());
            self.upkeep_postponed
                .set(i64::try_from(done.postponed).unwrap_or(i64::MAX));
        }
    }

    /// Replaces what is shown of all brokers: whatever is not listed is gone.
    pub fn show(&self, samples: BTreeMap<(String, String), BrokerSample>) {
        *self.samples.lock().unwrap_or_else(PoisonError::into_inner) = samples;
    }

    /// Removes a broker's series.
    pub fn hide(&self, namespace: &str, name: &str) {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.remove(&(namespace.to_owned(), name.to_owned()));
    }
}

#[derive(Debug)]
struct SampleCollector {
    samples: Samples,
}

/// A gauge of each broker: name, help and how to get it from a sample.
type BrokerGauge = (&'static str, &'static str, fn(&BrokerSample) -> Option<f64>);

const BROKER_GAUGES: [BrokerGauge; 4] = [
    ("kanchi_celerybroker_workers_online", "Workers online", |sample| {
        sample.workers.map(|count| count as f64)
    }),
    ("kanchi_celerybroker_messages_queued", "Messages that wait", |sample| {
        sample.queued.map(|count| count as f64)
    }),
    (
        "kanchi_celerybroker_events_per_second",
        "Events stored a second",
        |sample| sample.events_per_second,
    ),
    (
        "kanchi_celerybroker_heartbeat_age_seconds",
        "Age of the monitor's last report",
        |sample| sample.heartbeat_age,
    ),
];

impl Collector for SampleCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if samples.is_empty() {
            return Ok(());
        }
        let help = "Conditions of CeleryBrokers: 1 for the status that each has";
        let mut conditions =
            encoder.encode_descriptor("kanchi_celerybroker_condition", help, None, MetricType::Gauge)?;
        for ((namespace, name), sample) in &samples {
            for (type_, status) in &sample.conditions {
                let labels = [
                    ("namespace", namespace.as_str()),
                    ("name", name),
                    ("type", type_),
                    ("status", status),
                ];
                ConstGauge::new(1_i64).encode(conditions.encode_family(&labels)?)?;
            }
        }
        for (metric, help, value) in BROKER_GAUGES {
            let mut family = encoder.encode_descriptor(metric, help, None, MetricType::Gauge)?;
            for ((namespace, name), sample) in &samples {
                if let Some(value) = value(sample) {
                    let labels = [("namespace", namespace.as_str()), ("name", name)];
                    ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn text(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text
    }

    #[test]
    fn every_metric_is_in_the_documentation() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let (kind, result, category) = ("CeleryBroker", "ok", "ApiTimeout");
        metrics.passes.get_or_create_owned(&PassLabels { kind, result }).inc();
        metrics
            .errors
            .get_or_create_owned(&ErrorLabels { kind, category })
            .inc();
        metrics.show([(("shop".into(), "orders".into()), BrokerSample::default())].into());
        let ours = |name: &&str| name.starts_with("kanchi_operator_") || name.starts_with("kanchi_celerybroker_");
        let shown = text(&registry);
        let registered: BTreeSet<&str> = shown
            .lines()
            .filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next())
            .filter(ours)
            .collect();
        let documented: BTreeSet<&str> = include_str!("../../docs/metrics.md")
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next())
            .map(|name| name.trim_end_matches("_total"))
            .filter(ours)
            .collect();
        assert_eq!(registered, documented);
    }

    #[test]
    fn series_of_a_broker_come_and_go_with_it_and_unknown_is_absent() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let sample = BrokerSample {
            conditions: vec![("Ready".into(), "True".into())],
            workers: Some(2),
            queued: None,
            events_per_second: Some(1.5),
            heartbeat_age: Some(2.0),
        };
        metrics.show([(("shop".into(), "orders".into()), sample)].into());
        let shown = text(&registry);
        assert!(
            shown.contains(
                r#"kanchi_celerybroker_condition{namespace="shop",name="orders",type="Ready",status="True"} 1"#
            )
        );
        assert!(
            shown.contains(r#"kanchi_celerybroker_workers_online{namespace="shop",name="orders"} 2"#),
            "{shown}"
        );
        assert!(!shown.contains("messages_queued{"), "{shown}");
        metrics.hide("shop", "orders");
        assert!(!text(&registry).contains("orders"));
    }
}
