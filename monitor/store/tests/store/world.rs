//! A Postgres with Kanchi's schema, and events to put into it.

use std::time::{Duration, Instant};

use kanchi_domain::{
    BodyEncoding, Decoded, Failure, Fingerprint, Limits, RawMessage, TaskFacts, TaskRow, UnixMicros, decode,
};
use kanchi_store::statistics::{Dimension, Durations, Histogram, Measures, Transition, bucket_of};
use kanchi_store::{
    Batch, BrokerKey, BrokerSpec, Epoch, EventChunk, FailureDelta, LastFailure, LiveTask, PackedEvents,
    RetentionPolicy, Settled, StatisticDelta, StoreAdmin, StoreReader, StoreReporter, StoreUrl, StoreWriter,
};
use kanchi_test_servers::postgres::Postgres;
use uuid::Uuid;

pub(crate) const PASSWORD: &str = "canary-password-of-a-monitor";
/// 2026-11-21T00:00:00Z
pub(crate) const NOON: i64 = 1_795_219_200;

pub(crate) struct World {
    pub(crate) server: Postgres,
    pub(crate) admin: StoreAdmin,
    pub(crate) owner: StoreUrl,
}

pub(crate) struct Monitor {
    pub(crate) key: BrokerKey,
    pub(crate) url: StoreUrl,
    pub(crate) writer: StoreWriter,
    pub(crate) reporter: StoreReporter,
    pub(crate) epoch: Epoch,
}

pub(crate) fn spec(name: &str) -> BrokerSpec {
    BrokerSpec {
        namespace_uid: "uid-of-shop".into(),
        namespace: "shop".into(),
        name: name.into(),
        display_name: None,
        retention: RetentionPolicy::default(),
    }
}

pub(crate) fn now() -> UnixMicros {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    UnixMicros(i64::try_from(since.as_micros()).unwrap())
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::on(Postgres::start_new().unwrap()).await
    }

    pub(crate) async fn on(server: Postgres) -> Self {
        let owner = StoreUrl::parse(&server.create_installation("kanchi").unwrap()).unwrap();
        let admin = StoreAdmin::connect(&owner).await.unwrap();
        admin.migrate().await.unwrap();
        Self { server, admin, owner }
    }

    /// A database whose user may not create roles, and no role to share yet.
    pub(crate) async fn without_createrole() -> Self {
        let server = Postgres::start_new().unwrap();
        server
            .sql("postgres", "create role kanchi login password 'owner-of-a-test'")
            .unwrap();
        server.sql("postgres", "create database kanchi owner kanchi").unwrap();
        let owner = StoreUrl::parse(&server.url_of("kanchi", "owner-of-a-test", "kanchi")).unwrap();
        let admin = StoreAdmin::connect(&owner).await.unwrap();
        admin.migrate().await.unwrap();
        Self { server, admin, owner }
    }

    /// A broker with its role, and a monitor that has begun an epoch.
    pub(crate) async fn monitor(&self, name: &str) -> Monitor {
        let key = self.admin.ensure_broker(&spec(name)).await.unwrap();
        let mode = self.admin.ensure_role(key, PASSWORD).await.unwrap();
        let url = self.admin.monitor_url(key, mode, PASSWORD).unwrap();
        let mut writer = StoreWriter::connect(&url, RetentionPolicy::default()).await.unwrap();
        let reporter = StoreReporter::connect(&url, RetentionPolicy::default()).await.unwrap();
        let epoch = writer.begin_epoch("pod-0").await.unwrap();
        assert_eq!(writer.broker_key(), key.0);
        Monitor {
            key,
            url,
            writer,
            reporter,
            epoch,
        }
    }

    pub(crate) async fn reader(&self) -> StoreReader {
        StoreReader::connect(&self.owner).await.unwrap()
    }

    pub(crate) fn sql(&self, sql: &str) -> String {
        self.server.sql("kanchi", sql).unwrap()
    }
}

