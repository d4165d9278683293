//! What the process itself uses, read from `/proc` at each scrape.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::BuildInfo;

/// Memory of the process in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What is resident now.
    pub resident: u64,
    /// The most that was ever resident.
    pub peak: u64,
}

/// Adds `process_*` and `kanchi_build_info` to the registry.
pub fn register(registry: &mut Registry, build: BuildInfo) {
    registry.register(
        "kanchi_build",
        "Which build is running",
        Info::new([
            ("component", build.component),
            ("version", build.version),
            ("commit", build.commit),
            ("compiler", build.compiler),
        ]),
    );
    registry.register_collector(Box::new(ProcessCollector));
}

/// Returns the memory of this process; `None` where there is no `/proc`.
pub fn memory() -> Option<Memory> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    Some(Memory {
        resident: kibibytes(&status, "VmRSS:")?,
        peak: kibibytes(&status, "VmHWM:")?,
    })
}

/// Returns the processor seconds that this process has used; `None` where there is no `/proc`.
pub fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in brackets may hold spaces; the numbers begin behind its last bracket.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let user: u64 = fields.nth(11)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    // The kernel reports in USER_HZ, which is 100 on every Linux that runs containers.
    Some((user + system) as f64 / 100.0)
}

fn kibibytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find(|line| line.starts_with(name))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes * 1024)
}

fn open_files() -> Option<u64> {
    Some(std::fs::read_dir("/proc/self/fd").ok()?.count() as u64)
}

#[derive(Debug)]
struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        if let Some(memory) = memory() {
            gauge(
                &mut encoder,
                "process_resident_memory_bytes",
                "Resident memory",
                memory.resident,
            )?;
            gauge(
                &mut encoder,
                "process_resident_memory_max_bytes",
                "Highest resident memory so far",
                memory.peak,
            )?;
        }
        if let Some(open) = open_files() {
            gauge(&mut encoder, "process_open_fds", "Open file descriptors", open)?;
        }
        if let Some(seconds) = cpu_seconds() {
            let counter = ConstCounter::new(seconds);
            let metric =
                encoder.encode_descriptor("process_cpu_seconds", "Processor time used", None, MetricType::Counter)?;
            counter.encode(metric)?;
        }
        Ok(())
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> Result<(), std::fmt::Error> {
    let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    gauge.encode(metric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_memory_processor_time_and_build_of_this_process() {
        let mut registry = Registry::default();
        register(&mut registry, BuildInfo::of("kanchi-test"));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for expected in [
            "process_resident_memory_bytes ",
            "process_cpu_seconds_total ",
            "process_open_fds ",
            "kanchi_build_info{",
        ] {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
        let memory = memory().unwrap();
        assert!(memory.resident > 0 && memory.peak >= memory.resident / 2, "{memory:?}");
    }
}
