//! A batch while it grows: each event goes to its task at once, as JSON for the store and as facts for the merge. Pure.
//!
//! A message is forgotten once it is read. Should the store refuse a batch, its events are read back from that JSON. Only
//! a batch with messages that may be stored already keeps them all, because some of them may have to be left out.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use foldhash::HashMap;
use kanchi_domain::{Decoded, Event, EventKind, Limits, PayloadPolicy, Reject, TaskFacts, TaskId, UnixMicros};
use kanchi_store::{BatchHead, DeadLetter, Epoch, EventChunk, Packer};
use uuid::Uuid;

use crate::intake::message::{Message, Reading};

/// Events in one chunk; its count is 16 bits wide, and one huge task must not make one huge row.
const MAX_CHUNK_EVENTS: u16 = 1_000;

/// Bytes of one chunk, roughly.
const MAX_CHUNK_BYTES: usize = 1024 * 1024;

/// Bytes that an event mostly takes. Chunks grow by so much: doubled they would be half empty.
const USUAL_EVENT_BYTES: usize = 320;

/// Bytes that a task's facts take besides their texts, for each event.
const FACT_BYTES: usize = 192;

/// Bytes that a task takes besides its events: its places in map and list, its row and its facts as they are stored. After a moment in
/// which nothing was stored a batch may be the ends of as many tasks as it has events.
const TASK_BYTES: usize = 1_536;

/// A task that began so shortly before a full batch ends waits for the next one: most tasks are short, and one that begins
/// and ends in the same batch needs no row in the live table.
const YOUNG: Duration = Duration::from_millis(50);

/// A message larger than this has a batch of its own, so that it need not be read again: nothing is kept of its body.
pub const LARGE: usize = 1024 * 1024;

/// What is kept of a message, or of events of our own, in a batch of which parts may be left out.
#[derive(Debug)]
pub enum Kept {
    /// A message.
    Message {
        /// It may have been stored before.
        maybe_stored: bool,
        /// Tells it from other messages; `None` where the transport never delivers twice.
        digest: Option<u128>,
        /// All of it; `None` for a large one, which is alone in its batch.
        message: Option<Message>,
    },
    /// Events that the monitor itself made.
    Own(Vec<Event>),
}

impl Kept {
    /// Says whether this may have been stored before.
    pub const fn maybe_stored(&self) -> bool {
        matches!(self, Self::Message { maybe_stored: true, .. })
    }
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

/// What is told of a batch once it is stored.
#[derive(Clone, Copy, Debug, Default)]
pub struct Receipt {
    /// Tag of the newest message: what is acknowledged. `None` without a message.
    pub through: Option<u64>,
    /// How many messages were read, our own included.
    pub messages: u64,
    /// How many of these the monitor itself made. They say nothing of what was read.
    pub own: u64,
    /// When the first message arrived.
    pub oldest: Option<UnixMicros>,
    /// When the newest message arrived that was read from the broker.
    pub newest: Option<UnixMicros>,
    /// When the first event arrived that waits for the next batch.
    pub waiting: Option<UnixMicros>,
}

impl Receipt {
    /// Returns until when all that arrived is stored with this batch.
    pub fn stored_through(&self) -> Option<UnixMicros> {
        let before_waiting = self.waiting.map(|at| UnixMicros(at.0 - 1));
        Some(self.newest?.min(before_waiting.unwrap_or(UnixMicros(i64::MAX))))
    }
}

/// Messages for one transaction, and what they hold.
#[derive(Debug, Default)]
pub struct Gathered {
    /// What is told of it once it is stored.
    pub receipt: Receipt,
    /// What tells its messages from others.
    pub digests: Vec<u128>,
    /// What could not be read.
    pub dead_letters: Vec<DeadLetter>,
    /// The messages themselves, where some may be stored already.
    pub kept: Vec<Kept>,
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
    /// Gathers single events.
    pub fn of<'e>(events: impl IntoIterator<Item = &'e Event>) -> Self {
        let mut gathering = Gathering::default();
        gathering.add_events(events, false);
        gathering.finish()
    }

    /// Takes out what the store keeps as it came: all but the news of tasks.
    pub fn take_head(&mut self, epoch: Epoch) -> BatchHead {
        BatchHead {
            id: Uuid::new_v4(),
            epoch,
            digests: mem::take(&mut self.digests),
            dead_letters: mem::take(&mut self.dead_letters),
            chunks: mem::take(&mut self.chunks),
            ..BatchHead::default()
        }
    }

    /// Tells whether nothing is to be stored.
    pub const fn is_void(&self) -> bool {
        self.chunks.is_empty() && self.dead_letters.is_empty()
    }

    /// Leaves out the messages that `stays` says `false` of, and returns how many; the receipt stays that of all.
    pub fn leave_out(&mut self, stays: impl FnMut(&Kept) -> bool, policy: &PayloadPolicy, limits: &Limits) -> usize {
        let before = self.kept.len();
        self.kept.retain(stays);
        let left_out = before - self.kept.len();
        if left_out > 0 {
            let kept = mem::take(&mut self.kept);
            *self = Self {
                receipt: self.receipt,
                ..Self::again(kept, policy, limits)
            };
        }
        left_out
    }

