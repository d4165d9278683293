//! What is known of one task: a bounded set of facts whose merge is a union.
//!
//! Two parts, each a join-semilattice, so that the whole is one: a set of small facts (when, who, which step), thinned per
//! step to the lowest and the highest by a total order; and per step the texts of the latest event of that step.

use std::sync::Arc;

use crate::event::{Event, EventKind, PayloadField, PayloadFields, TaskId};
use crate::orphan::Running;
use crate::project::{self, Attempt, TaskRow};
use crate::text::boundary;
use crate::time::UnixMicros;

mod codec;
mod step;

pub(crate) use step::Step;

/// Bytes of one text that are kept, whatever the payload policy says.
const TEXT_BYTES: usize = 256 << 10;
/// Stands for a time, clock or process id that is not known: lower than any.
pub(crate) const UNKNOWN: i64 = i64::MIN;

/// Why stored facts could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FactsError {
    /// Written by a version that this one does not know.
    #[error("failed to read facts of version {0}")]
    Version(u8),
    /// Damaged.
    #[error("failed to read facts: damaged at byte {0}")]
    Damaged(usize),
}

/// A step of a task, as the facts know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskStep {
    /// The kind of event that told of it.
    pub kind: EventKind,
    /// When, by the sender's clock; `None` where it told no time.
    pub at: Option<UnixMicros>,
    /// Node name of the sender.
    pub hostname: Arc<str>,
}

impl TaskStep {
    fn of(fact: &Fact) -> Self {
        Self {
            kind: fact.key.step.kind(),
            at: fact.time(),
            hostname: Arc::clone(&fact.key.host),
        }
    }
}

/// What an event did to the facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absorbed {
    /// It was new.
    New,
    /// It was known, or was thinned out at once.
    Known,
    /// It is not about a task.
    NotATask,
}

impl Absorbed {
    /// Says whether the facts changed.
    pub const fn is_new(self) -> bool {
        matches!(self, Self::New)
    }
}

/// Which event it was: its identity within the task, ordered by time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) at: i64,
    pub(crate) clock: i64,
    pub(crate) step: Step,
    pub(crate) host: Arc<str>,
    pub(crate) pid: i64,
    /// Type of a custom event.
    pub(crate) custom: Option<Arc<str>>,
}

/// What the state needs of an event. Of two with one key the greater is kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Fact {
    pub(crate) key: Key,
    pub(crate) retries: Option<u32>,
    /// Few events have one.
    pub(crate) bounds: Option<Box<Bounds>>,
    pub(crate) flags: Flags,
    /// Bits of the `f64`.
    pub(crate) runtime: Option<u64>,
}

/// The times between which a task may begin; one of them at least is told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bounds {
    pub(crate) eta: Option<i64>,
    pub(crate) expires: Option<i64>,
}

impl Bounds {
    pub(crate) fn new(eta: Option<i64>, expires: Option<i64>) -> Option<Box<Self>> {
        (eta.is_some() || expires.is_some()).then(|| Box::new(Self { eta, expires }))
    }
}

impl Fact {
    pub(crate) fn eta(&self) -> Option<i64> {
        self.bounds.as_ref()?.eta
    }

    pub(crate) fn expires(&self) -> Option<i64> {
        self.bounds.as_ref()?.expires
    }

    pub(crate) fn time(&self) -> Option<UnixMicros> {
        (self.key.at != UNKNOWN).then_some(UnixMicros(self.key.at))
    }
}

/// The truths in an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Flags(u8);

impl Flags {
    /// `requeue` is false.
    pub(crate) const FOR_GOOD: Self = Self(1);
    pub(crate) const TERMINATED: Self = Self(2);
    pub(crate) const EXPIRED: Self = Self(4);

    fn of(event: &Event) -> Self {
        let flag = |condition: bool, flag: Self| if condition { flag.0 } else { 0 };
        Self(
            flag(event.requeue == Some(false), Self::FOR_GOOD)
                | flag(event.terminated == Some(true), Self::TERMINATED)
                | flag(event.expired == Some(true), Self::EXPIRED),
        )
    }

    pub(crate) const fn has(self, flag: Self) -> bool {
        self.0 & flag.0 != 0
    }
}

