//! What people ask: each query with parameters drawn at random.

use std::time::{Duration, Instant};

use kanchi_domain::UnixMicros;
use kanchi_store::statistics::{Dimension, Select, StatisticsQuery, Transition};
use kanchi_store::{FailureOrder, PageRequest, StoreQuery, TaskFilter, TaskOrder, TaskSummary, Words};

/// The queries by name.
pub(crate) const NAMES: [&str; 30] = [
    "newest, all brokers",
    "newest, one broker",
    "next page, one broker",
    "from a time on, all brokers",
    "unsuccessful, all brokers",
    "failed, one broker",
    "one task name, common",
    "one task name, rare",
    "one task name, failed",
    "one queue",
    "one worker",
    "by end, one broker",
    "task by id",
    "events of a task",
    "workflow",
    "chart, an hour, all brokers",
    "chart, a day, five names",
    "chart, four weeks, one broker",
    "key figures, a day, all brokers",
    "top names, a day, one broker",
    "groups of failures, all brokers",
    "names of tasks",
    "workers",
    "queues",
    "samples of a queue, a day",
    "gaps",
    "other: text in arguments",
    "other: ran longer than 10 min",
    "other: nothing matches",
    "other: count by state",
];

const HOUR: i64 = 3_600_000_000;
const DAY: i64 = 24 * HOUR;

/// What a query took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) took: Duration,
    pub(crate) partial: bool,
}

/// Asks queries, with a random number generator of its own.
#[derive(Debug)]
pub(crate) struct Mix {
    query: StoreQuery,
    now: UnixMicros,
    random: u64,
    /// A task that an earlier page has shown.
    shown: Option<TaskSummary>,
    cursor: Option<String>,
}

