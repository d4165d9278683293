//! What the news of a batch change: the facts of each task merged with what was known, its row projected. Pure.

use std::mem;
use std::sync::Arc;

use foldhash::{HashMap, HashSet};
use kanchi_domain::{TaskFacts, TaskRow, TaskStep, UnixMicros};
use kanchi_store::{LiveTask, TaskChanges};

use crate::commit::cache::{Cache, Weigh};
use crate::commit::failures::Failures;
use crate::commit::live::LiveIds;
use crate::commit::statistics::{Counted, Labels, Tally};
use crate::intake::gather::TaskNews;

/// One byte in so many is for tasks that have ended.
const ENDED_SHARE: usize = 5;

/// What is kept of a task between batches.
#[derive(Clone, Debug)]
pub struct Known {
    /// Encoded: a fifth of what the facts take in memory otherwise, so that five times as many tasks are kept.
    facts: Arc<[u8]>,
    counted: Counted,
    /// The live table may hold a row of it.
    maybe_stored: bool,
    /// Hardly anything more will come.
    has_ended: bool,
}

impl Weigh for Known {
    fn weight(&self) -> usize {
        self.facts.len()
    }
}

/// What the store knew of tasks: their facts, encoded.
pub type Loaded = HashMap<String, Vec<u8>>;

/// What a batch means for tasks, and what becomes of the cache when it is counted on.
#[derive(Debug, Default)]
pub struct Reduced {
    /// What is stored.
    pub changes: TaskChanges,
    /// What is known of its tasks then.
    pub touched: Touched,
}

/// What is known of the tasks of a batch when it is counted on.
#[derive(Debug, Default)]
pub struct Touched(Vec<(Arc<str>, Known)>);

impl Touched {
    /// Returns the ids of those that have ended.
    pub fn ended(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|(_, known)| known.has_ended).map(|(id, _)| &**id)
    }
}

/// Keeps the facts of recent tasks, and makes batches.
#[derive(Debug)]
pub struct Reducer {
    running: Cache<Known>,
    /// Apart from the others, which they would push out: of each task one more look-up is certain only while it runs.
    ended: Cache<Known>,
    /// Where facts are encoded before their size is known.
    scratch: Vec<u8>,
    /// The new steps of one task.
    steps: Vec<TaskStep>,
    labels: Labels,
    /// Which of the other tasks may be in the store.
    pub live: LiveIds,
}

impl Reducer {
    /// Returns a reducer that keeps at most `budget` bytes of facts.
    pub fn new(budget: usize) -> Self {
        Self {
            running: Cache::new(budget - budget / ENDED_SHARE),
            ended: Cache::new(budget / ENDED_SHARE),
            scratch: Vec::new(),
            steps: Vec::new(),
            labels: Labels::default(),
            live: LiveIds::default(),
        }
    }

    /// Takes everything out, for a thread that gives it back.
    #[must_use]
    pub fn lend(&mut self) -> Self {
        mem::replace(self, Self::new(0))
    }

