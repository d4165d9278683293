//! From the facts of a task to its runs, attempts and deliveries.
//!
//! A *delivery* is one worker having the message once. An *attempt* is all deliveries with one count of retries. A *run*
//! is the task from its first sending to its end; running it again under the same id begins the next run. Each worker's
//! own events are in order by its own clock, so deliveries are cut out of each worker's events alone; clocks of two
//! workers are compared only where nothing else tells the order.

use super::delivery::{Delivery, Phase};
use crate::facts::{Fact, Flags, Step};

/// Where a sending or a delivery belongs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) run: u32,
    pub(super) retries: u32,
}

/// All that was sent and delivered, each with its place.
#[derive(Debug, Default)]
pub(super) struct Life<'f> {
    pub(super) sent: Vec<(Place, usize, &'f Fact)>,
    pub(super) deliveries: Vec<(Place, Delivery<'f>)>,
}

impl<'f> Life<'f> {
    pub(super) fn of(facts: &'f [Fact]) -> Self {
        let mut lanes = Lanes::default();
        let mut sent = Vec::new();
        for (index, fact) in facts.iter().enumerate() {
            match fact.key.step {
                Step::Sent => sent.push((Place::default(), index, fact)),
                Step::Lost | Step::Back => lanes.judge(index, fact),
                // They come into play when all that was told does not say how the task ended.
                Step::FoundStarted | Step::FoundSucceeded | Step::FoundFailed | Step::FoundRevoked => {}
                Step::Received
                | Step::Started
                | Step::Custom
                | Step::Retried
                | Step::Rejected
                | Step::Cancelled
                | Step::Revoked
                | Step::Failed
                | Step::Succeeded
                | Step::Progress
                | Step::Steps => lanes.add(index, fact),
            }
        }
        let deliveries = lanes
            .finish()
            .into_iter()
            .map(|delivery| (Place::default(), delivery))
            .collect();
        let mut life = Self { sent, deliveries };
        life.place();
        life
    }

    /// Returns the place of the newest attempt: the highest count of retries in the latest run.
    pub(super) fn newest(&self) -> Place {
        self.places().max().unwrap_or_default()
    }

    /// Says whether an earlier attempt of the same run is known.
    pub(super) fn is_retry(&self, place: Place) -> bool {
        self.places()
            .any(|other| other.run == place.run && other.retries < place.retries)
    }

    pub(super) fn deliveries_at(&self, place: Place) -> impl DoubleEndedIterator<Item = &Delivery<'f>> {
        self.deliveries
            .iter()
            .filter(move |(other, _)| *other == place)
            .map(|(_, delivery)| delivery)
    }

    /// Returns the last `task-retried` of a run.
    pub(super) fn retried_in(&self, run: u32) -> Option<&'f Fact> {
        self.in_run(run)
            .filter_map(|delivery| delivery.retried)
            .max_by_key(|fact| fact.key.at)
    }

    /// Returns the delivery that began last in a run.
    pub(super) fn last_delivery_in(&self, run: u32) -> Option<&Delivery<'f>> {
        self.in_run(run).last()
    }

    /// Returns what a run began with.
    pub(super) fn begin_of(&self, run: u32) -> Option<&'f Fact> {
        let sent = self
            .sent
            .iter()
            .filter(|(place, ..)| place.run == run)
            .map(|(.., fact)| *fact);
        sent.chain(self.in_run(run).filter_map(|delivery| delivery.received))
            .min_by_key(|fact| fact.key.at)
    }

    fn in_run(&self, run: u32) -> impl Iterator<Item = &Delivery<'f>> {
        self.deliveries
            .iter()
            .filter(move |(place, _)| place.run == run)
            .map(|(_, delivery)| delivery)
    }

    /// Returns the place of each sending and each delivery.
    pub(super) fn places(&self) -> impl Iterator<Item = Place> {
        self.sent
            .iter()
            .map(|(place, ..)| *place)
            .chain(self.deliveries.iter().map(|(place, _)| *place))
    }

    /// Goes through sendings and deliveries in order of time and finds the run of each.
    fn place(&mut self) {
        let mut timelines = Timelines::new();
        let mut last = None;
        let (mut sent, mut deliveries) = (self.sent.iter_mut().peekable(), self.deliveries.iter_mut().peekable());
        let mut early = 0;
        loop {
            let next_sent = sent.peek().map(|(_, index, _)| *index);
            let next_delivery = deliveries.peek().map(|(_, delivery)| delivery.start);
            match (next_sent, next_delivery) {
                (None, None) => break,
                (Some(at), other) if other.is_none_or(|other| at < other) => {
                    let Some((place, _, fact)) = sent.next() else { break };
                    *place = timeline(&mut timelines, fact.retries.unwrap_or(0)).sent(at);
                    last = Some(*place);
                }
                _ => {
                    let Some((place, delivery)) = deliveries.next() else {
                        break;
                    };
                    match (delivery.retries, last) {
                        (Some(retries), _) => *place = timeline(&mut timelines, retries).delivered(delivery),
                        // Its `task-received` is not known: it belongs to what was going on.
                        (None, Some(going_on)) => {
                            *place = going_on;
                            timeline(&mut timelines, going_on.retries).joined(delivery);
                        }
                        (None, None) => early += 1,
                    }
                    if delivery.retries.is_some() {
                        last = Some(*place);
                    }
                }
            }
        }
        self.place_early(early);
    }

    /// Deliveries before anything that tells its retries belong to the first that does.
    fn place_early(&mut self, count: usize) {
        let first_sent = self.sent.first().map(|(place, index, _)| (*index, *place));
        let first_told = self.deliveries.iter().find(|(_, delivery)| delivery.retries.is_some());
        let first_told = first_told.map(|(place, delivery)| (delivery.start, *place));
        let first = first_sent
            .into_iter()
            .chain(first_told)
            .min()
            .map(|(_, place)| place)
            .unwrap_or_default();
        for (place, _) in self.deliveries.iter_mut().take(count) {
            *place = first;
        }
    }
}

