//! RabbitMQ: what is not acknowledged waits at the broker, so nothing is lost and nothing is stored twice.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use kanchi_test_servers::postgres::Postgres;
use kanchi_test_servers::rabbitmq::Rabbitmq;

use crate::celery::{Shape, messages, stream};
use crate::rig::{AmqpPublisher, Rig};

const PATIENCE: Duration = Duration::from_mins(3);

fn now() -> f64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_three_times_in_a_burst_it_loses_and_doubles_nothing() -> Result<()> {
    let rabbit = Rabbitmq::start_new()?;
    let mut rig = Rig::new(Postgres::start_new()?, &rabbit.url()).await?;
    let mut monitor = rig.monitor(&[])?;
    monitor.connected()?;
    let events = stream(Shape::short(12_500, 11), now());
    let bodies = messages(&events);
    let publisher = AmqpPublisher::connect(&rabbit.url()).await?;
    let quarter = bodies.len() / 4;
    for (number, body) in bodies.iter().enumerate() {
        publisher.publish(body.routing_key, body.json.as_bytes()).await?;
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
    let counts = rig.tasks()?;
    assert!(counts.contains("FAILURE:250 SUCCESS:12250"), "{counts}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_leaves_messages_at_the_broker_and_memory_small() -> Result<()> {
    let rabbit = Rabbitmq::start_new()?;
    let mut rig = Rig::new(Postgres::start_new()?, &rabbit.url()).await?;
    let mut monitor = rig.monitor(&[])?;
    monitor.connected()?;
    rig.postgres.stop()?;
    let events = stream(Shape::short(40_000, 12), now());
    let publisher = AmqpPublisher::connect(&rabbit.url()).await?;
    for body in messages(&events) {
        publisher.publish(body.routing_key, body.json.as_bytes()).await?;
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
