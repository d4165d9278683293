//! The committed table of what row must come for a task of each kind, and the comparison with it.

use std::collections::{BTreeMap, HashMap};
use std::fs;

use anyhow::Context;
use kanchi_domain::{TaskId, TaskRow};
use serde::Deserialize;
use serde_json::Value;

use crate::cluster::checkout;
use crate::shop::{Entry, Published, Stored};
use crate::watched::Transport;

/// `e2e/tests/expected/tasks.yaml`.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct Table(BTreeMap<String, Line>);

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    PerBroker {
        rabbitmq: Box<Expected>,
        redis: Box<Expected>,
    },
    Same(Box<Expected>),
}

/// One line of the table; the words are explained there.
#[expect(
    clippy::struct_excessive_bools,
    reason = "columns of the table, each one a yes or no"
)]
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    state: String,
    mark: Option<String>,
    retries: u32,
    steps: Vec<Moment>,
    result: Option<FromJournal>,
    exception: Option<String>,
    traceback: Option<String>,
    #[serde(default)]
    runtime: bool,
    root: Relative,
    parent: Relative,
    #[serde(default)]
    eta: bool,
    #[serde(default)]
    expires: bool,
    #[serde(default)]
    progress: bool,
    revoked: Option<Terminated>,
    worker: Option<AnyWorker>,
    journal: Last,
    backend: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Moment {
    Sent,
    Received,
    Started,
    Finished,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FromJournal {
    Journal,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Terminated {
    #[serde(rename = "terminated by 15")]
    BySigterm,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum AnyWorker {
    Any,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Relative {
    #[serde(rename = "self")]
    Own,
    None,
    Published,
    Header,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Last {
    Returned,
    Raised,
    Ran,
    Nothing,
}

/// What is known of the published tasks from other sources than Kanchi.
#[derive(Debug, Default)]
pub struct Truth {
    journal: HashMap<String, Vec<Entry>>,
    results: HashMap<String, Stored>,
    headers: Vec<String>,
}

impl Table {
    /// Reads the table.
    pub fn read() -> anyhow::Result<Self> {
        let path = checkout("e2e/tests/expected/tasks.yaml");
        let text = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
        // serde_yaml leaves `<<` as it is unless it is told to merge.
        let mut value: serde_yaml::Value = serde_yaml::from_str(&text).context("failed to parse the table")?;
        value.apply_merge().context("failed to merge the table's lines")?;
        serde_yaml::from_value(value).context("the table has an unknown word")
    }

    /// Returns the line of a role.
    pub fn line(&self, role: &str, transport: Transport) -> anyhow::Result<&Expected> {
        Ok(
            match self
                .0
                .get(role)
                .with_context(|| format!("the table has no line {role}"))?
            {
                Line::Same(line) => line,
                Line::PerBroker { rabbitmq, .. } if transport == Transport::RabbitMq => rabbitmq,
                Line::PerBroker { redis, .. } => redis,
            },
        )
    }
}

impl Truth {
    /// Sorts the sources by task.
    pub fn new(published: &[Published], journal: Vec<Entry>, results: Vec<Stored>) -> Self {
        let mut truth = Self::default();
        for entry in journal {
            truth.journal.entry(entry.id.clone()).or_default().push(entry);
        }
        truth.results = results
            .into_iter()
            .map(|stored| (stored.task_id.clone(), stored))
            .collect();
        let headers = published.iter().filter(|task| task.role == "chord.header");
        truth.headers = headers.map(|task| task.id.clone()).collect();
        truth
    }

    /// Returns what the last attempt wrote last. One that is retried at once may be overtaken, and write after it.
    fn last(&self, id: &str) -> Option<&Entry> {
        self.journal.get(id)?.iter().max_by_key(|entry| entry.attempt)
    }

    /// Says whether an attempt that was overtaken has stored its RETRY over the result.
    fn lost_its_result(&self, id: &str) -> bool {
        self.results.get(id).is_some_and(|stored| stored.status == "RETRY")
            && self
                .last(id)
                .is_some_and(|entry| entry.attempt > 0 && entry.step == "returned")
    }
}

impl Expected {
    /// Returns the state that must come.
    pub fn state(&self) -> &str {
        &self.state
    }

    /// Compares a row with this line; returns each difference.
    pub fn differences(&self, task: &Published, row: &TaskRow, truth: &Truth) -> Vec<String> {
        let mut found = Differences(Vec::new());
        self.compare_state(&mut found, row);
        self.compare_call(&mut found, task, row, truth);
        self.compare_outcome(&mut found, task, row, truth);
        self.compare_times(&mut found, row);
        self.compare_sources(&mut found, task, row, truth);
        found.0
    }

    fn compare_state(&self, found: &mut Differences, row: &TaskRow) {
        found.same("state", Some(self.state.as_str()), Some(row.state.as_str()));
        found.same(
            "mark",
            self.mark.as_deref(),
            row.mark.map(kanchi_domain::TaskMark::as_str),
        );
        found.same("retries", self.retries, row.retries);
        found.same("terminated", self.revoked.is_some(), row.terminated);
        found.same(
            "signum",
            self.revoked.map(|Terminated::BySigterm| "15"),
            row.signum.as_deref(),
        );
        found.same("thinned", false, row.thinned);
    }

    fn compare_call(&self, found: &mut Differences, task: &Published, row: &TaskRow, truth: &Truth) {
        found.same("name", Some(task.name.as_str()), row.name.as_deref());
        found.same("queue", Some(task.queue.as_str()), row.queue.as_deref());
        found.same("queue_inferred", false, row.queue_inferred);
        found.same("args", Some(tuple(&task.args)), row.args.as_deref().map(str::to_owned));
        found.same(
            "kwargs",
            Some(repr(&Value::Object(task.kwargs.clone()))),
            row.kwargs.as_deref().map(str::to_owned),
        );
        let worker = truth.last(&task.id).map(|entry| entry.worker.as_str());
        if self.worker.is_none() {
            found.same("worker", worker, row.worker.as_deref());
        } else if row.worker.is_none() {
            found.0.push("worker: some worker must be named".into());
        }
        let related = |relation: Relative, published: &Option<String>, id: Option<&TaskId>| match relation {
            Relative::Own => id.is_some_and(|id| id.as_str() == task.id),
            Relative::None => id.is_none(),
            Relative::Published => id.map(TaskId::as_str) == published.as_deref(),
            Relative::Header => id.is_some_and(|id| truth.headers.iter().any(|header| header == id.as_str())),
        };
        if !related(self.root, &task.root, row.root_id.as_ref()) {
            found
                .0
                .push(format!("root: {:?} wanted, not {:?}", self.root, row.root_id));
        }
        if !related(self.parent, &task.parent, row.parent_id.as_ref()) {
            found
                .0
                .push(format!("parent: {:?} wanted, not {:?}", self.parent, row.parent_id));
        }
    }

    fn compare_outcome(&self, found: &mut Differences, task: &Published, row: &TaskRow, truth: &Truth) {
        let first = task.args.first().map(repr).unwrap_or_default();
        let returned = truth
            .last(&task.id)
            .map(|entry| repr(&entry.result))
            .unwrap_or_default();
        let result = self.result.map(|FromJournal::Journal| returned);
        found.same("result", result.as_deref(), row.result.as_deref());
        let exception = self.exception.as_ref().map(|text| text.replace("{0}", &first));
        found.same("exception", exception.as_deref(), row.exception.as_deref());
        let traceback = self.traceback.as_ref().map(|text| text.replace("{0}", &first));
        let last_line = row.traceback.as_deref().and_then(|text| text.trim_end().lines().last());
        found.same("traceback", traceback.as_deref(), last_line);
        found.same(
            "runtime",
            self.runtime,
            row.runtime.is_some_and(|seconds| (0.0..600.0).contains(&seconds)),
        );
        let percent = row.progress.as_ref().and_then(|progress| progress.percent);
        found.same("progress", self.progress.then_some(100.0), percent);
    }

    fn compare_times(&self, found: &mut Differences, row: &TaskRow) {
        let times = [
            (Moment::Sent, row.sent_at),
            (Moment::Received, row.received_at),
            (Moment::Started, row.started_at),
            (Moment::Finished, row.finished_at),
        ];
        for (moment, time) in times {
            found.same(&format!("{moment:?} at"), self.steps.contains(&moment), time.is_some());
        }
        found.same("eta", self.eta, row.eta.is_some());
        found.same("expires", self.expires, row.expires.is_some());
    }

    /// The sources must agree with the table, too: a wrong table would otherwise pass a wrong row.
    fn compare_sources(&self, found: &mut Differences, task: &Published, row: &TaskRow, truth: &Truth) {
        let last = truth.last(&task.id);
        let step = match self.journal {
            Last::Returned => Some("returned"),
            Last::Raised => Some("raised"),
            Last::Ran => Some("ran"),
            Last::Nothing => None,
        };
        found.same("journal", step, last.map(|entry| entry.step.as_str()));
        if let Some(entry) = last {
            found.same("attempt of the journal", entry.attempt, row.retries);
        }
        if truth.lost_its_result(&task.id) {
            return;
        }
        let stored = truth.results.get(&task.id);
        let wanted = Some(self.backend.as_str()).filter(|state| *state != "nothing");
        found.same("result backend", wanted, stored.map(|stored| stored.status.as_str()));
        if let Some(stored) = stored
            && self.result.is_some()
        {
            found.same(
                "result in the backend",
                Some(repr(&stored.result)).as_deref(),
                row.result.as_deref(),
            );
        }
    }
}

struct Differences(Vec<String>);

impl Differences {
    #[expect(clippy::needless_pass_by_value, reason = "small values, made for the call")]
    fn same<T: PartialEq + std::fmt::Debug>(&mut self, field: &str, wanted: T, is: T) {
        if wanted != is {
            self.0.push(format!("{field}: {wanted:?} wanted, not {is:?}"));
        }
    }
}

// === Celery's text of values ===

fn tuple(values: &[Value]) -> String {
    let inner = values.iter().map(repr).collect::<Vec<_>>().join(", ");
    if values.len() == 1 {
        format!("({inner},)")
    } else {
        format!("({inner})")
    }
}

/// Returns what Celery's `saferepr` makes of a JSON value, as far as the sample application uses them.
fn repr(value: &Value) -> String {
    match value {
        Value::Null => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => format!("'{}'", text.replace('\'', "\\'")),
        Value::Array(items) => format!("[{}]", items.iter().map(repr).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => {
            let field = |(key, value): (&String, &Value)| format!("'{key}': {}", repr(value));
            format!("{{{}}}", fields.iter().map(field).collect::<Vec<_>>().join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_can_be_read() {
        let table = Table::read().unwrap();
        assert_eq!(table.line("retry-failure", Transport::Redis).unwrap().retries, 2);
        assert!(table.line("expired", Transport::RabbitMq).unwrap().worker.is_none());
        assert!(table.line("expired", Transport::Redis).unwrap().worker.is_some());
    }

    #[test]
    fn writes_values_as_celery_does() {
        assert_eq!(tuple(&[serde_json::json!(1)]), "(1,)");
        assert_eq!(
            repr(&serde_json::json!({ "to": "it's", "n": [1, null, true] })),
            r"{'n': [1, None, True], 'to': 'it\'s'}"
        );
    }
}
