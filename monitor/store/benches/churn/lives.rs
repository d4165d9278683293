//! What happens to tasks, batch by batch: the stream of a broker, drawn with a generator of its own, the same in each run.

use std::collections::BTreeMap;

use anyhow::Context as _;
use kanchi_domain::{BodyEncoding, Event, Limits, RawMessage, UnixMicros, decode};

const SECOND: i64 = 1_000_000;
const HOUR: i64 = 3_600 * SECOND;

/// Of a thousand tasks; the rest begins and ends within a batch.
const SHARES: [(u64, Life); 6] = [
    (300, Life::Across),
    (50, Life::Retried),
    (10, Life::Long),
    (20, Life::Late),
    (20, Life::Again),
    (5, Life::Expired),
];

/// Of a thousand tasks, how many fail.
const FAIL: u64 = 30;

const NAMES: u64 = 20;
const QUEUES: u64 = 4;
pub(crate) const WORKERS: u64 = 20;

/// How a task lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// Begins and ends within a batch.
    Short,
    /// Ends one to five batches later.
    Across,
    /// Tried two to four times, each in a batch of its own.
    Retried,
    /// Open for one to three hours, and tells of its progress each quarter of an hour.
    Long,
    /// One of its events comes when it has ended, up to an hour after the others.
    Late,
    /// Runs again when it has ended, within one batch or over two.
    Again,
    /// Waits in a queue until its time is over.
    Expired,
}

/// What an event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Sent,
    SentToExpire,
    /// With the number of retries before.
    Received(u64),
    Started,
    Progress,
    Retried,
    Succeeded,
    Failed,
}

/// Which hour and minute a batch stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Calendar {
    begins_at: i64,
    batches_an_hour: u64,
}

impl Calendar {
    /// A day that ends then, with an hour before it.
    pub(crate) fn ending_at(end: UnixMicros, hours: u64, batches_an_hour: u64) -> Self {
        let span = i64::try_from(hours + 1).unwrap_or_default().saturating_mul(HOUR);
        Self {
            begins_at: end.0.saturating_sub(span),
            batches_an_hour,
        }
    }

    fn time_of(self, batch: u64) -> i64 {
        let number = |number: u64| i64::try_from(number).unwrap_or_default();
        self.begins_at + number(batch) * HOUR / number(self.batches_an_hour)
    }
}

/// What comes of one task in one batch.
#[derive(Debug)]
pub(crate) struct Happening {
    pub(crate) task: Task,
    /// Its first events: no monitor has heard of it.
    pub(crate) is_first: bool,
    pub(crate) steps: Vec<Step>,
    pub(crate) events: Vec<Event>,
}

/// What stays the same of a task.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) queue: String,
    /// Which of the workers has it.
    pub(crate) worker: String,
}

/// Steps that lie ahead.
#[derive(Debug)]
struct Planned {
    task: Task,
    is_first: bool,
    steps: Vec<(Step, i64)>,
}

/// The stream.
#[derive(Debug)]
pub(crate) struct Lives {
    calendar: Calendar,
    tasks: u64,
    random: u64,
    begun: u64,
    clock: u64,
    agenda: BTreeMap<u64, Vec<Planned>>,
}

impl Lives {
    pub(crate) fn new(calendar: Calendar, tasks: u64) -> Self {
        Self {
            calendar,
            tasks,
            random: 0x9E37_79B9_7F4A_7C15,
            begun: 0,
            clock: 0,
            agenda: BTreeMap::new(),
        }
    }

