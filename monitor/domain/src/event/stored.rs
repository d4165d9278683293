//! An event read back from the JSON that the store keeps of it.

use std::borrow::Cow;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Event, EventKind, PayloadField, PayloadFields, ProgressFields, Repair, Repairs, TaskId, WorkerFields};
use crate::time::UnixMicros;

/// The digits after the point of a time in seconds that tell microseconds.
const FRACTION: usize = 6;

/// The object that [`super::json::write`] writes.
#[derive(Deserialize)]
struct Stored<'a> {
    #[serde(borrow, rename = "type")]
    type_name: Cow<'a, str>,
    #[serde(borrow)]
    timestamp: Option<&'a RawValue>,
    hostname: Option<Arc<str>>,
    pid: Option<i64>,
    clock: Option<i64>,
    name: Option<Arc<str>>,
    args: Option<Arc<str>>,
    kwargs: Option<Arc<str>>,
    retries: Option<u32>,
    #[serde(borrow)]
    eta: Option<&'a RawValue>,
    #[serde(borrow)]
    expires: Option<&'a RawValue>,
    #[serde(borrow)]
    root_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    parent_id: Option<Cow<'a, str>>,
    queue: Option<Arc<str>>,
    exchange: Option<Arc<str>>,
    routing_key: Option<Arc<str>>,
    result: Option<Arc<str>>,
    #[serde(borrow)]
    runtime: Option<&'a RawValue>,
    exception: Option<Arc<str>>,
    exception_class: Option<Arc<str>>,
    traceback: Option<Arc<str>>,
    requeue: Option<bool>,
    terminated: Option<bool>,
    expired: Option<bool>,
    signum: Option<Arc<str>>,
    #[serde(borrow)]
    freq: Option<&'a RawValue>,
    active: Option<i64>,
    processed: Option<i64>,
    #[serde(borrow)]
    loadavg: Option<[&'a RawValue; 3]>,
    sw_ident: Option<Arc<str>>,
    sw_ver: Option<Arc<str>>,
    sw_sys: Option<Arc<str>>,
    #[serde(borrow)]
    progress: Option<&'a RawValue>,
    step_key: Option<Arc<str>>,
    message: Option<Arc<str>>,
    #[serde(borrow)]
    meta: Option<&'a RawValue>,
    #[serde(borrow)]
    steps: Option<&'a RawValue>,
    told_by: Option<&'a str>,
    #[serde(borrow)]
    extra: Option<&'a RawValue>,
    #[serde(borrow, default)]
    repaired: Vec<&'a str>,
    #[serde(borrow, default)]
    cut: Vec<&'a str>,
}

/// Reads one object. `task_id` and `arrived` are kept beside it.
pub(super) fn read(object: &str, task_id: Option<&TaskId>, arrived: UnixMicros) -> serde_json::Result<Event> {
    let mut stored: Stored<'_> = serde_json::from_str(object)?;
    let own = stored.told_by.and_then(|_| EventKind::own(&stored.type_name));
    let kind = own.unwrap_or_else(|| EventKind::of(&stored.type_name));
    Ok(Event {
        kind,
        type_name: kind.type_name(&stored.type_name),
        worker: worker(&mut stored).map(Box::new),
        progress: progress(&mut stored).map(Box::new),
        hostname: stored.hostname.unwrap_or_default(),
        pid: stored.pid,
        clock: stored.clock,
        timestamp: stored.timestamp.and_then(time).unwrap_or(arrived),
        arrived,
        repairs: repairs(&stored.repaired),
        task_id: task_id.cloned(),
        name: stored.name,
        args: stored.args,
        kwargs: stored.kwargs,
        retries: stored.retries,
        eta: stored.eta.and_then(time),
        expires: stored.expires.and_then(time),
        root_id: stored.root_id.as_deref().and_then(TaskId::new),
        parent_id: stored.parent_id.as_deref().and_then(TaskId::new),
        queue: stored.queue,
        exchange: stored.exchange,
        routing_key: stored.routing_key,
        result: stored.result,
        runtime: stored.runtime.and_then(number),
        exception: stored.exception,
        exception_class: stored.exception_class,
        traceback: stored.traceback,
        requeue: stored.requeue,
        terminated: stored.terminated,
        expired: stored.expired,
        signum: stored.signum,
        extra: stored.extra.map(text),
        cut: cut(&stored.cut),
    })
}

fn worker(stored: &mut Stored<'_>) -> Option<WorkerFields> {
    let fields = WorkerFields {
        freq: stored.freq.and_then(number),
        active: stored.active,
        processed: stored.processed,
        loadavg: stored
            .loadavg
            .map(|loads| loads.map(|load| number(load).unwrap_or_default())),
        sw_ident: stored.sw_ident.take(),
        sw_ver: stored.sw_ver.take(),
        sw_sys: stored.sw_sys.take(),
    };
    (fields != WorkerFields::default()).then_some(fields)
}

fn progress(stored: &mut Stored<'_>) -> Option<ProgressFields> {
    let fields = ProgressFields {
        percent: stored.progress.and_then(number),
        step_key: stored.step_key.take(),
        message: stored.message.take(),
        meta: stored.meta.map(text),
        steps: stored.steps.map(text),
    };
    // All of it may have been left out.
    let left_out = stored.cut.contains(&PayloadField::Progress.as_str());
    (left_out || fields != ProgressFields::default()).then_some(fields)
}

fn text(json: &RawValue) -> Arc<str> {
    json.get().into()
}

/// Reads a number to its last bit, which `serde_json` alone does not.
fn number(json: &RawValue) -> Option<f64> {
    json.get().parse().ok()
}

/// Reads seconds by their digits: no microsecond is lost on the way over a float.
fn time(json: &RawValue) -> Option<UnixMicros> {
    let digits = json.get();
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !plain(whole) || !plain(fraction) || fraction.len() > FRACTION {
        return UnixMicros::from_seconds(number(json)?);
    }
    format!("{whole}{fraction:0<FRACTION$}").parse().ok().map(UnixMicros)
}

fn repairs(names: &[&str]) -> Repairs {
    let mut repairs = Repairs::default();
    let known = Repair::ALL
        .into_iter()
        .filter(|repair| names.contains(&repair.as_str()));
    known.for_each(|repair| repairs.insert(repair));
    repairs
}

fn cut(names: &[&str]) -> PayloadFields {
    let mut cut = PayloadFields::default();
    let known = PayloadField::ALL
        .into_iter()
        .filter(|field| names.contains(&field.as_str()));
    known.for_each(|field| cut.insert(field));
    cut
}
