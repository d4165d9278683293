//! Redis: nothing waits at the broker, so the monitor's own buffers are what counts.

use std::time::Duration;

use anyhow::Result;
use kanchi_contract::file;
use kanchi_test_load::{RecordedMessage, Recording, RedisPublisher, Workload, envelope, now, task_id};
use kanchi_test_servers::postgres::Postgres;
use kanchi_test_servers::redis::Redis;

use crate::rig::{PASSWORD, Rig};

const PATIENCE: Duration = Duration::from_mins(2);

fn recording(workload: Workload, tasks: u64) -> Recording {
    Recording::new(workload, tasks, 10_000, now())
}

/// Between full speed and a pause: a reader on a busy machine must not be cut by Redis.
fn publish_all(publisher: &mut RedisPublisher, messages: &[RecordedMessage]) -> Result<()> {
    for part in messages.chunks(500) {
        for message in part {
            publisher.publish(&message.as_message())?;
        }
        publisher.flush()?;
    }
    Ok(())
}

fn events_metric(monitor: &crate::rig::MonitorProcess) -> u64 {
    monitor.metric("kanchi_monitor_batch_events_sum").unwrap_or_default() as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_is_stored_and_sigterm_drains() -> Result<()> {
    let redis = Redis::start_new()?;
    let rig = Rig::new(Postgres::start_new()?, &redis.url(0)).await?;
    let mut monitor = rig.monitor(&[])?;
    monitor.connected()?;
    let Recording { events, messages, .. } = recording(Workload::realistic(1), 2_000);
    let mut publisher = RedisPublisher::connect(redis.port())?;
    for message in &messages {
        publisher.publish(&message.as_message())?;
    }
    publisher.flush()?;
    // The end of the stream is read and stored within the drain.
    let read = events.len() as f64;
    monitor.until("all events are read", PATIENCE, |monitor| {
        let text = monitor.metrics().unwrap_or_default();
        let total: f64 = text
            .lines()
            .filter(|line| line.starts_with("kanchi_monitor_events_total{"))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum();
        total >= read
    })?;
    let status = monitor.terminate()?;
    assert!(status.success(), "{status}\n{}", monitor.log());
    assert_eq!(rig.events()?, events.len() as u64);
    // 2,000 tasks of this stream, of which 20 do not end in it, and 20 whose beginning was before it.
    let tasks = rig.tasks()?;
    let total: u64 = tasks
        .split(' ')
        .filter_map(|pair| pair.rsplit(':').next()?.trim().parse::<u64>().ok())
        .sum();
    assert_eq!(total, 2_020, "{tasks}");
    assert!(!monitor.whole_log().contains(PASSWORD), "a secret in the log");
    assert!(
        monitor
            .whole_log()
            .lines()
            .next()
            .unwrap_or_default()
            .contains("build.version")
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_fills_the_spool_and_nothing_is_lost() -> Result<()> {
    let redis = Redis::start_new()?;
    let mut rig = Rig::new(Postgres::start_new()?, &redis.url(0)).await?;
    let mut monitor = rig.monitor(&[])?;
    monitor.connected()?;
    let Recording { events, messages, .. } = recording(Workload::short(2), 20_000);
    let mut publisher = RedisPublisher::connect(redis.port())?;
    let (first, rest) = messages.split_at(messages.len() / 3);
    publish_all(&mut publisher, first)?;
    rig.postgres.stop()?;
    publish_all(&mut publisher, rest)?;
    monitor.until("the spool is in use", PATIENCE, |monitor| {
        monitor.metric("kanchi_monitor_spool_bytes").unwrap_or_default() > 0.0
    })?;
    rig.postgres.start()?;
    let all = events.len() as u64;
    monitor.until("everything is stored", PATIENCE, |monitor| {
        events_metric(monitor) >= all
    })?;
    assert_eq!(rig.events()?, all);
    assert_eq!(monitor.metric("kanchi_monitor_dropped_messages_total"), Some(0.0));
    monitor.until("the spool is empty again", PATIENCE, |monitor| {
        monitor.metric("kanchi_monitor_spool_bytes") == Some(0.0)
    })?;
    assert!(monitor.peak_memory() < 128 << 20, "{}", monitor.peak_memory());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_stream_stops_nobody_and_stays_small() -> Result<()> {
    let redis = Redis::start_new()?;
    let rig = Rig::new(Postgres::start_new()?, &redis.url(0)).await?;
    let mut monitor = rig.monitor(&[])?;
    monitor.connected()?;
    let mut publisher = RedisPublisher::connect(redis.port())?;
    let id = |number| task_id(99, number);
    let hostile: Vec<Vec<u8>> = vec![
        b"not an envelope".to_vec(),
        b"{".to_vec(),
        b"".to_vec(),
        envelope(b"{\"type\":", "task.x", "h"),
        envelope(b"[1, null, \"text\", {}]", "task.multi", "h"),
        envelope(b"\x80\x04\x95", "task.x", "h"),
        envelope(format!(r#"{{"type":"task-sent","uuid":"{}","hostname":"h\u0000\ud800","timestamp":NaN}}"#, id(1)).as_bytes(), "task.sent", "h"),
        envelope(br#"{"type":"task-sent","uuid":"","hostname":"h","timestamp":1e400}"#, "task.sent", "h"),
        envelope(br#"{"type":"task-sent","uuid":17,"hostname":5,"timestamp":"yesterday","retries":123456789012345678901234567890}"#, "task.sent", "h"),
        envelope(format!(r#"{{"type":"{}","hostname":"{}","timestamp":1}}"#, "x".repeat(10_000), "y".repeat(10_000)).as_bytes(), "x", "h"),
        envelope(b"\xff\xfe{}", "task.x", "h"),
    ];
    for message in &hostile {
        publisher.publish_raw("task.multi", message)?;
    }
    let Recording { events, messages, .. } = recording(Workload::short(3), 500);
    for half in messages.chunks(messages.len() / 2 + 1) {
        for message in half {
            publisher.publish(&message.as_message())?;
        }
        publisher.flush()?;
    }
    let good = events.len() as u64;
    monitor.until("the good events are stored", PATIENCE, |_| {
        rig.events().unwrap_or_default() >= good
    })?;
    let letters: u64 = rig.sql("select count(*) from kanchi.dead_letter")?.trim().parse()?;
    assert!(
        letters >= 6,
        "{letters}\n{}",
        rig.sql("select reason, detail from kanchi.dead_letter")?
    );
    assert!(monitor.peak_memory() < 64 << 20, "{}", monitor.peak_memory());
    assert!(monitor.get("/livez")?.starts_with("HTTP/1.1 200"));
    Ok(())
}

/// Nothing is known that Postgres refuses of what the decoder lets pass; a constraint stands for what nobody thought of.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_refuses_costs_no_other_event() -> Result<()> {
    const REFUSED: u64 = 3;
    let redis = Redis::start_new()?;
    let rig = Rig::new(Postgres::start_new()?, &redis.url(0)).await?;
    rig.sql("alter table kanchi.event_chunk add check (position('\\x706f69736f6e'::bytea in events) = 0)")?;
    let mut monitor = rig.monitor(&[])?;
    monitor.connected()?;
    let mut publisher = RedisPublisher::connect(redis.port())?;
    let Recording { events, messages, .. } = recording(Workload::short(5), 1_000);
    for (number, part) in (0..).zip(messages.chunks(messages.len() / REFUSED as usize + 1)) {
        publish_all(&mut publisher, part)?;
        for (kind, host) in [("received", "w@h"), ("started", "poison@h"), ("succeeded", "w@h")] {
            let (id, seconds) = (task_id(99, number), now() as f64 / 1e6);
            let event = format!(r#"{{"type":"task-{kind}","uuid":"{id}","hostname":"{host}","timestamp":{seconds}}}"#);
            publisher.publish_raw("task.multi", &envelope(event.as_bytes(), "task.x", host))?;
        }
    }
    publisher.flush()?;
    let stored = events.len() as u64 + 2 * REFUSED;
    monitor.until("the others are stored", PATIENCE, |monitor| {
        events_metric(monitor) >= stored
    })?;
    assert_eq!(rig.events()?, stored);
    assert_eq!(
        monitor.metric("kanchi_monitor_refused_events_total"),
        Some(REFUSED as f64)
    );
    let letters = rig.sql("select count(*) from kanchi.dead_letter where reason = 'store_refused'")?;
    assert_eq!(letters.trim(), REFUSED.to_string());
    let known = rig.sql("select count(*) from (select state, worker from kanchi.task union all select state, worker from kanchi.task_live) t
        where state = 'SUCCESS' and worker = 'w@h'")?;
    assert_eq!(known.trim(), REFUSED.to_string(), "the other events of their tasks");
    Ok(())
}

/// Full batches, one going ahead while the one before it is brought to its end, which the store refuses only then.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_goes_ahead_of_a_refused_one_is_made_again() -> Result<()> {
    const REFUSED: u64 = 3;
    let redis = Redis::start_new()?;
    let mut rig = Rig::new(Postgres::start_new()?, &redis.url(0)).await?;
    for table in ["task", "task_live"] {
        rig.sql(&format!(
            "alter table kanchi.{table} add check (name is distinct from 'poison')"
        ))?;
    }
    let mut monitor = rig.monitor(&[])?;
    monitor.connected()?;
    rig.postgres.stop()?;
    let mut publisher = RedisPublisher::connect(redis.port())?;
    let Recording { events, messages, .. } = recording(Workload::short(6), 20_000);
    for (number, part) in (0..).zip(messages.chunks(messages.len() / REFUSED as usize + 1)) {
        publish_all(&mut publisher, part)?;
        for (kind, name) in [("received", r#","name":"poison""#), ("started", ""), ("succeeded", "")] {
            let (id, seconds) = (task_id(99, number), now() as f64 / 1e6);
            let event =
                format!(r#"{{"type":"task-{kind}","uuid":"{id}","hostname":"w@h","timestamp":{seconds}{name}}}"#);
            publisher.publish_raw("task.multi", &envelope(event.as_bytes(), "task.x", "w@h"))?;
        }
    }
    publisher.flush()?;
    rig.postgres.start()?;
    let stored = events.len() as u64 + 2 * REFUSED;
    monitor.until("the others are stored", PATIENCE, |monitor| {
        events_metric(monitor) >= stored
    })?;
    assert_eq!(rig.events()?, stored);
    assert_eq!(
        monitor.metric("kanchi_monitor_refused_events_total"),
        Some(REFUSED as f64)
    );
    let known = rig.sql("select count(*) from (select name, state from kanchi.task union all select name, state from kanchi.task_live) t
        where state = 'SUCCESS' and name is null")?;
    assert_eq!(known.trim(), REFUSED.to_string(), "the other events of their tasks");
    let connections =
        rig.sql("select count(*) from pg_stat_activity where application_name ~ '^kanchi-monitor/[0-9]+$'")?;
    assert_eq!(connections.trim(), "2", "batches went ahead");
    Ok(())
}

/// Ends a session of the monitor amid a transaction, the next that there is within a second: 1, or 0 where there was none.
const END_A_SESSION: &str = "create function end_a_session() returns int language plpgsql as $$
    declare session int;
    begin
        for attempt in 1..1000 loop
            perform pg_stat_clear_snapshot();
            select pid into session from pg_stat_activity
            where application_name ~ '^kanchi-monitor/[0-9]+$' and xact_start is not null order by random() limit 1;
            if found then
                return pg_terminate_backend(session)::int;
            end if;
            perform pg_sleep(0.001);
        end loop;
        return 0;
    end $$";

/// Each of the two connections is lost again and again while batches go ahead: what was counted on is not stored then.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_end_amid_a_flood_cost_no_task_anything() -> Result<()> {
    let redis = Redis::start_new()?;
    let mut rig = Rig::new(Postgres::start_new()?, &redis.url(0)).await?;
    let mut monitor = rig.monitor(&[])?;
    monitor.connected()?;
    rig.postgres.stop()?;
    let mut publisher = RedisPublisher::connect(redis.port())?;
    let recording = recording(Workload::realistic(8), 15_000);
    publish_all(&mut publisher, &recording.messages)?;
    rig.postgres.start()?;
    let events = recording.events.len() as u64;
    rig.sql(END_A_SESSION)?;
    let (mut ended, mut stored) = (0_u64, 0);
    while stored < events {
        // One of the two; others may follow once something is stored.
        ended += rig.sql("select end_a_session()")?.trim().parse::<u64>()?;
        monitor.until("more is stored", PATIENCE, |monitor| {
            events_metric(monitor) >= events.min(stored + 4_000)
        })?;
        stored = events_metric(&monitor);
    }
    assert_eq!(rig.events()?, events);
    assert!(ended >= 3, "{ended} sessions were ended");
    let states = rig.sql("select state || ' ' || count(*) from (select state from kanchi.task union all select state from kanchi.task_live) t
        where state in ('SUCCESS', 'FAILURE', 'REVOKED', 'REJECTED') group by state order by state")?;
    let expected: Vec<String> = recording
        .ended
        .iter()
        .map(|(state, count)| format!("{state} {count}"))
        .collect();
    let mut known: Vec<&str> = states.lines().collect();
    known.sort_unstable();
    assert_eq!(known, expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_megabyte_messages_stay_within_the_memory_limit() -> Result<()> {
    let redis = Redis::start_new()?;
    let mut rig = Rig::new(Postgres::start_new()?, &redis.url(0)).await?;
    let mut monitor = rig.monitor(&[])?;
    monitor.connected()?;
    let mut publisher = RedisPublisher::connect(redis.port())?;
    let long = "x".repeat(7_400_000);
    rig.postgres.stop()?;
    let count: u32 = 60;
    for number in 0..count {
        let body = format!(
            r#"[{{"type":"task-failed","uuid":"{}","hostname":"celery@w","pid":1,"clock":{number},"timestamp":{:.3},"exception":"E('x')","traceback":"{long}"}}]"#,
            task_id(7, u64::from(number)),
            now() as f64 / 1e6
        );
        let beat = format!(
            r#"{{"type":"worker-heartbeat","hostname":"celery@w","pid":1,"clock":{number},"timestamp":{:.3},"freq":2.0,"active":1}}"#,
            now() as f64 / 1e6
        );
        publisher.publish_raw("task.multi", &envelope(body.as_bytes(), "task.multi", "celery@w"))?;
        publisher.flush()?;
        // One at a time: Redis cuts a subscriber that is 32 MB behind, whatever it does. And with a heartbeat now and then:
        // Redis looks at its limit of 8 MB for 60 s only when it sends, and each of these messages alone is over it.
        let read = f64::from(2 * number + 1);
        monitor.until("it is read", PATIENCE, |monitor| {
            monitor.metric("kanchi_monitor_messages_total").unwrap_or_default() >= read
        })?;
        publisher.publish_raw(
            "worker.heartbeat",
            &envelope(beat.as_bytes(), "worker.heartbeat", "celery@w"),
        )?;
        publisher.flush()?;
        monitor.until("the heartbeat is read", PATIENCE, |monitor| {
            monitor.metric("kanchi_monitor_messages_total").unwrap_or_default() > read
        })?;
    }
    rig.postgres.start()?;
    monitor.until("all are stored or counted", Duration::from_mins(5), |monitor| {
        let dropped = monitor
            .metric("kanchi_monitor_dropped_messages_total")
            .unwrap_or_default();
        events_metric(monitor) as f64 + dropped >= f64::from(count)
    })?;
    assert_eq!(monitor.metric("kanchi_monitor_dropped_messages_total"), Some(0.0));
    assert!(monitor.peak_memory() < 128 << 20, "{} MiB", monitor.peak_memory() >> 20);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_password_is_used_without_a_restart_and_a_broken_file_changes_nothing() -> Result<()> {
    let redis = Redis::with(kanchi_test_servers::redis::RedisOptions {
        password: Some("first".into()),
        ..Default::default()
    })?;
    let rig = Rig::new(Postgres::start_new()?, &redis.url_of("default", "first")).await?;
    let mut monitor = rig.monitor(&[])?;
    monitor.connected()?;
    rig.write(file::BROKER_URL, "nonsense")?;
    monitor.until("the broken URL is refused", PATIENCE, |monitor| {
        monitor.metric("kanchi_monitor_config_current") == Some(0.0)
    })?;
    assert_eq!(
        monitor.metric("kanchi_monitor_connection{state=\"Connected\"}"),
        Some(1.0)
    );
    redis.cli(&["config", "set", "requirepass", "second"])?;
    rig.write(file::BROKER_URL, &redis.url_of("default", "second"))?;
    monitor.until("the new URL is in force", Duration::from_secs(30), |monitor| {
        monitor.metric("kanchi_monitor_config_current") == Some(1.0)
            && monitor.metric("kanchi_monitor_connection{state=\"Connected\"}") == Some(1.0)
    })?;
    let mut publisher = RedisPublisher::connect(redis.port())?;
    drop(publisher.flush());
    assert!(!monitor.whole_log().contains("second"), "a secret in the log");
    assert!(monitor.terminate()?.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_monitor_takes_over_and_the_older_one_ends_saying_so() -> Result<()> {
    let redis = Redis::start_new()?;
    let rig = Rig::new(Postgres::start_new()?, &redis.url(0)).await?;
    let mut older = rig.monitor(&[])?;
    older.connected()?;
    older.until("it writes", PATIENCE, |monitor| {
        monitor.metric("kanchi_monitor_store_up") == Some(1.0)
    })?;
    let mut newer = rig.monitor_with_spool("second", &[])?;
    newer.connected()?;
    newer.until("it writes", PATIENCE, |monitor| {
        monitor.metric("kanchi_monitor_store_up") == Some(1.0)
    })?;
    let mut publisher = RedisPublisher::connect(redis.port())?;
    let Recording { events, messages, .. } = recording(Workload::short(5), 10);
    for message in &messages {
        publisher.publish(&message.as_message())?;
    }
    publisher.flush()?;
    let status = older.ended()?;
    assert_eq!(status.code(), Some(75), "{}", older.log());
    assert!(older.log().contains("taken over"), "{}", older.log());
    let all = events.len() as u64;
    newer.until("everything is stored once", PATIENCE, |_| {
        rig.events().unwrap_or_default() >= all
    })?;
    assert_eq!(rig.events()?, all);
    Ok(())
}

#[test]
fn a_bad_configuration_ends_with_its_own_code() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let status = std::process::Command::new(env!("CARGO_BIN_EXE_kanchi-monitor"))
        .args(["run", "--config-dir"])
        .arg(directory.path())
        .stdout(std::process::Stdio::null())
        .status()?;
    assert_eq!(status.code(), Some(64));
    Ok(())
}
