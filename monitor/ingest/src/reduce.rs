//! From prepared messages to one batch of the store: events chunked, facts of each task merged, rows projected. Pure.

use std::mem;
use std::sync::Arc;

use foldhash::{HashMap, HashSet};
use kanchi_domain::{Absorbed, Event, TaskFacts, TaskId, TaskRow, UnixMicros};
use kanchi_store::{BatchHead, DeadLetter, Epoch, EventChunk, LiveTask, TaskChanges};
use uuid::Uuid;

use crate::cache::{Cache, Weigh};
use crate::prepare::Prepared;
use crate::statistics::{Counted, Labels, Tally};

/// Events in one chunk; its count is 16 bits wide, and one huge task must not make one huge row.
const MAX_CHUNK_EVENTS: usize = 1_000;

/// Bytes of one chunk, roughly.
const MAX_CHUNK_BYTES: usize = 1024 * 1024;

/// Bytes that an event mostly takes in a chunk.
const USUAL_EVENT_BYTES: usize = 384;

/// What is kept of a task between batches.
#[derive(Clone, Debug)]
pub struct Known {
    /// Encoded: a fifth of what the facts take in memory otherwise, so that five times as many tasks are kept.
    facts: Arc<[u8]>,
    counted: Counted,
    /// The live table may hold a row of it.
    maybe_stored: bool,
}

impl Weigh for Known {
    fn weight(&self) -> usize {
        self.facts.len()
    }
}

/// What a batch means for tasks, and what becomes of the cache once it is durable.
#[derive(Debug)]
pub struct Reduced {
    /// What is stored.
    pub changes: TaskChanges,
    /// How many events it holds.
    pub events: u64,
    /// Celery timestamp of its newest event.
    pub newest: Option<UnixMicros>,
    /// Arrival of its oldest message.
    pub oldest_arrived: Option<UnixMicros>,
    touched: Vec<(Arc<str>, Known)>,
}

/// Keeps the facts of recent tasks, and makes batches.
#[derive(Debug)]
pub struct Reducer {
    cache: Cache<Known>,
    /// Where facts are encoded before their size is known.
    scratch: Vec<u8>,
    labels: Labels,
}

/// The events of a batch, those of one task (or of none) side by side, in the order in which the tasks came first.
struct Grouped<'a> {
    events: Vec<(u32, &'a Event)>,
    tasks: usize,
}

impl<'a> Grouped<'a> {
    fn of(messages: &'a [Prepared]) -> Self {
        let mut places: HashMap<Option<&str>, u32> = HashMap::default();
        let all = messages.iter().flat_map(|message| &message.events);
        let mut events: Vec<(u32, &Event)> = all
            .map(|event| {
                let next = places.len() as u32;
                (
                    *places.entry(event.task_id.as_ref().map(AsRef::as_ref)).or_insert(next),
                    event,
                )
            })
            .collect();
        events.sort_by_key(|(place, _)| *place);
        Self {
            events,
            tasks: places.len(),
        }
    }

    fn iter(&self) -> impl Iterator<Item = &[(u32, &'a Event)]> {
        self.events.chunk_by(|(a, _), (b, _)| a == b)
    }
}

impl Reducer {
    /// Returns a reducer that keeps at most `budget` bytes of facts.
    pub fn new(budget: usize) -> Self {
        Self {
            cache: Cache::new(budget),
            scratch: Vec::new(),
            labels: Labels::default(),
        }
    }

    /// Takes everything out, for a thread that gives it back.
    #[must_use]
    pub fn lend(&mut self) -> Self {
        mem::replace(self, Self::new(0))
    }

