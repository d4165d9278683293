//! The monitor's side.

use kanchi_domain::{TaskState, UnixMicros};
use kanchi_store::{
    DeadLetter, ErrorKind, EventChunk, GapRow, Heartbeat, LiveTask, PackedEvents, QueueRow, RetentionPolicy,
    StatisticDelta, StoreQuery, StoreReporter, StoreUrl, StoreWriter, WorkerRow,
};
use uuid::Uuid;

use crate::world::{
    self, NOON, World, batch, chunk, live, now, received, row_of, settle, started, succeeded, succeeded_tasks,
};

const ID: &str = "6b2c9f5e-0000-4000-8000-000000000001";
const OTHER: &str = "6b2c9f5e-0000-4000-8000-000000000002";

fn seconds(second: i64) -> UnixMicros {
    UnixMicros((NOON + second) * 1_000_000)
}

fn worker(hostname: &str, second: i64) -> WorkerRow {
    WorkerRow {
        hostname: hostname.into(),
        pid: Some(7),
        state: "online".into(),
        freq: Some(2.0),
        active: Some(3),
        processed: Some(10),
        loadavg: Some([0.5, 0.25, 0.125]),
        sw_ident: Some("py-celery".into()),
        sw_ver: Some("5.5.3".into()),
        sw_sys: Some("Linux".into()),
        pool: Some("prefork".into()),
        started_at: None,
        last_event_at: seconds(second),
        last_heartbeat_at: Some(seconds(second)),
    }
}

#[tokio::test]
async fn a_task_goes_from_live_to_history_with_its_events() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let begun = [received(ID, 0), started(ID, 1)];
    let whole = [received(ID, 0), started(ID, 1), succeeded(ID, 2)];

    let mut first = batch(m.epoch, vec![live(ID, &begun, false)]);
    first.head.chunks = vec![chunk(ID, &begun)];
    m.writer.commit(&first).await.unwrap();
    let facts = m.writer.load_facts(&[ID, OTHER]).await.unwrap();
    assert_eq!(facts.get(ID).map(Vec::as_slice), Some(&*first.changes.tasks[0].facts));
    assert_eq!(facts.len(), 1);

    let mut second = batch(m.epoch, vec![live(ID, &whole, true)]);
    second.head.chunks = vec![chunk(ID, &whole[2..])];
    m.writer.commit(&second).await.unwrap();
    let mut reader = world.reader().await;
    assert_eq!(world.sql("select count(*) from kanchi.task_live"), "0");
    let task = reader.task(m.key.0, ID, now()).await.unwrap().unwrap();
    assert_eq!((task.live, task.settled_rows), (false, 1));
    assert_eq!(task.row, row_of(&second.changes.tasks[0]));
    assert_eq!(reader.events(m.key.0, ID).await.unwrap().len(), 2);
    assert_eq!(
        reader.count_by_state(m.key.0).await.unwrap(),
        [("SUCCESS".to_owned(), 1)]
    );
    let row = world.sql("select state, name, worker, retries, args, result, runtime, retention_days from kanchi.task");
    assert_eq!(row, "SUCCESS|shop.charge|celery@worker|0|(1,)|42|0.25|14");
}

#[tokio::test]
async fn an_end_whose_beginning_was_not_seen_lingers_before_it_settles() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let end = [succeeded(ID, 2)];
    m.writer
        .commit(&batch(m.epoch, vec![live(ID, &end, false)]))
        .await
        .unwrap();
    assert_eq!(
        m.reporter.settle(now(), 3600, |_| ()).await.unwrap().moved,
        0,
        "it lingers"
    );
    let settled = settle(&mut m.reporter, now()).await;
    assert_eq!((settled.moved, settled.merged, settled.more), (1, 0, false));
    let task = world.reader().await.task(m.key.0, ID, now()).await.unwrap().unwrap();
    assert_eq!((task.live, task.settled_rows), (false, 1));
}

