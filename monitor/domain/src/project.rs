//! From facts to the row that users see.

use std::sync::Arc;
use std::time::Duration;

use crate::event::{PayloadField, PayloadFields, TaskId};
use crate::facts::{Fact, Field, Flags, Step, TaskFacts, Texts, UNKNOWN};
use crate::orphan::Running;
use crate::progress::{self, ProgressStep};
use crate::state::{OutcomeClass, TaskMark, TaskState};
use crate::time::UnixMicros;
use attempts::{Life, Place};
use delivery::{Delivery, Phase};

pub use attempt_list::{Attempt, AttemptDelivery, AttemptOutcome};

mod attempt_list;
mod attempts;
mod delivery;
mod found;

/// A task counts as EXPIRED so long after its `expires`: a start just before it may still be on its way to us.
pub const EXPIRY_GRACE: Duration = Duration::from_secs(5);

/// All that is known of a task, projected from its facts. Times are of the current attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskRow {
    /// The state.
    pub state: TaskState,
    /// What the state does not say by itself.
    pub mark: Option<TaskMark>,
    /// True name if `task-sent` was seen, else what the worker calls it.
    pub name: Option<Arc<str>>,
    /// Queue.
    pub queue: Option<Arc<str>>,
    /// The queue was not told but inferred. Never set by the projection: whoever infers it sets both.
    pub queue_inferred: bool,
    /// Exchange, if not the default one.
    pub exchange: Option<Arc<str>>,
    /// Routing key.
    pub routing_key: Option<Arc<str>>,
    /// Node name of the sender.
    pub client: Option<Arc<str>>,
    /// Node name of the worker that has or had it.
    pub worker: Option<Arc<str>>,
    /// Main process of that worker.
    pub worker_pid: Option<i64>,
    /// Retries before the current attempt.
    pub retries: u32,
    /// Which run under this id, from 0: a rerun counts one up.
    pub run: u32,
    /// How often workers got it in the current attempt; more than one: redelivered or put back.
    pub deliveries: u32,
    /// Positional arguments.
    pub args: Option<Arc<str>>,
    /// Keyword arguments.
    pub kwargs: Option<Arc<str>>,
    /// Result.
    pub result: Option<Arc<str>>,
    /// Exception of the failure, or of the last retry while the task is not final.
    pub exception: Option<Arc<str>>,
    /// Class of that exception.
    pub exception_class: Option<Arc<str>>,
    /// Its traceback.
    pub traceback: Option<Arc<str>>,
    /// Payloads that were cut.
    pub cut: PayloadFields,
    /// Root of the workflow.
    pub root_id: Option<TaskId>,
    /// Parent task.
    pub parent_id: Option<TaskId>,
    /// Not to run before.
    pub eta: Option<UnixMicros>,
    /// Not to run after.
    pub expires: Option<UnixMicros>,
    /// Seconds it ran, by the worker.
    pub runtime: Option<f64>,
    /// `task-sent` of the current attempt.
    pub sent_at: Option<UnixMicros>,
    /// `task-received` of the current attempt.
    pub received_at: Option<UnixMicros>,
    /// `task-started` of the current attempt.
    pub started_at: Option<UnixMicros>,
    /// When the state was reached that ended the task.
    pub finished_at: Option<UnixMicros>,
    /// The last `task-retried`.
    pub retried_at: Option<UnixMicros>,
    /// The earliest event of the task.
    pub first_event_at: Option<UnixMicros>,
    /// The latest event of the task.
    pub last_event_at: Option<UnixMicros>,
    /// Revoked while it was running.
    pub terminated: bool,
    /// Signal it was terminated with.
    pub signum: Option<Arc<str>>,
    /// Progress, if the application tells it: the latest of the run, whichever attempt it is of. Most tasks have none.
    pub progress: Option<Box<Progress>>,
    /// Events were dropped from the facts because there were too many; counts may be low.
    pub thinned: bool,
}

/// Progress as the application tells it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Percent done.
    pub percent: Option<f64>,
    /// Which step.
    pub step_key: Option<Arc<str>>,
    /// A word on it.
    pub message: Option<Arc<str>>,
    /// Anything: JSON text.
    pub meta: Option<Arc<str>>,
    /// When that was told; `None` where only steps are known, or no time.
    pub at: Option<UnixMicros>,
    /// The steps, as the task announced them last: text of a JSON array of [`ProgressStep`]s.
    pub steps: Option<Arc<str>>,
}

impl Progress {
    /// Returns the steps in their order, at most 100.
    pub fn announced(&self) -> Vec<ProgressStep> {
        self.steps.as_deref().map(progress::steps).unwrap_or_default()
    }
}