    /// Returns those of these tasks whose facts must be looked up first.
    pub fn missing<'a>(&self, tasks: &'a [TaskNews]) -> Vec<&'a str> {
        let ids = tasks.iter().map(|task| &*task.id);
        ids.filter(|id| !self.knows(id) && self.live.may_hold(id)).collect()
    }

    /// Merges news with what is known. `loaded` holds what the store knew of the [`missing`](Self::missing) tasks.
    pub fn reduce(&mut self, news: Vec<TaskNews>, mut loaded: Loaded) -> Reduced {
        let mut tasks = Vec::with_capacity(news.len());
        let (mut tally, mut failures) = (Tally::new(&mut self.labels), Failures::default());
        let mut touched = Vec::with_capacity(news.len());
        for TaskNews { id, facts, arrived } in news {
            let known = self
                .running
                .take(&id)
                .or_else(|| self.ended.take(&id))
                .unwrap_or_else(|| Known::load(&id, loaded.remove(&*id), &mut self.labels));
            let (known, task) = self.absorb(&id, known, facts, arrived, &mut tally, &mut failures);
            tasks.extend(task);
            touched.push((id, known));
        }
        Reduced {
            changes: TaskChanges {
                tasks,
                statistics: tally.finish(),
                failures: failures.finish(),
            },
            touched: Touched(touched),
        }
    }

    /// Adds the news of one task; `None` where nothing of them was new.
    fn absorb(
        &mut self,
        id: &Arc<str>,
        mut known: Known,
        news: TaskFacts,
        arrived: UnixMicros,
        tally: &mut Tally,
        failures: &mut Failures,
    ) -> (Known, Option<LiveTask>) {
        let mut facts = known.decode(id);
        self.steps.clear();
        let changed = facts.absorb_all(news, &mut self.steps);
        if !changed && known.maybe_stored {
            return (known, None);
        }
        let row: TaskRow = facts.project();
        let counted = self.labels.counted(&row);
        for step in &self.steps {
            tally.step(step, arrived, &facts, &counted, &mut self.labels);
        }
        tally.change(&known.counted, &counted);
        if known.counted.is_failure() || counted.is_failure() {
            // Few tasks: what was counted is read once more rather than kept for each.
            let before = known.counted.is_failure().then(|| known.decode(id).project());
            failures.change(id, before.as_ref(), &row, arrived);
        }
        known.counted = counted;
        known.has_ended = row.is_final();
        self.scratch.clear();
        facts.encode_into(&mut self.scratch);
        known.facts = Arc::from(self.scratch.as_slice());
        let task = LiveTask::new(Arc::clone(id), Arc::clone(&known.facts), row, known.maybe_stored);
        known.maybe_stored = true;
        (known, Some(task))
    }

    /// Counts on a batch: what it says of its tasks is what is known from now on. Returns those of which nothing is known all
    /// the same, for want of room: they can be looked up only once the batch is durable. Of one that is not kept its tasks
    /// are looked up again.
    pub fn keep(&mut self, touched: Touched) -> HashSet<Arc<str>> {
        let ids: Vec<Arc<str>> = touched.0.iter().map(|(id, _)| Arc::clone(id)).collect();
        for (id, known) in touched.0 {
            let cache = if known.has_ended {
                &mut self.ended
            } else {
                &mut self.running
            };
            cache.put(id, known);
        }
        ids.into_iter().filter(|id| !self.knows(id)).collect()
    }

    /// A batch that was counted on is not stored as it was: everything is looked up again.
    pub fn forget(&mut self) {
        self.running.clear();
        self.ended.clear();
        self.live.forget();
    }

    fn knows(&self, id: &str) -> bool {
        self.running.contains(id) || self.ended.contains(id)
    }

    /// Returns bytes and number of the tasks kept.
    pub fn size(&self) -> (usize, usize) {
        let caches = [&self.running, &self.ended];
        (
            caches.iter().map(|cache| cache.bytes()).sum(),
            caches.iter().map(|cache| cache.len()).sum(),
        )
    }
}

impl Known {
    fn load(id: &str, stored: Option<Vec<u8>>, labels: &mut Labels) -> Self {
        let mut known = Self {
            maybe_stored: stored.is_some(),
            facts: stored.unwrap_or_default().into(),
            counted: Counted::default(),
            has_ended: false,
        };
        if known.maybe_stored {
            let row = known.decode(id).project();
            known.counted = labels.counted(&row);
            known.has_ended = row.is_final();
        }
        known
    }

    fn decode(&self, id: &str) -> TaskFacts {
        if self.facts.is_empty() {
            return TaskFacts::new();
        }
        TaskFacts::decode(&self.facts).unwrap_or_else(|error| {
            // The events themselves are in their chunks; the row starts again from what comes now.
            tracing::error!(task.id = id, %error, "stored facts cannot be read");
            TaskFacts::new()
        })
    }
}

#[cfg(test)]
mod tests;