/// A text of an event; the numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Field {
    Name = 1,
    Args = 2,
    Kwargs = 3,
    RootId = 4,
    ParentId = 5,
    Queue = 6,
    Exchange = 7,
    RoutingKey = 8,
    Result = 9,
    Exception = 10,
    ExceptionClass = 11,
    Traceback = 12,
    Signum = 13,
    StepKey = 14,
    Message = 15,
    Meta = 16,
    Steps = 17,
}

/// The texts of the latest event of a step.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Texts {
    pub(crate) key: Key,
    /// In the order of the fields.
    pub(crate) fields: Vec<(Field, Arc<str>)>,
    /// Bits of the `f64`.
    pub(crate) percent: Option<u64>,
    pub(crate) cut: PayloadFields,
}

impl Texts {
    pub(crate) fn get(&self, field: Field) -> Option<&Arc<str>> {
        self.fields
            .iter()
            .find(|(found, _)| *found == field)
            .map(|(_, text)| text)
    }

    /// Like [`Self::get`], for keeps.
    pub(crate) fn share(&self, field: Field) -> Option<Arc<str>> {
        self.get(field).cloned()
    }

    fn of(event: &Event, key: &Key) -> Self {
        let id = |id: &Option<TaskId>| id.as_ref().map(TaskId::share);
        // A retry is sent by the task itself, and so calls itself its parent.
        let parent = event
            .parent_id
            .as_ref()
            .filter(|parent| event.task_id.as_ref() != Some(parent));
        let mut texts = Self {
            key: key.clone(),
            fields: Vec::with_capacity(Self::count(event)),
            percent: None,
            cut: event.cut,
        };
        texts.add(Field::Name, event.name.clone(), None);
        texts.add(Field::Args, event.args.clone(), Some(PayloadField::Args));
        texts.add(Field::Kwargs, event.kwargs.clone(), Some(PayloadField::Kwargs));
        texts.add(Field::RootId, id(&event.root_id), None);
        texts.add(Field::ParentId, parent.map(TaskId::share), None);
        texts.add(Field::Queue, event.queue.clone(), None);
        texts.add(Field::Exchange, event.exchange.clone(), None);
        texts.add(Field::RoutingKey, event.routing_key.clone(), None);
        texts.add(Field::Result, event.result.clone(), Some(PayloadField::Result));
        texts.add(Field::Exception, event.exception.clone(), Some(PayloadField::Exception));
        texts.add(Field::ExceptionClass, event.exception_class.clone(), None);
        texts.add(Field::Traceback, event.traceback.clone(), Some(PayloadField::Traceback));
        texts.add(Field::Signum, event.signum.clone(), None);
        texts
    }

    /// Returns how many texts an event has, or one more.
    fn count(event: &Event) -> usize {
        let texts = [
            &event.name,
            &event.args,
            &event.kwargs,
            &event.queue,
            &event.exchange,
            &event.routing_key,
            &event.result,
            &event.exception,
            &event.exception_class,
            &event.traceback,
            &event.signum,
        ];
        let ids = [&event.root_id, &event.parent_id];
        texts.into_iter().flatten().count() + ids.into_iter().flatten().count()
    }

    fn of_progress(event: &Event, key: &Key) -> Option<Self> {
        let progress = event.progress.as_deref()?;
        let key = Key {
            step: Step::Progress,
            custom: None,
            ..key.clone()
        };
        let mut texts = Self {
            key,
            fields: Vec::new(),
            percent: progress.percent.map(f64::to_bits),
            cut: event.cut,
        };
        texts.add(Field::Name, event.name.clone(), None);
        texts.add(Field::StepKey, progress.step_key.clone(), None);
        texts.add(Field::Message, progress.message.clone(), Some(PayloadField::Progress));
        texts.add(Field::Meta, progress.meta.clone(), Some(PayloadField::Progress));
        (texts.percent.is_some() || !texts.fields.is_empty()).then_some(texts)
    }

    fn of_steps(event: &Event, key: &Key) -> Option<Self> {
        let steps = event.progress.as_deref()?.steps.clone()?;
        let key = Key {
            step: Step::Steps,
            custom: None,
            ..key.clone()
        };
        let mut texts = Self {
            key,
            fields: Vec::new(),
            percent: None,
            cut: event.cut,
        };
        texts.add(Field::Name, event.name.clone(), None);
        texts.add(Field::Steps, Some(steps), Some(PayloadField::Progress));
        Some(texts)
    }

