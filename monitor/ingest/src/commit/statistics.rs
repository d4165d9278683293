//! Counts per minute and key: how many tasks were received, started, retried, how they ended, how long they waited and ran.
//! Pure.
//!
//! Steps are counted once for each distinct event, under the name and queue that are known when its batch is made. Endings
//! are counted by what the row says, because Celery sends some of them twice: when later events show that a task ended
//! otherwise, elsewhere or under another name, the first count is taken back.

use std::borrow::Borrow;
use std::sync::Arc;

use foldhash::{HashMap, HashSet};
use kanchi_domain::{EventKind, TaskFacts, TaskMark, TaskRow, TaskState, TaskStep, UnixMicros};
use kanchi_store::statistics::{
    Counts, Dimension, Durations, Histogram, KEYS_PER_BATCH, Measures, OTHER, StatisticDelta, Transition, bucket_of,
};

const MINUTE: i64 = 60_000_000;

/// Names after which those that nobody uses any more are dropped.
const LABELS: usize = 4_096;

/// A name that is kept once however many tasks have it; equal texts of one [`Labels`] are one address. The box makes the
/// pointer half as wide.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Name(Arc<Text>);

#[derive(Debug, PartialEq, Eq, Hash)]
struct Text(Box<str>);

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0.0
    }
}

/// A [`Name`], or none.
#[derive(Clone, Debug, Default)]
struct Label(Option<Name>);

impl Label {
    fn text(&self) -> &str {
        self.0.as_ref().map_or("", Borrow::borrow)
    }

    /// Tells labels of one [`Labels`] apart as long as one of them is kept.
    fn address(&self) -> usize {
        self.0.as_ref().map_or(0, |name| Arc::as_ptr(&name.0).addr())
    }
}

/// The names of tasks, queues and workers that recent tasks have. Dropping those that no task has any more bounds it by twice
/// what the tasks in memory have.
#[derive(Debug, Default)]
pub struct Labels {
    known: HashSet<Name>,
    sweep_at: usize,
}

impl Labels {
    fn label(&mut self, text: Option<&str>) -> Label {
        let Some(text) = text.filter(|text| !text.is_empty()) else {
            return Label::default();
        };
        if let Some(name) = self.known.get(text) {
            return Label(Some(name.clone()));
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|name| Arc::strong_count(&name.0) > 1);
            self.sweep_at = LABELS.max(2 * self.known.len());
        }
        let name = Name(Arc::new(Text(text.into())));
        self.known.insert(name.clone());
        Label(Some(name))
    }

    /// Returns what is counted of a row.
    pub fn counted(&mut self, row: &TaskRow) -> Counted {
        let ended = row.finished_at.or(row.last_event_at).unwrap_or(UnixMicros(0));
        let runtime = row.runtime.filter(|runtime| runtime.is_finite() && *runtime >= 0.0);
        Counted {
            task: self.label(row.name.as_deref()),
            queue: self.label(row.queue.as_deref()),
            worker: self.label(row.worker.as_deref()),
            // Casting stops at the ends of the range.
            runtime: runtime.map_or(-1, |seconds| (seconds * 1e6) as i64),
            minute: minute(ended),
            run: row.run,
            ending: Ending::of(row),
        }
    }
}

/// How a task stands in the counts: precisely what must be taken back should it turn out otherwise.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    task: Label,
    queue: Label,
    worker: Label,
    /// Microseconds; negative: not known.
    runtime: i64,
    minute: i32,
    run: u32,
    ending: Option<Ending>,
}

// One is kept for each recent task.
const _: () = assert!(size_of::<Counted>() <= 48);

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Succeeded,
    Recovered,
    Failed,
    Critical,
    Revoked,
    Rejected,
    Expired,
    Orphaned,
}

impl Ending {
    const fn of(row: &TaskRow) -> Option<Self> {
        Some(match (&row.state, row.mark) {
            (TaskState::Success, Some(TaskMark::Recovered)) => Self::Recovered,
            (TaskState::Success, _) => Self::Succeeded,
            (TaskState::Failure, Some(TaskMark::Critical)) => Self::Critical,
            (TaskState::Failure, _) => Self::Failed,
            (TaskState::Revoked, _) => Self::Revoked,
            (TaskState::Rejected, _) => Self::Rejected,
            (TaskState::Expired, _) => Self::Expired,
            (TaskState::Orphaned, _) => Self::Orphaned,
            (
                TaskState::Pending | TaskState::Received | TaskState::Started | TaskState::Retry | TaskState::Custom(_),
                _,
            ) => return None,
        })
    }

