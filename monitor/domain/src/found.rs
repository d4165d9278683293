//! What is found out about a task after a gap, as events like any other.
//!
//! The result backend holds a record of each task that has ended (`celery.backends.base`, `_get_result_meta`); a worker tells
//! which tasks it runs (`query_task`). Of each comes one event of our own, whose identity is the task and the time that the
//! record or the worker says: finding it twice is finding it once. They come into play only where all that the task's own
//! events told does not say how it ended, so that a late event of Celery always wins. Like the findings about workers they
//! are made here and nowhere else.

use std::borrow::Cow;
use std::sync::Arc;

use crate::decode::json::Reader;
use crate::decode::scalar::Scalar;
use crate::decode::{Limits, address, blank, explain, unpack};
use crate::event::{Event, EventKind, Repairs, TaskId};
use crate::text::shortened_name;
use crate::time::UnixMicros;

mod repr;

/// What a record begins with that Celery 5.7 has compressed; the content type follows, and a NUL.
const COMPRESSED: &[u8] = b"\0celery-compressed\0";

/// Why a record of the result backend cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordFault {
    /// Pickle, which is never executed and never read.
    Pickle,
    /// Neither JSON nor pickle, as far as can be seen.
    Serializer,
    /// An unknown compression, or damaged.
    Compression,
    /// JSON that is not a record.
    Damaged,
    /// The task has ended, but not at a time that can be read.
    NoTime,
}

impl RecordFault {
    /// All faults, for metrics that start at zero.
    pub const ALL: [Self; 5] = [
        Self::Pickle,
        Self::Serializer,
        Self::Compression,
        Self::Damaged,
        Self::NoTime,
    ];

    /// Returns the name used in metrics and texts.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pickle => "pickle",
            Self::Serializer => "serializer",
            Self::Compression => "compression",
            Self::Damaged => "damaged",
            Self::NoTime => "no_time",
        }
    }
}

/// A task that a worker says it runs: its `TASK_INFO`, as far as it is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunningInfo {
    /// `type`: the true name.
    pub name: Option<String>,
    /// `args`: JSON text.
    pub args: Option<String>,
    /// `kwargs`: JSON text.
    pub kwargs: Option<String>,
    /// `delivery_info.routing_key`, which for most exchanges is the queue.
    pub queue: Option<String>,
}

impl Event {
    /// Reads a record of the result backend; `None` where it does not say that the task has ended. The event is placed at
    /// `date_done`. The payload policy has yet to be applied.
    pub fn found_result(task: &TaskId, record: &[u8], now: UnixMicros) -> Result<Option<Self>, RecordFault> {
        let unpacked = uncompressed(record)?;
        if matches!(*unpacked, [0x80, 2..=5, ..]) {
            return Err(RecordFault::Pickle);
        }
        let Ok(text) = std::str::from_utf8(&unpacked) else {
            return Err(RecordFault::Serializer);
        };
        if !text.trim_start().starts_with('{') {
            return Err(RecordFault::Serializer);
        }
        Meta::read(text)?.event(task, now)
    }

    /// Returns the finding that a worker runs a task, since `since` by its own clock.
    pub fn found_running(task: &TaskId, worker: &str, since: UnixMicros, info: &RunningInfo, now: UnixMicros) -> Self {
        let mut event = found(EventKind::FoundStarted, task, &name_of(worker), since, now);
        event.name = info.name.as_deref().filter(|name| !name.is_empty()).map(name_of);
        event.args = info.args.as_deref().and_then(repr::arguments);
        event.kwargs = info.kwargs.as_deref().and_then(repr::keywords);
        event.queue = info.queue.as_deref().and_then(|queue| address(&name_of(queue)));
        event
    }
}

fn found(kind: EventKind, task: &TaskId, worker: &Arc<str>, at: UnixMicros, now: UnixMicros) -> Event {
    let mut event = blank(now, worker);
    event.kind = kind;
    event.type_name = kind.as_str().into();
    event.timestamp = at;
    event.task_id = Some(task.clone());
    event
}

