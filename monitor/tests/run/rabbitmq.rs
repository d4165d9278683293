//! RabbitMQ: what is not acknowledged waits at the broker, so nothing is lost and nothing is stored twice.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use kanchi_test_load::{AmqpPublisher, Recording, Workload, now};
use kanchi_test_servers::postgres::Postgres;
use kanchi_test_servers::rabbitmq::Rabbitmq;

use crate::rig::Rig;

const PATIENCE: Duration = Duration::from_mins(3);

#[tokio::test(flavor = "multi_thread")]
async fn killed_three_times_in_a_burst_it_loses_and_doubles_nothing() -> Result<()> {
    let rabbit = Rabbitmq::start_new()?;
    let mut rig = Rig::new(Postgres::start_new()?, &rabbit.url()).await?;
    let mut monitor = rig.monitor(&[])?;
    monitor.connected()?;
    let Recording {
        events,
        messages,
        ended,
    } = Recording::new(Workload::short(11), 12_500, 10_000, now());
    let publisher = AmqpPublisher::connect(&rabbit.url()).await?;
    let quarter = messages.len() / 4;
    for (number, message) in messages.iter().enumerate() {
        publisher.publish(&message.as_message()).await?;
        if number > 0 && number % quarter == 0 {
            publisher.flush().await?;
            monitor.kill()?;
            monitor = rig.monitor(&[])?;
        }
        if number == quarter * 2 + 100 {
            rig.postgres.crash()?;
        }
        if number == quarter * 2 + 1_000 {
            rig.postgres.start()?;
        }
    }
    publisher.flush().await?;
    let all = events.len() as u64;
    monitor.until("everything is stored", PATIENCE, |_| {
        rig.events().unwrap_or_default() >= all
    })?;
    assert!(monitor.terminate()?.success());
    assert_eq!(rig.events()?, all, "double");
    let sent: BTreeSet<&str> = events.iter().map(|event| event.task.as_str()).collect();
    let rows = rig.sql("select task_id from kanchi.task_live union all select task_id from kanchi.task")?;
    let found: Vec<&str> = rows.lines().collect();
    assert_eq!(found.len(), sent.len());
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), sent);
    let states: Vec<String> = ended.iter().map(|(state, count)| format!("{state}:{count}")).collect();
    assert_eq!(rig.tasks()?, states.join(" "));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_leaves_messages_at_the_broker_and_memory_small() -> Result<()> {
    let rabbit = Rabbitmq::start_new()?;
    let mut rig = Rig::new(Postgres::start_new()?, &rabbit.url()).await?;
    let mut monitor = rig.monitor(&[])?;
    monitor.connected()?;
    rig.postgres.stop()?;
    let Recording { events, messages, .. } = Recording::new(Workload::short(12), 40_000, 10_000, now());
    let publisher = AmqpPublisher::connect(&rabbit.url()).await?;
    for message in &messages {
        publisher.publish(&message.as_message()).await?;
    }
    publisher.flush().await?;
    monitor.until("the store is known to be away", PATIENCE, |monitor| {
        monitor.metric("kanchi_monitor_store_up") == Some(0.0)
    })?;
    assert!(monitor.get("/livez")?.starts_with("HTTP/1.1 200"));
    assert!(monitor.get("/readyz")?.starts_with("HTTP/1.1 200"));
    rig.postgres.start()?;
    let all = events.len() as u64;
    monitor.until("everything is stored", PATIENCE, |_| {
        rig.events().unwrap_or_default() >= all
    })?;
    assert_eq!(rig.events()?, all);
    assert!(monitor.peak_memory() < 128 << 20, "{} MiB", monitor.peak_memory() >> 20);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_stopped_and_started_is_told_with_its_reason() -> Result<()> {
    let mut rabbit = Rabbitmq::start_new()?;
    let rig = Rig::new(Postgres::start_new()?, &rabbit.url()).await?;
    let mut monitor = rig.monitor(&[])?;
    monitor.connected()?;
    let told = |what: &str| {
        rig.sql("select connection || ' ' || coalesce(reason, '') from kanchi.heartbeat")
            .unwrap_or_default()
            .trim()
            .starts_with(what)
    };
    monitor.until("Connected is told", Duration::from_secs(10), |_| told("Connected"))?;
    rabbit.stop();
    monitor.until("Disconnected is told", Duration::from_secs(10), |_| {
        told("Disconnected ")
    })?;
    monitor.until("the reason is told", Duration::from_secs(20), |_| {
        told("Disconnected ConnectionRefused")
    })?;
    rabbit.start()?;
    monitor.until("Connected is told again", Duration::from_secs(30), |_| {
        told("Connected")
    })?;
    assert!(monitor.terminate()?.success());
    assert!(told("Disconnected MonitorStopped"));
    Ok(())
}
