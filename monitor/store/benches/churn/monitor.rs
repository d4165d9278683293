//! The monitor: it keeps what it knows of open tasks, as the ingest path does, and writes through the store's own doors.

use std::collections::{BTreeMap, HashMap};

use kanchi_domain::{Failure, Fingerprint, TaskFacts, UnixMicros};
use kanchi_store::statistics::{Dimension, Durations, Histogram, Measures, Transition, bucket_of};
use kanchi_store::{
    Batch, BrokerSpec, DeadLetter, Epoch, EventChunk, FailureDelta, Heartbeat, LastFailure, LiveTask, Packer, QueueRow,
    Renewal, RetentionClass, RetentionPolicy, StatisticDelta, StoreAdmin, StoreReporter, StoreUrl, StoreWriter, Stored,
    WorkerRow,
};
use uuid::Uuid;

use crate::lives::{Happening, Step, WORKERS, worker_name};

const PASSWORD: &str = "password-of-a-monitor";

/// Short, so that a partition is dropped within two days; failed tasks stay beyond the end.
const RETENTION: RetentionPolicy = RetentionPolicy {
    succeeded: RetentionClass::Days1,
    failed: RetentionClass::Days3,
    events: RetentionClass::Days1,
    statistics: RetentionClass::Days1,
};

/// What an hour brings of what is bounded to a thousand: groups of failures, dead letters.
const BOUND: u64 = 1_000;

/// A task that is not over.
#[derive(Debug)]
struct Open {
    facts: TaskFacts,
    is_stored: bool,
    ran_before: bool,
}

/// A monitor of one broker.
pub(crate) struct Monitor {
    url: StoreUrl,
    writer: StoreWriter,
    reporter: StoreReporter,
    epoch: Epoch,
    batches_an_hour: u64,
    open: HashMap<String, Open>,
    packer: Packer,
    stored: u64,
    events: u64,
    settled: u64,
    merged: u64,
}

impl Monitor {
    pub(crate) async fn new(admin: &StoreAdmin, batches_an_hour: u64) -> anyhow::Result<Self> {
        let spec = BrokerSpec {
            namespace_uid: "uid-of-shop".into(),
            namespace: "shop".into(),
            name: "orders".into(),
            display_name: None,
            retention: RETENTION,
        };
        let key = admin.ensure_broker(&spec).await?;
        let mode = admin.ensure_role(key, PASSWORD).await?;
        let url = admin.monitor_url(key, mode, PASSWORD)?;
        let mut writer = StoreWriter::connect(&url, RETENTION).await?;
        let epoch = writer.begin_epoch("pod-0").await?;
        Ok(Self {
            reporter: StoreReporter::connect(&url, RETENTION).await?,
            url,
            writer,
            epoch,
            batches_an_hour,
            open: HashMap::new(),
            packer: Packer::default(),
            stored: 0,
            events: 0,
            settled: 0,
            merged: 0,
        })
    }

    /// Stores a batch.
    pub(crate) async fn store(&mut self, hour: u64, happenings: &[Happening]) -> anyhow::Result<()> {
        self.remember(happenings).await?;
        let mut batch = Batch::default();
        batch.head.id = Uuid::new_v4();
        batch.head.epoch = self.epoch;
        let newest = happenings
            .iter()
            .flat_map(|one| &one.events)
            .map(|event| event.timestamp)
            .max();
        let newest = newest.unwrap_or(UnixMicros(0));
        batch.head.workers = workers(hour, newest, "online");
        batch.head.dead_letters = self.dead_letters(newest);
        for happening in happenings {
            batch.head.digests.extend(happening.events.iter().map(|_| digest()));
            batch.head.chunks.push(self.chunk(happening));
            batch.changes.tasks.push(self.task(happening));
            self.events += happening.events.len() as u64;
        }
        batch.changes.statistics = statistics(happenings);
        batch.changes.failures = self.failures(newest);
        let stored = self.writer.commit(&batch).await?;
        self.forget(&batch, &stored);
        self.stored += happenings.iter().filter(|one| one.is_first).count() as u64;
        Ok(())
    }