#[tokio::test]
async fn a_rerun_over_two_batches_and_one_whose_row_has_left_end_in_one_row() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let whole = [received(ID, 0), started(ID, 1), succeeded(ID, 2)];
    m.writer
        .commit(&batch(m.epoch, vec![live(ID, &whole, false)]))
        .await
        .unwrap();
    let again = [received(ID, 100), started(ID, 101), succeeded(ID, 102)];
    m.writer
        .commit(&batch(m.epoch, vec![live(ID, &again[..2], false)]))
        .await
        .unwrap();
    // The writer remembers a row that was there; OTHER's has left meanwhile.
    let tasks = vec![
        live(ID, &again, true),
        live(
            OTHER,
            &[received(OTHER, 0), started(OTHER, 1), succeeded(OTHER, 2)],
            true,
        ),
    ];
    m.writer.commit(&batch(m.epoch, tasks)).await.unwrap();
    let rows = "select (select count(*) from kanchi.task_live), (select count(*) from kanchi.task)";
    assert_eq!(world.sql(rows), "2|1", "both may be in history");

    let settled = settle(&mut m.reporter, now()).await;
    assert_eq!((settled.moved, settled.merged), (2, 1));
    assert_eq!(world.sql(rows), "0|2");
    let mut all = whole.to_vec();
    all.extend(again);
    let task = world.reader().await.task(m.key.0, ID, now()).await.unwrap().unwrap();
    assert_eq!((task.settled_rows, task.row), (1, row_of(&live(ID, &all, false))));
}

#[tokio::test]
async fn a_rerun_that_takes_long_does_not_lose_the_run_before() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let rows = "select (select count(*) from kanchi.task_live), (select count(*) from kanchi.task)";
    let whole = [received(ID, 0), started(ID, 1), succeeded(ID, 2)];
    let again = [received(ID, 100), started(ID, 101), succeeded(ID, 102)];
    let first = batch(m.epoch, vec![live(ID, &whole, false)]);
    m.writer.commit(&first).await.unwrap();
    let second = batch(m.epoch, vec![live(ID, &again[..2], false)]);
    m.writer.commit(&second).await.unwrap();
    // It is looked up in history now, and found.
    assert_eq!(m.reporter.settle(now(), 0, |_| ()).await.unwrap().moved, 0);
    assert_eq!(world.sql(rows), "1|1");

    // Whoever saw the second run only knows nothing of the first.
    let ended = batch(m.epoch, vec![live(ID, &again, true)]);
    m.writer.commit(&ended).await.unwrap();
    settle(&mut m.reporter, now()).await;
    assert_eq!(world.sql(rows), "0|1");
    let task = world.reader().await.task(m.key.0, ID, now()).await.unwrap().unwrap();
    assert_eq!(task.row, row_of(&live(ID, &[whole, again].concat(), false)));
}

#[tokio::test]
async fn a_task_that_begins_and_ends_in_one_batch_goes_straight_to_history() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let whole = [received(ID, 0), started(ID, 1), succeeded(ID, 2)];
    m.writer
        .commit(&batch(m.epoch, vec![live(ID, &whole, false)]))
        .await
        .unwrap();
    assert_eq!(world.sql("select count(*) from kanchi.task_live"), "0");
    let task = world.reader().await.task(m.key.0, ID, now()).await.unwrap().unwrap();
    assert_eq!((task.row.state, task.settled_rows), (TaskState::Success, 1));
}

