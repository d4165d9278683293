//! One event as decoded: known fields typed, unknown ones kept as JSON text, every text fit for Postgres.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3Default;

use crate::time::UnixMicros;

mod json;
mod kind;
mod stored;

pub(crate) use json::{push_fmt, write_number, write_string};
pub use kind::EventKind;

/// An event of a task, a worker or an application.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// `type` as on the wire, at most 255 bytes.
    pub type_name: Cow<'static, str>,
    /// Node name of the sender; empty if the event has none.
    pub hostname: Arc<str>,
    /// Process id of the sender.
    pub pid: Option<i64>,
    /// The sender's Lamport clock.
    pub clock: Option<i64>,
    /// When it happened, by the sender's clock. The time of arrival where that is unknown (see [`Self::has_timestamp`]).
    pub timestamp: UnixMicros,
    /// When the monitor got it.
    pub arrived: UnixMicros,
    /// What was wrong with it, and has been repaired.
    pub repairs: Repairs,
    /// The task it is about.
    pub task_id: Option<TaskId>,
    /// Task name: the true one in `task-sent`, the shadow name (if there is one) in `task-received`.
    pub name: Option<Arc<str>>,
    /// Positional arguments, as Celery's truncated repr.
    pub args: Option<Arc<str>>,
    /// Keyword arguments, as Celery's truncated repr.
    pub kwargs: Option<Arc<str>>,
    /// How often the task had been retried when this attempt was sent.
    pub retries: Option<u32>,
    /// Not to run before.
    pub eta: Option<UnixMicros>,
    /// Not to run after.
    pub expires: Option<UnixMicros>,
    /// Id of the first task of the workflow.
    pub root_id: Option<TaskId>,
    /// Id of the task that sent this one.
    pub parent_id: Option<TaskId>,
    /// Queue it was sent to, without the prefix of delayed delivery.
    pub queue: Option<Arc<str>>,
    /// Exchange it was sent to; absent for the default exchange.
    pub exchange: Option<Arc<str>>,
    /// Routing key it was sent with, without the prefix of delayed delivery.
    pub routing_key: Option<Arc<str>>,
    /// The result, as Celery's truncated repr.
    pub result: Option<Arc<str>>,
    /// Seconds from start to end, by the worker.
    pub runtime: Option<f64>,
    /// The exception's repr; taken from the traceback where Celery sends a useless one.
    pub exception: Option<Arc<str>>,
    /// The exception's class, without module.
    pub exception_class: Option<Arc<str>>,
    /// The traceback.
    pub traceback: Option<Arc<str>>,
    /// `task-rejected`: put back into the queue.
    pub requeue: Option<bool>,
    /// `task-revoked`: was running.
    pub terminated: Option<bool>,
    /// `task-revoked`: because it had expired.
    pub expired: Option<bool>,
    /// `task-revoked`: the signal, a number or a name.
    pub signum: Option<Arc<str>>,
    /// What a `worker-…` event says about its worker.
    pub worker: Option<Box<WorkerFields>>,
    /// Progress of a task.
    pub progress: Option<Box<ProgressFields>>,
    /// All other fields: the text of a JSON object that `jsonb` takes.
    pub extra: Option<Arc<str>>,
    /// Payloads that were cut.
    pub cut: PayloadFields,
}

impl Event {
    /// Says whether the sender told a usable time; if not, [`Self::timestamp`] is the time of arrival.
    pub fn has_timestamp(&self) -> bool {
        !self.repairs.contains(Repair::Timestamp)
    }