    const fn transitions(self) -> &'static [Transition] {
        match self {
            Self::Succeeded => &[Transition::Succeeded],
            Self::Recovered => &[Transition::Succeeded, Transition::Recovered],
            Self::Failed => &[Transition::Failed],
            Self::Critical => &[Transition::Failed, Transition::Critical],
            Self::Revoked => &[Transition::Revoked],
            Self::Rejected => &[Transition::Rejected],
            Self::Expired => &[Transition::Expired],
            Self::Orphaned => &[Transition::Orphaned],
        }
    }
}

impl Counted {
    /// Tells whether a failure is counted.
    pub const fn is_failure(&self) -> bool {
        matches!(self.ending, Some(Ending::Failed | Ending::Critical))
    }

    /// Tells whether the same ending is counted in the same place.
    fn ends_like(&self, other: &Self) -> bool {
        self.ending == other.ending
            && (self.ending.is_none()
                || self.minute == other.minute
                    && self.runtime == other.runtime
                    && self.labels().map(Label::address) == other.labels().map(Label::address))
    }

    const fn labels(&self) -> [&Label; 3] {
        [&self.task, &self.queue, &self.worker]
    }
}

/// The counts of one batch.
#[derive(Debug)]
pub struct Tally {
    index: Index,
    entries: Vec<Entry>,
    recent: [Recent; Dimension::ALL.len()],
}

/// Where is counted what.
#[derive(Debug)]
struct Index {
    /// Minute, dimension and address of the label; the label itself is kept beside the counts, so that the address stays its.
    places: HashMap<(i32, Dimension, usize), usize>,
    other: Label,
}

/// Where the last transition of a dimension was counted: the next one often belongs there, too.
#[derive(Debug)]
struct Recent {
    dimension: Dimension,
    place: Option<((i32, usize), usize)>,
    /// Keys counted apart so far.
    keys: usize,
}

#[derive(Debug)]
struct Entry {
    minute: i32,
    dimension: Dimension,
    label: Label,
    counts: Counts,
    runtime: Samples,
    wait: Samples,
}

/// Durations as they come; a batch has few.
#[derive(Debug, Default)]
struct Samples {
    buckets: Vec<(u16, i64)>,
    sum: i64,
}

impl Samples {
    fn add(&mut self, micros: u64, times: i64) {
        self.buckets.push((bucket_of(micros), times));
        let micros = i64::try_from(micros).unwrap_or(i64::MAX);
        self.sum = self.sum.saturating_add(micros.saturating_mul(times));
    }

    fn finish(self) -> Durations {
        Durations {
            histogram: Histogram::of(self.buckets),
            sum_micros: self.sum,
        }
    }
}

impl Tally {
    /// Returns an empty one. [`KEYS_PER_BATCH`] keys of each dimension are counted apart, the rest under [`OTHER`].
    pub fn new(labels: &mut Labels) -> Self {
        Self {
            index: Index {
                places: HashMap::default(),
                other: labels.label(Some(OTHER)),
            },
            entries: Vec::new(),
            recent: Dimension::ALL.map(|dimension| Recent {
                dimension,
                place: None,
                keys: 0,
            }),
        }
    }

    /// A distinct event of a task was stored. `facts` are the task's, this step among them; `counted` is what they make. A step
    /// without a time is counted when it `arrived`.
    pub fn step(
        &mut self,
        step: &TaskStep,
        arrived: UnixMicros,
        facts: &TaskFacts,
        counted: &Counted,
        labels: &mut Labels,
    ) {
        let transition = match step.kind {
            EventKind::TaskSent => Transition::Sent,
            EventKind::TaskReceived => Transition::Received,
            EventKind::TaskStarted => Transition::Started,
            EventKind::TaskRetried => Transition::Retried,
            EventKind::TaskSucceeded
            | EventKind::TaskFailed
            | EventKind::TaskRejected
            | EventKind::TaskRevoked
            | EventKind::TaskCancelled
            | EventKind::TaskCustom
            | EventKind::TaskProgress
            | EventKind::TaskSteps
            | EventKind::WorkerOnline
            | EventKind::WorkerHeartbeat
            | EventKind::WorkerOffline
            | EventKind::WorkerOther
            | EventKind::WorkerLost
            | EventKind::WorkerBack
            | EventKind::FoundStarted
            | EventKind::FoundSucceeded
            | EventKind::FoundFailed
            | EventKind::FoundRevoked
            | EventKind::Custom => return,
        };
        // A call is sent by a client.
        let worker = if transition == Transition::Sent {
            None
        } else if counted.worker.text() == &*step.hostname {
            Some(counted.worker.clone())
        } else {
            Some(labels.label(Some(&step.hostname)))
        };
        let wait = facts.waited(step);
        self.each(minute(step.at.unwrap_or(arrived)), counted, worker.as_ref(), |entry| {
            entry.counts.add(transition, 1);
            if let Some(wait) = wait {
                entry.wait.add(wait, 1);
            }
        });
    }