fn uncompressed(record: &[u8]) -> Result<Cow<'_, [u8]>, RecordFault> {
    let Some(rest) = record.strip_prefix(COMPRESSED) else {
        return Ok(record.into());
    };
    let end = rest.iter().position(|byte| *byte == 0).ok_or(RecordFault::Damaged)?;
    let (name, packed) = rest.split_at(end);
    let Ok(name) = std::str::from_utf8(name) else {
        return Err(RecordFault::Compression);
    };
    let packed = packed.get(1..).unwrap_or_default();
    match unpack(name, packed, Limits::DEFAULT.max_text_bytes) {
        Ok(bytes) => Ok(bytes.into()),
        Err(_reason) => Err(RecordFault::Compression),
    }
}

/// A record, taken apart.
#[derive(Default)]
struct Meta<'a> {
    status: Cow<'a, str>,
    result: Option<Scalar<'a>>,
    traceback: Option<Cow<'a, str>>,
    done: Option<UnixMicros>,
    parent: Option<Cow<'a, str>>,
    /// With `result_extended` only, as are all below.
    name: Option<Cow<'a, str>>,
    worker: Option<Cow<'a, str>>,
    queue: Option<Cow<'a, str>>,
    args: Option<Cow<'a, str>>,
    kwargs: Option<Cow<'a, str>>,
    retries: Option<i64>,
}

impl<'a> Meta<'a> {
    fn read(text: &'a str) -> Result<Self, RecordFault> {
        const LIMITS: Limits = Limits::DEFAULT;
        let mut meta = Self::default();
        let mut reader = Reader::new(text, &LIMITS);
        let read = reader.object(|reader, key| {
            let value = reader.scalar()?;
            meta.set(&key, value);
            Ok(())
        });
        if read.is_err() || reader.peek().is_some() || meta.status.is_empty() {
            return Err(RecordFault::Damaged);
        }
        Ok(meta)
    }

    fn set(&mut self, key: &str, value: Scalar<'a>) {
        let repairs = &mut Repairs::default();
        match key {
            "status" => self.status = value.into_text(repairs).unwrap_or_default(),
            "result" => self.result = Some(value),
            "traceback" => self.traceback = value.into_text(repairs),
            "date_done" => self.done = value.into_time(repairs),
            "parent_id" => self.parent = value.into_text(repairs),
            "name" => self.name = value.into_text(repairs),
            "worker" => self.worker = value.into_text(repairs),
            "queue" => self.queue = value.into_text(repairs),
            "args" => self.args = json_of(value),
            "kwargs" => self.kwargs = json_of(value),
            "retries" => self.retries = value.into_integer(repairs),
            _ => {}
        }
    }

    fn event(self, task: &TaskId, now: UnixMicros) -> Result<Option<Event>, RecordFault> {
        let kind = match &*self.status {
            "SUCCESS" => EventKind::FoundSucceeded,
            "FAILURE" => EventKind::FoundFailed,
            "REVOKED" => EventKind::FoundRevoked,
            // PENDING, STARTED, RETRY, an application's own.
            _ => return Ok(None),
        };
        let at = self.done.ok_or(RecordFault::NoTime)?;
        let name = |name: Option<Cow<'_, str>>| name.filter(|name| !name.is_empty()).map(|name| name_of(&name));
        let worker = name(self.worker).unwrap_or_default();
        let mut event = found(kind, task, &worker, at, now);
        event.name = name(self.name);
        event.queue = name(self.queue).and_then(|queue| address(&queue));
        event.args = self.args.as_deref().and_then(repr::arguments);
        event.kwargs = self.kwargs.as_deref().and_then(repr::keywords);
        event.retries = self.retries.and_then(|retries| u32::try_from(retries).ok());
        event.parent_id = self.parent.as_deref().and_then(TaskId::new);
        let result = self.result.unwrap_or(Scalar::Null);
        if kind == EventKind::FoundSucceeded {
            event.result = Some(repr::value(&result).into());
            return Ok(Some(event));
        }
        let told = repr::exception(&result);
        if kind == EventKind::FoundFailed {
            let (better, class) = explain(Some(&told), self.traceback.as_deref());
            event.exception_class = class.map(Arc::from);
            event.exception = Some(better.map_or_else(|| Arc::from(&*told), Arc::from));
            event.traceback = self.traceback.map(Arc::from);
        } else {
            // Celery's own words: `TaskRevokedError('expired')`, `'terminated'`, `'revoked'`.
            event.expired = told.contains("'expired'").then_some(true);
            event.terminated = told.contains("'terminated'").then_some(true);
        }
        Ok(Some(event))
    }
}

