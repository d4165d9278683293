//! Fields in, event out: the part that is alike for every serializer.

use std::borrow::Cow;
use std::sync::Arc;

use super::Limits;
use super::exception;
use super::scalar::{Scalar, time_of_text};
use crate::event::{
    Event, EventKind, PayloadFields, ProgressFields, Repair, Repairs, TaskId, WorkerFields, write_string,
};
use crate::progress;
use crate::reject::RejectReason;
use crate::text::shortened_name;
use crate::time::UnixMicros;

/// Characters of the prefix that native delayed delivery puts before a routing key: 28 binary digits with a dot each.
const DELAY_PREFIX: usize = 56;

/// An event under construction.
pub(super) struct Builder<'l> {
    limits: &'l Limits,
    event: Event,
    kind: Option<EventKind>,
    /// `kanchi-task-…` events name their task so.
    second_id: Option<TaskId>,
    timestamp: Option<UnixMicros>,
    /// Until then the event carries the hostname of the one before.
    has_hostname: bool,
    /// What may turn out to be a worker's.
    worker: WorkerFields,
    has_worker: bool,
    extra: String,
}

impl<'l> Builder<'l> {
    /// Begins an event. `sender` is the hostname of the event before: mostly the same, and then shared.
    pub(super) fn new(arrived: UnixMicros, sender: &Arc<str>, limits: &'l Limits) -> Self {
        Self {
            limits,
            event: blank(arrived, sender),
            kind: None,
            second_id: None,
            timestamp: None,
            has_hostname: false,
            worker: WorkerFields::default(),
            has_worker: false,
            extra: String::new(),
        }
    }

    /// Notes what the reader had to repair.
    pub(super) fn repaired(&mut self, repairs: Repairs) {
        self.event.repairs.insert_all(repairs);
    }

    /// Sets one field; the last of two fields with one name wins, as in Python.
    pub(super) fn set(&mut self, key: &str, value: Scalar<'_>) {
        match key {
            "type" => self.set_type(value),
            "hostname" => self.set_hostname(value),
            "timestamp" => self.set_timestamp(value),
            "pid" => self.event.pid = value.into_integer(&mut self.event.repairs),
            "clock" => self.event.clock = value.into_integer(&mut self.event.repairs),
            "uuid" => self.event.task_id = self.id(value),
            "root_id" => self.event.root_id = self.id(value),
            "parent_id" => self.event.parent_id = self.id(value),
            "task_id" => self.second_id = self.id(value),
            "name" | "task_name" => self.event.name = self.name(value),
            "queue" => self.event.queue = self.address(value),
            "exchange" => self.event.exchange = self.name(value),
            "routing_key" => self.event.routing_key = self.address(value),
            "args" => self.event.args = self.text(value),
            "kwargs" => self.event.kwargs = self.text(value),
            "result" => self.event.result = self.text(value),
            "exception" => self.event.exception = self.text(value),
            "traceback" => self.event.traceback = self.text(value),
            "retries" => self.event.retries = self.count(value),
            "eta" => self.event.eta = value.into_time(&mut self.event.repairs),
            "expires" => self.event.expires = value.into_time(&mut self.event.repairs),
            "runtime" => self.event.runtime = value.into_number(&mut self.event.repairs),
            "requeue" => self.event.requeue = value.into_bool(&mut self.event.repairs),
            "terminated" => self.event.terminated = value.into_bool(&mut self.event.repairs),
            "expired" => self.event.expired = value.into_bool(&mut self.event.repairs),
            "signum" => self.event.signum = self.signal(value),
            "utcoffset" | "local_received" => {}
            "freq" | "active" | "processed" | "loadavg" | "sw_ident" | "sw_ver" | "sw_sys" => {
                self.set_worker(key, value);
            }
            "progress" | "step_key" | "message" | "meta" | "steps" => self.set_progress(key, value),
            _ => self.set_extra(key, &value),
        }
    }

    /// Ends the event.
    pub(super) fn finish(mut self) -> Result<Event, RejectReason> {
        let kind = self.kind.ok_or(RejectReason::MissingType)?;
        self.event.kind = kind;
        if self.event.task_id.is_none() {
            self.event.task_id = self.second_id.take();
        }
        if kind.needs_task() && self.event.task_id.is_none() {
            return Err(RejectReason::MissingTaskId);
        }
        if !self.has_hostname {
            self.event.hostname = Arc::from("");
        }
        if self.event.hostname.is_empty() {
            if kind.is_worker() {
                return Err(RejectReason::MissingHostname);
            }
            self.event.repairs.insert(Repair::Hostname);
        }
        match self.timestamp {
            Some(timestamp) => self.event.timestamp = timestamp,
            None => self.event.repairs.insert(Repair::Timestamp),
        }
        if matches!(kind, EventKind::TaskFailed | EventKind::TaskRetried) {
            self.name_the_exception();
        }
        if self.has_worker {
            self.finish_worker(kind);
        }
        if !self.extra.is_empty() {
            self.extra.push('}');
            self.event.extra = Some(self.extra.into());
        }
        Ok(self.event)
    }

