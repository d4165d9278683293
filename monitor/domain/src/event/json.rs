//! An event as the JSON object that the store keeps.

use std::fmt::Write as _;

use super::{Event, ProgressFields, WorkerFields};
use crate::time::UnixMicros;

const MICROS: i64 = 1_000_000;

/// Appends `event` to `out`.
pub(super) fn write(event: &Event, out: &mut String) {
    let mut object = Object { out, first: true };
    object.text("type", &event.type_name);
    object.time("timestamp", event.has_timestamp().then_some(event.timestamp));
    if !event.hostname.is_empty() {
        object.text("hostname", &event.hostname);
    }
    object.integer("pid", event.pid);
    object.integer("clock", event.clock);
    object.optional("name", event.name.as_deref());
    object.optional("args", event.args.as_deref());
    object.optional("kwargs", event.kwargs.as_deref());
    object.integer("retries", event.retries.map(i64::from));
    object.time("eta", event.eta);
    object.time("expires", event.expires);
    object.optional("root_id", event.root_id.as_ref().map(super::TaskId::as_str));
    object.optional("parent_id", event.parent_id.as_ref().map(super::TaskId::as_str));
    object.optional("queue", event.queue.as_deref());
    object.optional("exchange", event.exchange.as_deref());
    object.optional("routing_key", event.routing_key.as_deref());
    object.optional("result", event.result.as_deref());
    object.number("runtime", event.runtime);
    object.optional("exception", event.exception.as_deref());
    object.optional("exception_class", event.exception_class.as_deref());
    object.optional("traceback", event.traceback.as_deref());
    object.boolean("requeue", event.requeue);
    object.boolean("terminated", event.terminated);
    object.boolean("expired", event.expired);
    object.optional("signum", event.signum.as_deref());
    if let Some(worker) = &event.worker {
        write_worker(worker, &mut object);
    }
    if let Some(progress) = &event.progress {
        write_progress(progress, &mut object);
    }
    // An event of the wire that calls itself so has its unknown fields in `extra`, and cannot say this.
    object.optional("told_by", event.kind.is_own().then_some("kanchi"));
    object.raw("extra", event.extra.as_deref());
    object.names("repaired", event.repairs.iter().map(super::Repair::as_str));
    object.names("cut", event.cut.iter().map(super::PayloadField::as_str));
    object.end();
}

fn write_worker(worker: &WorkerFields, object: &mut Object<'_>) {
    object.number("freq", worker.freq);
    object.integer("active", worker.active);
    object.integer("processed", worker.processed);
    if let Some([one, five, fifteen]) = worker.loadavg {
        object.raw("loadavg", Some(&format!("[{one},{five},{fifteen}]")));
    }
    object.optional("sw_ident", worker.sw_ident.as_deref());
    object.optional("sw_ver", worker.sw_ver.as_deref());
    object.optional("sw_sys", worker.sw_sys.as_deref());
}

fn write_progress(progress: &ProgressFields, object: &mut Object<'_>) {
    object.number("progress", progress.percent);
    object.optional("step_key", progress.step_key.as_deref());
    object.optional("message", progress.message.as_deref());
    object.raw("meta", progress.meta.as_deref());
    object.raw("steps", progress.steps.as_deref());
}

/// Appends `text` as a JSON string. The text holds no NUL (see [`crate::text`]), so `jsonb` takes the result.
pub(crate) fn write_string(text: &str, out: &mut String) {
    out.push('"');
    // Most texts are plain; without a way out of the loop the compiler looks at many bytes at once.
    let special = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\';
    if !text.bytes().fold(false, |any, byte| any | special(byte)) {
        out.push_str(text);
        out.push('"');
        return;
    }
    let mut plain = 0;
    for (index, byte) in text.bytes().enumerate() {
        if !special(byte) {
            continue;
        }
        out.push_str(text.get(plain..index).unwrap_or_default());
        plain = index + 1;
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\t' => out.push_str("\\t"),
            b'\r' => out.push_str("\\r"),
            0 => out.push(crate::text::REPLACEMENT),
            control => push_fmt(out, format_args!("\\u{control:04x}")),
        }
    }
    out.push_str(text.get(plain..).unwrap_or_default());
    out.push('"');
}

/// Appends a finite number as JSON.
pub(crate) fn write_number(number: f64, out: &mut String) {
    if number.abs() < 1e16 && (number.abs() > 1e-6 || number == 0.0) {
        push_fmt(out, format_args!("{number}"));
    } else {
        push_fmt(out, format_args!("{number:e}"));
    }
}

/// Writing into a `String` cannot fail.
pub(crate) fn push_fmt(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    out.write_fmt(arguments).unwrap_or_default();
}

struct Object<'a> {
    out: &'a mut String,
    first: bool,
}

impl Object<'_> {
    fn key(&mut self, key: &str) {
        self.out.push_str(if self.first { "{\"" } else { ",\"" });
        self.first = false;
        self.out.push_str(key);
        self.out.push_str("\":");
    }

    fn text(&mut self, key: &str, text: &str) {
        self.key(key);
        write_string(text, self.out);
    }

    fn optional(&mut self, key: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.text(key, text);
        }
    }

    fn raw(&mut self, key: &str, json: Option<&str>) {
        if let Some(json) = json {
            self.key(key);
            self.out.push_str(json);
        }
    }

    fn integer(&mut self, key: &str, number: Option<i64>) {
        if let Some(number) = number {
            self.key(key);
            self.out.push_str(itoa::Buffer::new().format(number));
        }
    }

    /// Seconds since the epoch, without the way over a float: the same digits.
    fn time(&mut self, key: &str, time: Option<UnixMicros>) {
        let Some(UnixMicros(micros)) = time else { return };
        self.key(key);
        if micros < 0 {
            return write_number(UnixMicros(micros).as_seconds(), self.out);
        }
        self.out.push_str(itoa::Buffer::new().format(micros / MICROS));
        let fraction = micros % MICROS;
        if fraction != 0 {
            // A leading one keeps the zeros after the point.
            let mut digits = itoa::Buffer::new();
            let digits = digits.format(MICROS + fraction);
            self.out.push('.');
            self.out
                .push_str(digits.get(1..).unwrap_or_default().trim_end_matches('0'));
        }
    }

    fn number(&mut self, key: &str, number: Option<f64>) {
        if let Some(number) = number.filter(|number| number.is_finite()) {
            self.key(key);
            write_number(number, self.out);
        }
    }

    fn boolean(&mut self, key: &str, value: Option<bool>) {
        if let Some(value) = value {
            self.key(key);
            self.out.push_str(if value { "true" } else { "false" });
        }
    }

    fn names(&mut self, key: &str, names: impl Iterator<Item = &'static str>) {
        let mut names = names.peekable();
        if names.peek().is_none() {
            return;
        }
        self.key(key);
        for (index, name) in names.enumerate() {
            self.out.push_str(if index == 0 { "[\"" } else { ",\"" });
            self.out.push_str(name);
            self.out.push('"');
        }
        self.out.push(']');
    }

    fn end(self) {
        self.out.push_str(if self.first { "{}" } else { "}" });
    }
}
