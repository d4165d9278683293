//! One round: the live tasks looked up, the workers asked, the backend scanned.

use std::collections::HashSet;
use std::time::Duration;

use kanchi_broker::results::RECORDS_AT_ONCE;
use kanchi_broker::{Command, ConnectReason, Record, Reply, ResultBackend, ResultError};
use kanchi_domain::{Event, RunningInfo, TaskId, UnixMicros};
use kanchi_store::{OpenTask, PendingGap, Walk};
use serde_json::Value;
use tokio::time::Instant;

use super::findings::Findings;
use super::{Repair, SETTLE_MICROS, Trouble};
use crate::settings::Settings;

/// Tasks that workers are asked about; beyond it the list of what waits is long, and says little.
const ASKED: usize = 10_000;

/// Tasks in one request: some 8 kB.
const ASK_AT_ONCE: usize = 200;

/// How long answers are waited for.
const REPLY_TIMEOUT: Duration = Duration::from_secs(3);

/// Workers that are asked by name. One that does not answer is left out from then on.
const WORKERS: usize = 1_000;

/// Records that a scan reads at most, and how long it takes at most.
const SCANNED: usize = 100_000;
const SCAN_TIME: Duration = Duration::from_mins(1);

/// How far back a task that ended in a gap may have been stored, should the clocks differ.
const CLOCKS_MICROS: i64 = 86_400_000_000;

/// How often it is looked whether what was found is stored.
const STORED_TICK: Duration = Duration::from_millis(100);

/// What is under way.
pub(super) struct Round<'r> {
    repair: &'r Repair,
    settings: &'r Settings,
    findings: Findings,
    now: UnixMicros,
    /// Tasks that have not ended as far as the result backend knows.
    open: Vec<OpenTask>,
    /// Tasks beyond those.
    unasked: u64,
    /// What the scan found: Redis may name a key twice.
    scanned: HashSet<TaskId>,
}

impl<'r> Round<'r> {
    pub(super) fn new(repair: &'r Repair, settings: &'r Settings, gaps: &[PendingGap], now: UnixMicros) -> Self {
        Self {
            repair,
            settings,
            findings: Findings::new(gaps),
            now,
            open: Vec::new(),
            unasked: 0,
            scanned: HashSet::new(),
        }
    }

    /// Returns once all that was found is stored.
    pub(super) async fn run(mut self) -> Result<Findings, Trouble> {
        let mut backend = match &self.settings.results {
            Some(spec) => Some(ResultBackend::open(spec).await?),
            None => None,
        };
        self.walk(backend.as_mut()).await?;
        self.ask_workers().await?;
        if let Some(backend) = &mut backend {
            self.scan(backend).await?;
        } else if self.settings.config.read_only {
            self.findings.nobody = true;
            let text = "nobody can be asked: there is no result backend, and the broker is read-only";
            self.findings.note(text.to_owned());
        } else {
            let text = "there is no result backend: only the workers were asked";
            self.findings.note(text.to_owned());
        }
        while !self.repair.events.is_stored(&self.repair.shared) {
            tokio::time::sleep(STORED_TICK).await;
        }
        Ok(self.findings)
    }

    /// Looks the live tasks up that have not ended.
    async fn walk(&mut self, mut backend: Option<&mut ResultBackend>) -> Result<(), Trouble> {
        let mut walk = Walk::default();
        loop {
            let page = self.repair.archive.open_tasks(self.now, walk).await?;
            let mut tasks = page.tasks;
            if let Some(backend) = &mut backend {
                while !tasks.is_empty() {
                    self.look_up(backend, &mut tasks).await?;
                }
            }
            for task in tasks {
                self.keep(task);
            }
            match page.next {
                Some(next) => walk = next,
                None => return Ok(()),
            }
        }
    }

    /// Looks the first of these tasks up, and takes them out.
    async fn look_up(&mut self, backend: &mut ResultBackend, tasks: &mut Vec<OpenTask>) -> Result<(), Trouble> {
        let ids: Vec<&str> = tasks
            .iter()
            .take(RECORDS_AT_ONCE)
            .map(|task| task.task_id.as_str())
            .collect();
        let records = backend.records(&ids).await?;
        let mut events = Vec::new();
        for (task, record) in tasks.drain(..records.len()).zip(records) {
            match self.read(&task.task_id, &record) {
                // Ended just now: its own event is on its way.
                Some(event) if event.timestamp.0 > self.now.0.saturating_sub(SETTLE_MICROS) => {}
                Some(event) => {
                    self.findings.repaired(event.timestamp);
                    events.push(event);
                }
                None => self.keep(task),
            }
        }
        self.send(events).await
    }

