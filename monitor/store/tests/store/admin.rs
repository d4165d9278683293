//! The operator's side.

use std::time::Duration;

use kanchi_domain::UnixMicros;
use kanchi_store::{
    ErrorKind, GapRow, Heartbeat, QueueRow, RetentionClass, RetentionPolicy, Room, StoreAdmin, StoreUrl, StoreWriter,
    TopQueue,
};
use kanchi_test_servers::postgres::Postgres;
use uuid::Uuid;

use crate::world::{World, batch, chunk, live, now, received, spec, started, succeeded};

const ID: &str = "6b2c9f5e-0000-4000-8000-000000000001";
const DAY: i64 = 86_400_000_000;

fn days_from_now(days: i64) -> UnixMicros {
    UnixMicros(now().0 + days * DAY)
}

#[tokio::test]
async fn several_may_migrate_at_once_and_again() {
    let server = Postgres::start_new().unwrap();
    let url = StoreUrl::parse(&server.create_installation("kanchi").unwrap()).unwrap();
    let admin = StoreAdmin::connect(&url).await.unwrap();
    let (a, b, c) = tokio::join!(admin.migrate(), admin.migrate(), admin.migrate());
    a.and(b).and(c).unwrap();
    let before = server.sql("kanchi", "select pg_current_wal_insert_lsn()").unwrap();
    admin.migrate().await.unwrap();
    let applied = server
        .sql("kanchi", "select count(*), max(version) from kanchi.migration")
        .unwrap();
    assert_eq!(applied, format!("{0}|{0}", kanchi_store::SCHEMA_VERSION));
    let written = server
        .sql("kanchi", &format!("select pg_current_wal_insert_lsn() - '{before}'"))
        .unwrap();
    assert!(
        written.parse::<i64>().unwrap() < 10_000,
        "a second migration writes next to nothing: {written} bytes"
    );
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_an_older_one_waited_for() {
    let world = World::new().await;
    let m = world.monitor("orders").await;
    world.sql("insert into kanchi.migration (version, name) values (9999, 'future')");
    assert_eq!(world.admin.migrate().await.unwrap_err().kind(), ErrorKind::SchemaTooNew);
    drop(m.reporter);
    StoreWriter::connect(&m.url, RetentionPolicy::default())
        .await
        .expect("schemas only expand: writers go on");
    world.sql("delete from kanchi.migration where version > 1");
    drop(m.writer);
    let error = StoreWriter::connect(&m.url, RetentionPolicy::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MigrationPending, "{error}");
}

#[tokio::test]
async fn a_database_belongs_to_one_installation() {
    let world = World::new().await;
    world.admin.claim_installation("first").await.unwrap();
    world.admin.claim_installation("first").await.unwrap();
    let error = world.admin.claim_installation("second").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ForeignInstallation);
    assert!(error.to_string().contains("first"), "{error}");
}

#[tokio::test]
async fn a_broker_keeps_its_key_and_its_history() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    m.writer
        .commit(&batch(m.epoch, vec![live(ID, &[received(ID, 0)], false)]))
        .await
        .unwrap();
    world.admin.retire_broker(m.key).await.unwrap();
    assert_eq!(
        m.writer.load_facts(&[ID]).await.unwrap_err().kind(),
        ErrorKind::Unreachable,
        "its session was ended"
    );
    assert!(world.admin.reports().await.unwrap().is_empty());

    let again = world.monitor("orders").await;
    assert_eq!(again.key, m.key);
    assert!(world.reader().await.task(m.key.0, ID, now()).await.unwrap().is_some());
    let elsewhere = kanchi_store::BrokerSpec {
        namespace_uid: "another-tenant".into(),
        ..spec("orders")
    };
    assert_ne!(world.admin.ensure_broker(&elsewhere).await.unwrap(), m.key);
}

#[tokio::test]
async fn a_changed_retention_is_kept_and_applies_to_new_rows() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let policy = RetentionPolicy {
        events: RetentionClass::Days90,
        ..RetentionPolicy::default()
    };
    world.admin.set_retention(m.key, policy).await.unwrap();
    assert_eq!(world.sql("select events_days from kanchi.broker"), "90");
    let one = || {
        let mut one = batch(m.epoch, vec![]);
        one.head.chunks = vec![chunk(ID, &[received(ID, 0)])];
        one
    };
    m.writer.commit(&one()).await.unwrap();
    m.writer.reconfigure(&m.url, policy);
    m.writer.commit(&one()).await.unwrap();
    assert_eq!(
        world.sql("select retention_days from kanchi.event_chunk order by 1"),
        "7\n90"
    );
}