    /// Reads messages again. One without its body was alone in its batch, and there is nothing left out beside it.
    fn again(kept: Vec<Kept>, policy: &PayloadPolicy, limits: &Limits) -> Self {
        let (mut gathering, mut reading) = (Gathering::default(), Reading::default());
        for kept in kept {
            match kept {
                Kept::Message { message, .. } => {
                    if let Some(message) = message {
                        reading.read(&message, policy, limits);
                        gathering.push(message, &mut reading.decoded);
                    }
                }
                Kept::Own(events) => gathering.add_events(&events, false),
            }
        }
        gathering.finish()
    }
}

/// The batch that grows.
#[derive(Debug, Default)]
pub struct Gathering {
    receipt: Receipt,
    digests: Vec<u128>,
    dead_letters: Vec<DeadLetter>,
    /// `None` while no message may be stored already.
    kept: Option<Vec<Kept>>,
    /// Where the group of a task is; that of no task has the empty id, which no task has.
    places: HashMap<Arc<str>, usize>,
    groups: Vec<Group>,
    /// Chunks that are full.
    chunks: Vec<EventChunk>,
    events: u64,
    newest: Option<UnixMicros>,
    bytes: usize,
    packer: Packer,
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
    /// Its share of [`Gathering::bytes`].
    bytes: usize,
    life: Life,
}

/// Whether the rest of a task's life may be worth waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// It begins in this batch.
    Begins,
    /// It is known from before, or has ended, or has waited, or what it holds is acknowledged with this batch.
    Settled,
}

impl Gathering {
    /// Adds a message and what was read of it.
    pub fn push(&mut self, message: Message, decoded: &mut Decoded) {
        // What can be delivered again is acknowledged through its tag, and what is kept is left out or not: neither may wait.
        let may_wait = !message.may_repeat && !message.maybe_stored && self.kept.is_none();
        self.add_events(&decoded.events, may_wait);
        let receipt = &mut self.receipt;
        receipt.through = Some(message.tag);
        receipt.messages += 1;
        receipt.newest = receipt.newest.max(Some(message.arrived));
        receipt.oldest.get_or_insert(message.arrived);
        for reject in decoded.rejects.drain(..) {
            self.bytes += reject.sample.len() + reject.detail.len() + size_of::<DeadLetter>();
            self.dead_letters.push(dead_letter(reject, message.arrived));
        }
        let digest = message.digest();
        self.bytes += size_of::<u128>();
        self.digests.extend(digest);
        self.keep(message, digest);
    }

    fn keep(&mut self, message: Message, digest: Option<u128>) {
        let maybe_stored = message.maybe_stored;
        if !maybe_stored && self.kept.is_none() {
            return;
        }
        let message = (message.body.len() <= LARGE).then_some(message);
        self.bytes += message.as_ref().map_or(0, |message| message.body.len()) + size_of::<Kept>();
        self.kept.get_or_insert_default().push(Kept::Message {
            maybe_stored,
            digest,
            message,
        });
    }

    /// Adds events of our own, as a message without bytes. `tag`: that of the message read last, which stays the newest.
    pub fn push_own(&mut self, events: Vec<Event>, tag: u64, at: UnixMicros) {
        self.add_events(&events, false);
        let receipt = &mut self.receipt;
        receipt.through = Some(tag);
        receipt.messages += 1;
        receipt.own += 1;
        receipt.oldest.get_or_insert(at);
        if let Some(kept) = &mut self.kept {
            self.bytes += events.len() * size_of::<Event>();
            kept.push(Kept::Own(events));
        }
    }

    /// Tells whether this message may come beside those that are in: one that may be stored already needs a batch that has
    /// kept all of its messages.
    pub const fn suits(&self, message: &Message) -> bool {
        !message.maybe_stored || self.kept.is_some() || self.is_empty()
    }

    /// Returns how many events are in.
    pub const fn events(&self) -> u64 {
        self.events
    }

    /// Returns how many messages are in.
    pub const fn messages(&self) -> u64 {
        self.receipt.messages
    }

    /// Returns about how many bytes of memory all this takes.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Tells whether nothing is in.
    pub const fn is_empty(&self) -> bool {
        self.receipt.messages == 0 && self.groups.is_empty()
    }

    /// Takes everything out.
    pub fn finish(&mut self) -> Gathered {
        self.split(|_, _| false)
    }

    /// Takes everything out but the youngest tasks, a quarter of all bytes at most. Each waits once.
    pub fn finish_but_young(&mut self) -> Gathered {
        let youngest = self.receipt.newest.unwrap_or_default().0 - YOUNG.as_micros() as i64;
        let most = self.bytes / 4;
        self.split(|group, waiting| group.life == Life::Begins && group.arrived.0 >= youngest && waiting < most)
    }