    /// Reads a record; `None` where it does not tell how the task ended.
    fn read(&mut self, id: &str, record: &Record) -> Option<Event> {
        let bytes = match record {
            Record::None => return None,
            Record::TooLarge => {
                self.findings.too_large += 1;
                return None;
            }
            Record::Bytes(bytes) => bytes,
        };
        match Event::found_result(&TaskId::new(id)?, bytes, self.repair.shared.now()) {
            Ok(event) => event,
            Err(fault) => {
                self.findings.fault(fault);
                None
            }
        }
    }

    /// Notes a task for the workers.
    fn keep(&mut self, task: OpenTask) {
        if self.open.len() < ASKED {
            self.open.push(task);
        } else {
            self.unasked += 1;
        }
    }

    /// What was found goes the way of every event, the payload policy included.
    async fn send(&self, mut events: Vec<Event>) -> Result<(), Trouble> {
        if events.is_empty() {
            return Ok(());
        }
        for event in &mut events {
            self.settings.payloads.apply(event);
        }
        if self.repair.events.send(events).await {
            Ok(())
        } else {
            Err(Trouble::Ends)
        }
    }

    /// Asks the workers about what the backend does not know: who has a task, and whether it runs.
    async fn ask_workers(&mut self) -> Result<(), Trouble> {
        let open = std::mem::take(&mut self.open);
        self.findings.unknown = self.unasked;
        if open.is_empty() {
            return Ok(());
        }
        let mut workers = self.repair.shared.workers().reachable(WORKERS);
        if self.settings.config.read_only || workers.is_empty() {
            self.findings.unknown += open.len() as u64;
            let why = if self.settings.config.read_only {
                "the broker is read-only"
            } else {
                "no worker is known that answers"
            };
            let text = format!("{why}: no worker was asked about {} tasks", open.len());
            self.findings.note(text);
            return Ok(());
        }
        let known = workers.len();
        if known == WORKERS {
            self.findings.note(format!("no more than {WORKERS} workers were asked"));
        }
        if self.unasked > 0 {
            let text = format!("{} tasks more than the workers are asked about", self.unasked);
            self.findings.note(text);
        }
        let mut asked = 0;
        for some in open.chunks(ASK_AT_ONCE) {
            let ids: Vec<&str> = some.iter().map(|task| task.task_id.as_str()).collect();
            let command = Command::query_task(&ids);
            let answers = self
                .repair
                .control
                .broadcast(command, Some(workers.clone()), REPLY_TIMEOUT);
            let answers = answers.await;
            self.repair.shared.metrics.command("query_task", answers.is_ok());
            let trouble = match answers {
                Ok(replies) => {
                    let answered: HashSet<&str> = replies.iter().map(|reply| reply.worker.as_str()).collect();
                    workers.retain(|worker| answered.contains(worker.as_str()));
                    self.hear(some, &replies).await?;
                    asked += some.len();
                    workers.is_empty().then(|| "no worker answers".to_owned())
                }
                Err(error) => Some(error.to_string()),
            };
            if let Some(trouble) = trouble {
                let rest = open.len() - asked;
                self.findings.unknown += rest as u64;
                let text = format!("workers could not be asked about {rest} tasks more: {trouble}");
                self.findings.note(text);
                return Ok(());
            }
        }
        if workers.len() < known {
            let silent = known - workers.len();
            self.findings
                .note(format!("{silent} of {known} workers did not answer"));
        }
        Ok(())
    }

    /// Takes the workers' answers about these tasks.
    async fn hear(&mut self, asked: &[OpenTask], replies: &[Reply]) -> Result<(), Trouble> {
        let now = self.repair.shared.now();
        let (mut held, mut events) = (HashSet::new(), Vec::new());
        for reply in replies {
            for (id, running) in held_tasks(&reply.value) {
                let Some(task) = asked.iter().find(|task| task.task_id == id) else {
                    continue;
                };
                held.insert(task.task_id.as_str());
                let waits = matches!(task.state.as_str(), "PENDING" | "RECEIVED" | "RETRY");
                if let Some(((since, info), id)) = running.filter(|_| waits).zip(TaskId::new(id)) {
                    events.push(Event::found_running(&id, &reply.worker, since, &info, now));
                }
            }
        }
        self.findings.unknown += (asked.len() - held.len()) as u64;
        self.send(events).await
    }