// A batch holds one for each of its tasks.
const _: () = assert!(size_of::<TaskRow>() <= 472);

impl TaskRow {
    /// Says whether the task has ended.
    pub fn is_final(&self) -> bool {
        self.state.is_final()
    }

    /// Returns how the task ended, if it has.
    pub fn outcome(&self) -> Option<OutcomeClass> {
        self.state.outcome()
    }

    /// Returns when the row must be projected again because it may be EXPIRED by then.
    pub fn deadline(&self) -> Option<UnixMicros> {
        let waits = matches!(self.state, TaskState::Pending | TaskState::Received | TaskState::Retry);
        self.expires
            .filter(|_| waits)
            .map(|expires| expires.saturating_add(EXPIRY_GRACE))
    }
}

/// Bytes of the name of a custom state.
const CUSTOM_STATE_BYTES: usize = 64;

/// Projects the row of a task from its facts.
pub(crate) fn row(facts: &TaskFacts) -> TaskRow {
    let life = Life::of(facts.facts());
    let place = life.newest();
    let decisive = decisive(&life, place);
    let mut row = TaskRow {
        retries: place.retries,
        run: place.run,
        thinned: facts.is_thinned(),
        ..TaskRow::default()
    };
    row.deliveries = u32::try_from(life.deliveries_at(place).count()).unwrap_or(u32::MAX);
    row.set_state(&life, place, decisive);
    row.set_times(facts, &life, place, decisive);
    row.set_origin(facts);
    row.set_payloads(facts, decisive);
    row.set_error(facts, &life, place);
    row.set_progress(facts, &life, place);
    found::lay_over(&mut row, facts, &life, place);
    row
}

/// Lists the attempts of a task, of which the row shows the last.
pub(crate) fn attempts(facts: &TaskFacts) -> Vec<Attempt> {
    attempt_list::list(facts)
}

/// Returns which process runs the task, as far as its events say.
pub(crate) fn running(facts: &TaskFacts) -> Option<Running> {
    let life = Life::of(facts.facts());
    let place = life.newest();
    let decisive = decisive(&life, place);
    let Some(delivery) = decisive.filter(|delivery| delivery.is_running()) else {
        return found::running(facts, &life, place, decisive);
    };
    if found::has_ended(facts, &life, place) {
        return None;
    }
    let began = delivery.started.or(delivery.received).or(delivery.latest)?;
    Some(Running {
        hostname: Arc::clone(delivery.host),
        pid: Some(delivery.pid).filter(|pid| *pid != UNKNOWN),
        began: UnixMicros(began.key.at),
        latest: UnixMicros(delivery.latest.unwrap_or(began).key.at),
        lost: delivery.lost.map(|fact| UnixMicros(fact.key.at)),
    })
}

/// Returns the delivery that decides the state of an attempt: the one that ended it, by Celery's precedence; else the
/// newest.
fn decisive<'l, 'f>(life: &'l Life<'f>, place: Place) -> Option<&'l Delivery<'f>> {
    let ended = life.deliveries_at(place).filter(|delivery| delivery.phase.is_final());
    ended
        .min_by_key(|delivery| delivery.precedence())
        .or_else(|| life.deliveries_at(place).next_back())
}

impl TaskRow {
    fn set_state(&mut self, life: &Life<'_>, place: Place, decisive: Option<&Delivery<'_>>) {
        self.state = decisive.map_or(TaskState::Pending, state_of);
        let waits = matches!(self.state, TaskState::Pending | TaskState::Received);
        let was_started = life.deliveries_at(place).any(|delivery| delivery.started.is_some());
        if waits && !was_started && life.is_retry(place) {
            self.state = TaskState::Retry;
        }
        let is_retry = place.retries > 0;
        let ended = decisive.and_then(Delivery::end);
        let was_lost = |delivery: &Delivery<'_>| delivery.first_lost.is_some_and(|lost| Some(lost) < ended);
        let survived = || life.deliveries_at(place).any(was_lost);
        self.mark = if self.state == TaskState::Success && (is_retry || survived()) {
            Some(TaskMark::Recovered)
        } else if self.state == TaskState::Failure && is_retry {
            Some(TaskMark::Critical)
        } else {
            None
        };
    }

