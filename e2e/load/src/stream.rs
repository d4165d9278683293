//! The events of a workload, each at the time it is due.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::event::{self, Event, Moment};
use crate::workload::{OLDER, Outcome, Step, Workload};

/// Returns the wall clock in microseconds since 1970.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_micros() as i64
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at: i64,
    task: u64,
    step: Step,
    /// When the task started.
    since: i64,
}

/// The events of a workload. It has no clock of its own: whoever drives it says what time it is.
#[derive(Debug)]
pub struct Stream {
    workload: Workload,
    due: BinaryHeap<Reverse<Due>>,
    /// Each worker counts its events.
    clocks: Vec<u64>,
    begun: u64,
    /// When the tasks started that are open since before the stream; they end in this order.
    older: Vec<i64>,
    older_ended: usize,
    events: u64,
    ended: BTreeMap<Outcome, u64>,
    id: String,
    json: String,
}

impl Stream {
    /// Returns a stream of which nothing has begun.
    pub fn new(workload: Workload) -> Self {
        Self {
            workload,
            due: BinaryHeap::new(),
            clocks: vec![0; workload.workers],
            begun: 0,
            older: Vec::new(),
            older_ended: 0,
            events: 0,
            ended: BTreeMap::new(),
            id: String::new(),
            json: String::new(),
        }
    }

    /// Returns how its tasks live.
    pub const fn workload(&self) -> Workload {
        self.workload
    }

    /// Begins more tasks, now.
    pub fn begin(&mut self, tasks: u64, now: i64) {
        for number in self.begun..self.begun + tasks {
            self.push(number, Step::Sent, now, now);
            if self.workload.task(number).stays_open()
                && let Some(since) = self.older.get(self.older_ended)
            {
                let (task, since) = (OLDER + self.older_ended as u64, *since);
                self.older_ended += 1;
                self.push(task, Step::Ended, now, since);
            }
        }
        self.begun += tasks;
    }

    /// Begins tasks that will stay open until they end within the stream.
    pub fn begin_older(&mut self, tasks: u64, now: i64) {
        for _ in 0..tasks {
            self.push(OLDER + self.older.len() as u64, Step::Sent, now, now);
            self.older.push(now);
        }
    }

    /// Gives each event that is due, at this very time.
    pub fn take_due(&mut self, now: i64, mut each: impl FnMut(&Event<'_>)) {
        while let Some(Reverse(next)) = self.due.peek().copied() {
            if next.at > now {
                return;
            }
            self.due.pop();
            let task = self.workload.task(next.task);
            let since = match next.step {
                Step::Started | Step::StartedAgain => now,
                Step::Sent | Step::Received | Step::SentAgain | Step::ReceivedAgain | Step::Retried | Step::Ended => {
                    next.since
                }
            };
            if let Some((step, later)) = task.next(next.step) {
                self.push(next.task, step, now + later, since);
            }
            if next.step == Step::Ended {
                *self.ended.entry(task.outcome()).or_default() += 1;
            }
            let worker = task.worker();
            self.clocks[worker] += 1;
            self.events += 1;
            task.write_id(&mut self.id);
            let moment = Moment {
                id: &self.id,
                at: now,
                clock: self.clocks[worker],
                ran: now - since,
            };
            event::write(&mut self.json, task, next.step, &moment);
            each(&Event {
                task: &self.id,
                kind: event::kind(task, next.step),
                at: now,
                worker,
                json: &self.json,
            });
        }
    }

    /// Returns when the next event is due.
    pub fn next_due(&self) -> Option<i64> {
        self.due.peek().map(|Reverse(due)| due.at)
    }

    /// Returns how many events were given so far.
    pub const fn events(&self) -> u64 {
        self.events
    }

    /// Returns how many tasks have begun, older ones included.
    pub const fn tasks(&self) -> u64 {
        self.begun + self.older.len() as u64
    }

    /// Returns how many tasks have ended in each way.
    pub const fn ended(&self) -> &BTreeMap<Outcome, u64> {
        &self.ended
    }

    fn push(&mut self, task: u64, step: Step, at: i64, since: i64) {
        self.due.push(Reverse(Due { at, task, step, since }));
    }
}