#[tokio::test]
async fn partitions_are_made_ahead_and_dropped_when_their_class_is_over() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    // Before the first upkeep rows fall into the default partitions, and move over.
    let whole = [received(ID, 0), started(ID, 1), succeeded(ID, 2)];
    let store = |epoch| {
        let mut one = batch(epoch, vec![live(ID, &whole, false)]);
        one.head.chunks = vec![chunk(ID, &whole)];
        one
    };
    m.writer.commit(&store(m.epoch)).await.unwrap();
    assert_eq!(
        world.sql("select tableoid::regclass from kanchi.event_chunk"),
        "kanchi.event_chunk_7_default"
    );
    assert_eq!(world.admin.last_upkeep().await.unwrap(), None);
    let done = world.admin.upkeep(now()).await.unwrap();
    assert!(
        done.created > 50 && done.dropped == 0 && done.postponed == 0,
        "{done:?}"
    );
    let (age, kept) = world.admin.last_upkeep().await.unwrap().unwrap();
    assert!(kept == done && age < Duration::from_mins(1), "{kept:?} {age:?}");
    let day = world.sql("select to_char(now() at time zone 'UTC', 'YYYYMMDD')");
    assert_eq!(
        world.sql("select tableoid::regclass from kanchi.event_chunk"),
        format!("kanchi.event_chunk_7_{day}")
    );
    assert_eq!(
        world.admin.upkeep(now()).await.unwrap(),
        kanchi_store::Upkeep::default(),
        "nothing is left to do"
    );

    world.admin.upkeep(days_from_now(6)).await.unwrap();
    assert_eq!(world.sql("select count(*) from kanchi.event_chunk"), "1");
    let expiring = world.admin.expiring(days_from_now(9)).await.unwrap();
    let events = format!("event_chunk_7_{day}");
    assert!(
        expiring.iter().any(|one| one.partition == events && one.bytes > 0),
        "{expiring:?}"
    );
    let done = world.admin.upkeep(days_from_now(9)).await.unwrap();
    assert_eq!(done.dropped, expiring.len() as u64, "what was foretold");
    assert_eq!(
        world.sql("select count(*) from kanchi.event_chunk"),
        "0",
        "events: 7 days"
    );
    assert_eq!(
        world.sql("select count(*) from kanchi.task"),
        "1",
        "succeeded tasks: 14 days"
    );
    world.admin.upkeep(days_from_now(16)).await.unwrap();
    assert_eq!(world.sql("select count(*) from kanchi.task"), "0");
    // The writer goes on in whatever partitions there are.
    m.writer.commit(&store(m.epoch)).await.unwrap();
}

#[tokio::test]
async fn what_was_stored_while_nobody_kept_partitions_is_dropped_in_its_time() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let whole = [received(ID, 0), started(ID, 1), succeeded(ID, 2)];
    let mut batch = batch(m.epoch, vec![live(ID, &whole, false)]);
    batch.head.chunks = vec![chunk(ID, &whole)];
    m.writer.commit(&batch).await.unwrap();
    let counts = "select (select count(*) from kanchi.event_chunk), (select count(*) from kanchi.task)";
    world.admin.upkeep(days_from_now(6)).await.unwrap();
    assert_eq!(world.sql(counts), "1|1");
    assert_eq!(world.sql("select count(*) from only kanchi.event_chunk_7_default"), "0");
    world.admin.upkeep(days_from_now(30)).await.unwrap();
    assert_eq!(world.sql(counts), "0|0");
}

#[tokio::test]
async fn the_number_of_partitions_is_bounded() {
    let world = World::new().await;
    let mut most = 0;
    for days in [0, 3, 400, 403] {
        world.admin.upkeep(days_from_now(days)).await.unwrap();
        let count = world.sql("select count(*) from pg_class where relnamespace = 'kanchi'::regnamespace and relispartition and relkind = 'r'");
        most = most.max(count.parse::<u32>().unwrap());
    }
    assert!(most < 400, "{most}");
}

#[tokio::test]
async fn migration_and_upkeep_exclude_each_other() {
    let world = World::new().await;
    let (a, b, c) = tokio::join!(
        world.admin.upkeep(now()),
        world.admin.migrate(),
        world.admin.upkeep(now())
    );
    b.unwrap();
    let (a, c) = (a.unwrap(), c.unwrap());
    assert!(a.created == 0 || c.created == 0, "{a:?} {c:?}");
}

