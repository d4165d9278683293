//! What was measured, and the tables of it.

use std::time::Duration;

use crate::calls::Calls;
use crate::process::Usage;
use crate::statements::Statements;

/// A while in which somebody looked on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Span {
    /// Its length.
    pub(crate) seconds: f64,
    /// Processors that the operator used.
    pub(crate) processor: f64,
    /// Its memory in the end, bytes.
    pub(crate) resident: u64,
    /// What it asked of Postgres.
    pub(crate) statements: Statements,
    /// Its passes over CeleryBrokers.
    pub(crate) passes: u64,
    /// What it asked of the API server.
    pub(crate) calls: Calls,
}

/// Everything.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) brokers: u64,
    /// Without a CeleryBroker.
    pub(crate) empty: Usage,
    /// How long this program took to create them.
    pub(crate) created: Duration,
    /// From the first creation until half of them were settled.
    pub(crate) settled_half: Duration,
    /// The same for all of them.
    pub(crate) settled: Duration,
    pub(crate) creation: Calls,
    pub(crate) creation_passes: u64,
    pub(crate) quiet: Span,
    pub(crate) busy: Span,
    /// The first process at its end.
    pub(crate) first: Usage,
    /// From SIGTERM until the new process came to the last CeleryBroker.
    pub(crate) restarted: Duration,
    pub(crate) restart: Calls,
    pub(crate) restart_passes: u64,
    pub(crate) restart_statements: Statements,
    /// From the change to the status, sorted.
    pub(crate) changes: Vec<Duration>,
    pub(crate) change: Calls,
    /// The second process at its end.
    pub(crate) second: Usage,
}

impl Span {
    /// Returns the essence.
    pub(crate) fn line(&self) -> String {
        format!(
            "in {:.0} s: {} writes beside the Lease, {:.1} reads/s, {} passes, {:.1} % of a processor, {} MiB, {:.1} statements/s \
             that took {:.1} ms/s",
            self.seconds,
            self.calls.writes(),
            (self.calls.total() - self.calls.writes()) as f64 / self.seconds,
            self.passes,
            self.processor * 100.0,
            mebibytes(self.resident),
            self.statements.calls as f64 / self.seconds,
            self.statements.milliseconds / self.seconds,
        )
    }
}

impl Figures {
    /// Returns all tables.
    pub(crate) fn table(&self) -> String {
        let mut lines = vec![
            format!("\n| {} CeleryBrokers | measured | required | goal |", self.brokers),
            "|---|---|---|---|".to_owned(),
        ];
        lines.extend(self.rows().iter().map(Row::line));
        lines.push(format!("\nquiet, {}", self.quiet.line()));
        lines.push(format!("busy, {}", self.busy.line()));
        lines.push(format!("created in {:.1} s", self.created.as_secs_f64()));
        lines.push(self.calls());
        lines.join("\n")
    }

    /// Returns what is required and was missed.
    pub(crate) fn missed(&self) -> Vec<&'static str> {
        let rows = self.rows();
        let missed = rows.iter().filter(|row| row.is_missed());
        missed.map(|row| row.what).collect()
    }

    fn rows(&self) -> Vec<Row> {
        let each = |what, calls: u64| Row::new(what, calls as f64 / self.brokers as f64, "").fine();
        let seconds = |what, duration: Duration| Row::new(what, duration.as_secs_f64(), " s").fine();
        let memory = |what, bytes: u64| Row::new(what, bytes as f64 / f64::from(1 << 20), " MiB");
        let middle = self.changes.get(self.changes.len() / 2).copied().unwrap_or_default();
        let worst = self.changes.last().copied().unwrap_or_default();
        let writes_a_minute = self.busy.calls.writes() as f64 / self.busy.seconds * 60.0 / self.brokers as f64;
        vec![
            memory("memory, most of either process", self.first.peak.max(self.second.peak)).at_most(100.0, 60.0),
            memory("memory, quiet", self.quiet.resident).at_most(100.0, 60.0),
            memory("memory without CeleryBrokers", self.empty.resident),
            Row::new(
                "writes beside the Lease while nothing changes",
                self.quiet.calls.writes() as f64,
                "",
            )
            .at_most(0.0, 0.0),
            seconds("all looked at after a restart", self.restarted).at_most(300.0, 60.0),
            seconds("all settled after their creation", self.settled),
            seconds("half of them", self.settled_half),
            each("API calls per settled CR, creation", self.creation.total()),
            each("of these writes", self.creation.writes()),
            each("passes per CR, creation", self.creation_passes),
            each("API calls per settled CR, restart", self.restart.total()),
            each("of these writes", self.restart.writes()),
            each("passes per CR, restart", self.restart_passes),
            each("statements per CR, restart", self.restart_statements.calls),
            seconds("one changed among them, until its status says so: median", middle),
            seconds("the longest", worst),
            // Not held against its limit: over two minutes, three writes are one a minute as well.
            Row {
                decimals: 2,
                ..Row::new(
                    "counts that always change: writes a minute and CR (1 at most)",
                    writes_a_minute,
                    "",
                )
            },
        ]
    }

    /// Returns calls by verb and resource in each phase.
    fn calls(&self) -> String {
        let phases = [
            &self.creation,
            &self.quiet.calls,
            &self.busy.calls,
            &self.restart,
            &self.change,
        ];
        let mut calls: Vec<_> = phases.iter().flat_map(|phase| phase.counts.keys()).collect();
        calls.sort_unstable_by(|one, two| (&one.1, &one.0).cmp(&(&two.1, &two.0)));
        calls.dedup();
        let mut lines = vec![
            format!(
                "\n| call | creation | quiet {:.0} s | busy {:.0} s | restart | {} changes |",
                self.quiet.seconds,
                self.busy.seconds,
                self.changes.len()
            ),
            "|---|---|---|---|---|---|".to_owned(),
        ];
        for call in calls {
            let counts = phases.map(|phase| phase.counts.get(call).copied().unwrap_or_default().to_string());
            lines.push(format!("| {} {} | {} |", call.0, call.1, counts.join(" | ")));
        }
        lines.join("\n")
    }
}

/// A line of the table.
struct Row {
    what: &'static str,
    value: f64,
    unit: &'static str,
    decimals: usize,
    /// At most so much is required, and the goal.
    limits: Option<(f64, f64)>,
}

impl Row {
    fn new(what: &'static str, value: f64, unit: &'static str) -> Self {
        Self {
            what,
            value,
            unit,
            decimals: 0,
            limits: None,
        }
    }

    /// Shows tenths.
    fn fine(self) -> Self {
        Self { decimals: 1, ..self }
    }

    fn at_most(self, required: f64, goal: f64) -> Self {
        Self {
            limits: Some((required, goal)),
            ..self
        }
    }

    fn is_missed(&self) -> bool {
        self.limits.is_some_and(|(required, _)| self.value > required)
    }

    fn line(&self) -> String {
        let (what, unit, decimals) = (self.what, self.unit, self.decimals);
        let limits = self.limits.map_or_else(
            || " | ".to_owned(),
            |(required, goal)| format!("{required}{unit} | {goal}{unit}"),
        );
        format!("| {what} | {:.decimals$}{unit} | {limits} |", self.value)
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.0}", bytes as f64 / f64::from(1 << 20))
}

#[expect(clippy::print_stdout, reason = "the figures are what this program is for")]
pub(crate) fn say(text: &str) {
    println!("{text}");
}