    /// Returns the event's identity: two events with the same one are the same event.
    pub fn identity(&self) -> EventId {
        let mut hash = Xxh3Default::new();
        for text in [
            self.type_name.as_bytes(),
            self.hostname.as_bytes(),
            self.task_id_bytes(),
        ] {
            hash.update(&(text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        let timestamp = if self.has_timestamp() {
            self.timestamp.0
        } else {
            i64::MIN
        };
        for number in [self.pid.unwrap_or(i64::MIN), self.clock.unwrap_or(i64::MIN), timestamp] {
            hash.update(&number.to_le_bytes());
        }
        EventId(hash.digest128())
    }

    /// Appends the event as a compact JSON object that `jsonb` takes. The task id and the time of arrival are not in it.
    pub fn write_json(&self, out: &mut String) {
        json::write(self, out);
    }

    /// Returns the event as a compact JSON object, see [`Self::write_json`].
    pub fn to_json(&self) -> String {
        let mut out = String::with_capacity(256);
        self.write_json(&mut out);
        out
    }

    /// Reads a JSON array of [`write_json`](Self::write_json)'s objects, the events of one task: element by element, so that one
    /// which cannot be read costs no other. `arrived` is given to each: it is not in the text.
    ///
    /// # Errors
    ///
    /// An element that `write_json` has not written; all of it where the text is no array.
    pub fn read_stored(
        array: &str,
        task_id: Option<&TaskId>,
        arrived: UnixMicros,
    ) -> serde_json::Result<Vec<serde_json::Result<Self>>> {
        let objects: Vec<&serde_json::value::RawValue> = serde_json::from_str(array)?;
        let events = objects
            .iter()
            .map(|object| stored::read(object.get(), task_id, arrived));
        Ok(events.collect())
    }

    fn task_id_bytes(&self) -> &[u8] {
        self.task_id.as_ref().map_or(b"", |id| id.as_str().as_bytes())
    }
}

/// Identity of an event: a hash of hostname, pid, clock, timestamp, type and task id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(pub u128);

/// Id of a task: any non-empty text of at most 255 bytes without NUL. Celery's are UUIDs, but it accepts others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(Arc<str>);

impl TaskId {
    /// Returns the id of a text: NUL replaced, a text over 255 bytes shortened with a hash; `None` for an empty one.
    pub fn new(text: &str) -> Option<Self> {
        let (text, _) = crate::text::without_nul(text.into());
        match crate::text::shortened_name(&text) {
            _ if text.is_empty() => None,
            Some(short) => Some(Self(short.into())),
            None => Some(Self(text.into())),
        }
    }

    /// Returns the id of a text that is one already, without copying it.
    pub(crate) fn shared(text: Arc<str>) -> Option<Self> {
        let fits = !text.is_empty() && text.len() <= crate::text::NAME_BYTES && !text.contains('\0');
        if fits { Some(Self(text)) } else { Self::new(&text) }
    }

    /// Returns the text, shared.
    pub fn share(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Says whether the id looks like the UUIDs that Celery makes.
    pub fn is_uuid(&self) -> bool {
        let bytes = self.0.as_bytes();
        bytes.len() == 36
            && bytes.iter().enumerate().all(|(index, byte)| match index {
                8 | 13 | 18 | 23 => *byte == b'-',
                _ => byte.is_ascii_hexdigit(),
            })
    }
}

impl Borrow<str> for TaskId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for TaskId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a `worker-…` event says about its worker.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorkerFields {
    /// Seconds between two heartbeats. The answer to the `heartbeat` command says 5 whatever the truth: it has no `active`.
    pub freq: Option<f64>,
    /// Tasks running.
    pub active: Option<i64>,
    /// Tasks run since the start.
    pub processed: Option<i64>,
    /// Load averages of 1, 5 and 15 minutes.
    pub loadavg: Option<[f64; 3]>,
    /// Software, for example `py-celery`.
    pub sw_ident: Option<Arc<str>>,
    /// Its version.
    pub sw_ver: Option<Arc<str>>,
    /// Operating system.
    pub sw_sys: Option<Arc<str>>,
}

impl WorkerFields {
    /// Says whether this is a regular beat, whose `freq` is the worker's own.
    pub const fn is_regular(&self) -> bool {
        self.active.is_some()
    }
}

/// Progress as `kanchi-task-progress` and `kanchi-task-steps` tell it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProgressFields {
    /// Percent done, 0–100; a number beyond is in [`Event::extra`].
    pub percent: Option<f64>,
    /// Which step, at most 255 bytes.
    pub step_key: Option<Arc<str>>,
    /// A word on it.
    pub message: Option<Arc<str>>,
    /// Anything: JSON text.
    pub meta: Option<Arc<str>>,
    /// The steps to come: text of a JSON array of at most 100 [`ProgressStep`](crate::ProgressStep)s.
    pub steps: Option<Arc<str>>,
}

/// A text of an event that can be large or secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum PayloadField {
    /// Positional arguments.
    Args = 0,
    /// Keyword arguments.
    Kwargs = 1,
    /// Result.
    Result = 2,
    /// Exception.
    Exception = 3,
    /// Traceback.
    Traceback = 4,
    /// Progress message, meta and steps.
    Progress = 5,
    /// Unknown fields.
    Extra = 6,
}

impl PayloadField {
    /// All payload fields.
    pub const ALL: [Self; 7] = [
        Self::Args,
        Self::Kwargs,
        Self::Result,
        Self::Exception,
        Self::Traceback,
        Self::Progress,
        Self::Extra,
    ];

    /// Returns the name used in the store and the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Args => "args",
            Self::Kwargs => "kwargs",
            Self::Result => "result",
            Self::Exception => "exception",
            Self::Traceback => "traceback",
            Self::Progress => "progress",
            Self::Extra => "extra",
        }
    }
}