    /// Loads what the store knows of tasks that are heard of again.
    async fn remember(&mut self, happenings: &[Happening]) -> anyhow::Result<()> {
        let is_unknown = |one: &&Happening| !one.is_first && !self.open.contains_key(&one.task.id);
        let unknown: Vec<&str> = happenings
            .iter()
            .filter(is_unknown)
            .map(|one| one.task.id.as_str())
            .collect();
        let mut loaded = HashMap::new();
        for ids in unknown.chunks(10_000) {
            loaded.extend(self.writer.load_facts(ids).await?);
        }
        for id in unknown {
            let facts = loaded.get(id).map(|facts| TaskFacts::decode(facts)).transpose()?;
            let open = Open {
                is_stored: facts.is_some(),
                facts: facts.unwrap_or_default(),
                ran_before: true,
            };
            self.open.insert(id.to_owned(), open);
        }
        Ok(())
    }

    fn chunk(&mut self, happening: &Happening) -> EventChunk {
        let texts: Vec<String> = happening.events.iter().map(kanchi_domain::Event::to_json).collect();
        let id = happening.task.id.as_str();
        let first = happening.events.iter().map(|event| event.timestamp).min();
        EventChunk {
            task_id: Some(id.into()),
            first_at: first.unwrap_or(UnixMicros(0)),
            count: u16::try_from(happening.events.len()).unwrap_or(u16::MAX),
            events: self.packer.pack(&format!("[{}]", texts.join(",")), Some(id)),
        }
    }

    fn task(&mut self, happening: &Happening) -> LiveTask {
        let id = happening.task.id.as_str();
        let open = self.open.entry(id.to_owned()).or_insert_with(|| Open {
            facts: TaskFacts::new(),
            is_stored: false,
            ran_before: false,
        });
        for event in &happening.events {
            open.facts.absorb(event);
        }
        let mut task = LiveTask::new(
            id.into(),
            open.facts.encode().into(),
            open.facts.project(),
            open.is_stored,
        );
        task.maybe_archived = open.ran_before;
        task
    }

    /// Keeps those that are open; of the others the store knows what has to be known.
    fn forget(&mut self, batch: &Batch, stored: &Stored) {
        for task in batch.changes.tasks.iter().filter(|task| task.state.is_final()) {
            self.open.remove(&*task.task_id);
        }
        if let Stored::Now { live, .. } = stored {
            for id in live {
                if let Some(open) = self.open.get_mut(&**id) {
                    open.is_stored = true;
                }
            }
        }
    }

    fn dead_letters(&self, at: UnixMicros) -> Vec<DeadLetter> {
        let letter = |number| DeadLetter {
            arrived: at,
            reason: "Json".into(),
            detail: format!("expected a value at line 1, column {number}"),
            sample: vec![b'x'; 500],
        };
        (0..BOUND.div_ceil(self.batches_an_hour)).map(letter).collect()
    }

    /// New groups, in whose favour older ones go, and ten that fail again and again.
    fn failures(&self, at: UnixMicros) -> Vec<FailureDelta> {
        let new = (0..BOUND.div_ceil(self.batches_an_hour)).map(|number| format!("{} {number}", self.stored));
        let known = (0..10).map(|number| format!("known {number}"));
        new.chain(known).map(|message| failure(at, &message)).collect()
    }

    /// Says what a monitor says every few seconds, and settles.
    pub(crate) async fn report(&mut self, hour: u64) -> anyhow::Result<()> {
        let now = crate::environment::now()?;
        self.reporter.speak_for(self.epoch);
        self.reporter.renew(Renewal::default()).await?;
        let beat = Heartbeat {
            instance: "pod-0".into(),
            connection: "Connected".into(),
            complete_until: Some(now),
            ..Heartbeat::default()
        };
        self.reporter.heartbeat(&beat).await?;
        let queue = |number: u64| QueueRow {
            name: format!("queue-{number}"),
            ready: number,
            unacked: None,
            consumers: Some(1),
        };
        self.reporter
            .save_queues(now, &(0..4).map(queue).collect::<Vec<_>>())
            .await?;
        self.workers_that_left(hour, now).await?;
        // Without a linger: it is minutes, and an hour of this may be over sooner.
        while {
            let open = &mut self.open;
            let leave = |ids: &[&str]| {
                for id in ids {
                    open.remove(*id);
                }
            };
            let settled = self.reporter.settle(now, 0, leave).await?;
            self.settled += settled.moved;
            self.merged += settled.merged;
            settled.more
        } {}
        Ok(())
    }

