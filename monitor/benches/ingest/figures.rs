//! What was measured, and the table of it.

use kanchi_test_servers::{own_processor_seconds, processor_seconds};

use crate::server::Written;

/// What one measurement gave.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    pub(crate) name: String,
    pub(crate) events: u64,
    /// Events that were published and not found after a restart of Postgres.
    pub(crate) lost: i64,
    /// Events a second, first publish to last commit.
    pub(crate) rate: f64,
    /// Events a second of what it is compared with.
    pub(crate) against: f64,
    /// Processor seconds per event.
    pub(crate) processor: Processor,
    /// Highest resident memory of the monitor, bytes.
    pub(crate) peak: u64,
    /// What Postgres wrote while it was measured.
    pub(crate) written: Written,
    /// The least ratio that is required (figures to reach, in the design).
    pub(crate) required: f64,
}

/// Most memory that is required, bytes.
const REQUIRED_MEMORY: u64 = 50 << 20;

/// Processor seconds, by who used them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Processor {
    pub(crate) monitor: f64,
    pub(crate) postgres: f64,
    pub(crate) broker: f64,
    pub(crate) publisher: f64,
}

impl Processor {
    /// Returns what these processes have used so far; 0 stands for one that does not run yet. The publisher is this process.
    pub(crate) fn so_far(monitor: u32, postgres: u32, broker: u32) -> Self {
        Self {
            monitor: processor_seconds(monitor),
            postgres: processor_seconds(postgres),
            broker: processor_seconds(broker),
            // Without that of the servers, which it has started.
            publisher: own_processor_seconds(std::process::id()),
        }
    }

    /// Returns what was used since then, per event.
    pub(crate) fn since(self, before: Self, events: u64) -> Self {
        let per_event = |now: f64, before: f64| (now - before) / events.max(1) as f64;
        Self {
            monitor: per_event(self.monitor, before.monitor),
            postgres: per_event(self.postgres, before.postgres),
            broker: per_event(self.broker, before.broker),
            publisher: per_event(self.publisher, before.publisher),
        }
    }
}

const HEAD: &str = "\
| stream | events | lost | events/s | floor/s | ratio | required | monitor × 1/floor | monitor | Postgres | broker | publisher | memory | checkpoints | log an event |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|";

impl Figures {
    /// Prints its line, so that a long run shows something.
    pub(crate) fn shown(self) -> Self {
        say(&self.line());
        self
    }

    fn ratio(&self) -> f64 {
        self.rate / self.against
    }

    fn line(&self) -> String {
        let Processor {
            monitor,
            postgres,
            broker,
            publisher,
        } = self.processor;
        format!(
            "| {} | {} | {} | {:.0} | {:.0} | {:.2} | {}: {} | {:.2} | {:.1} µs | {:.1} µs | {:.1} µs | {:.1} µs | {:.0} MiB{} | {} | {} B |",
            self.name,
            self.events,
            self.lost,
            self.rate,
            self.against,
            self.ratio(),
            self.required,
            if self.ratio() >= self.required { "met" } else { "missed" },
            monitor * self.against,
            monitor * 1e6,
            postgres * 1e6,
            broker * 1e6,
            publisher * 1e6,
            self.peak as f64 / f64::from(1 << 20),
            if self.peak <= REQUIRED_MEMORY {
                ""
            } else {
                " (50: missed)"
            },
            self.written.checkpoints,
            self.written.log / self.events.max(1),
        )
    }
}

/// Returns the table: of each stream the run with the middle ratio, and the span of all.
pub(crate) fn medians(all: &[Figures]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for figures in all {
        if !names.contains(&figures.name.as_str()) {
            names.push(&figures.name);
        }
    }
    let mut lines = vec![String::new(), HEAD.to_owned()];
    for name in names {
        let mut runs: Vec<&Figures> = all.iter().filter(|figures| figures.name == name).collect();
        runs.sort_by(|a, b| a.ratio().total_cmp(&b.ratio()));
        let (Some(low), Some(middle), Some(high)) = (runs.first(), runs.get(runs.len() / 2), runs.last()) else {
            continue;
        };
        lines.push(middle.line());
        if runs.len() > 1 {
            lines.push(format!(
                "{name}: ratio {:.2} to {:.2} in {} runs",
                low.ratio(),
                high.ratio(),
                runs.len()
            ));
        }
    }
    lines.join("\n")
}

#[expect(clippy::print_stdout, reason = "the figures are what this program is for")]
pub(crate) fn say(text: &str) {
    println!("{text}");
}