/// A set of payload fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PayloadFields(pub(crate) u8);

impl PayloadFields {
    /// Adds a field.
    pub fn insert(&mut self, field: PayloadField) {
        self.0 |= 1 << field as u8;
    }

    /// Says whether a field is in.
    pub const fn contains(self, field: PayloadField) -> bool {
        self.0 & (1 << field as u8) != 0
    }

    /// Says whether no field is in.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns the fields in order.
    pub fn iter(self) -> impl Iterator<Item = PayloadField> {
        PayloadField::ALL.into_iter().filter(move |field| self.contains(*field))
    }
}

/// A fault of an event that did not cost it its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Repair {
    /// Invalid UTF-8 became U+FFFD.
    Utf8 = 0,
    /// NUL became U+FFFD.
    Nul = 1,
    /// A lone surrogate became U+FFFD.
    Surrogate = 2,
    /// `NaN` or an infinity became null in a known field, a text elsewhere.
    NotANumber = 3,
    /// An integer beyond 64 bits became a text, or null in a known numeric field.
    HugeInteger = 4,
    /// No timestamp, none that can be read, or none within 2000–2199: time unknown.
    Timestamp = 5,
    /// The timestamp was a text.
    TimestampText = 6,
    /// A name over 255 bytes was shortened.
    LongName = 7,
    /// A field had another type; it was converted, or dropped where that made no sense.
    WrongType = 8,
    /// A text was cut at the reader's bound.
    LongText = 9,
    /// Nesting beyond the reader's bound became `"[...]"`.
    Depth = 10,
    /// Unknown fields beyond the reader's bound were dropped.
    ManyFields = 11,
    /// A task event without hostname.
    Hostname = 12,
}

impl Repair {
    /// All repairs, for metrics that start at zero.
    pub const ALL: [Self; 13] = [
        Self::Utf8,
        Self::Nul,
        Self::Surrogate,
        Self::NotANumber,
        Self::HugeInteger,
        Self::Timestamp,
        Self::TimestampText,
        Self::LongName,
        Self::WrongType,
        Self::LongText,
        Self::Depth,
        Self::ManyFields,
        Self::Hostname,
    ];

    /// Returns the name used as metric label and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Utf8 => "utf8",
            Self::Nul => "nul",
            Self::Surrogate => "surrogate",
            Self::NotANumber => "not_a_number",
            Self::HugeInteger => "huge_integer",
            Self::Timestamp => "timestamp",
            Self::TimestampText => "timestamp_text",
            Self::LongName => "long_name",
            Self::WrongType => "wrong_type",
            Self::LongText => "long_text",
            Self::Depth => "depth",
            Self::ManyFields => "many_fields",
            Self::Hostname => "hostname",
        }
    }
}

/// A set of repairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repairs(u16);

impl Repairs {
    /// Adds a repair.
    pub fn insert(&mut self, repair: Repair) {
        self.0 |= 1 << repair as u16;
    }

    /// Adds all repairs of another set.
    pub fn insert_all(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Says whether a repair is in.
    pub const fn contains(self, repair: Repair) -> bool {
        self.0 & (1 << repair as u16) != 0
    }

    /// Says whether nothing was repaired.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns the repairs in order.
    pub fn iter(self) -> impl Iterator<Item = Repair> {
        Repair::ALL.into_iter().filter(move |repair| self.contains(*repair))
    }
}
