//! One event as it is on the wire: the fields that Celery sends, see section 3 of `wire/celery-wire.md`.

use std::fmt::{self, Write as _};

use crate::workload::{Outcome, Step, Task};

/// One event.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// Task id.
    pub task: &'a str,
    /// `task-sent` …
    pub kind: &'static str,
    /// When it happened: microseconds since 1970.
    pub at: i64,
    /// Number of the worker.
    pub worker: usize,
    /// The event as a JSON object.
    pub json: &'a str,
}

/// Returns the node name of a worker.
pub(crate) fn hostname(worker: usize) -> String {
    format!("celery@worker-{worker:02}")
}

/// Returns the name under which the client publishes that gives a worker its tasks.
pub(crate) fn client(worker: usize) -> String {
    format!("gen{}@web-{worker:02}", 2000 + worker)
}

pub(crate) const fn kind(task: Task, step: Step) -> &'static str {
    match step {
        Step::Sent | Step::SentAgain => "task-sent",
        Step::Received | Step::ReceivedAgain => "task-received",
        Step::Started | Step::StartedAgain => "task-started",
        Step::Retried => "task-retried",
        Step::Ended => match task.outcome() {
            Outcome::Succeeded => "task-succeeded",
            Outcome::Failed => "task-failed",
            Outcome::Revoked => "task-revoked",
            Outcome::Rejected => "task-rejected",
        },
    }
}

/// What an event says besides its task and its step.
pub(crate) struct Moment<'a> {
    pub(crate) id: &'a str,
    pub(crate) at: i64,
    pub(crate) clock: u64,
    /// Microseconds since the task's start.
    pub(crate) ran: i64,
}

/// Writes an event's JSON.
pub(crate) fn write(out: &mut String, task: Task, step: Step, moment: &Moment<'_>) {
    let (worker, id) = (task.worker(), moment.id);
    // A retry, which a pool's process sends, goes out under such a name too (`anon_nodename` in `celery/utils/nodenames.py`).
    let (sender, pid) = if matches!(step, Step::Sent | Step::SentAgain) {
        (client(worker), 2000 + worker)
    } else {
        (hostname(worker), 1000 + worker)
    };
    out.clear();
    put(
        out,
        format_args!(
            r#"{{"hostname": "{sender}", "utcoffset": 0.0, "pid": {pid}, "clock": {}, "uuid": "{id}""#,
            moment.clock,
        ),
    );
    match step {
        Step::Sent | Step::SentAgain | Step::Received | Step::ReceivedAgain => call(out, task, step, id),
        Step::Started | Step::StartedAgain => {}
        Step::Retried => out.push_str(
            r#", "exception": "TimeoutError('later')", "traceback": "Traceback (most recent call last):\n  File \"/app/tasks.py\", line 7, in run\nTimeoutError: later\n""#,
        ),
        Step::Ended => ending(out, task, moment.ran),
    }
    put(
        out,
        format_args!(
            r#", "timestamp": {}.{:06}, "type": "{}"}}"#,
            moment.at / 1_000_000,
            moment.at % 1_000_000,
            kind(task, step)
        ),
    );
}

fn call(out: &mut String, task: Task, step: Step, id: &str) {
    let ((module, verb), number) = (task.name(), task.number);
    let again = matches!(step, Step::SentAgain | Step::ReceivedAgain);
    put(
        out,
        format_args!(
            r#", "name": "{module}.{verb}", "args": "({number}, 'customer-{}')", "kwargs": "{{'priority': {}}}", "retries": {}, "eta": null, "expires": null"#,
            number % 977,
            number % 7,
            u8::from(again),
        ),
    );
    match task.parent() {
        Some(parent) => {
            let mut caller = String::with_capacity(36);
            parent.write_id(&mut caller);
            put(out, format_args!(r#", "root_id": "{caller}", "parent_id": "{caller}""#));
        }
        None => put(out, format_args!(r#", "root_id": "{id}", "parent_id": null"#)),
    }
    if matches!(step, Step::Sent | Step::SentAgain) {
        out.push_str(r#", "queue": "celery", "exchange": "", "routing_key": "celery""#);
    }
}

fn ending(out: &mut String, task: Task, ran: i64) {
    match task.outcome() {
        Outcome::Succeeded => put(out, format_args!(
            r#", "result": "{{'order': {}}}", "runtime": {}.{:06}"#,
            task.number,
            ran / 1_000_000,
            ran % 1_000_000
        )),
        Outcome::Failed => out.push_str(
            r#", "exception": "ValueError('no such order')", "traceback": "Traceback (most recent call last):\n  File \"/app/shop/tasks.py\", line 41, in confirm\n    raise ValueError('no such order')\nValueError: no such order\n""#,
        ),
        Outcome::Revoked => out.push_str(r#", "terminated": true, "signum": 15, "expired": false"#),
        Outcome::Rejected => out.push_str(r#", "requeue": false"#),
    }
}

/// Writing to a `String` cannot fail.
fn put(out: &mut String, text: fmt::Arguments<'_>) {
    out.write_fmt(text).unwrap_or_default();
}