    fn set_times(&mut self, facts: &TaskFacts, life: &Life<'_>, place: Place, decisive: Option<&Delivery<'_>>) {
        let sent = life
            .sent
            .iter()
            .rev()
            .find(|(other, ..)| *other == place)
            .map(|(.., fact)| *fact);
        let received = decisive.and_then(|delivery| delivery.received);
        let received = received.or_else(|| life.deliveries_at(place).rev().find_map(|delivery| delivery.received));
        self.sent_at = sent.and_then(Fact::time);
        self.received_at = received.and_then(Fact::time);
        self.started_at = decisive.and_then(|delivery| delivery.started).and_then(Fact::time);
        self.retried_at = life.retried_in(place.run).and_then(Fact::time);
        if self.is_final() {
            self.finished_at = decisive
                .and_then(|delivery| delivery.decided)
                .and_then(|(_, fact)| fact.time());
        }
        self.eta = told(received, sent, Fact::eta);
        self.expires = told(received, sent, Fact::expires);
        let times = || {
            facts
                .facts()
                .iter()
                .map(|fact| &fact.key)
                .chain(facts.all_texts().iter().map(|texts| &texts.key))
                .filter(|key| key.step.is_told())
        };
        let known = || times().map(|key| key.at).filter(|at| *at != UNKNOWN).map(UnixMicros);
        self.first_event_at = known().min();
        self.last_event_at = known().max();
        let worker = decisive.or_else(|| life.last_delivery_in(place.run));
        self.worker = worker
            .map(|delivery| delivery.host)
            .filter(|host| !host.is_empty())
            .map(Arc::clone);
        self.worker_pid = worker.map(|delivery| delivery.pid).filter(|pid| *pid != UNKNOWN);
        if let Some((_, fact)) = decisive.and_then(|delivery| delivery.decided) {
            self.terminated = fact.flags.has(Flags::TERMINATED);
            self.runtime = fact.runtime.map(f64::from_bits);
        }
    }

    fn set_origin(&mut self, facts: &TaskFacts) {
        let (sent, received) = (facts.texts(Step::Sent), facts.texts(Step::Received));
        let (progress, steps) = (facts.texts(Step::Progress), facts.texts(Step::Steps));
        let first = |field: Field| {
            [sent, received, progress, steps]
                .into_iter()
                .flatten()
                .find_map(|texts| texts.share(field))
        };
        let of_sent = |field: Field| sent.and_then(|texts| texts.share(field));
        self.name = first(Field::Name);
        self.root_id = first(Field::RootId).and_then(TaskId::shared);
        self.parent_id = first(Field::ParentId).and_then(TaskId::shared);
        self.queue = of_sent(Field::Queue).or_else(|| default_queue(sent));
        self.exchange = of_sent(Field::Exchange);
        self.routing_key = of_sent(Field::RoutingKey);
        self.client = sent
            .map(|texts| &texts.key.host)
            .filter(|host| !host.is_empty())
            .map(Arc::clone);
    }

    fn set_payloads(&mut self, facts: &TaskFacts, decisive: Option<&Delivery<'_>>) {
        // Arguments can change from run to run: the later event knows better.
        let arguments = facts.texts(Step::Sent).into_iter().chain(facts.texts(Step::Received));
        for texts in arguments {
            let later = self.args.is_none() || facts.texts(Step::Sent).is_none_or(|sent| sent.key.at <= texts.key.at);
            if let Some(args) = texts.share(Field::Args).filter(|_| later) {
                self.args = Some(args);
                self.kwargs = texts.share(Field::Kwargs);
                self.take_cut(texts, &[PayloadField::Args, PayloadField::Kwargs]);
            }
        }
        match decisive.map(|delivery| delivery.phase) {
            Some(Phase::Success) => {
                if let Some(texts) = facts.texts(Step::Succeeded) {
                    self.result = texts.share(Field::Result);
                    self.take_cut(texts, &[PayloadField::Result]);
                }
            }
            Some(Phase::Revoked) => {
                let signum = facts.texts(Step::Revoked).and_then(|texts| texts.share(Field::Signum));
                self.signum = signum.filter(|_| self.terminated);
            }
            _ => {}
        }
    }

    fn set_error(&mut self, facts: &TaskFacts, life: &Life<'_>, place: Place) {
        let step = if self.state == TaskState::Failure {
            Step::Failed
        } else if !self.is_final() && life.retried_in(place.run).is_some() {
            Step::Retried
        } else {
            return;
        };
        if let Some(texts) = facts.texts(step) {
            self.exception = texts.share(Field::Exception);
            self.exception_class = texts.share(Field::ExceptionClass);
            self.traceback = texts.share(Field::Traceback);
            self.take_cut(texts, &[PayloadField::Exception, PayloadField::Traceback]);
        }
    }

