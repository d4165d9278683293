//! Two monitors for one broker: one writes, the other stands by and takes over, and the history has each event once.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kanchi_test_servers::postgres::Postgres;
use kanchi_test_servers::rabbitmq::Rabbitmq;
use kanchi_test_servers::redis::Redis;

use crate::ledger::{Ledger, Promise};
use crate::publisher::{Address, Publisher};
use crate::rig::{MonitorProcess, Rig};

const PATIENCE: Duration = Duration::from_mins(2);

/// Take-over of a lease that ran out: the lease, the looks, and a slow machine.
const TAKEN_WITHIN: Duration = Duration::from_mins(1);

/// Take-over of a lease that was given back.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(10);

/// Two monitors, and a publisher that never rests.
struct Pair {
    rig: Rig,
    monitors: [Option<MonitorProcess>; 2],
    publisher: Option<Publisher>,
}

impl Pair {
    async fn on_redis(redis: &Redis) -> Result<Self> {
        Self::new(&redis.url(0), Address::Redis(redis.port())).await
    }

    async fn on_rabbitmq(rabbit: &Rabbitmq) -> Result<Self> {
        Self::new(&rabbit.url(), Address::Amqp(rabbit.url())).await
    }

    /// Starts the first monitor, then the second, then events.
    async fn new(url: &str, address: Address) -> Result<Self> {
        let mut pair = Self {
            rig: Rig::new(Postgres::start_new()?, url).await?,
            monitors: [None, None],
            publisher: None,
        };
        pair.replicas(2)?;
        pair.start(0)?;
        pair.until_writes(0, TAKEN_WITHIN)?;
        pair.monitor(0)?.connected()?;
        pair.start(1)?;
        pair.publisher = Some(Publisher::start(address, 42, Arc::default()));
        pair.until_covers(1)?;
        Ok(pair)
    }

    fn replicas(&self, replicas: u8) -> Result<()> {
        self.rig.write_config(|config| config.replicas = replicas)
    }

    fn start(&mut self, number: usize) -> Result<()> {
        let name = format!("orders-monitor-{number}");
        let monitor = self.rig.monitor_with_spool(&name, &["--instance", &name])?;
        self.monitors[number] = Some(monitor);
        Ok(())
    }

    fn monitor(&mut self, number: usize) -> Result<&mut MonitorProcess> {
        self.monitors[number].as_mut().context("this monitor does not run")
    }

    fn until_writes(&mut self, number: usize, patience: Duration) -> Result<()> {
        self.monitor(number)?.until("it writes", patience, |monitor| {
            monitor.metric("kanchi_monitor_standby") == Some(0.0)
                && monitor
                    .metric("kanchi_monitor_take_overs_total")
                    .is_some_and(|times| times > 0.0)
        })
    }

    fn until_stands_by(&mut self, number: usize) -> Result<()> {
        self.monitor(number)?.until("it stands by", PATIENCE, |monitor| {
            monitor.metric("kanchi_monitor_standby") == Some(1.0)
        })
    }

    /// Waits until a take-over would leave no gap.
    fn until_covers(&mut self, number: usize) -> Result<()> {
        self.until_stands_by(number)?;
        self.monitor(number)?
            .until("it covers the writer", PATIENCE, |monitor| {
                monitor.metric("kanchi_monitor_standby_covers") == Some(1.0)
            })
    }

    /// Waits until this many more events are stored: the monitor that writes now does.
    fn until_stored(&mut self, writer: usize, more: u64) -> Result<()> {
        let before = self.rig.events()?;
        let rig = &self.rig;
        let monitor = self.monitors[writer].as_mut().context("this monitor does not run")?;
        monitor.until("events are stored", PATIENCE, |_| {
            rig.events().is_ok_and(|stored| stored >= before + more)
        })
    }

    fn gaps(&self) -> Result<String> {
        self.rig
            .sql("select cause, from_at, to_at from kanchi.gap order by from_at")
    }

    /// Ends the publisher; each event must be stored once, and no gap be told.
    fn verdict(&mut self) -> Result<()> {
        self.compare(Promise::Exact)?;
        let gaps = self.gaps()?;
        ensure!(gaps.trim().is_empty(), "a gap: {gaps}\n{}", self.logs());
        Ok(())
    }

    fn logs(&self) -> String {
        let logs = self.monitors.iter().flatten().map(MonitorProcess::log);
        logs.collect::<Vec<_>>().join("\n---\n")
    }

    /// Ends the publisher and compares.
    fn compare(&mut self, promise: Promise) -> Result<()> {
        let ledger: Ledger = self.publisher.take().context("nothing is published")?.stop()?;
        let deadline = std::time::Instant::now() + PATIENCE;
        let compared = loop {
            let compared = ledger.compare(&self.rig, promise, |_gaps, _heard| Ok(()));
            if compared.is_ok() || std::time::Instant::now() > deadline {
                break compared;
            }
            std::thread::sleep(Duration::from_millis(200)); // polls a condition with a deadline
        };
        compared.map(drop).with_context(|| self.logs())
    }
}

fn killed(mut pair: Pair) -> Result<()> {
    for (writer, other) in [(0, 1), (1, 0)] {
        pair.monitor(writer)?.kill()?;
        pair.until_writes(other, TAKEN_WITHIN)?;
        pair.until_stored(other, 500)?;
        pair.start(writer)?;
        pair.until_covers(writer)?;
    }
    pair.verdict()
}