    /// Returns the tasks of these messages whose facts must be looked up first.
    pub fn missing<'a>(&self, messages: &'a [Prepared]) -> Vec<&'a str> {
        let mut seen = HashSet::default();
        messages
            .iter()
            .flat_map(|message| &message.events)
            .filter_map(|event| event.task_id.as_ref().map(AsRef::as_ref))
            .filter(|id: &&str| !self.cache.contains(id) && seen.insert(*id))
            .collect()
    }

    /// Merges these messages with what is known. `loaded` holds what the store knew of the [`missing`](Self::missing) tasks.
    pub fn reduce(&mut self, messages: &[Prepared], mut loaded: HashMap<String, Vec<u8>>) -> Reduced {
        let grouped = Grouped::of(messages);
        let mut tasks = Vec::with_capacity(grouped.tasks);
        let mut tally = Tally::new(&mut self.labels);
        let mut touched = Vec::with_capacity(grouped.tasks);
        for events in grouped.iter() {
            let Some(id) = id_of(events) else { continue };
            let known = self
                .cache
                .take(&id)
                .unwrap_or_else(|| Known::load(&id, loaded.remove(&*id), &mut self.labels));
            let (known, task) = self.absorb(&id, known, events, &mut tally);
            tasks.extend(task);
            touched.push((id, known));
        }
        let timestamps = grouped.events.iter().filter(|(_, event)| event.has_timestamp());
        Reduced {
            changes: TaskChanges {
                tasks,
                statistics: tally.finish(),
            },
            events: grouped.events.len() as u64,
            newest: timestamps.map(|(_, event)| event.timestamp).max(),
            oldest_arrived: messages.iter().map(|message| message.arrived).min(),
            touched,
        }
    }

    /// Adds the events of one task; `None` where none of them was new.
    fn absorb(
        &mut self,
        id: &Arc<str>,
        mut known: Known,
        events: &[(u32, &Event)],
        tally: &mut Tally,
    ) -> (Known, Option<LiveTask>) {
        let mut facts = known.decode(id);
        let new: Vec<&Event> = events
            .iter()
            .map(|(_, event)| *event)
            .filter(|event| facts.absorb(event) == Absorbed::New)
            .collect();
        if new.is_empty() && known.maybe_stored {
            return (known, None);
        }
        let row: TaskRow = facts.project();
        let counted = self.labels.counted(&row);
        for event in new {
            tally.step(event, &facts, &counted, &mut self.labels);
        }
        tally.change(&known.counted, &counted);
        known.counted = counted;
        self.scratch.clear();
        facts.encode_into(&mut self.scratch);
        known.facts = Arc::from(self.scratch.as_slice());
        let task = LiveTask {
            task_id: Arc::clone(id),
            facts: Arc::clone(&known.facts),
            row,
            maybe_stored: known.maybe_stored,
        };
        known.maybe_stored = true;
        (known, Some(task))
    }

    /// The batch is durable: its facts are what is known now. A batch that failed is simply dropped, so that its tasks
    /// are looked up again.
    pub fn committed(&mut self, reduced: Reduced) {
        for (id, known) in reduced.touched {
            self.cache.put(id, known);
        }
    }

    /// Returns bytes and number of the tasks kept.
    pub fn size(&self) -> (usize, usize) {
        (self.cache.bytes(), self.cache.len())
    }
}

impl Known {
    fn load(id: &str, stored: Option<Vec<u8>>, labels: &mut Labels) -> Self {
        let mut known = Self {
            maybe_stored: stored.is_some(),
            facts: stored.unwrap_or_default().into(),
            counted: Counted::default(),
        };
        if known.maybe_stored {
            known.counted = labels.counted(&known.decode(id).project());
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

/// Returns the part of a batch that needs no knowledge of the tasks: these messages and their [`chunks`].
pub fn head(messages: &[Prepared], chunks: Vec<EventChunk>, epoch: Epoch) -> BatchHead {
    BatchHead {
        id: Uuid::new_v4(),
        epoch,
        digests: messages.iter().filter_map(|message| message.digest).collect(),
        dead_letters: messages.iter().flat_map(dead_letters).collect(),
        chunks,
        ..BatchHead::default()
    }
}

/// Returns the events of these messages as they are stored, one chunk a task. It needs no knowledge of the tasks, so that it
/// is done while the batch before is being committed.
pub fn chunks(messages: &[Prepared]) -> Vec<EventChunk> {
    let grouped = Grouped::of(messages);
    let mut chunks = Vec::with_capacity(grouped.tasks);
    for events in grouped.iter() {
        chunk(id_of(events).as_ref(), events, &mut chunks);
    }
    chunks
}

fn id_of(events: &[(u32, &Event)]) -> Option<Arc<str>> {
    let (_, event) = events.first()?;
    event.task_id.as_ref().map(TaskId::share)
}

/// Appends the events of one task, or all that belong to none, as JSON arrays.
fn chunk(id: Option<&Arc<str>>, events: &[(u32, &Event)], chunks: &mut Vec<EventChunk>) {
    let mut text = String::with_capacity(events.len().min(MAX_CHUNK_EVENTS) * USUAL_EVENT_BYTES);
    let mut count: u16 = 0;
    let mut first_at = None;
    let mut finish = |text: &mut String, count: &mut u16, first_at: &mut Option<UnixMicros>| {
        if let Some(first_at) = first_at.take() {
            text.push(']');
            let events = mem::take(text).into_bytes();
            chunks.push(EventChunk {
                task_id: id.cloned(),
                first_at,
                count: *count,
                events,
            });
            *count = 0;
        }
    };
    for (_, event) in events {
        text.push(if text.is_empty() { '[' } else { ',' });
        event.write_json(&mut text);
        count += 1;
        first_at = Some(first_at.map_or(event.timestamp, |first: UnixMicros| first.min(event.timestamp)));
        if usize::from(count) >= MAX_CHUNK_EVENTS || text.len() >= MAX_CHUNK_BYTES {
            finish(&mut text, &mut count, &mut first_at);
        }
    }
    finish(&mut text, &mut count, &mut first_at);
}

fn dead_letters(message: &Prepared) -> impl Iterator<Item = DeadLetter> {
    message.rejects.iter().map(|reject| DeadLetter {
        arrived: message.arrived,
        reason: reject.reason.as_str().to_owned(),
        detail: reject.detail.clone(),
        sample: reject.sample.clone(),
    })
}

#[cfg(test)]
mod tests;