    fn set_progress(&mut self, facts: &TaskFacts, life: &Life<'_>, place: Place) {
        // Progress of an earlier run says nothing about this one.
        let begin = if place.run == 0 {
            UNKNOWN
        } else {
            life.begin_of(place.run).map_or(UNKNOWN, |fact| fact.key.at)
        };
        let current = |step| facts.texts(step).filter(|texts| texts.key.at >= begin);
        let (progress, steps) = (current(Step::Progress), current(Step::Steps));
        if progress.is_none() && steps.is_none() {
            return;
        }
        for texts in progress.into_iter().chain(steps) {
            self.take_cut(texts, &[PayloadField::Progress]);
        }
        let text = |field| progress.and_then(|texts| texts.share(field));
        self.progress = Some(Box::new(Progress {
            percent: progress.and_then(|texts| texts.percent).map(f64::from_bits),
            step_key: text(Field::StepKey),
            message: text(Field::Message),
            meta: text(Field::Meta),
            at: progress
                .map(|texts| UnixMicros(texts.key.at))
                .filter(|at| at.0 != UNKNOWN),
            steps: steps.and_then(|texts| texts.share(Field::Steps)),
        }));
    }

    /// Makes the task EXPIRED if nothing has been heard of its start some time after its deadline.
    pub(crate) fn expire(&mut self, now: UnixMicros) {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.state = TaskState::Expired;
            self.finished_at = self.expires;
        }
    }

    fn take_cut(&mut self, texts: &Texts, fields: &[PayloadField]) {
        for field in fields.iter().filter(|field| texts.cut.contains(**field)) {
            self.cut.insert(*field);
        }
    }
}

/// What the worker was told, else what the client said.
fn told(received: Option<&Fact>, sent: Option<&Fact>, field: impl Fn(&Fact) -> Option<i64>) -> Option<UnixMicros> {
    received.into_iter().chain(sent).find_map(field).map(UnixMicros)
}

/// A message to the default exchange goes to the queue named by its routing key, and so, in the end, does one with delayed
/// delivery, for which Celery says no queue.
fn default_queue(sent: Option<&Texts>) -> Option<Arc<str>> {
    let by_key = |exchange: &str| exchange.starts_with("celery_delayed_");
    let sent = sent.filter(|sent| sent.get(Field::Exchange).is_none_or(|exchange| by_key(exchange)))?;
    sent.share(Field::RoutingKey)
}

fn state_of(delivery: &Delivery<'_>) -> TaskState {
    if delivery.lost.is_some() {
        return TaskState::Orphaned;
    }
    match delivery.phase {
        Phase::Waiting | Phase::Requeued => TaskState::Pending,
        Phase::Received => TaskState::Received,
        Phase::Started => TaskState::Started,
        Phase::Retry => TaskState::Retry,
        Phase::Success => TaskState::Success,
        Phase::Failure => TaskState::Failure,
        Phase::Rejected => TaskState::Rejected,
        Phase::Revoked => match delivery.decided {
            Some((_, fact)) if fact.flags.has(Flags::EXPIRED) => TaskState::Expired,
            _ => TaskState::Revoked,
        },
        Phase::Custom => {
            let name = delivery
                .decided
                .and_then(|(_, fact)| fact.key.custom.as_deref())
                .unwrap_or_default();
            let mut state = name.strip_prefix("task-").unwrap_or(name).to_uppercase();
            state.truncate(crate::text::boundary(&state, CUSTOM_STATE_BYTES));
            if matches!(TaskState::from_name(&state), TaskState::Custom(_)) {
                return TaskState::Custom(state.into());
            }
            // `task-success` is not Celery's `task-succeeded`.
            TaskState::Custom(format!("TASK-{state}").into())
        }
    }
}

impl Default for TaskRow {
    fn default() -> Self {
        Self {
            state: TaskState::Pending,
            mark: None,
            name: None,
            queue: None,
            queue_inferred: false,
            exchange: None,
            routing_key: None,
            client: None,
            worker: None,
            worker_pid: None,
            retries: 0,
            run: 0,
            deliveries: 0,
            args: None,
            kwargs: None,
            result: None,
            exception: None,
            exception_class: None,
            traceback: None,
            cut: PayloadFields::default(),
            root_id: None,
            parent_id: None,
            eta: None,
            expires: None,
            runtime: None,
            sent_at: None,
            received_at: None,
            started_at: None,
            finished_at: None,
            retried_at: None,
            first_event_at: None,
            last_event_at: None,
            terminated: false,
            signum: None,
            progress: None,
            thinned: false,
        }
    }
}