#[tokio::test]
async fn late_events_and_reruns_of_an_archived_task_end_in_one_row() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let mut reader = world.reader().await;
    let whole = [received(ID, 10), started(ID, 11), succeeded(ID, 12)];
    m.writer
        .commit(&batch(m.epoch, vec![live(ID, &whole, false)]))
        .await
        .unwrap();

    // The publisher's event comes after the end; nobody remembers the task any more.
    let sent = world::event(
        ID,
        "task-sent",
        9,
        r#","name":"shop.charge","queue":"billing","retries":0"#,
    );
    m.writer
        .commit(&batch(m.epoch, vec![live(ID, std::slice::from_ref(&sent), false)]))
        .await
        .unwrap();
    let task = reader.task(m.key.0, ID, now()).await.unwrap().unwrap();
    assert_eq!(
        (task.row.state, task.row.queue.as_deref()),
        (TaskState::Success, Some("billing"))
    );

    // A lone late event does not look final, so it would stay live for ever if nobody looked into history for it.
    settle(&mut m.reporter, now()).await;
    // The same id runs again, wholly within a batch.
    let again = [received(ID, 100), started(ID, 101), succeeded(ID, 102)];
    m.writer
        .commit(&batch(m.epoch, vec![live(ID, &again, false)]))
        .await
        .unwrap();
    settle(&mut m.reporter, now()).await;

    let task = reader.task(m.key.0, ID, now()).await.unwrap().unwrap();
    assert_eq!((task.live, task.settled_rows), (false, 1), "{:?}", task.row);
    assert_eq!(world.sql("select count(*) from kanchi.task"), "1");
    let mut all = whole.to_vec();
    all.extend(again);
    all.push(sent);
    assert_eq!(task.row, row_of(&live(ID, &all, false)));
}

#[tokio::test]
async fn a_task_past_its_expires_is_expired_without_an_event() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let past = r#","name":"shop.charge","queue":"billing","retries":0,"expires":"2026-11-21T00:01:00+00:00""#;
    let future = r#","name":"shop.charge","queue":"billing","retries":0,"expires":"2096-11-21T00:01:00+00:00""#;
    let tasks = vec![
        live(ID, &[world::event(ID, "task-sent", 0, past)], false),
        live(OTHER, &[world::event(OTHER, "task-sent", 0, future)], false),
    ];
    m.writer.commit(&batch(m.epoch, tasks)).await.unwrap();
    assert_eq!(settle(&mut m.reporter, seconds(7200)).await.moved, 1);
    assert_eq!(
        world.sql("select state, queue, retention_days from kanchi.task"),
        "EXPIRED|billing|30"
    );
    assert_eq!(world.sql("select task_id from kanchi.task_live"), OTHER);
}

#[tokio::test]
async fn a_broken_promise_that_a_task_is_new_costs_only_time() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    m.writer
        .commit(&batch(m.epoch, vec![live(ID, &[received(ID, 0)], false)]))
        .await
        .unwrap();
    m.writer
        .commit(&batch(
            m.epoch,
            vec![live(ID, &[received(ID, 0), started(ID, 1)], false)],
        ))
        .await
        .unwrap();
    assert_eq!(world.sql("select state from kanchi.task_live"), "STARTED");
}