    /// A task's row changed from what was counted before.
    pub fn change(&mut self, before: &Counted, after: &Counted) {
        let same_run = before.run == after.run;
        if before.ends_like(after) {
            return;
        }
        // A rerun under the same id does not disprove how the run before it ended.
        if same_run {
            self.end(before, -1);
        }
        self.end(after, 1);
    }

    fn end(&mut self, counted: &Counted, times: i64) {
        let Some(ending) = counted.ending else { return };
        self.each(counted.minute, counted, Some(&counted.worker), |entry| {
            for transition in ending.transitions() {
                entry.counts.add(*transition, times);
            }
            if let Ok(micros) = u64::try_from(counted.runtime) {
                entry.runtime.add(micros, times);
            }
        });
    }

    /// Counts in every dimension.
    fn each(&mut self, minute: i32, counted: &Counted, worker: Option<&Label>, mut count: impl FnMut(&mut Entry)) {
        let none = Label::default();
        let labels = [Some(&none), Some(&counted.task), Some(&counted.queue), worker];
        for (recent, label) in self.recent.iter_mut().zip(labels) {
            let Some(label) = label else { continue };
            let place = (minute, label.address());
            let at = match recent.place.filter(|(known, _)| *known == place) {
                Some((_, at)) => at,
                None => self.index.look_up(recent, minute, label, &mut self.entries),
            };
            recent.place = Some((place, at));
            if let Some(entry) = self.entries.get_mut(at) {
                count(entry);
            }
        }
    }

    /// Returns what changes anything, in the order of minutes, dimensions and keys.
    pub fn finish(self) -> Vec<StatisticDelta> {
        let delta = |entry: Entry| StatisticDelta {
            minute: UnixMicros(i64::from(entry.minute) * MINUTE),
            dimension: entry.dimension,
            key: entry.label.text().to_owned(),
            measures: Measures {
                counts: entry.counts,
                runtime: entry.runtime.finish(),
                wait: entry.wait.finish(),
            },
        };
        let deltas = self.entries.into_iter().map(delta);
        let mut deltas: Vec<StatisticDelta> = deltas.filter(|delta| !delta.measures.is_zero()).collect();
        deltas.sort_unstable_by(|a, b| (a.minute, a.dimension, &a.key).cmp(&(b.minute, b.dimension, &b.key)));
        deltas
    }
}

impl Index {
    fn look_up(&mut self, recent: &mut Recent, minute: i32, label: &Label, entries: &mut Vec<Entry>) -> usize {
        let dimension = recent.dimension;
        if let Some(at) = self.places.get(&(minute, dimension, label.address())) {
            return *at;
        }
        let is_full = recent.keys >= KEYS_PER_BATCH && dimension != Dimension::All;
        let label = if is_full { &self.other } else { label };
        recent.keys += 1;
        *self
            .places
            .entry((minute, dimension, label.address()))
            .or_insert_with(|| {
                entries.push(Entry {
                    minute,
                    dimension,
                    label: label.clone(),
                    counts: Counts::default(),
                    runtime: Samples::default(),
                    wait: Samples::default(),
                });
                entries.len() - 1
            })
    }
}

/// Minutes since 1970; events have times between 2000 and 2199, or that of their arrival.
fn minute(at: UnixMicros) -> i32 {
    i32::try_from(at.0.div_euclid(MINUTE)).unwrap_or(if at.0 < 0 { i32::MIN } else { i32::MAX })
}

#[cfg(test)]
mod tests;
