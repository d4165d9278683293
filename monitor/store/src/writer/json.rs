//! The small things of a batch as JSON: few rows, so that readable beats fast. `None` when there are none.

use kanchi_domain::UnixMicros;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::model::{DeadLetter, FailureDelta, GapRepair, GapRow, Heartbeat, QueueRow, WorkerRow};
use crate::writer::Epoch;
use crate::writer::copy::{clamped, head};

/// Newest dead letters of one batch that are worth sending: the store keeps a thousand in all.
const DEAD_LETTERS: usize = 1000;
/// Bytes kept of the exception that stands for its group.
const EXAMPLE: usize = 1024;

fn time(value: Option<UnixMicros>) -> Option<i64> {
    value.map(clamped)
}

fn count(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn array(items: Vec<Value>) -> Option<Value> {
    (!items.is_empty()).then_some(Value::Array(items))
}

pub(super) fn workers(workers: &[WorkerRow]) -> Option<Value> {
    let one = |worker: &WorkerRow| {
        json!({
            "hostname": worker.hostname,
            "state": worker.state,
            "pid": worker.pid,
            "freq": worker.freq,
            "active": worker.active,
            "processed": worker.processed,
            "loadavg": worker.loadavg,
            "sw_ident": worker.sw_ident,
            "sw_ver": worker.sw_ver,
            "sw_sys": worker.sw_sys,
            "pool": worker.pool,
            "started_at": time(worker.started_at),
            "last_event_at": clamped(worker.last_event_at),
            "last_heartbeat_at": time(worker.last_heartbeat_at),
        })
    };
    array(workers.iter().map(one).collect())
}

pub(super) fn dead_letters(letters: &[DeadLetter]) -> Option<Value> {
    let one = |letter: &DeadLetter| {
        json!({
            "arrived": clamped(letter.arrived),
            "reason": letter.reason,
            // jsonb takes no NUL, and this text may quote the hostile bytes.
            "detail": head(&letter.detail, 1024).replace('\0', "\u{fffd}"),
            "sample": hex(letter.sample.get(..4096).unwrap_or(&letter.sample)),
        })
    };
    let skip = letters.len().saturating_sub(DEAD_LETTERS);
    array(letters.iter().skip(skip).map(one).collect())
}

pub(super) fn failures(failures: &[FailureDelta]) -> Option<Value> {
    let one = |delta: &FailureDelta| {
        let last = delta.last.as_ref();
        let example = last.and_then(|last| last.exception.as_deref());
        json!({
            "fingerprint": Uuid::from_u128(delta.group.fingerprint.0),
            "task": delta.group.task,
            "exception_class": delta.group.exception_class,
            "message": delta.group.message,
            "example": example.map(|example| head(example, EXAMPLE)),
            "failed": delta.failed,
            "critical": delta.critical,
            "first_at": time(delta.first_at),
            "last_at": time(last.map(|last| last.at)),
            "last_task_id": last.map(|last| &last.task_id),
        })
    };
    array(failures.iter().map(one).collect())
}

pub(super) fn gaps(gaps: &[GapRow]) -> Option<Value> {
    let one = |gap: &GapRow| {
        json!({
            "id": gap.id,
            "from_at": clamped(gap.from),
            "to_at": time(gap.to),
            "cause": gap.cause,
            "estimated_events": gap.estimated_events.map(count),
        })
    };
    array(gaps.iter().map(one).collect())
}

pub(super) fn repairs(repairs: &[(Uuid, GapRepair)]) -> Option<Value> {
    let one = |(id, repair): &(Uuid, GapRepair)| {
        json!({
            "id": id,
            "outcome": repair.outcome,
            "repaired": count(repair.repaired),
            "found": count(repair.found),
            "unknown": count(repair.unknown),
            "note": repair.note.as_deref().map(|note| head(note, 1024).replace('\0', "\u{fffd}")),
        })
    };
    array(repairs.iter().map(one).collect())
}

pub(super) fn queues(queues: &[QueueRow]) -> Option<Value> {
    let one = |queue: &QueueRow| {
        json!({
            "name": queue.name,
            "ready": count(queue.ready),
            "unacked": queue.unacked.map(count),
            "consumers": queue.consumers.map(count),
        })
    };
    array(queues.iter().map(one).collect())
}

pub(super) fn heartbeat(beat: &Heartbeat, epoch: Option<Epoch>) -> Value {
    json!({
        "instance": beat.instance,
        "version": beat.version,
        "connection": beat.connection,
        "reason": beat.reason,
        "message": beat.message.as_deref().map(|message| head(message, 1024).replace('\0', "\u{fffd}")),
        "broker_version": beat.broker_version,
        "last_event_at": time(beat.last_event_at),
        "lag_seconds": beat.lag_seconds,
        "events_per_second": beat.events_per_second,
        "workers_online": beat.workers_online.map(count),
        "messages_queued": beat.messages_queued.map(count),
        "spool_bytes": beat.spool_bytes.map(count),
        "event_queue": beat.event_queue,
        "config_error": beat.config_error.as_deref().map(|error| head(error, 1024).replace('\0', "\u{fffd}")),
        "store_error": beat.store_error,
        "complete_until": time(beat.complete_until),
        "epoch": epoch.map(|epoch| epoch.0),
    })
}

fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}