#[tokio::test]
async fn a_batch_is_stored_once_and_wholly() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let mut whole = batch(m.epoch, vec![live(ID, &[received(ID, 0)], false)]);
    whole.head.digests = vec![1, u128::MAX];
    whole.head.chunks = vec![chunk(ID, &[received(ID, 0)])];
    whole.head.workers = vec![worker("celery@worker", 5)];
    whole.changes.statistics = vec![succeeded_tasks(seconds(0), "shop.charge", 2)];
    whole.head.gaps = vec![GapRow {
        id: Uuid::new_v4(),
        from: seconds(0),
        to: None,
        cause: "BrokerRestart".into(),
        estimated_events: Some(5),
    }];
    whole.head.dead_letters = vec![DeadLetter {
        arrived: now(),
        reason: "Pickle".into(),
        detail: "no\0".into(),
        sample: vec![0, 255],
    }];
    assert!(!m.writer.was_committed(whole.head.id).await.unwrap());
    m.writer.commit(&whole).await.unwrap();
    m.writer.commit(&whole).await.unwrap();
    assert!(m.writer.was_committed(whole.head.id).await.unwrap());
    assert_eq!(m.writer.recent_digests().await.unwrap(), [1, u128::MAX].into());
    for table in [
        "event_chunk",
        "task_live",
        "worker",
        "statistic_delta",
        "gap",
        "dead_letter",
        "batch",
    ] {
        assert_eq!(
            world.sql(&format!("select count(*) from kanchi.{table}")),
            "1",
            "{table}"
        );
    }
    assert_eq!(
        world.sql("select reason, detail, sample from kanchi.dead_letter"),
        "Pickle|no\u{fffd}|\\x00ff"
    );
    let open = m.reporter.open_gaps().await.unwrap();
    assert_eq!(open, whole.head.gaps);
    m.reporter
        .save_gap(&GapRow {
            to: Some(seconds(3)),
            ..open[0].clone()
        })
        .await
        .unwrap();
    assert!(m.reporter.open_gaps().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_batch_goes_ahead_beside_the_one_before_it_and_is_stored_in_its_turn() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let mut second = StoreWriter::connect(&m.url, RetentionPolicy::default()).await.unwrap();
    let whole = |id: &str, maybe_stored: bool| {
        let mut whole = batch(m.epoch, vec![live(id, &[received(id, 0)], maybe_stored)]);
        whole.head.chunks = vec![chunk(id, &[received(id, 0)])];
        whole
    };
    let (one, two) = (whole(ID, false), whole(OTHER, false));
    let stored = || world.sql("select (select count(*) from kanchi.batch), count(*) from kanchi.event_chunk");
    m.writer.begin_batch(&one.head).await.unwrap();
    second.begin_batch(&two.head).await.unwrap();
    assert_eq!(stored(), "0|0", "nothing before its end");
    m.writer.commit(&one).await.unwrap();
    assert_eq!(stored(), "1|1");
    second.commit(&two).await.unwrap();
    assert_eq!(stored(), "2|2");

    // Whatever else is asked, the batch is stored from its beginning.
    let three = whole("three", true);
    m.writer.begin_batch(&three.head).await.unwrap();
    assert!(!m.writer.was_committed(three.head.id).await.unwrap());
    m.writer.commit(&three).await.unwrap();
    let four = whole("four", true);
    m.writer.begin_batch(&four.head).await.unwrap();
    m.writer.commit(&three).await.unwrap();
    m.writer.commit(&four).await.unwrap();
    assert_eq!(stored(), "4|4");
    m.writer.begin_batch(&four.head).await.unwrap();
    m.writer.commit(&four).await.unwrap();
    assert_eq!(stored(), "4|4", "once");
}

#[tokio::test]
async fn a_task_that_settles_between_two_batches_under_way_ends_in_one_row() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let mut second = StoreWriter::connect(&m.url, RetentionPolicy::default()).await.unwrap();
    let rows = "select (select count(*) from kanchi.task_live), (select count(*) from kanchi.task)";
    let events = [succeeded(ID, 2), started(ID, 1), received(ID, 0)];
    let begun = batch(m.epoch, vec![live(ID, &events[..1], false)]);
    m.writer.commit(&begun).await.unwrap();
    let born = live(
        OTHER,
        &[received(OTHER, 0), started(OTHER, 1), succeeded(OTHER, 2)],
        false,
    );
    let (one, two) = (
        batch(m.epoch, vec![live(ID, &events[..2], true)]),
        batch(m.epoch, vec![live(ID, &events, true), born]),
    );
    second.begin_batch(&two.head).await.unwrap();
    second.go_ahead(two.head.id, &two.changes).await.unwrap();
    settle(&mut m.reporter, now()).await;
    assert_eq!(world.sql(rows), "0|1", "what goes ahead is not to be seen yet");
    m.writer.commit(&one).await.unwrap();
    second.commit(&two).await.unwrap();
    assert_eq!(world.sql(rows), "1|2", "one is in history, one to be merged with it");
    settle(&mut m.reporter, now()).await;
    assert_eq!(world.sql(rows), "0|2");
    let task = world.reader().await.task(m.key.0, ID, now()).await.unwrap().unwrap();
    assert_eq!(task.row, row_of(&live(ID, &events, false)));
}