#[tokio::test]
async fn a_partition_that_is_in_use_is_left_for_the_next_upkeep() {
    let world = World::new().await;
    world.admin.upkeep(now()).await.unwrap();
    // A reader that never ends holds every partition of the parent it looked at.
    let mut reader = sqlx_reader(&world, "kanchi.event_chunk_1").await;
    let done = world.admin.upkeep(days_from_now(4)).await.unwrap();
    assert!(done.postponed > 0, "{done:?}");
    sqlx::query("rollback").execute(&mut reader).await.unwrap();
    let done = world.admin.upkeep(days_from_now(4)).await.unwrap();
    assert_eq!(done.postponed, 0, "{done:?}");
}

async fn sqlx_reader(world: &World, table: &str) -> sqlx::PgConnection {
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(world.owner.expose())
        .await
        .unwrap();
    sqlx::query("begin isolation level repeatable read")
        .execute(&mut connection)
        .await
        .unwrap();
    sqlx::query(&format!("select count(*) from {table}"))
        .execute(&mut connection)
        .await
        .unwrap();
    connection
}

#[tokio::test]
async fn reports_tell_what_monitors_said() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let mut hints = world.admin.listen().await.unwrap();
    let report = &world.admin.reports().await.unwrap()[0];
    assert_eq!(
        (report.key, &report.heartbeat, report.heartbeat_age),
        (m.key, &None, None)
    );

    let beat = Heartbeat {
        instance: "orders-monitor-0".into(),
        version: "0.1.0".into(),
        connection: "Disconnected".into(),
        reason: Some("ConnectionRefused".into()),
        message: Some("refused\0".into()),
        broker_version: None,
        last_event_at: Some(UnixMicros(1_795_219_200_123_456)),
        lag_seconds: Some(0.5),
        events_per_second: Some(12.5),
        workers_online: Some(3),
        messages_queued: None,
        spool_bytes: Some(u64::MAX),
        event_queue: Some("q".into()),
        config_error: Some("bad".into()),
        store_error: Some("Forbidden".into()),
        complete_until: Some(UnixMicros(1_795_219_200_000_000)),
    };
    m.reporter.heartbeat(&beat).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), hints.next())
        .await
        .expect("a change of state is told")
        .unwrap();
    let queue = |name: &str, ready| QueueRow {
        name: name.into(),
        ready,
        unacked: None,
        consumers: Some(2),
    };
    let queues: Vec<QueueRow> = (0..7).map(|n| queue(&format!("q{n}"), n)).collect();
    m.reporter.save_queues(now(), &queues).await.unwrap();
    let gap = GapRow {
        id: Uuid::new_v4(),
        from: now(),
        to: None,
        cause: "SpoolFull".into(),
        estimated_events: None,
    };
    m.reporter.save_gap(&gap).await.unwrap();

    let report = &world.admin.reports().await.unwrap()[0];
    let expected = Heartbeat {
        message: Some("refused\u{fffd}".into()),
        spool_bytes: Some(i64::MAX as u64),
        ..beat
    };
    assert_eq!(report.heartbeat, Some(expected));
    assert!(report.heartbeat_age.unwrap() < Duration::from_mins(1));
    assert_eq!((report.gaps_last_day, report.gaps_open), (1, 1));
    assert_eq!(report.top_queues.len(), 5);
    assert_eq!(
        report.top_queues[0],
        TopQueue {
            name: "q6".into(),
            ready: 6,
            consumers: Some(2)
        }
    );
}

#[tokio::test]
async fn room_is_made_in_the_live_table_once_enough_of_it_is_dead() {
    let world = World::new().await;
    assert_eq!(world.admin.make_room().await.unwrap(), Room::Enough);
    // Else Postgres may be first.
    world.sql("alter table kanchi.task_live set (autovacuum_enabled = false)");
    world.sql(
        "insert into kanchi.task_live (broker_id, task_id, facts, state)
         select 1, 'task-' || n, '', 'STARTED' from generate_series(1, 30000) as n",
    );
    let size = || world.sql("select pg_relation_size('kanchi.task_live')");
    let (full, again) = (
        size(),
        "insert into kanchi.task_live (broker_id, task_id, facts, state)
        select 1, 'again-' || n, '', 'STARTED' from generate_series(1, 30000) as n",
    );
    let reader = sqlx_reader(&world, "kanchi.task_live").await;
    world.sql("delete from kanchi.task_live");
    // The counts come from the statistics, a moment later.
    let until = async |wanted: Room| {
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while world.admin.make_room().await.unwrap() != wanted {
            assert!(
                std::time::Instant::now() < deadline,
                "30,000 dead rows are not {wanted:?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    until(Room::Held).await;
    drop(reader);
    until(Room::Made).await;
    world.sql(again);
    assert_eq!(size(), full, "new rows take the place of the dead ones");
}