    fn name_the_exception(&mut self) {
        let told = self.event.exception.as_deref();
        let (better, class) = exception::explain(told, self.event.traceback.as_deref());
        let (better, class) = (better.map(Arc::from), class.map(Arc::from));
        self.event.exception = better.or(self.event.exception.take());
        self.event.exception_class = class;
    }

    fn finish_worker(&mut self, kind: EventKind) {
        let worker = std::mem::take(&mut self.worker);
        if kind.is_worker() {
            self.event.worker = Some(Box::new(worker));
            return;
        }
        // An application's own fields that happen to be called like a worker's.
        for (key, value) in [("freq", worker.freq), ("active", worker.active.map(|n| n as f64))] {
            if let Some(value) = value {
                self.set_extra(key, &Scalar::Float(value));
            }
        }
        if let Some(value) = worker.processed {
            self.set_extra("processed", &Scalar::Int(value));
        }
        for (key, value) in [
            ("sw_ident", worker.sw_ident),
            ("sw_ver", worker.sw_ver),
            ("sw_sys", worker.sw_sys),
        ] {
            if let Some(value) = value {
                self.set_extra(key, &Scalar::Text((&*value).into()));
            }
        }
    }

    fn set_type(&mut self, value: Scalar<'_>) {
        let Scalar::Text(name) = value else {
            self.kind = None;
            return;
        };
        let name = self.shortened(name);
        self.kind = (!name.is_empty()).then(|| EventKind::of(&name));
        if let Some(kind) = self.kind {
            self.event.type_name = kind.type_name(&name);
        }
    }

    fn set_hostname(&mut self, value: Scalar<'_>) {
        let name = value.into_text(&mut self.event.repairs).unwrap_or_default();
        self.has_hostname = true;
        if *name != *self.event.hostname {
            let name = self.shortened(name);
            self.event.hostname = Arc::from(&*name);
        }
    }

    fn set_timestamp(&mut self, value: Scalar<'_>) {
        self.timestamp = match value {
            Scalar::Float(seconds) => UnixMicros::from_seconds(seconds),
            Scalar::Int(seconds) => UnixMicros::from_seconds(seconds as f64),
            Scalar::Text(text) => {
                self.event.repairs.insert(Repair::TimestampText);
                time_of_text(&text)
            }
            Scalar::Json(_) => value.into_time(&mut self.event.repairs),
            Scalar::Null | Scalar::Bool(_) | Scalar::NotANumber(_) | Scalar::Huge(_) => None,
        };
    }

    fn set_worker(&mut self, key: &str, value: Scalar<'_>) {
        self.has_worker = true;
        match key {
            "freq" => self.worker.freq = value.into_number(&mut self.event.repairs).filter(|freq| *freq >= 0.0),
            "active" => self.worker.active = value.into_integer(&mut self.event.repairs),
            "processed" => self.worker.processed = value.into_integer(&mut self.event.repairs),
            "sw_ident" => self.worker.sw_ident = self.name(value),
            "sw_ver" => self.worker.sw_ver = self.name(value),
            "sw_sys" => self.worker.sw_sys = self.name(value),
            _ => self.worker.loadavg = Self::loadavg(&value),
        }
    }

    fn loadavg(value: &Scalar<'_>) -> Option<[f64; 3]> {
        let Scalar::Json(json) = value else { return None };
        let mut numbers = json
            .trim_matches(['[', ']'])
            .split(',')
            .map(|text| text.trim().parse::<f64>().ok());
        let load = [numbers.next()??, numbers.next()??, numbers.next()??];
        load.iter().all(|value| value.is_finite()).then_some(load)
    }