#[tokio::test]
async fn an_archived_task_that_was_thought_to_be_new_is_merged_all_the_same() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let rows = "select (select count(*) from kanchi.task_live), (select count(*) from kanchi.task)";
    let whole = [received(ID, 0), started(ID, 1), succeeded(ID, 2)];
    let archived = batch(m.epoch, vec![live(ID, &whole, false)]);
    m.writer.commit(&archived).await.unwrap();
    let late = batch(m.epoch, vec![live(ID, &whole[..1], false)]);
    m.writer.commit(&late).await.unwrap();
    assert_eq!(world.sql(rows), "1|1");

    let born = [received(OTHER, 7_200), started(OTHER, 7_201), succeeded(OTHER, 7_202)];
    let again = vec![live(ID, &whole, false), live(OTHER, &born, false)];
    m.writer.commit(&batch(m.epoch, again)).await.unwrap();
    assert_eq!(world.sql(rows), "2|1", "by the slow way, both of them");
    settle(&mut m.reporter, now()).await;
    assert_eq!(world.sql(rows), "0|2");
}

#[tokio::test]
async fn a_batch_that_postgres_refuses_leaves_nothing_and_the_next_one_goes_on() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let mut bad = batch(m.epoch, vec![live(ID, &[received(ID, 0)], false)]);
    bad.changes.tasks.push(LiveTask {
        task_id: "nul\0".into(),
        ..bad.changes.tasks[0].clone()
    });
    let error = m.writer.commit(&bad).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data, "{error}");
    assert_eq!(world.sql("select count(*) from kanchi.batch"), "0");
    bad.changes.tasks.pop();
    m.writer.commit(&bad).await.unwrap();
    assert_eq!(world.sql("select task_id from kanchi.task_live"), ID);
}

#[tokio::test]
async fn tasks_of_more_than_one_statement_are_merged_in_one_transaction() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let tasks = |is_started: bool| {
        let task = |number: usize| {
            let id = format!("task-{number}");
            let events = [received(&id, 0), started(&id, 1)];
            live(&id, &events[..=usize::from(is_started)], true)
        };
        (0..2_500).map(task).collect::<Vec<_>>()
    };
    let counts = || world.sql("select state, count(*) from kanchi.task_live group by 1");
    m.writer.commit(&batch(m.epoch, tasks(false))).await.unwrap();
    assert_eq!(counts(), "RECEIVED|2500");
    let mut bad = batch(m.epoch, tasks(true));
    bad.changes.tasks.last_mut().unwrap().task_id = "nul\0".into();
    assert_eq!(m.writer.commit(&bad).await.unwrap_err().kind(), ErrorKind::Data);
    assert_eq!(counts(), "RECEIVED|2500", "all of it or nothing");
    m.writer.commit(&batch(m.epoch, tasks(true))).await.unwrap();
    assert_eq!(counts(), "STARTED|2500");
}

#[tokio::test]
async fn a_newer_writer_fences_an_older_one() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let newer = m.reporter.previous().await.map(|_| m.epoch).unwrap();
    drop(m.reporter);
    let mut second = StoreWriter::connect(&m.url, RetentionPolicy::default()).await.unwrap();
    let epoch = second.begin_epoch("pod-1").await.unwrap();
    assert!(epoch > newer);
    let error = m
        .writer
        .commit(&batch(m.epoch, vec![live(ID, &[received(ID, 0)], false)]))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StaleEpoch);
    second
        .commit(&batch(epoch, vec![live(ID, &[received(ID, 0)], false)]))
        .await
        .unwrap();
}

#[tokio::test]
async fn batches_that_go_ahead_keep_no_newer_writer_out_and_are_fenced_by_it() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let mut newer = StoreWriter::connect(&m.url, RetentionPolicy::default()).await.unwrap();
    let ahead = batch(m.epoch, vec![live(ID, &[received(ID, 0)], false)]);
    m.writer.begin_batch(&ahead.head).await.unwrap();
    let epoch = newer.begin_epoch("pod-1").await.unwrap();
    assert!(epoch > m.epoch);
    let error = m.writer.commit(&ahead).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StaleEpoch, "{error}");
    assert_eq!(world.sql("select count(*) from kanchi.batch"), "0");
}