    fn add(&mut self, field: Field, text: Option<Arc<str>>, payload: Option<PayloadField>) {
        let Some(text) = text else { return };
        if text.len() <= TEXT_BYTES {
            return self.fields.push((field, text));
        }
        if let Some(payload) = payload {
            self.cut.insert(payload);
        }
        match field {
            // Half of a JSON text is none.
            Field::Meta | Field::Steps => {}
            Field::Name
            | Field::Args
            | Field::Kwargs
            | Field::RootId
            | Field::ParentId
            | Field::Queue
            | Field::Exchange
            | Field::RoutingKey
            | Field::Result
            | Field::Exception
            | Field::ExceptionClass
            | Field::Traceback
            | Field::Signum
            | Field::StepKey
            | Field::Message => {
                let head = text.get(..boundary(&text, TEXT_BYTES)).unwrap_or_default();
                self.fields.push((field, head.into()));
            }
        }
    }
}

/// What is known of one task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskFacts {
    /// Sorted, no two with one key.
    facts: Vec<Fact>,
    /// Sorted by step, one per step.
    texts: Vec<Texts>,
}

impl TaskFacts {
    /// Returns the facts of a task nobody has heard of.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.facts.is_empty() && self.texts.is_empty()
    }

    /// Adds an event. All events must be of one task; the payload policy must have been applied.
    pub fn absorb(&mut self, event: &Event) -> Absorbed {
        let Some(step) = Step::of(event.kind).filter(|_| event.task_id.is_some()) else {
            return Absorbed::NotATask;
        };
        let key = Key {
            at: if event.has_timestamp() {
                event.timestamp.0
            } else {
                UNKNOWN
            },
            clock: event.clock.unwrap_or(UNKNOWN),
            step,
            host: Arc::clone(&event.hostname),
            pid: event.pid.unwrap_or(UNKNOWN),
            custom: (step == Step::Custom).then(|| event.type_name.as_ref().into()),
        };
        let mut changed = false;
        if let Some(texts) = Texts::of_progress(event, &key) {
            changed |= self.keep_texts(texts);
        }
        if let Some(texts) = Texts::of_steps(event, &key) {
            changed |= self.keep_texts(texts);
        }
        if step.has_texts() {
            changed |= self.keep_texts(Texts::of(event, &key));
        }
        if !matches!(step, Step::Progress | Step::Steps) {
            changed |= self.keep_fact(Fact {
                key,
                retries: event.retries,
                bounds: Bounds::new(event.eta.map(|time| time.0), event.expires.map(|time| time.0)),
                flags: Flags::of(event),
                runtime: event.runtime.map(f64::to_bits),
            });
        }
        if changed { Absorbed::New } else { Absorbed::Known }
    }

    /// Adds all that `newer` knows, and appends to `steps` those that were not known. Says whether anything changed.
    pub fn absorb_all(&mut self, newer: Self, steps: &mut Vec<TaskStep>) -> bool {
        if self.is_empty() {
            *self = newer;
            steps.extend(self.facts.iter().map(TaskStep::of));
            return !self.is_empty();
        }
        let mut changed = false;
        for fact in newer.facts {
            let step = TaskStep::of(&fact);
            if self.keep_fact(fact) {
                changed = true;
                steps.push(step);
            }
        }
        for texts in newer.texts {
            changed |= self.keep_texts(texts);
        }
        changed
    }

    /// Adds all that `other` knows; says whether that was anything new.
    pub fn merge(&mut self, other: &Self) -> bool {
        self.absorb_all(other.clone(), &mut Vec::new())
    }

    /// Returns the facts as bytes; equal facts give equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encode_into(&mut bytes);
        bytes
    }

    /// Appends what [`Self::encode`] returns.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        codec::encode(self, out);
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, FactsError> {
        codec::decode(bytes)
    }

    /// Returns the row of the task, without regard to the time of day.
    pub fn project(&self) -> TaskRow {
        project::row(self)
    }

    /// Returns the row of the task at `now`: a task past its deadline is EXPIRED.
    pub fn project_at(&self, now: UnixMicros) -> TaskRow {
        let mut row = project::row(self);
        row.expire(now);
        row
    }

    /// Returns the attempts of the task in their order, run by run, without regard to the time of day: the last is the one
    /// that [`Self::project`] shows. None if no event of the task tells of one.
    ///
    /// Like the row it is a function of the set of distinct events. It is bounded as the facts are, which keep 16 events
    /// of a type: at most 33 attempts, and not more deliveries in all than facts. Where [`TaskRow::thinned`] is set, some in
    /// the middle may be missing.
    pub fn attempts(&self) -> Vec<Attempt> {
        project::attempts(self)
    }

    /// Returns which process runs the task, as far as its events say; `None` while it waits or has ended.
    pub fn running(&self) -> Option<Running> {
        project::running(self)
    }

    /// Returns how long the delivery that this start belongs to had waited, in microseconds: since `task-sent` of its
    /// attempt, or where that is not known since the worker received it, and not before its eta. Zero where clocks differ
    /// by more than the wait; `None` where neither is known, or the step is another or has no time.
    pub fn waited(&self, started: &TaskStep) -> Option<u64> {
        let UnixMicros(at) = started.at.filter(|_| started.kind == EventKind::TaskStarted)?;
        let steps = |step: Step| {
            self.facts
                .iter()
                .filter(move |fact| fact.key.step == step && fact.key.at != UNKNOWN)
        };
        let received = steps(Step::Received).rfind(|fact| fact.key.host == started.hostname && fact.key.at <= at);
        let retries = received.and_then(|fact| fact.retries);
        let mut sent =
            steps(Step::Sent).filter(|fact| retries.is_none() || fact.retries.is_none() || fact.retries == retries);
        let first = sent.clone().next();
        let call = sent.rfind(|fact| fact.key.at <= at).or(first).or(received)?;
        let eta = received.or(Some(call)).and_then(Fact::eta);
        let since = eta.map_or(call.key.at, |eta| eta.max(call.key.at));
        Some(u64::try_from(at.saturating_sub(since)).unwrap_or(0))
    }

    pub(crate) fn facts(&self) -> &[Fact] {
        &self.facts
    }

    pub(crate) fn texts(&self, step: Step) -> Option<&Texts> {
        self.texts.iter().find(|texts| texts.key.step == step)
    }

    pub(crate) fn all_texts(&self) -> &[Texts] {
        &self.texts
    }

    /// Says whether facts of some step may have been dropped.
    pub(crate) fn is_thinned(&self) -> bool {
        self.facts.iter().any(|fact| {
            let (low, high) = fact.key.step.kept();
            low + high <= self.facts.len() && self.count(fact.key.step) >= low + high
        })
    }

    fn count(&self, step: Step) -> usize {
        self.facts.iter().filter(|fact| fact.key.step == step).count()
    }

    fn keep_fact(&mut self, fact: Fact) -> bool {
        let step = fact.key.step;
        let at = match self.facts.binary_search_by(|known| known.key.cmp(&fact.key)) {
            Ok(at) => {
                let Some(known) = self.facts.get_mut(at).filter(|known| **known < fact) else {
                    return false;
                };
                *known = fact;
                return true;
            }
            Err(at) => at,
        };
        if self.facts.is_empty() {
            // Vectors begin with room for four.
            self.facts.reserve_exact(2);
        }
        self.facts.insert(at, fact);
        let (low, high) = step.kept();
        if self.facts.len() <= low + high || self.count(step) <= low + high {
            return true;
        }
        // One too many: the one above the lowest goes, which is also below the highest.
        let middle = self
            .facts
            .iter()
            .enumerate()
            .filter(|(_, fact)| fact.key.step == step)
            .nth(low);
        let middle = middle.map(|(index, _)| index);
        if let Some(index) = middle {
            self.facts.remove(index);
        }
        middle != Some(at)
    }

    fn keep_texts(&mut self, texts: Texts) -> bool {
        match self.texts.binary_search_by_key(&texts.key.step, |known| known.key.step) {
            Ok(at) => {
                let Some(known) = self.texts.get_mut(at).filter(|known| **known < texts) else {
                    return false;
                };
                *known = texts;
            }
            Err(at) => {
                if self.texts.is_empty() {
                    self.texts.reserve_exact(1);
                }
                self.texts.insert(at, texts);
            }
        }
        true
    }
}