    /// Looks for tasks that lie wholly inside a gap: all records are read, since no key tells when its task ended.
    async fn scan(&mut self, backend: &mut ResultBackend) -> Result<(), Trouble> {
        let until = Instant::now() + SCAN_TIME;
        let (mut cursor, mut scanned) = (0, 0);
        loop {
            let page = match backend.scan(cursor).await {
                Ok(page) => page,
                // Nothing that trying again would change.
                Err(ResultError::Unavailable {
                    reason: ConnectReason::AccessRefused,
                    ..
                }) => {
                    self.findings
                        .note("the result backend refuses to be scanned".to_owned());
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            };
            scanned += page.ids.len();
            let mut ids = page.ids.as_slice();
            while !ids.is_empty() {
                let read = self.find(backend, ids).await?;
                ids = ids.get(read..).unwrap_or_default();
            }
            cursor = page.next;
            if cursor == 0 {
                return Ok(());
            }
            if scanned >= SCANNED || Instant::now() >= until {
                self.findings
                    .note(format!("the scan of the result backend ended after {scanned} records"));
                return Ok(());
            }
        }
    }

    /// Reads the records of the first of these tasks; returns of how many.
    async fn find(&mut self, backend: &mut ResultBackend, ids: &[String]) -> Result<usize, Trouble> {
        let wanted: Vec<&str> = ids.iter().take(RECORDS_AT_ONCE).map(String::as_str).collect();
        let records = backend.records(&wanted).await?;
        let read = records.len();
        let now = self.repair.shared.now();
        let mut found: Vec<Event> = Vec::new();
        for (id, record) in ids.iter().zip(records) {
            let Some(task) = TaskId::new(id) else { continue };
            let event = match record {
                Record::None => continue,
                Record::TooLarge => None,
                Record::Bytes(bytes) => Event::found_result(&task, &bytes, now).ok(),
            };
            let Some(event) = event else {
                self.findings.unread += 1;
                continue;
            };
            let event = event.filter(|event| self.findings.covers(event.timestamp));
            found.extend(event.filter(|_| self.scanned.insert(task)));
        }
        if found.is_empty() {
            return Ok(read);
        }
        let id = |event: &Event| event.task_id.as_ref().map(ToString::to_string).unwrap_or_default();
        let since = UnixMicros(self.findings.from().0.saturating_sub(CLOCKS_MICROS));
        let unknown = self
            .repair
            .archive
            .unknown_tasks(found.iter().map(id).collect(), since)
            .await?;
        let unknown: HashSet<String> = unknown.into_iter().collect();
        found.retain(|event| unknown.contains(&id(event)));
        for event in &found {
            self.findings.found(event.timestamp);
        }
        self.send(found).await?;
        Ok(read)
    }
}

/// Reads an answer to `query_task`: `{id: [state, TASK_INFO]}`. Of tasks that run, since when; where the worker does not say
/// that, the task is held and no more.
fn held_tasks(reply: &Value) -> impl Iterator<Item = (&str, Option<(UnixMicros, RunningInfo)>)> {
    let tasks = reply.as_object().into_iter().flatten();
    tasks.filter_map(|(id, told)| {
        let state = told.get(0)?.as_str()?;
        if !matches!(state, "active" | "reserved" | "scheduled" | "ready") {
            return None;
        }
        let running = told.get(1).filter(|_| state == "active").and_then(running);
        Some((id.as_str(), running))
    })
}

fn running(info: &Value) -> Option<(UnixMicros, RunningInfo)> {
    let since = UnixMicros::from_seconds(info.get("time_start")?.as_f64()?)?;
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let json = |value: Option<&Value>| {
        let value = value.filter(|value| value.is_array() || value.is_object());
        value.map(Value::to_string)
    };
    let told = RunningInfo {
        name: text(info.get("type")).or_else(|| text(info.get("name"))),
        args: json(info.get("args")),
        kwargs: json(info.get("kwargs")),
        queue: text(info.pointer("/delivery_info/routing_key")),
    };
    Some((since, told))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_who_holds_what_and_what_runs() {
        let reply = json!({
            "a": ["active", {"id": "a", "name": "n", "type": "shop.pay", "args": [1], "kwargs": {"k": "v"}, "time_start": 1_795_219_800.5,
                "delivery_info": {"exchange": "", "routing_key": "orders"}}],
            "b": ["reserved", {"id": "b", "time_start": null}],
            "c": ["active", {"id": "c", "time_start": 12.5}],
            "d": ["gone", {}], "e": "x", "f": [],
        });
        let held: Vec<_> = held_tasks(&reply).collect();
        let info = RunningInfo {
            name: Some("shop.pay".into()),
            args: Some("[1]".into()),
            kwargs: Some(r#"{"k":"v"}"#.into()),
            queue: Some("orders".into()),
        };
        assert_eq!(
            held,
            [
                ("a", Some((UnixMicros(1_795_219_800_500_000), info))),
                ("b", None),
                // Old versions tell a time since the machine's start.
                ("c", None)
            ]
        );
        assert_eq!(held_tasks(&json!({"error": "KeyError('ids')"})).count(), 0);
        assert_eq!(held_tasks(&json!(null)).count(), 0);
    }
}