    /// Those of the hour before are offline, those of the hour before that forgotten.
    async fn workers_that_left(&mut self, hour: u64, now: UnixMicros) -> anyhow::Result<()> {
        let left = |hour: u64| (0..WORKERS / 4).map(move |worker| worker_name(worker, hour));
        if let Some(before) = hour.checked_sub(1) {
            let mut gone = workers(before, now, "offline");
            gone.truncate(usize::try_from(WORKERS / 4)?);
            self.reporter.save_workers(&gone).await?;
        }
        if let Some(before) = hour.checked_sub(2) {
            self.reporter.forget_workers(&left(before).collect::<Vec<_>>()).await?;
        }
        Ok(())
    }

    /// Lets the reporter do what it does once a minute, and forget that it was told to rest: another one begins.
    pub(crate) async fn begin_a_minute(&mut self) -> anyhow::Result<()> {
        self.reporter = StoreReporter::connect(&self.url, RETENTION).await?;
        Ok(())
    }

    /// Returns what was stored, in words.
    pub(crate) fn told(&self) -> String {
        format!(
            "{} tasks with {} events; {} settled, {} of them merged with history; {} are open",
            self.stored,
            self.events,
            self.settled,
            self.merged,
            self.open.len()
        )
    }
}

fn digest() -> u128 {
    Uuid::new_v4().as_u128()
}

fn workers(hour: u64, at: UnixMicros, state: &str) -> Vec<WorkerRow> {
    let worker = |number: u64| WorkerRow {
        hostname: worker_name(number, hour),
        pid: Some(7),
        state: state.to_owned(),
        pool: Some("prefork".into()),
        freq: Some(2.0),
        active: Some(3),
        processed: Some(at.0),
        loadavg: Some([0.5, 0.25, 0.125]),
        sw_ident: Some("py-celery".into()),
        sw_ver: Some("5.5.3".into()),
        sw_sys: Some("Linux".into()),
        started_at: None,
        last_event_at: at,
        last_heartbeat_at: Some(at),
    };
    (0..WORKERS).map(worker).collect()
}

fn failure(at: UnixMicros, message: &str) -> FailureDelta {
    let task = "shop.orders.task_1";
    FailureDelta {
        group: Failure {
            fingerprint: Fingerprint::of(task, "ValueError", message),
            task: task.into(),
            exception_class: "ValueError".into(),
            message: message.to_owned(),
        },
        failed: 1,
        critical: 0,
        first_at: Some(at),
        last: Some(LastFailure {
            at,
            task_id: "6b2c9f5e-0000-4000-8000-000000000001".into(),
            exception: Some(format!("ValueError('{message}')").into()),
        }),
    }
}

/// Counts the steps by minute, under each of the keys that they have.
fn statistics(happenings: &[Happening]) -> Vec<StatisticDelta> {
    let mut sums: BTreeMap<(i64, Dimension, &str), Measures> = BTreeMap::new();
    for happening in happenings {
        let task = &happening.task;
        for (step, event) in happening.steps.iter().zip(&happening.events) {
            let Some(measures) = measures(*step, event.timestamp) else {
                continue;
            };
            let minute = event.timestamp.0 - event.timestamp.0.rem_euclid(60_000_000);
            for (dimension, key) in [
                (Dimension::All, ""),
                (Dimension::Task, task.name.as_str()),
                (Dimension::Queue, task.queue.as_str()),
                (Dimension::Worker, task.worker.as_str()),
            ] {
                sums.entry((minute, dimension, key)).or_default().merge(&measures);
            }
        }
    }
    let delta = |((minute, dimension, key), measures): ((i64, Dimension, &str), Measures)| StatisticDelta {
        minute: UnixMicros(minute),
        dimension,
        key: key.to_owned(),
        measures,
    };
    sums.into_iter().map(delta).collect()
}

fn measures(step: Step, at: UnixMicros) -> Option<Measures> {
    let transition = match step {
        Step::Sent | Step::SentToExpire => Transition::Sent,
        Step::Received(_) => Transition::Received,
        Step::Started => Transition::Started,
        Step::Retried => Transition::Retried,
        Step::Succeeded => Transition::Succeeded,
        Step::Failed => Transition::Failed,
        Step::Progress => return None,
    };
    let mut measures = Measures::default();
    measures.counts.add(transition, 1);
    if transition == Transition::Succeeded {
        let micros = at.0.rem_euclid(900_000);
        measures.runtime = Durations {
            histogram: Histogram::of(vec![(bucket_of(micros.unsigned_abs()), 1)]),
            sum_micros: micros,
        };
    }
    Some(measures)
}