/// What happened to one count of retries, in order of time.
#[derive(Debug)]
struct Timeline {
    retries: u32,
    run: u32,
    was_sent: bool,
    /// Where the deliveries of the current run ended.
    ends: Vec<usize>,
}

/// The timelines, one for each count of retries: a few, mostly one.
type Timelines = Vec<Timeline>;

fn timeline(timelines: &mut Timelines, retries: u32) -> &mut Timeline {
    let known = timelines.iter().position(|timeline| timeline.retries == retries);
    let at = known.unwrap_or_else(|| {
        timelines.push(Timeline {
            retries,
            run: 0,
            was_sent: false,
            ends: Vec::new(),
        });
        timelines.len() - 1
    });
    &mut timelines[at]
}

impl Timeline {
    /// The first sending belongs to the first run whatever its time: the client's clock may be ahead.
    fn sent(&mut self, at: usize) -> Place {
        if std::mem::replace(&mut self.was_sent, true) {
            self.begin(at);
        }
        self.place()
    }

    fn delivered(&mut self, delivery: &Delivery<'_>) -> Place {
        self.begin(delivery.start);
        self.joined(delivery);
        self.place()
    }

    fn joined(&mut self, delivery: &Delivery<'_>) {
        self.ends.extend(delivery.end());
    }

    /// What begins after an end begins the next run.
    fn begin(&mut self, at: usize) {
        if self.ends.iter().any(|end| *end < at) {
            self.run += 1;
            self.ends.clear();
        }
    }

    const fn place(&self) -> Place {
        Place {
            run: self.run,
            retries: self.retries,
        }
    }
}

/// The workers that had the task, each with the delivery it is at.
#[derive(Debug, Default)]
struct Lanes<'f> {
    deliveries: Vec<Delivery<'f>>,
    workers: Vec<Lane<'f>>,
    /// Custom events before any other; those of a pool process often carry an earlier time than `task-started`.
    early: Vec<(usize, &'f Fact)>,
}

#[derive(Debug)]
struct Lane<'f> {
    host: &'f str,
    current: Option<usize>,
    /// Received while the current one runs: the next attempt.
    next: Option<usize>,
}

impl<'f> Lanes<'f> {
    fn add(&mut self, index: usize, fact: &'f Fact) {
        if fact.key.step == Step::Custom {
            return self.add_custom(index, fact);
        }
        let lane = self.lane_of(fact);
        if fact.key.step == Step::Retried
            && let Some(delivery) = self.overtaken(lane, fact)
        {
            return delivery.apply(index, fact);
        }
        let Some(Lane { current, next, .. }) = self.workers.get(lane) else {
            return;
        };
        let (current, next) = (*current, *next);
        let is_running = |delivery: &Delivery<'_>| delivery.started.is_some() && !delivery.is_over();
        let target = if fact.key.step == Step::Received {
            self.received(lane, current, next, index, fact)
        } else if fact.key.step == Step::Started && self.at(current).is_some_and(is_running) {
            next.or(current)
        } else {
            current
                .filter(|_| self.at(current).is_none_or(|delivery| delivery.takes(fact)))
                .or(next)
        };
        let target = target.unwrap_or_else(|| self.open(index, fact, None));
        if let Some(lane) = self.workers.get_mut(lane)
            && fact.key.step != Step::Received
        {
            lane.current = Some(target);
            lane.next = lane.next.filter(|next| *next != target);
        }
        if let Some(delivery) = self.deliveries.get_mut(target) {
            delivery.apply(index, fact);
        }
    }

