//! A batch while it grows: each event goes to its task at once, as JSON for the store and as facts for the merge. Pure.
//!
//! Nothing is kept of an event itself. Should the store refuse a batch, or a part of it turn out to be stored already, the
//! rest is gathered again from the messages.

use std::mem;
use std::sync::Arc;

use bytes::Bytes;
use foldhash::HashMap;
use kanchi_domain::{Decoded, Event, Limits, PayloadPolicy, Reject, TaskFacts, TaskId, UnixMicros};
use kanchi_store::{BatchHead, DeadLetter, Epoch, EventChunk};
use uuid::Uuid;

use crate::message::{Message, Reading};

/// Events in one chunk; its count is 16 bits wide, and one huge task must not make one huge row.
const MAX_CHUNK_EVENTS: u16 = 1_000;

/// Bytes of one chunk, roughly.
const MAX_CHUNK_BYTES: usize = 1024 * 1024;

/// Bytes that the events of a task mostly take in a batch.
const USUAL_CHUNK_BYTES: usize = 512;

/// Bytes that a task's facts take besides their texts, for each event.
const FACT_BYTES: usize = 192;

/// Bytes that a task takes besides its events: its places in map and list.
const TASK_BYTES: usize = 512;

/// Bytes of a refused message that are kept for a look.
const HEAD_BYTES: usize = 512;

/// A message larger than this has a batch of its own, so that it need not be read again: nothing is kept of its body.
pub const LARGE: usize = 1024 * 1024;

/// What is kept of a message until it is stored.
#[derive(Debug)]
pub struct Receipt {
    /// What is acknowledged once this is stored.
    pub tag: u64,
    /// It may have been stored before.
    pub maybe_stored: bool,
    /// Tells it from other messages; `None` where the transport never delivers twice.
    pub digest: Option<u128>,
    /// When it was read from the connection.
    pub arrived: UnixMicros,
    /// What could not be read.
    pub rejects: Vec<Reject>,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Whole(Message),
    Head(Bytes),
    /// Not a message at all: events that the monitor itself made. They acknowledge nothing, and say nothing of what was read.
    Own(Vec<Event>),
}

impl Receipt {
    fn of(message: Message, rejects: Vec<Reject>) -> Self {
        Self {
            tag: message.tag,
            maybe_stored: message.maybe_stored,
            digest: message.digest(),
            arrived: message.arrived,
            rejects,
            body: if message.body.len() > LARGE {
                Body::Head(Bytes::copy_from_slice(head(&message.body)))
            } else {
                Body::Whole(message)
            },
        }
    }

    /// Tells whether the monitor itself made this.
    pub const fn is_own(&self) -> bool {
        matches!(self.body, Body::Own(_))
    }

    /// What could not be read of it.
    fn dead_letters(&self) -> impl Iterator<Item = DeadLetter> {
        self.rejects.iter().map(|reject| DeadLetter {
            arrived: self.arrived,
            reason: reject.reason.as_str().to_owned(),
            detail: reject.detail.clone(),
            sample: reject.sample.clone(),
        })
    }

    /// Returns the first bytes of the message, for a dead letter should the store refuse it.
    pub fn head(&self) -> &[u8] {
        match &self.body {
            Body::Whole(message) => head(&message.body),
            Body::Head(bytes) => bytes,
            Body::Own(_) => &[],
        }
    }
}

fn head(body: &[u8]) -> &[u8] {
    body.get(..HEAD_BYTES).unwrap_or(body)
}

/// What the events of one batch say of one task.
#[derive(Debug)]
pub struct TaskNews {
    /// The task.
    pub id: Arc<str>,
    /// The facts of these events alone.
    pub facts: TaskFacts,
    /// When the first of them arrived: their time where they tell none.
    pub arrived: UnixMicros,
}

/// Messages for one transaction, and what they hold.
#[derive(Debug, Default)]
pub struct Gathered {
    /// The messages, in order.
    pub messages: Vec<Receipt>,
    /// Their events as they are stored.
    pub chunks: Vec<EventChunk>,
    /// Their events as they are merged, one entry a task.
    pub tasks: Vec<TaskNews>,
    /// How many events they hold.
    pub events: u64,
    /// Celery timestamp of the newest event.
    pub newest: Option<UnixMicros>,
}

impl Gathered {
    /// Takes out what the store keeps as it came: all but the news of tasks.
    pub fn take_head(&mut self, epoch: Epoch) -> BatchHead {
        let messages = &self.messages;
        BatchHead {
            id: Uuid::new_v4(),
            epoch,
            digests: messages.iter().filter_map(|message| message.digest).collect(),
            dead_letters: messages.iter().flat_map(Receipt::dead_letters).collect(),
            chunks: mem::take(&mut self.chunks),
            ..BatchHead::default()
        }
    }

    /// Tells whether nothing is to be stored.
    pub fn is_void(&self) -> bool {
        self.chunks.is_empty() && self.messages.iter().all(|message| message.rejects.is_empty())
    }