#[tokio::test]
async fn two_monitors_and_a_successor_are_let_in_and_nobody_else() {
    let world = World::new().await;
    let m = world.monitor("orders").await;
    let retention = RetentionPolicy::default();
    let mut others = Vec::new();
    let ahead = StoreWriter::connect(&m.url, retention).await.unwrap();
    for _ in 0..2 {
        let writers = [
            StoreWriter::connect(&m.url, retention).await.unwrap(),
            StoreWriter::connect(&m.url, retention).await.unwrap(),
        ];
        others.push((writers, StoreReporter::connect(&m.url, retention).await.unwrap()));
    }
    let error = StoreWriter::connect(&m.url, RetentionPolicy::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionLimit, "{error}");
    drop(ahead);
}

#[tokio::test]
async fn an_outage_is_named_and_over_when_the_server_is_back() {
    let mut world = World::new().await;
    let mut m = world.monitor("orders").await;
    let one = batch(m.epoch, vec![live(ID, &[received(ID, 0)], false)]);
    world.server.stop().unwrap();
    assert_eq!(m.writer.commit(&one).await.unwrap_err().kind(), ErrorKind::Unreachable);
    assert_eq!(m.writer.commit(&one).await.unwrap_err().kind(), ErrorKind::Unreachable);
    assert_eq!(
        m.reporter.heartbeat(&Heartbeat::default()).await.unwrap_err().kind(),
        ErrorKind::Unreachable
    );
    world.server.start().unwrap();
    assert!(!m.writer.was_committed(one.head.id).await.unwrap());
    m.writer.commit(&one).await.unwrap();
    m.reporter.heartbeat(&Heartbeat::default()).await.unwrap();
}

#[tokio::test]
async fn a_wrong_password_is_named_and_a_rotated_one_taken_up() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    world
        .admin
        .ensure_role(m.key, "another-password-of-a-monitor")
        .await
        .unwrap();
    m.writer.load_facts(&[ID]).await.unwrap();
    let old = StoreUrl::parse(m.url.expose()).unwrap();
    drop(m.reporter);
    let error = StoreWriter::connect(&old, RetentionPolicy::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AuthenticationFailed, "{error}");
    let url = m.url.for_role(m.url.role(), "another-password-of-a-monitor").unwrap();
    m.writer.reconfigure(&url, RetentionPolicy::default());
    m.writer.load_facts(&[ID]).await.unwrap();
}

#[tokio::test]
async fn digests_are_kept_by_count_and_batches_pruned() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    for number in 0..70u128 {
        let digests = (0..8192).map(|n| number << 64 | n).collect();
        let mut one = batch(m.epoch, vec![]);
        one.head.digests = digests;
        m.writer.commit(&one).await.unwrap();
    }
    let kept = m.writer.recent_digests().await.unwrap();
    assert!(kept.contains(&(69 << 64)) && !kept.contains(&1), "the newest are kept");
    assert_eq!(kept.len(), 262_144);
    m.reporter.settle(now(), 300, |_| ()).await.unwrap();
    assert_eq!(world.sql("select count(*) from kanchi.batch"), "64");
}

#[tokio::test]
async fn dead_letters_are_bounded() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    for _ in 0..3 {
        let letter = |n: i64| DeadLetter {
            arrived: UnixMicros(n),
            reason: "Json".into(),
            detail: "d".repeat(5000),
            sample: vec![7; 9000],
        };
        let dead_letters = (0..600).map(letter).collect();
        let mut one = batch(m.epoch, vec![]);
        one.head.dead_letters = dead_letters;
        m.writer.commit(&one).await.unwrap();
    }
    let kept = world.sql("select count(*), max(length(sample)), max(length(detail)) from kanchi.dead_letter");
    assert_eq!(kept, "1000|4096|1024");
}