/// JSON text of a nested value; other values are no arguments.
fn json_of(value: Scalar<'_>) -> Option<Cow<'_, str>> {
    match value {
        Scalar::Json(json) => Some(json),
        Scalar::Null
        | Scalar::Bool(_)
        | Scalar::Int(_)
        | Scalar::Float(_)
        | Scalar::NotANumber(_)
        | Scalar::Huge(_)
        | Scalar::Text(_) => None,
    }
}

/// A name without NUL that an index takes.
fn name_of(name: &str) -> Arc<str> {
    let (name, _) = crate::text::without_nul(name.into());
    match shortened_name(&name) {
        Some(short) => short.into(),
        None => name.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMicros = UnixMicros(1_795_300_000_000_000);

    fn read(record: &[u8]) -> Result<Option<Event>, RecordFault> {
        Event::found_result(&TaskId::new("t").unwrap(), record, NOW)
    }

    fn ended(record: &str) -> Event {
        read(record.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn a_success_has_its_result_as_python_would_show_it_and_is_placed_when_it_was_done() {
        let event = ended(
            r#"{"status": "SUCCESS", "result": {"total": 3, "items": ["it's", null, true, 1.0, NaN]}, "traceback": null,
                "children": [], "date_done": "2026-11-22T10:00:00.000005+00:00", "task_id": "t"}"#,
        );
        assert_eq!(event.kind, EventKind::FoundSucceeded);
        assert_eq!(
            event.timestamp,
            UnixMicros::parse_iso8601("2026-11-22T10:00:00.000005").unwrap()
        );
        assert_eq!(
            event.result.as_deref(),
            Some(r"{'total': 3, 'items': ['it\'s', None, True, 1.0, 'NaN']}")
        );
        assert_eq!((&*event.hostname, event.task_id.unwrap().as_str()), ("", "t"));
    }

    #[test]
    fn a_failure_has_exception_and_class() {
        let event = ended(
            r#"{"status": "FAILURE", "result": {"exc_type": "ValueError", "exc_message": ["no", 5], "exc_module": "builtins"},
                "traceback": "Traceback (most recent call last):\nValueError: ('no', 5)\n", "date_done": "2026-11-22T10:00:00"}"#,
        );
        assert_eq!(event.kind, EventKind::FoundFailed);
        assert_eq!(event.exception.as_deref(), Some("ValueError('no', 5)"));
        assert_eq!(event.exception_class.as_deref(), Some("ValueError"));
        assert!(event.traceback.is_some());
        let old = ended(
            r#"{"status": "FAILURE", "result": {"exc_type": "KeyError", "exc_message": "k"}, "traceback": null, "date_done": "2026-11-22T10:00:00"}"#,
        );
        assert_eq!(old.exception.as_deref(), Some("KeyError('k')"));
    }

    #[test]
    fn a_revocation_says_why() {
        let revoked = |word: &str| {
            ended(&format!(
                r#"{{"status": "REVOKED", "result": {{"exc_type": "TaskRevokedError", "exc_message": ["{word}"], "exc_module": "celery.exceptions"}}, "date_done": "2026-11-22T10:00:00"}}"#
            ))
        };
        assert_eq!(
            (revoked("expired").expired, revoked("expired").terminated),
            (Some(true), None)
        );
        assert_eq!(revoked("terminated").terminated, Some(true));
        assert_eq!(
            (revoked("revoked").expired, revoked("revoked").terminated),
            (None, None)
        );
    }

    #[test]
    fn an_extended_record_tells_name_worker_queue_and_arguments() {
        let event = ended(
            r#"{"status": "SUCCESS", "result": null, "date_done": "2026-11-22T10:00:00", "name": "shop.pay", "worker": "w@h",
                "queue": "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.1.orders", "retries": 2, "parent_id": "p", "args": [1, ["a"]],
                "kwargs": {"due": {"__type__": "date", "__value__": "2026-11-22"}}}"#,
        );
        assert_eq!(event.name.as_deref(), Some("shop.pay"));
        assert_eq!(&*event.hostname, "w@h");
        assert_eq!(event.queue.as_deref(), Some("orders"));
        assert_eq!(event.args.as_deref(), Some("(1, ['a'])"));
        assert_eq!(event.kwargs.as_deref(), Some("{'due': '2026-11-22'}"));
        assert_eq!((event.retries, event.result.as_deref()), (Some(2), Some("None")));
        assert_eq!(event.parent_id.unwrap().as_str(), "p");
    }

    #[test]
    fn what_has_not_ended_is_nothing_and_what_cannot_be_read_says_why() {
        for status in ["PENDING", "STARTED", "RETRY", "PROGRESS"] {
            let record = format!(r#"{{"status": "{status}", "result": {{}}, "date_done": null}}"#);
            assert_eq!(read(record.as_bytes()), Ok(None), "{status}");
        }
        for (record, fault) in [
            (b"\x80\x04\x95\x10".as_slice(), RecordFault::Pickle),
            (b"\x87\xa6status\xff", RecordFault::Serializer),
            (b"status: SUCCESS\n", RecordFault::Serializer),
            (b"\0celery-compressed\0application/zst\0xx", RecordFault::Compression),
            (
                b"\0celery-compressed\0application/x-gzip\0\x78\x9c\0",
                RecordFault::Compression,
            ),
            (b"\0celery-compressed\0applica", RecordFault::Damaged),
            (br#"{"status": "SUCC"#, RecordFault::Damaged),
            (br#"{"result": 1}"#, RecordFault::Damaged),
            (br#"{"status": "SUCCESS", "result": 1}"#, RecordFault::NoTime),
            (
                br#"{"status": "SUCCESS", "result": 1, "date_done": "soon"}"#,
                RecordFault::NoTime,
            ),
        ] {
            assert_eq!(read(record), Err(fault), "{}", String::from_utf8_lossy(record));
        }
    }

    #[test]
    fn a_compressed_record_is_unpacked() {
        use std::io::Write as _;
        let mut packer = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        packer
            .write_all(br#"{"status": "SUCCESS", "result": 5, "date_done": "2026-11-22T10:00:00"}"#)
            .unwrap();
        let mut record = b"\0celery-compressed\0application/x-gzip\0".to_vec();
        record.extend(packer.finish().unwrap());
        assert_eq!(read(&record).unwrap().unwrap().result.as_deref(), Some("5"));
    }

    #[test]
    fn found_twice_is_found_once() {
        let record = r#"{"status": "SUCCESS", "result": 5, "date_done": "2026-11-22T10:00:00"}"#;
        let mut later = Event::found_result(&TaskId::new("t").unwrap(), record.as_bytes(), UnixMicros(1))
            .unwrap()
            .unwrap();
        later.arrived = NOW;
        assert_eq!(later.identity(), ended(record).identity());
    }
}