    /// Reads messages of a batch again. A message without its body is alone in its batch, and is left out here.
    pub fn again(messages: Vec<Receipt>, policy: &PayloadPolicy, limits: &Limits) -> Self {
        let (mut gathering, mut reading) = (Gathering::default(), Reading::default());
        for receipt in messages {
            match &receipt.body {
                Body::Whole(message) => {
                    reading.read(message, policy, limits);
                    gathering.add_events(&reading.decoded.events);
                }
                Body::Own(events) => gathering.add_events(events),
                Body::Head(_) => continue,
            }
            gathering.messages.push(receipt);
        }
        gathering.finish()
    }
}

/// The batch that grows.
#[derive(Debug, Default)]
pub struct Gathering {
    messages: Vec<Receipt>,
    /// Where the group of a task is; that of no task has the empty id, which no task has.
    places: HashMap<Arc<str>, usize>,
    groups: Vec<Group>,
    /// Chunks that are full.
    chunks: Vec<EventChunk>,
    events: u64,
    newest: Option<UnixMicros>,
    bytes: usize,
}

/// The events of one task, or those of none.
#[derive(Debug)]
struct Group {
    id: Option<Arc<str>>,
    facts: TaskFacts,
    arrived: UnixMicros,
    /// An open JSON array.
    text: String,
    count: u16,
    first_at: UnixMicros,
}

impl Gathering {
    /// Adds a message and what was read of it.
    pub fn push(&mut self, message: Message, decoded: &mut Decoded) {
        self.add_events(&decoded.events);
        let rejects = mem::take(&mut decoded.rejects);
        self.bytes += size_of::<Receipt>();
        self.bytes += rejects
            .iter()
            .map(|reject| reject.sample.len() + reject.detail.len() + size_of::<Reject>())
            .sum::<usize>();
        if message.body.len() <= LARGE {
            self.bytes += message.body.len();
        }
        self.messages.push(Receipt::of(message, rejects));
    }

    /// Adds events of our own, as a message without bytes. `tag`: that of the message read last, which stays the newest.
    pub fn push_own(&mut self, events: Vec<Event>, tag: u64, at: UnixMicros) {
        self.add_events(&events);
        self.bytes += size_of::<Receipt>() + events.len() * size_of::<Event>();
        self.messages.push(Receipt {
            tag,
            maybe_stored: false,
            digest: None,
            arrived: at,
            rejects: Vec::new(),
            body: Body::Own(events),
        });
    }

    /// Returns how many events are in.
    pub const fn events(&self) -> u64 {
        self.events
    }

    /// Returns how many messages are in.
    pub const fn messages(&self) -> usize {
        self.messages.len()
    }

    /// Returns about how many bytes of memory all this takes.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes everything out.
    pub fn finish(&mut self) -> Gathered {
        let mut gathered = Gathered {
            messages: mem::take(&mut self.messages),
            chunks: mem::take(&mut self.chunks),
            tasks: Vec::with_capacity(self.groups.len()),
            events: mem::take(&mut self.events),
            newest: self.newest.take(),
        };
        gathered.chunks.reserve(self.groups.len());
        self.places.clear();
        self.bytes = 0;
        for mut group in self.groups.drain(..) {
            gathered.chunks.extend(group.take_chunk());
            if let Some(id) = group.id {
                let (facts, arrived) = (group.facts, group.arrived);
                gathered.tasks.push(TaskNews { id, facts, arrived });
            }
        }
        gathered
    }

    fn add_events(&mut self, events: &[Event]) {
        for event in events {
            self.add(event);
        }
    }

    fn add(&mut self, event: &Event) {
        let Some(group) = self.group_of(event) else { return };
        group.facts.absorb(event);
        let before = group.text.len();
        group.push(event);
        let grown = group.text.len() - before;
        if group.count >= MAX_CHUNK_EVENTS || group.text.len() >= MAX_CHUNK_BYTES {
            let full = group.take_chunk();
            self.chunks.extend(full);
        }
        // The texts of an event are in its facts once more.
        self.bytes += FACT_BYTES + 2 * grown;
        self.events += 1;
        if event.has_timestamp() {
            self.newest = self.newest.max(Some(event.timestamp));
        }
    }

    fn group_of(&mut self, event: &Event) -> Option<&mut Group> {
        let id = event.task_id.as_ref().map_or("", TaskId::as_str);
        if let Some(place) = self.places.get(id) {
            return self.groups.get_mut(*place);
        }
        let id = event.task_id.as_ref().map(TaskId::share);
        self.places.insert(id.clone().unwrap_or_default(), self.groups.len());
        self.bytes += TASK_BYTES;
        self.groups.push(Group {
            id,
            facts: TaskFacts::new(),
            arrived: event.arrived,
            text: String::new(),
            count: 0,
            first_at: event.timestamp,
        });
        self.groups.last_mut()
    }
}

impl Group {
    fn push(&mut self, event: &Event) {
        if self.count == 0 {
            self.first_at = event.timestamp;
            self.text.reserve(USUAL_CHUNK_BYTES);
            self.text.push('[');
        } else {
            self.first_at = self.first_at.min(event.timestamp);
            self.text.push(',');
        }
        event.write_json(&mut self.text);
        self.count += 1;
    }

    fn take_chunk(&mut self) -> Option<EventChunk> {
        (self.count > 0).then(|| {
            self.text.push(']');
            EventChunk {
                task_id: self.id.clone(),
                first_at: self.first_at,
                count: mem::take(&mut self.count),
                events: mem::take(&mut self.text).into_bytes(),
            }
        })
    }
}