#[tokio::test]
async fn a_workers_pool_outlives_the_monitor_that_learned_it_and_is_forgotten_with_its_process() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let of_pool = |pool: Option<&str>, second| WorkerRow {
        pool: pool.map(str::to_owned),
        ..worker("celery@a", second)
    };
    // Unknown; learned without another event; and unknown again, once another process began.
    for (pool, second) in [(None, 10), (Some("solo"), 10), (None, 20)] {
        m.reporter.save_workers(&[of_pool(pool, second)]).await.unwrap();
        let mut next = world.monitor("orders").await;
        let known = next.reporter.load_workers().await.unwrap();
        assert_eq!(known, [of_pool(pool, second)], "the next monitor knows it");
        let query = StoreQuery::connect(&world.owner).await.unwrap();
        let shown = query.workers(None, None, 10).await.unwrap();
        assert_eq!(shown, [(m.key.0, of_pool(pool, second))], "and users see it");
    }
}

#[tokio::test]
async fn workers_and_queues_show_what_was_heard_last() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let workers = vec![worker("celery@a", 10), worker("celery@b", 20)];
    m.reporter.save_workers(&workers).await.unwrap();
    m.reporter
        .save_workers(&[WorkerRow {
            state: "offline".into(),
            ..worker("celery@b", 5)
        }])
        .await
        .unwrap();
    let mut known = m.reporter.load_workers().await.unwrap();
    known.reverse();
    assert_eq!(known, workers, "an older row changes nothing");
    assert_eq!(world.sql("select count(*) from kanchi.worker_sample"), "2");

    let queue = |name: &str, ready| QueueRow {
        name: name.into(),
        ready,
        unacked: None,
        consumers: Some(1),
    };
    m.reporter
        .save_queues(seconds(0), &[queue("a", 5), queue("gone", 1)])
        .await
        .unwrap();
    m.reporter.save_queues(seconds(1000), &[queue("a", 7)]).await.unwrap();
    assert_eq!(world.sql("select name, ready from kanchi.queue"), "a|7");
    assert_eq!(
        world.sql("select count(*) from kanchi.queue_sample"),
        "2",
        "one sample of each a minute"
    );
}

#[tokio::test]
async fn the_next_process_learns_where_the_last_one_left() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    assert_eq!(m.reporter.previous().await.unwrap(), kanchi_store::Previous::default());
    let beat = Heartbeat {
        connection: "Connected".into(),
        complete_until: Some(UnixMicros(now().0 - 90_000_000)),
        event_queue: Some("kanchi.q".into()),
        ..Heartbeat::default()
    };
    m.reporter.heartbeat(&beat).await.unwrap();
    let gone = Heartbeat {
        connection: "Disconnected".into(),
        ..Heartbeat::default()
    };
    m.reporter.heartbeat(&gone).await.unwrap();
    let previous = m.reporter.previous().await.unwrap();
    assert_eq!(previous.event_queue.as_deref(), Some("kanchi.q"));
    assert_eq!(previous.complete_until, beat.complete_until);
    m.writer.commit(&batch(m.epoch, vec![])).await.unwrap();
    let after = m.reporter.previous().await.unwrap();
    assert_eq!(
        after.complete_until, beat.complete_until,
        "a commit says nothing of what still waits"
    );
    assert!(m.reporter.last_commit_at().await.unwrap() > beat.complete_until);
}

#[tokio::test]
async fn times_and_texts_at_the_edge_are_stored() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let mut edge = batch(m.epoch, vec![]);
    for at in [i64::MIN, 0, i64::MAX] {
        edge.head.chunks.push(EventChunk {
            task_id: None,
            first_at: UnixMicros(at),
            count: u16::MAX,
            events: PackedEvents::pack("[]", None),
        });
        edge.changes.statistics.push(StatisticDelta {
            key: "n".repeat(10_000),
            ..succeeded_tasks(UnixMicros(at), "", i64::MAX)
        });
    }
    edge.head.workers = vec![worker(&"h".repeat(10_000), 0)];
    m.writer.commit(&edge).await.unwrap();
    assert_eq!(world.sql("select count(*) from kanchi.event_chunk"), "3");
    assert_eq!(world.admin.roll_up().await.unwrap().damaged, 0);
    assert_eq!(
        world.sql("select count(*), max(length(key)) from kanchi.statistic"),
        "9|255"
    );
}