    /// Returns what the batch of this number brings; to be asked for one after the other.
    pub(crate) fn batch(&mut self, batch: u64) -> anyhow::Result<Vec<Happening>> {
        for _ in 0..self.tasks {
            self.plan(batch);
        }
        let planned = self.agenda.remove(&batch).unwrap_or_default();
        planned.into_iter().map(|planned| self.happen(planned)).collect()
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 16) % below
    }

    fn life(&mut self) -> Life {
        let mut drawn = self.draw(1_000);
        for (share, life) in SHARES {
            if drawn < share {
                return life;
            }
            drawn -= share;
        }
        Life::Short
    }

    /// Draws a task that begins in this batch, and all that will happen to it.
    fn plan(&mut self, batch: u64) {
        let task = self.task(batch);
        let life = self.life();
        let began = self.calendar.time_of(batch) + i64::try_from(self.draw(1_000_000)).unwrap_or_default();
        for (after, steps) in self.pieces(life) {
            let at = match after {
                0 => began,
                _ => self.calendar.time_of(batch + after),
            };
            self.put(batch + after, &task, after == 0, steps, at);
        }
        if life == Life::Late {
            // It happened between the others, and is heard of now.
            let after = 2 + self.draw(self.calendar.batches_an_hour);
            self.put(batch + after, &task, false, vec![Step::Started], began + 250_000);
        }
    }

    /// Draws what happens, by how many batches after the first one.
    fn pieces(&mut self, life: Life) -> Vec<(u64, Vec<Step>)> {
        use Step::{Failed, Progress, Received, Retried, Sent, SentToExpire, Started, Succeeded};

        let end = if self.draw(1_000) < FAIL { Failed } else { Succeeded };
        let hour = self.calendar.batches_an_hour;
        match life {
            Life::Short => vec![(0, vec![Sent, Received(0), Started, end])],
            Life::Across => vec![(0, vec![Sent, Received(0), Started]), (1 + self.draw(5), vec![end])],
            Life::Retried => {
                let mut pieces = vec![(0, vec![Sent, Received(0), Started, Retried])];
                let mut at = 0;
                let retries = 1 + self.draw(3);
                for retry in 1..retries {
                    at += 1 + self.draw(3);
                    pieces.push((at, vec![Received(retry), Started, Retried]));
                }
                pieces.push((at + 1, vec![Received(retries), Started, end]));
                pieces
            }
            Life::Long => {
                let ends = hour + self.draw(hour * 2) + 1;
                let quarter = usize::try_from(hour.div_ceil(4)).unwrap_or(1);
                let mut pieces = vec![(0, vec![Sent, Received(0), Started])];
                pieces.extend((1..ends).step_by(quarter).map(|at| (at, vec![Progress])));
                pieces.push((ends, vec![end]));
                pieces
            }
            Life::Late => vec![(0, vec![Sent, Received(0), end])],
            Life::Again => {
                let first = (0, vec![Sent, Received(0), Started, end]);
                let at = 1 + self.draw(hour);
                if self.draw(2) == 0 {
                    return vec![first, (at, vec![Received(0), Started, end])];
                }
                vec![first, (at, vec![Received(0), Started]), (at + 1, vec![end])]
            }
            Life::Expired => vec![(0, vec![SentToExpire])],
        }
    }

    fn put(&mut self, batch: u64, task: &Task, is_first: bool, steps: Vec<Step>, at: i64) {
        let steps = steps.into_iter().zip((0..).map(|number| at + number * 200_000));
        self.agenda.entry(batch).or_default().push(Planned {
            task: task.clone(),
            is_first,
            steps: steps.collect(),
        });
    }

    fn task(&mut self, batch: u64) -> Task {
        self.begun += 1;
        // As ids come: in no order.
        let (high, low) = (self.draw(1 << 32), self.draw(1 << 48));
        let (name, queue, worker) = (self.draw(NAMES), self.draw(QUEUES), self.draw(WORKERS));
        Task {
            id: format!("{high:08x}-{:04x}-4000-8000-{low:012x}", self.begun & 0xffff),
            name: format!("shop.orders.task_{name}"),
            queue: format!("queue-{queue}"),
            worker: worker_name(worker, batch / self.calendar.batches_an_hour),
        }
    }

    fn happen(&mut self, planned: Planned) -> anyhow::Result<Happening> {
        let mut events = Vec::with_capacity(planned.steps.len());
        for (step, at) in &planned.steps {
            self.clock += 1;
            events.push(event(&planned.task, *step, *at, self.clock)?);
        }
        Ok(Happening {
            task: planned.task,
            is_first: planned.is_first,
            steps: planned.steps.into_iter().map(|(step, _)| step).collect(),
            events,
        })
    }
}

/// A quarter of the workers is new each hour, as after a deployment.
pub(crate) fn worker_name(worker: u64, hour: u64) -> String {
    let deployment = if worker < WORKERS / 4 { hour } else { 0 };
    format!("celery@worker-{worker}-{deployment}")
}

/// An event as Celery sends it.
fn event(task: &Task, step: Step, at: i64, clock: u64) -> anyhow::Result<Event> {
    let (kind, more) = said(task, step, at, clock);
    let hostname = match step {
        Step::Sent | Step::SentToExpire => "gen1@client",
        Step::Received(_) | Step::Started | Step::Progress | Step::Retried | Step::Succeeded | Step::Failed => {
            &task.worker
        }
    };
    let text = format!(
        r#"{{"type":"{kind}","uuid":"{}","hostname":"{hostname}","pid":7,"clock":{clock},"utcoffset":0,"timestamp":{}.{:06}{more}}}"#,
        task.id,
        at / SECOND,
        at % SECOND,
    );
    let message = RawMessage {
        body: text.as_bytes(),
        content_type: Some("application/json"),
        content_encoding: Some("utf-8"),
        compression: None,
        body_encoding: BodyEncoding::Raw,
    };
    let mut decoded = decode(&message, UnixMicros(at), &Limits::default());
    decoded
        .events
        .pop()
        .with_context(|| format!("not read: {text}: {:?}", decoded.rejects))
}

/// Returns the type of an event, and the fields that not every event has.
fn said(task: &Task, step: Step, at: i64, clock: u64) -> (&'static str, String) {
    let Task { id, name, queue, .. } = task;
    let retries = if let Step::Received(retries) = step { retries } else { 0 };
    let order = id.get(..8).unwrap_or_default();
    let begins = format!(
        r#","name":"{name}","args":"('{order}', 'EUR')","kwargs":"{{'order': '{order}', 'retry': False}}","retries":{retries},"eta":null,
        "parent_id":null,"root_id":"{id}""#
    );
    match step {
        Step::Sent => ("task-sent", format!(r#"{begins},"expires":null,"queue":"{queue}""#)),
        Step::SentToExpire => {
            let expires = at / SECOND + 60;
            (
                "task-sent",
                format!(r#"{begins},"expires":{expires},"queue":"{queue}""#),
            )
        }
        Step::Received(_) => ("task-received", format!(r#"{begins},"expires":null"#)),
        Step::Started => ("task-started", String::new()),
        Step::Progress => {
            let more = format!(
                r#","task_id":"{id}","progress":{},"message":"row {clock}""#,
                clock % 100
            );
            ("kanchi-task-progress", more)
        }
        Step::Retried => {
            let more = r#","exception":"TimeoutError('no answer')","traceback":"Traceback: line 7""#;
            ("task-retried", more.to_owned())
        }
        Step::Succeeded => {
            let more = format!(r#","result":"{{'charged': {clock}}}","runtime":0.{}"#, 10 + clock % 90);
            ("task-succeeded", more)
        }
        Step::Failed => {
            let more = format!(r#","exception":"ValueError('order {clock}')","traceback":"Traceback: line 7""#);
            ("task-failed", more)
        }
    }
}