/// Settles until something moved: on a slow machine a call may rest after the one before.
pub(crate) async fn settle(reporter: &mut StoreReporter, now: UnixMicros) -> Settled {
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        let settled = reporter.settle(now, 0, |_| ()).await.unwrap();
        if settled.moved > 0 {
            return settled;
        }
        assert!(Instant::now() < deadline, "nothing settles");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// An event as Celery sends it, `second` seconds after [`NOON`].
pub(crate) fn event(task_id: &str, kind: &str, second: i64, more: &str) -> kanchi_domain::Event {
    let hostname = if kind == "task-sent" {
        "gen1@client"
    } else {
        "celery@worker"
    };
    let text = format!(
        r#"{{"type":"{kind}","uuid":"{task_id}","hostname":"{hostname}","pid":7,"clock":{second},"utcoffset":0,
            "timestamp":{}.5{more}}}"#,
        NOON + second
    );
    let message = RawMessage {
        body: text.as_bytes(),
        content_type: Some("application/json"),
        content_encoding: Some("utf-8"),
        compression: None,
        body_encoding: BodyEncoding::Raw,
    };
    let Decoded {
        mut events, rejects, ..
    } = decode(&message, now(), &Limits::default());
    assert!(rejects.is_empty(), "{rejects:?}");
    events.remove(0)
}

pub(crate) fn received(task_id: &str, second: i64) -> kanchi_domain::Event {
    let more = r#","name":"shop.charge","args":"(1,)","kwargs":"{}","retries":0,"eta":null,"expires":null"#;
    event(task_id, "task-received", second, more)
}

pub(crate) fn started(task_id: &str, second: i64) -> kanchi_domain::Event {
    event(task_id, "task-started", second, "")
}

pub(crate) fn succeeded(task_id: &str, second: i64) -> kanchi_domain::Event {
    event(task_id, "task-succeeded", second, r#","result":"42","runtime":0.25"#)
}

/// The live row of a task of which these events are known.
pub(crate) fn live(task_id: &str, events: &[kanchi_domain::Event], maybe_stored: bool) -> LiveTask {
    let mut facts = TaskFacts::new();
    for event in events {
        facts.absorb(event);
    }
    LiveTask::new(task_id.into(), facts.encode().into(), facts.project(), maybe_stored)
}

/// The row that a task's facts say.
pub(crate) fn row_of(task: &LiveTask) -> TaskRow {
    TaskFacts::decode(&task.facts).unwrap().project()
}

pub(crate) fn chunk(task_id: &str, events: &[kanchi_domain::Event]) -> EventChunk {
    let texts: Vec<String> = events.iter().map(kanchi_domain::Event::to_json).collect();
    EventChunk {
        task_id: Some(task_id.into()),
        first_at: events[0].timestamp,
        count: u16::try_from(events.len()).unwrap(),
        events: PackedEvents::pack(&format!("[{}]", texts.join(",")), Some(task_id)),
    }
}

/// What a chunk says.
pub(crate) fn json(chunk: &EventChunk) -> Vec<u8> {
    chunk.events.unpack(chunk.task_id.as_deref()).unwrap()
}

/// So many tasks of a name that succeeded within a minute, each in a quarter of a second.
pub(crate) fn succeeded_tasks(at: UnixMicros, name: &str, count: i64) -> StatisticDelta {
    let mut measures = Measures::default();
    measures.counts.add(Transition::Succeeded, count);
    measures.runtime = Durations {
        histogram: Histogram::of(vec![(bucket_of(250_000), count)]),
        sum_micros: count.saturating_mul(250_000),
    };
    StatisticDelta {
        minute: UnixMicros(at.0.saturating_sub(at.0.rem_euclid(60_000_000))),
        dimension: Dimension::Task,
        key: name.to_owned(),
        measures,
    }
}

/// So many failures more of a task with this message, the last of them then.
pub(crate) fn failed_tasks(at: UnixMicros, task: &str, message: &str, count: i64) -> FailureDelta {
    let last = LastFailure {
        at,
        task_id: format!("{task}-{message}").into(),
        exception: Some(format!("ValueError('{message}')").into()),
    };
    FailureDelta {
        group: Failure {
            fingerprint: Fingerprint::of(task, "ValueError", message),
            task: task.into(),
            exception_class: "ValueError".into(),
            message: message.to_owned(),
        },
        failed: count,
        critical: 0,
        first_at: (count > 0).then_some(at),
        last: (count > 0).then_some(last),
    }
}

pub(crate) fn batch(epoch: Epoch, tasks: Vec<LiveTask>) -> Batch {
    let mut batch = Batch::default();
    batch.head.id = Uuid::new_v4();
    batch.head.epoch = epoch;
    batch.changes.tasks = tasks;
    batch
}