    fn set_progress(&mut self, key: &str, value: Scalar<'_>) {
        let repairs = &mut self.event.repairs;
        let progress = self.event.progress.get_or_insert_default();
        let json = |value: Scalar<'_>, repairs: &mut Repairs| {
            let mut out = String::new();
            value.write_json(None, repairs, &mut out);
            (out != "null").then(|| Arc::from(out))
        };
        match key {
            "progress" => {
                progress.percent = match value {
                    Scalar::Int(number) => progress::percent(number as f64),
                    Scalar::Float(number) => progress::percent(number),
                    Scalar::NotANumber(_) | Scalar::Huge(_) => value.clone().into_number(repairs),
                    Scalar::Null | Scalar::Bool(_) | Scalar::Text(_) | Scalar::Json(_) => None,
                };
                if progress.percent.is_none()
                    && !matches!(value, Scalar::Null | Scalar::NotANumber(_) | Scalar::Huge(_))
                {
                    // An application's own count or words.
                    self.set_extra(key, &value);
                }
            }
            "step_key" => {
                let text = value.into_text(repairs);
                progress.step_key = text.and_then(|text| progress::key(&text, repairs));
            }
            "message" => progress.message = value.into_text(repairs).map(Arc::from),
            "meta" => progress.meta = json(value, repairs),
            _ => {
                let list = match &value {
                    Scalar::Json(json) => progress::normalised(json, repairs),
                    Scalar::Null
                    | Scalar::Bool(_)
                    | Scalar::Int(_)
                    | Scalar::Float(_)
                    | Scalar::NotANumber(_)
                    | Scalar::Huge(_)
                    | Scalar::Text(_) => None,
                };
                progress.steps = list.map(Arc::from);
                if progress.steps.is_none() && value != Scalar::Null {
                    self.set_extra(key, &value);
                }
            }
        }
        if self.event.progress.as_deref() == Some(&ProgressFields::default()) {
            self.event.progress = None;
        }
    }

    fn set_extra(&mut self, key: &str, value: &Scalar<'_>) {
        let before = self.extra.len();
        self.extra.push(if before == 0 { '{' } else { ',' });
        match shortened_name(key) {
            Some(short) => write_string(&short, &mut self.extra),
            None => write_string(key, &mut self.extra),
        }
        self.extra.push(':');
        value.write_json(None, &mut self.event.repairs, &mut self.extra);
        if self.extra.len() > self.limits.max_extra_bytes {
            self.extra.truncate(before);
            self.event.repairs.insert(Repair::ManyFields);
        }
    }

    // === values ===

    fn id(&mut self, value: Scalar<'_>) -> Option<TaskId> {
        let text = value.into_text(&mut self.event.repairs)?;
        if text.len() > crate::text::NAME_BYTES {
            self.event.repairs.insert(Repair::LongName);
        }
        // Mostly the root of a task is the task itself.
        match &self.event.task_id {
            Some(known) if known.as_str() == text => Some(known.clone()),
            _ => TaskId::new(&text),
        }
    }

    fn name(&mut self, value: Scalar<'_>) -> Option<Arc<str>> {
        let text = value.into_text(&mut self.event.repairs)?;
        Some(self.shortened(text))
            .filter(|name| !name.is_empty())
            .map(Arc::from)
    }

    /// A queue or routing key, without the prefix of delayed delivery.
    fn address(&mut self, value: Scalar<'_>) -> Option<Arc<str>> {
        address(&self.name(value)?)
    }

    fn text(&mut self, value: Scalar<'_>) -> Option<Arc<str>> {
        value.into_text(&mut self.event.repairs).map(Arc::from)
    }

    fn signal(&mut self, value: Scalar<'_>) -> Option<Arc<str>> {
        if let Scalar::Int(number) = value {
            Some(number.to_string().into())
        } else {
            self.name(value)
        }
    }

    fn count(&mut self, value: Scalar<'_>) -> Option<u32> {
        let number = value.into_integer(&mut self.event.repairs)?;
        let count = u32::try_from(number).ok();
        if count.is_none() {
            self.event.repairs.insert(Repair::WrongType);
        }
        count
    }

    fn shortened<'t>(&mut self, text: Cow<'t, str>) -> Cow<'t, str> {
        match shortened_name(&text) {
            None => text,
            Some(short) => {
                self.event.repairs.insert(Repair::LongName);
                short.into()
            }
        }
    }
}

/// Returns a queue or routing key without the prefix of delayed delivery.
pub(crate) fn address(name: &Arc<str>) -> Option<Arc<str>> {
    match name.split_at_checked(DELAY_PREFIX) {
        Some((prefix, rest)) if is_delay_prefix(prefix.as_bytes()) => {
            Some(rest).filter(|rest| !rest.is_empty()).map(Arc::from)
        }
        _ => Some(Arc::clone(name)),
    }
}

fn is_delay_prefix(prefix: &[u8]) -> bool {
    prefix.chunks_exact(2).all(|pair| matches!(pair, [b'0' | b'1', b'.']))
}

/// Returns an event that says nothing.
pub(crate) fn blank(arrived: UnixMicros, sender: &Arc<str>) -> Event {
    Event {
        kind: EventKind::Custom,
        type_name: "".into(),
        hostname: Arc::clone(sender),
        pid: None,
        clock: None,
        timestamp: arrived,
        arrived,
        repairs: Repairs::default(),
        task_id: None,
        name: None,
        args: None,
        kwargs: None,
        retries: None,
        eta: None,
        expires: None,
        root_id: None,
        parent_id: None,
        queue: None,
        exchange: None,
        routing_key: None,
        result: None,
        runtime: None,
        exception: None,
        exception_class: None,
        traceback: None,
        requeue: None,
        terminated: None,
        expired: None,
        signum: None,
        worker: None,
        progress: None,
        extra: None,
        cut: PayloadFields::default(),
    }
}
