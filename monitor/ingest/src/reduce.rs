//! From prepared messages to one batch of the store: facts of each task merged, rows projected, events chunked. Pure.

use std::collections::{HashMap, HashSet};

use kanchi_domain::{Absorbed, Event, TaskFacts, TaskRow, UnixMicros};
use kanchi_store::{Batch, DeadLetter, Epoch, EventChunk, LiveTask};
use uuid::Uuid;

use crate::cache::{Cache, Weigh};
use crate::prepare::Prepared;
use crate::statistics::{Counted, Tally};

/// Events in one chunk; its count is 16 bits wide, and one huge task must not make one huge row.
const MAX_CHUNK_EVENTS: usize = 1_000;

/// Bytes of one chunk, roughly.
const MAX_CHUNK_BYTES: usize = 1024 * 1024;

/// What is kept of a task between batches.
#[derive(Clone, Debug)]
pub struct Known {
    facts: TaskFacts,
    counted: Counted,
    /// The live table may hold a row of it.
    maybe_stored: bool,
}

impl Weigh for Known {
    fn weight(&self) -> usize {
        self.facts.memory() + self.counted.weight()
    }
}

/// A batch, and what becomes of the cache once it is durable.
#[derive(Debug)]
pub struct Reduced {
    /// What is stored.
    pub batch: Batch,
    /// How many events it holds.
    pub events: u64,
    /// Celery timestamp of its newest event.
    pub newest: Option<UnixMicros>,
    /// Arrival of its oldest message.
    pub oldest_arrived: Option<UnixMicros>,
    touched: Vec<(Box<str>, Known)>,
}

/// Keeps the facts of recent tasks, and makes batches.
#[derive(Debug)]
pub struct Reducer {
    cache: Cache<Known>,
}

struct Group<'a> {
    events: Vec<&'a Event>,
}

impl Reducer {
    /// Returns a reducer that keeps at most `budget` bytes of facts.
    pub fn new(budget: usize) -> Self {
        Self {
            cache: Cache::new(budget),
        }
    }

    /// Returns the tasks of these messages whose facts must be looked up first.
    pub fn missing<'a>(&self, messages: &'a [Prepared]) -> Vec<&'a str> {
        let mut seen = HashSet::new();
        messages
            .iter()
            .flat_map(|message| &message.events)
            .filter_map(|event| event.task_id.as_ref().map(AsRef::as_ref))
            .filter(|id: &&str| !self.cache.contains(id) && seen.insert(*id))
            .collect()
    }

    /// Makes the batch of these messages. `loaded` holds what the store knew of the [`missing`](Self::missing) tasks.
    pub fn reduce(&mut self, messages: &[Prepared], mut loaded: HashMap<String, Vec<u8>>, epoch: Epoch) -> Reduced {
        let mut order: Vec<Option<&str>> = Vec::new();
        let mut groups: HashMap<Option<&str>, Group<'_>> = HashMap::new();
        let mut newest = None;
        let mut events = 0;
        for event in messages.iter().flat_map(|message| &message.events) {
            events += 1;
            newest = newest.max(event.has_timestamp().then_some(event.timestamp));
            let id = event.task_id.as_ref().map(AsRef::as_ref);
            let group = groups.entry(id).or_insert_with(|| {
                order.push(id);
                Group { events: Vec::new() }
            });
            group.events.push(event);
        }
        let mut batch = Batch {
            id: Uuid::new_v4(),
            epoch,
            digests: messages.iter().filter_map(|message| message.digest).collect(),
            dead_letters: messages.iter().flat_map(dead_letters).collect(),
            ..Batch::default()
        };
        let mut tally = Tally::default();
        let mut touched = Vec::with_capacity(order.len());
        for id in order {
            let Some(group) = groups.remove(&id) else { continue };
            chunk(id, &group.events, &mut batch.chunks);
            let Some(id) = id else { continue };
            let known = self
                .cache
                .take(id)
                .unwrap_or_else(|| Known::load(id, loaded.remove(id)));
            let (known, task) = absorb(id, known, &group.events, &mut tally);
            batch.tasks.extend(task);
            touched.push((id.into(), known));
        }
        batch.statistics = tally.finish();
        let oldest_arrived = messages.iter().map(|message| message.arrived).min();
        Reduced {
            batch,
            events,
            newest,
            oldest_arrived,
            touched,
        }
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
    fn load(id: &str, stored: Option<Vec<u8>>) -> Self {
        let maybe_stored = stored.is_some();
        let facts = stored.map_or_else(TaskFacts::new, |bytes| {
            TaskFacts::decode(&bytes).unwrap_or_else(|error| {
                // The events themselves are in their chunks; the row starts again from what comes now.
                tracing::error!(task.id = id, %error, "stored facts cannot be read");
                TaskFacts::new()
            })
        });
        let counted = if maybe_stored {
            Counted::of(&facts.project())
        } else {
            Counted::default()
        };
        Self {
            facts,
            counted,
            maybe_stored,
        }
    }
}

/// Adds the events of one task; `None` where none of them was new.
fn absorb(id: &str, mut known: Known, events: &[&Event], tally: &mut Tally) -> (Known, Option<LiveTask>) {
    let new: Vec<&Event> = events
        .iter()
        .copied()
        .filter(|event| known.facts.absorb(event) == Absorbed::New)
        .collect();
    if new.is_empty() && known.maybe_stored {
        return (known, None);
    }
    let row: TaskRow = known.facts.project();
    for event in new {
        tally.step(event, row.name.as_deref());
    }
    let counted = Counted::of(&row);
    tally.change(&known.counted, &counted);
    known.counted = counted;
    let task = LiveTask {
        task_id: id.to_owned(),
        facts: known.facts.encode(),
        row,
        maybe_stored: known.maybe_stored,
    };
    known.maybe_stored = true;
    (known, Some(task))
}

/// Appends the events of one task, or all that belong to none, as JSON arrays.
fn chunk(id: Option<&str>, events: &[&Event], chunks: &mut Vec<EventChunk>) {
    let mut text = String::new();
    let mut count: u16 = 0;
    let mut first_at = None;
    let mut finish = |text: &mut String, count: &mut u16, first_at: &mut Option<UnixMicros>| {
        if let Some(first_at) = first_at.take() {
            text.push(']');
            let events = std::mem::take(text).into_bytes();
            chunks.push(EventChunk {
                task_id: id.map(str::to_owned),
                first_at,
                count: *count,
                events,
            });
            *count = 0;
        }
    };
    for event in events {
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
