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
        let each = |calls: u64| format!("{:.1}", calls as f64 / self.brokers as f64);
        let seconds = |duration: Duration| format!("{:.1} s", duration.as_secs_f64());
        let middle = self.changes.get(self.changes.len() / 2).copied().unwrap_or_default();
        let worst = self.changes.last().copied().unwrap_or_default();
        let writes_a_minute = self.busy.calls.writes() as f64 / self.busy.seconds * 60.0 / self.brokers as f64;
        let rows = [
            (
                "memory, most of either process",
                format!("{} MiB", mebibytes(self.first.peak.max(self.second.peak))),
                "100 MiB",
                "60 MiB",
            ),
            (
                "memory, quiet",
                format!("{} MiB", mebibytes(self.quiet.resident)),
                "100 MiB",
                "60 MiB",
            ),
            (
                "memory without CeleryBrokers",
                format!("{} MiB", mebibytes(self.empty.resident)),
                "",
                "",
            ),
            (
                "writes beside the Lease while nothing changes",
                self.quiet.calls.writes().to_string(),
                "0",
                "0",
            ),
            (
                "all looked at after a restart",
                seconds(self.restarted),
                "300 s",
                "60 s",
            ),
            ("all settled after their creation", seconds(self.settled), "", ""),
            ("half of them", seconds(self.settled_half), "", ""),
            (
                "API calls per settled CR, creation",
                each(self.creation.total()),
                "",
                "",
            ),
            ("of these writes", each(self.creation.writes()), "", ""),
            ("passes per CR, creation", each(self.creation_passes), "", ""),
            ("API calls per settled CR, restart", each(self.restart.total()), "", ""),
            ("of these writes", each(self.restart.writes()), "", ""),
            ("passes per CR, restart", each(self.restart_passes), "", ""),
            (
                "statements per CR, restart",
                each(self.restart_statements.calls),
                "",
                "",
            ),
            (
                "one changed among them, until its status says so: median",
                seconds(middle),
                "",
                "",
            ),
            ("the longest", seconds(worst), "", ""),
            (
                "counts that always change: writes a minute and CR",
                format!("{writes_a_minute:.2}"),
                "1",
                "",
            ),
        ];
        let mut lines = vec![
            format!("\n| {} CeleryBrokers | measured | required | goal |", self.brokers),
            "|---|---|---|---|".to_owned(),
        ];
        lines.extend(
            rows.map(|(what, measured, required, goal)| format!("| {what} | {measured} | {required} | {goal} |")),
        );
        lines.push(format!("\nquiet, {}", self.quiet.line()));
        lines.push(format!("busy, {}", self.busy.line()));
        lines.push(format!("created in {:.1} s", self.created.as_secs_f64()));
        lines.push(self.calls());
        lines.join("\n")
    }

    /// Returns what is required and was missed.
    pub(crate) fn missed(&self) -> Vec<&'static str> {
        let peak = self.first.peak.max(self.second.peak);
        let checks = [
            (peak > 100 << 20, "memory"),
            (self.quiet.calls.writes() > 0, "writes while nothing changes"),
            (self.restarted > Duration::from_mins(5), "the time after a restart"),
        ];
        checks
            .into_iter()
            .filter_map(|(is_missed, what)| is_missed.then_some(what))
            .collect()
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

fn mebibytes(bytes: u64) -> String {
    format!("{:.0}", bytes as f64 / f64::from(1 << 20))
}

#[expect(clippy::print_stdout, reason = "the figures are what this program is for")]
pub(crate) fn say(text: &str) {
    println!("{text}");
}