    /// Takes out the groups that `waits` says `false` of; it is told how many bytes wait already.
    fn split(&mut self, waits: impl Fn(&Group, usize) -> bool) -> Gathered {
        let mut gathered = Gathered {
            receipt: mem::take(&mut self.receipt),
            digests: mem::take(&mut self.digests),
            dead_letters: mem::take(&mut self.dead_letters),
            kept: self.kept.take().unwrap_or_default(),
            chunks: mem::take(&mut self.chunks),
            tasks: Vec::with_capacity(self.groups.len()),
            events: mem::take(&mut self.events),
            newest: self.newest.take(),
        };
        gathered.chunks.reserve(self.groups.len());
        self.places.clear();
        self.bytes = 0;
        for mut group in mem::take(&mut self.groups) {
            if waits(&group, self.bytes) {
                group.life = Life::Settled;
                gathered.receipt.waiting = Some(gathered.receipt.waiting.unwrap_or(group.arrived).min(group.arrived));
                self.bytes += group.bytes;
                self.events += u64::from(group.count);
                self.receipt.oldest.get_or_insert(group.arrived);
                self.places
                    .insert(group.id.clone().unwrap_or_default(), self.groups.len());
                self.groups.push(group);
                continue;
            }
            gathered.chunks.extend(group.take_chunk(&mut self.packer));
            if let Some(id) = group.id {
                let (facts, arrived) = (group.facts, group.arrived);
                gathered.tasks.push(TaskNews { id, facts, arrived });
            }
        }
        gathered.events -= self.events;
        if !self.groups.is_empty() {
            // Should nothing more come, the batch of those that waited completes what has arrived.
            self.receipt.newest = gathered.receipt.newest;
        }
        gathered
    }

    fn add_events<'e>(&mut self, events: impl IntoIterator<Item = &'e Event>, may_wait: bool) {
        for event in events {
            self.add(event, may_wait);
        }
    }

    fn add(&mut self, event: &Event, may_wait: bool) {
        let place = self.place_of(event);
        let Some(group) = self.groups.get_mut(place) else {
            return;
        };
        group.facts.absorb(event);
        let before = group.text.len();
        group.push(event);
        // The texts of an event are in its facts once more.
        let grown = FACT_BYTES + 2 * (group.text.len() - before);
        group.bytes += grown;
        if !may_wait || ends(event.kind) {
            group.life = Life::Settled;
        }
        if group.count >= MAX_CHUNK_EVENTS || group.text.len() >= MAX_CHUNK_BYTES {
            group.life = Life::Settled;
            let full = group.take_chunk(&mut self.packer);
            self.chunks.extend(full);
        }
        self.bytes += grown;
        self.events += 1;
        if event.has_timestamp() {
            self.newest = self.newest.max(Some(event.timestamp));
        }
    }

    fn place_of(&mut self, event: &Event) -> usize {
        let id = event.task_id.as_ref().map_or("", TaskId::as_str);
        if let Some(place) = self.places.get(id) {
            return *place;
        }
        let (id, place) = (event.task_id.as_ref().map(TaskId::share), self.groups.len());
        self.places.insert(id.clone().unwrap_or_default(), place);
        self.bytes += TASK_BYTES;
        self.groups.push(Group {
            id,
            facts: TaskFacts::new(),
            arrived: event.arrived,
            text: String::new(),
            count: 0,
            first_at: event.timestamp,
            bytes: TASK_BYTES,
            life: if begins(event.kind) {
                Life::Begins
            } else {
                Life::Settled
            },
        });
        place
    }
}

/// Says whether a task's life begins with this.
const fn begins(kind: EventKind) -> bool {
    matches!(kind, EventKind::TaskSent | EventKind::TaskReceived)
}

/// Says whether nothing more is to be expected of a task after this.
const fn ends(kind: EventKind) -> bool {
    matches!(
        kind,
        EventKind::TaskSucceeded | EventKind::TaskFailed | EventKind::TaskRejected | EventKind::TaskRevoked
    )
}

fn dead_letter(reject: Reject, arrived: UnixMicros) -> DeadLetter {
    DeadLetter {
        arrived,
        reason: reject.reason.as_str().to_owned(),
        detail: reject.detail,
        sample: reject.sample,
    }
}

impl Group {
    fn push(&mut self, event: &Event) {
        if self.text.capacity() - self.text.len() < USUAL_EVENT_BYTES {
            // By more for those of which there are many.
            self.text.reserve_exact(USUAL_EVENT_BYTES.max(self.text.len() / 4));
        }
        if self.count == 0 {
            self.first_at = event.timestamp;
            self.text.push('[');
        } else {
            self.first_at = self.first_at.min(event.timestamp);
            self.text.push(',');
        }
        event.write_json(&mut self.text);
        self.count += 1;
    }

    fn take_chunk(&mut self, packer: &mut Packer) -> Option<EventChunk> {
        (self.count > 0).then(|| {
            self.text.push(']');
            let text = mem::take(&mut self.text);
            EventChunk {
                task_id: self.id.clone(),
                first_at: self.first_at,
                count: mem::take(&mut self.count),
                events: packer.pack(&text, self.id.as_deref()),
            }
        })
    }
}

#[cfg(test)]
mod tests;