impl Mix {
    pub(crate) fn new(query: StoreQuery, now: UnixMicros, seed: u64) -> Self {
        Self {
            query,
            now,
            random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            shown: None,
            cursor: None,
        }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    /// A time within the last four weeks.
    fn past(&mut self) -> UnixMicros {
        let seconds = i64::try_from(self.draw(28 * 86_400)).unwrap_or_default();
        UnixMicros(self.now.0 - seconds * 1_000_000)
    }

    fn broker(&mut self) -> Vec<i32> {
        vec![1 + i32::try_from(self.draw(7)).unwrap_or_default()]
    }

    fn words(&mut self, prefix: &str, first: u64, many: u64) -> Words {
        let number = first + self.draw(many);
        let name = match prefix {
            "task" => format!(
                "shop.{}.task_{number}",
                ["orders", "billing", "email", "search"][number as usize % 4]
            ),
            "worker" => format!("celery@worker-{number}-{}", self.draw(5)),
            other => format!("{other}-{number}"),
        };
        Words::one(name)
    }

    pub(crate) async fn ask(&mut self, name: &'static str) -> anyhow::Result<Asked> {
        let mut filter = TaskFilter::default();
        let mut order = TaskOrder::Arrived;
        match name {
            "newest, one broker" | "next page, one broker" => filter.brokers = Some(vec![2]),
            "from a time on, all brokers" => filter.to = Some(self.past()),
            "unsuccessful, all brokers" => {
                filter.state = Words {
                    any_of: vec!["SUCCESS".to_owned()],
                    exclude: true,
                };
            }
            "failed, one broker" => (filter.state, filter.brokers) = (Words::one("FAILURE"), Some(self.broker())),
            "one task name, common" => (filter.name, filter.brokers) = (self.words("task", 1, 10), Some(self.broker())),
            "one task name, rare" => {
                (filter.name, filter.brokers) = (self.words("task", 100, 100), Some(self.broker()));
            }
            "one task name, failed" => {
                (filter.name, filter.state) = (self.words("task", 1, 200), Words::one("FAILURE"));
            }
            "one queue" => (filter.queue, filter.brokers) = (self.words("queue", 0, 20), Some(self.broker())),
            "one worker" => (filter.worker, filter.brokers) = (self.words("worker", 0, 20), Some(self.broker())),
            "by end, one broker" => (order, filter.brokers) = (TaskOrder::Finished, Some(self.broker())),
            "other: text in arguments" => filter.text = Some(format!("'customer': {}", self.draw(100_003))),
            "other: ran longer than 10 min" => (filter.runtime_gt, filter.to) = (Some(600.0), Some(self.past())),
            "other: nothing matches" => filter.name = Words::one("shop.nothing"),
            _ => {}
        }
        let request = PageRequest {
            limit: 100,
            cursor: self.cursor.take().filter(|_| name == "next page, one broker"),
        };
        if matches!(name, "task by id" | "events of a task" | "workflow") {
            self.find_one(name == "workflow").await?;
        }
        let shown = self.shown.clone();
        let began = Instant::now();
        let mut partial = false;
        match (name, shown) {
            ("task by id", Some(task)) => {
                let found = self.query.task(None, &task.task_id, self.now).await?;
                anyhow::ensure!(!found.is_empty(), "{} is gone", task.task_id);
            }
            ("events of a task", Some(task)) => {
                let page = self
                    .query
                    .task_events(task.broker_key, &task.task_id, None, 100)
                    .await?;
                partial = page.next.is_some();
            }
            ("workflow", Some(task)) => {
                let root = task.root_id.as_deref().unwrap_or(&task.task_id);
                let family = self.query.family(task.broker_key, root, None, 400, self.now).await?;
                partial = family.truncated;
            }
            (name, _) if name.starts_with("chart") => {
                self.query.chart(&self.question(name), None).await?;
            }
            ("key figures, a day, all brokers" | "top names, a day, one broker", _) => {
                self.query.figures(&self.question(name)).await?;
            }
            ("groups of failures, all brokers", _) => {
                let first = PageRequest::first(100);
                self.query
                    .failure_groups(None, None, FailureOrder::LastSeen, &first)
                    .await?;
            }
            ("names of tasks", _) => drop(self.query.task_names(None, "shop.o", None, 100).await?),
            ("workers", _) => drop(self.query.workers(None, None, 100).await?),
            ("queues", _) => drop(self.query.queues(None, None, 100).await?),
            ("samples of a queue, a day", _) => {
                let from = UnixMicros(self.now.0 - DAY);
                self.query.queue_samples(2, "queue-1", from, self.now, 1_000).await?;
            }
            ("gaps", _) => drop(self.query.gaps(2, self.now, 100).await?),
            ("other: count by state", _) => {
                partial = self
                    .query
                    .count_by_state(&filter, self.now)
                    .await?
                    .at_least_since
                    .is_some();
            }
            _ => {
                let page = self.query.tasks(&filter, order, &request, self.now).await?;
                partial = page.partial.is_some();
                if name == "newest, one broker" {
                    self.cursor = page.next;
                }
            }
        }
        Ok(Asked {
            took: began.elapsed(),
            partial,
        })
    }

    /// What is asked of the statistics.
    fn question(&self, name: &str) -> StatisticsQuery {
        let of = |days: i64| UnixMicros(self.now.0 - days * DAY);
        let all = || Select::Keys(vec![String::new()]);
        let (brokers, dimension, select, from) = match name {
            "chart, a day, five names" => {
                let names = (1..6).map(|number| format!("shop.orders.task_{}", number * 4));
                (None, Dimension::Task, Select::Keys(names.collect()), of(1))
            }
            "chart, four weeks, one broker" => (Some(vec![2]), Dimension::All, all(), of(28)),
            "key figures, a day, all brokers" => (None, Dimension::All, all(), of(1)),
            "top names, a day, one broker" => {
                let top = Select::Top {
                    by: Transition::Failed,
                    count: 20,
                };
                (Some(vec![2]), Dimension::Task, top, of(1))
            }
            _ => (None, Dimension::All, all(), UnixMicros(self.now.0 - HOUR)),
        };
        StatisticsQuery {
            brokers,
            dimension,
            select,
            from,
            to: self.now,
            now: self.now,
        }
    }

    /// Looks for any settled task of the last four weeks, of a workflow if so wanted.
    async fn find_one(&mut self, of_workflow: bool) -> anyhow::Result<()> {
        let filter = TaskFilter {
            to: Some(self.past()),
            ..TaskFilter::default()
        };
        let is_member = |task: &TaskSummary| task.root_id.as_deref().is_some_and(|root| root != task.task_id);
        let mut request = PageRequest::first(100);
        loop {
            let page = self
                .query
                .tasks(&filter, TaskOrder::Arrived, &request, self.now)
                .await?;
            let mut settled = page.tasks.into_iter().filter(|task| !task.live);
            self.shown = settled.find(|task| !of_workflow || is_member(task));
            if self.shown.is_some() {
                return Ok(());
            }
            anyhow::ensure!(page.next.is_some(), "no task is found");
            request.cursor = page.next;
        }
    }
}