    /// Returns the delivery of an attempt that has ended without a word, because the next one has already begun: a retry
    /// without countdown can start, and even end, before the worker tells of the attempt before it.
    fn overtaken(&mut self, lane: usize, fact: &Fact) -> Option<&mut Delivery<'f>> {
        let Lane { current, next, .. } = self.workers.get(lane)?;
        let (current, next) = (*current, *next);
        let newest = self.at(current).and_then(|delivery| delivery.retries);
        let of_this_process = |delivery: &Delivery<'_>| *delivery.host == fact.key.host && delivery.pid == fact.key.pid;
        let waits = |(index, delivery): &(usize, &mut Delivery<'_>)| {
            let overtaken = Some(*index) != current && Some(*index) != next;
            // Not even its start need have been told: a busy worker may hear of the next attempt first.
            let has_begun = delivery.started.is_some() || (delivery.received.is_some() && delivery.retries < newest);
            overtaken && of_this_process(delivery) && has_begun && !delivery.is_over()
        };
        self.deliveries
            .iter_mut()
            .enumerate()
            .filter(waits)
            .last()
            .map(|(_, delivery)| delivery)
    }

    /// Decides which delivery a `task-received` belongs to.
    fn received(
        &mut self,
        lane: usize,
        current: Option<usize>,
        next: Option<usize>,
        index: usize,
        fact: &'f Fact,
    ) -> Option<usize> {
        let retries = fact.retries.unwrap_or(0);
        let waits = self
            .at(next)
            .is_some_and(|waiting| waiting.retries == Some(retries) && waiting.pid == fact.key.pid);
        if waits {
            return next;
        }
        let (same, running) = self.at(current).map_or((false, false), |delivery| {
            let open = !delivery.is_over() && delivery.pid == fact.key.pid;
            let same = delivery.retries.is_none_or(|known| known == retries);
            (
                open && same,
                open && delivery.started.is_some() && delivery.retries.is_none_or(|known| known < retries),
            )
        });
        if same {
            if let Some(delivery) = current.and_then(|current| self.deliveries.get_mut(current)) {
                delivery.retries = Some(retries);
            }
            return current;
        }
        let opened = self.open(index, fact, Some(retries));
        if let Some(lane) = self.workers.get_mut(lane) {
            if running {
                lane.next = Some(opened);
            } else {
                (lane.current, lane.next) = (Some(opened), None);
            }
        }
        Some(opened)
    }

    /// Kanchi's own finding about a process: it is about what that worker runs, and begins nothing.
    fn judge(&mut self, index: usize, fact: &'f Fact) {
        let lane = self.workers.iter().find(|lane| *lane.host == *fact.key.host);
        let current = lane.and_then(|lane| lane.current);
        if let Some(delivery) = current.and_then(|current| self.deliveries.get_mut(current)) {
            delivery.judge(index, fact);
        }
    }

    /// Custom events come from pool processes as well; they join what their worker does, else what began last.
    fn add_custom(&mut self, index: usize, fact: &'f Fact) {
        let lane = self.workers.iter_mut().find(|lane| *lane.host == *fact.key.host);
        let target = match lane {
            Some(lane) => {
                let over = lane
                    .current
                    .and_then(|current| self.deliveries.get(current))
                    .is_none_or(Delivery::is_over);
                if over && lane.next.is_some() {
                    lane.current = lane.next.take();
                }
                lane.current
            }
            None => self.deliveries.len().checked_sub(1),
        };
        match target.and_then(|target| self.deliveries.get_mut(target)) {
            Some(delivery) => delivery.apply(index, fact),
            None => self.early.push((index, fact)),
        }
    }

    fn open(&mut self, index: usize, fact: &'f Fact, retries: Option<u32>) -> usize {
        let mut delivery = Delivery::new(index, fact, retries);
        for (index, custom) in std::mem::take(&mut self.early) {
            delivery.apply(index, custom);
        }
        self.deliveries.push(delivery);
        self.deliveries.len() - 1
    }

    fn lane_of(&mut self, fact: &'f Fact) -> usize {
        self.workers
            .iter()
            .position(|lane| *lane.host == *fact.key.host)
            .unwrap_or_else(|| {
                self.workers.push(Lane {
                    host: &fact.key.host,
                    current: None,
                    next: None,
                });
                self.workers.len() - 1
            })
    }

    fn at(&self, index: Option<usize>) -> Option<&Delivery<'f>> {
        index.and_then(|index| self.deliveries.get(index))
    }

    fn finish(mut self) -> Vec<Delivery<'f>> {
        if let Some((index, fact)) = self.early.first().copied() {
            self.open(index, fact, None);
        }
        self.deliveries
    }
}

impl Delivery<'_> {
    /// Says whether a fact other than a `task-received` still belongs here.
    fn takes(&self, fact: &Fact) -> bool {
        match self.phase {
            Phase::Retry => fact.key.step == Step::Retried,
            Phase::Requeued => {
                matches!(fact.key.step, Step::Rejected | Step::Cancelled) && !fact.flags.has(Flags::FOR_GOOD)
            }
            // An end can be told twice, in any form.
            Phase::Success
            | Phase::Failure
            | Phase::Revoked
            | Phase::Rejected
            | Phase::Waiting
            | Phase::Received
            | Phase::Started
            | Phase::Custom => true,
        }
    }
}