fn terminated(mut pair: Pair) -> Result<()> {
    for (writer, other) in [(0, 1), (1, 0)] {
        let status = pair.monitor(writer)?.terminate()?;
        assert!(status.success(), "{status}");
        pair.until_writes(other, HANDED_OVER_WITHIN)?;
        pair.until_stored(other, 500)?;
        pair.start(writer)?;
        pair.until_covers(writer)?;
    }
    pair.verdict()
}

/// The writer stands still for longer than its lease, and goes on.
fn paused(mut pair: Pair) -> Result<()> {
    pair.monitor(0)?.signal("STOP")?;
    pair.until_writes(1, TAKEN_WITHIN)?;
    pair.until_stored(1, 500)?;
    pair.monitor(0)?.signal("CONT")?;
    pair.until_stands_by(0)?;
    assert!(pair.monitor(0)?.get("/readyz")?.starts_with("HTTP/1.1 200"));
    pair.until_stored(1, 500)?;
    pair.verdict()
}

#[tokio::test(flavor = "multi_thread")]
async fn on_redis_a_killed_writer_is_replaced_without_a_gap() -> Result<()> {
    let redis = Redis::start_new()?;
    killed(Pair::on_redis(&redis).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn on_rabbitmq_a_killed_writer_is_replaced_without_a_gap() -> Result<()> {
    let rabbit = Rabbitmq::start_new()?;
    killed(Pair::on_rabbitmq(&rabbit).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn on_redis_a_writer_told_to_end_hands_over() -> Result<()> {
    let redis = Redis::start_new()?;
    terminated(Pair::on_redis(&redis).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn on_rabbitmq_a_writer_told_to_end_hands_over() -> Result<()> {
    let rabbit = Rabbitmq::start_new()?;
    terminated(Pair::on_rabbitmq(&rabbit).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn on_redis_a_writer_that_stood_still_stands_by_afterwards() -> Result<()> {
    let redis = Redis::start_new()?;
    paused(Pair::on_redis(&redis).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn on_rabbitmq_a_writer_that_stood_still_stands_by_afterwards() -> Result<()> {
    let rabbit = Rabbitmq::start_new()?;
    paused(Pair::on_rabbitmq(&rabbit).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_standby_and_a_restart_of_the_store_disturb_nobody() -> Result<()> {
    let redis = Redis::start_new()?;
    let mut pair = Pair::on_redis(&redis).await?;
    assert!(pair.monitor(1)?.get("/readyz")?.contains("ok, standing by"));
    pair.monitor(1)?.kill()?;
    pair.start(1)?;
    pair.rig.postgres.crash()?;
    pair.until_stands_by(1)?;
    pair.rig.postgres.start()?;
    pair.until_stored(0, 500)?;
    pair.until_covers(1)?;
    assert_eq!(
        pair.monitor(0)?.metric("kanchi_monitor_take_overs_total"),
        Some(1.0),
        "it wrote all the time"
    );
    // The writer is killed while the store is away, and the other takes over once it is back.
    pair.rig.postgres.crash()?;
    pair.monitor(0)?.kill()?;
    pair.rig.postgres.start()?;
    pair.until_writes(1, TAKEN_WITHIN)?;
    pair.until_stored(1, 500)?;
    pair.verdict()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_start_together_agree_and_what_was_before_them_is_a_gap() -> Result<()> {
    let redis = Redis::start_new()?;
    let mut pair = Pair::on_redis(&redis).await?;
    for monitor in pair.monitors.iter_mut().flatten() {
        monitor.kill()?;
    }
    let stored = pair.rig.events()?;
    pair.start(0)?;
    pair.start(1)?;
    let deadline = std::time::Instant::now() + PATIENCE;
    while pair.rig.events()? < stored + 500 {
        ensure!(std::time::Instant::now() < deadline, "nobody writes");
        std::thread::sleep(Duration::from_millis(100)); // polls a condition with a deadline
    }
    let writes = |monitor: &MonitorProcess| monitor.metric("kanchi_monitor_standby") == Some(0.0);
    let writing = pair.monitors.iter().flatten().filter(|monitor| writes(monitor)).count();
    assert_eq!(writing, 1);
    let gaps = pair.gaps()?;
    assert_eq!(gaps.lines().count(), 1, "{gaps}");
    assert!(gaps.starts_with("MonitorRestart"), "{gaps}");
    pair.compare(Promise::OutsideGaps)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_monitor_gets_a_standby_while_it_writes() -> Result<()> {
    let redis = Redis::start_new()?;
    let mut pair = Pair {
        rig: Rig::new(Postgres::start_new()?, &redis.url(0)).await?,
        monitors: [None, None],
        publisher: None,
    };
    pair.start(0)?;
    pair.monitor(0)?.connected()?;
    pair.publisher = Some(Publisher::start(Address::Redis(redis.port()), 43, Arc::default()));
    pair.until_stored(0, 500)?;
    // The second pod may know before the first: it must not believe that what has no digest is new.
    pair.replicas(2)?;
    pair.start(1)?;
    pair.until_covers(1)?;
    pair.monitor(0)?.kill()?;
    pair.until_writes(1, TAKEN_WITHIN)?;
    pair.until_stored(1, 500)?;
    pair.verdict()
}
