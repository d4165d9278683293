//! The real programs of a run, the links between them, and how each fault comes and goes.

use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kanchi_contract::{EventQueueType, file};
use kanchi_test_load::now;
use kanchi_test_servers::disk::SmallDisk;
use kanchi_test_servers::link::{Flow, Link};
use kanchi_test_servers::postgres::{Postgres, PostgresOptions};
use kanchi_test_servers::rabbitmq::Rabbitmq;
use kanchi_test_servers::redis::Redis;
use tokio::time::sleep;

use crate::course::{Course, Keeps};
use crate::fault::{Fault, Played, Round};
use crate::ledger::{Ledger, Promise, Report};
use crate::publisher::{Address, Publisher};
use crate::rig::{MonitorProcess, Rig};

const PATIENCE: Duration = Duration::from_mins(2);

/// MiB of Postgres's disk.
const STORE_DISK: u32 = 1_024;

/// Directory of the second monitor's configuration.
const SECOND: &str = "second-config";

/// Bytes a second over a slow link.
const SLOW: u32 = 32 << 10;

/// How many monitors the broker has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Monitors {
    One = 1,
    Two = 2,
}

/// How large the disk of the spool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SpoolDisk {
    /// What comes while Postgres is away fills it.
    Scarce,
    /// It takes whatever comes in a run; nothing of it is used before.
    Ample,
}

impl SpoolDisk {
    const fn mebibytes(self) -> u32 {
        match self {
            Self::Scarce => 2,
            Self::Ample => 256,
        }
    }
}

/// Which broker it is.
#[derive(Debug)]
pub(crate) enum Broker {
    Redis(Redis),
    Rabbitmq(Rabbitmq, EventQueueType),
}

impl Broker {
    /// What can go wrong with it.
    pub(crate) fn faults(&self) -> Vec<Fault> {
        let mut faults = Fault::ALL.to_vec();
        match self {
            // Only here is there a spool.
            Self::Redis(_) => faults.push(Fault::FillSpoolDisk),
            Self::Rabbitmq(..) => {}
        }
        faults
    }

    /// Says what it does with events for which nobody is there.
    pub(crate) const fn keeps(&self) -> Keeps {
        match self {
            Self::Redis(_) => Keeps::Nothing,
            Self::Rabbitmq(_, EventQueueType::Classic) => Keeps::UntilItRestarts,
            Self::Rabbitmq(_, EventQueueType::Quorum) => Keeps::All,
        }
    }

    fn port(&self) -> u16 {
        match self {
            Self::Redis(server) => server.port(),
            Self::Rabbitmq(server, _) => server.port(),
        }
    }

    fn url(&self) -> String {
        match self {
            Self::Redis(server) => server.url(0),
            Self::Rabbitmq(server, _) => server.url(),
        }
    }

    fn address(&self) -> Address {
        match self {
            Self::Redis(server) => Address::Redis(server.port()),
            Self::Rabbitmq(server, _) => Address::Amqp(server.url()),
        }
    }

    fn kill(&mut self) {
        match self {
            Self::Redis(server) => server.kill(),
            Self::Rabbitmq(server, _) => server.kill(),
        }
    }

    fn start(&mut self) -> Result<()> {
        match self {
            Self::Redis(server) => server.start(),
            Self::Rabbitmq(server, _) => server.start(),
        }
    }

    fn freeze(&self) -> Result<()> {
        match self {
            Self::Redis(server) => server.freeze(),
            Self::Rabbitmq(server, _) => server.freeze(),
        }
    }

    fn thaw(&self) -> Result<()> {
        match self {
            Self::Redis(server) => server.thaw(),
            Self::Rabbitmq(server, _) => server.thaw(),
        }
    }
}

/// The programs.
pub(crate) struct Scene {
    monitor: MonitorProcess,
    /// Another one of the same broker.
    second: Option<MonitorProcess>,
    upkeep: Option<Child>,
    broker: Broker,
    /// Those of the first monitor.
    broker_link: Link,
    store_link: Link,
    spool: SmallDisk,
    /// Whether the publisher fills memory.
    ballast: Arc<AtomicBool>,
    rig: Rig,
}

impl Scene {
    /// Starts everything, and waits until the monitor reads; with a second one, until that stands by.
    pub(crate) async fn new(broker: Broker, monitors: Monitors, spool: SpoolDisk) -> Result<Self> {
        let postgres = Postgres::with(&PostgresOptions {
            disk: Some(STORE_DISK),
            ..PostgresOptions::default()
        })?;
        let (broker_link, store_link) = (Link::open(broker.port()).await?, Link::open(postgres.port()).await?);
        let rig = Rig::new(postgres, &broker.url()).await?;
        rig.write_config(|config| {
            if let Broker::Rabbitmq(_, queue_type) = &broker {
                config.celery.event_queue.queue_type = *queue_type;
            }
            config.replicas = monitors as u8;
        })?;
        rig.copy_config(SECOND)?;
        let store = std::fs::read_to_string(rig.config_directory().join(file::STORE_URL))?;
        rig.write(file::STORE_URL, &through(&store, rig.postgres.port(), &store_link))?;
        rig.write(file::BROKER_URL, &through(&broker.url(), broker.port(), &broker_link))?;
        let spool = SmallDisk::mount(&rig.spool("spool"), spool.mebibytes())?;
        let mut scene = Self {
            monitor: first(&rig)?,
            second: None,
            upkeep: None,
            broker,
            broker_link,
            store_link,
            spool,
            ballast: Arc::default(),
            rig,
        };
        scene.monitor.connected()?;
        scene.until_queue_is_registered()?;
        if monitors == Monitors::Two {
            let mut second = second(&scene.rig)?;
            second.until("it stands by", PATIENCE, |monitor| {
                monitor.metric("kanchi_monitor_standby") == Some(1.0)
            })?;
            scene.second = Some(second);
        }
        Ok(scene)
    }

    /// Publishes until it is told to stop.
    pub(crate) fn publish(&self, seed: u64) -> Publisher {
        Publisher::start(self.broker.address(), seed, Arc::clone(&self.ballast))
    }

    /// Lets the faults of a round come, last, and go; returns when each was there.
    pub(crate) async fn play(&mut self, round: &Round) -> Result<Vec<Played>> {
        sleep(round.pause).await; // the length of a quiet time is part of the plan, as is that of a fault
        let complete_until = self.complete_until();
        let wants_ballast = round.faults.iter().any(|fault| fault.wants_ballast());
        self.ballast.store(wants_ballast, Ordering::Relaxed);
        let mut played = Vec::new();
        for fault in &round.faults {
            let begin = now();
            self.begin(*fault).with_context(|| format!("{fault:?} begins"))?;
            played.push(Played {
                fault: *fault,
                begin,
                end: begin,
                complete_until,
            });
        }
        sleep(round.lasts).await;
        self.ballast.store(false, Ordering::Relaxed);
        for one in &mut played {
            let fault = one.fault;
            self.end(fault).with_context(|| format!("{fault:?} ends"))?;
            one.end = now();
        }
        ensure!(
            self.monitor.is_running()?,
            "the monitor has ended by itself:\n{}",
            self.monitor.log()
        );
        if let Some(second) = &mut self.second {
            ensure!(
                second.is_running()?,
                "the second monitor has ended by itself:\n{}",
                second.log()
            );
        }
        Ok(played)
    }

    /// Waits until the store has what it must have, and compares.
    pub(crate) fn verdict(&mut self, ledger: &Ledger, promise: Promise, course: &Course) -> Result<Report> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let compared = ledger.compare(&self.rig, promise, |gaps, heard| course.explain_all(gaps, heard));
            if compared.is_ok() || Instant::now() > deadline {
                let second = self.second.as_ref().map(MonitorProcess::log).unwrap_or_default();
                return compared.with_context(|| format!("{}\n---\n{second}", self.monitor.log()));
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Asks the store until when all is there: a monitor that is started goes by it.
    fn complete_until(&self) -> i64 {
        let asked = self
            .rig
            .sql("select (extract(epoch from complete_until) * 1000000)::bigint from kanchi.heartbeat");
        // Right after a crash it may not answer yet.
        asked.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(i64::MIN)
    }

    fn begin(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::KillMonitor => self.monitor.kill()?,
            Fault::EndMonitor => self.monitor.signal("TERM")?,
            Fault::FreezeMonitor => self.monitor.signal("STOP")?,
            Fault::KillSecond => self.second()?.kill()?,
            Fault::EndSecond => self.second()?.signal("TERM")?,
            Fault::FreezeSecond => self.second()?.signal("STOP")?,
            Fault::CrashStore | Fault::OutlastMemory => self.rig.postgres.crash()?,
            Fault::FreezeStore => self.rig.postgres.freeze()?,
            Fault::FillStoreDisk => self.store_disk()?.fill()?,
            Fault::CutStore => self.store_link.set(Flow::Cut),
            Fault::SilenceStore | Fault::LoseStore => self.store_link.set(Flow::Silent),
            Fault::SlowStore => self.store_link.set(Flow::Slow(SLOW)),
            Fault::MuteStore => self.store_link.set(Flow::Unanswered),
            Fault::KillBroker => self.broker.kill(),
            Fault::FreezeBroker => self.broker.freeze()?,
            Fault::CutBroker => self.broker_link.set(Flow::Cut),
            Fault::SilenceBroker => self.broker_link.set(Flow::Silent),
            Fault::SlowBroker => self.broker_link.set(Flow::Slow(SLOW)),
            Fault::MuteBroker => self.broker_link.set(Flow::Unanswered),
            Fault::FillSpoolDisk => {
                self.spool.fill()?;
                self.rig.postgres.crash()?;
            }
            Fault::KillUpkeep => {
                let mut command = self.rig.owner_command(&["upkeep"]);
                let command = command.stdout(Stdio::null()).stderr(Stdio::null());
                self.upkeep = Some(command.spawn()?);
            }
        }
        Ok(())
    }

    fn end(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::KillMonitor => self.monitor = first(&self.rig)?,
            Fault::EndMonitor => {
                self.monitor.ended()?;
                self.monitor = first(&self.rig)?;
            }
            Fault::FreezeMonitor => self.monitor.signal("CONT")?,
            Fault::KillSecond => self.second = Some(second(&self.rig)?),
            Fault::EndSecond => {
                self.second()?.ended()?;
                self.second = Some(second(&self.rig)?);
            }
            Fault::FreezeSecond => self.second()?.signal("CONT")?,
            Fault::CrashStore => self.rig.postgres.start()?,
            Fault::OutlastMemory => {
                let held = |series: &str| self.monitor.metric(series).unwrap_or_default();
                let (ring, spool) = (held("kanchi_monitor_ring_bytes"), held("kanchi_monitor_spool_bytes"));
                ensure!(spool > 0.0, "the spool was not needed: {ring} bytes wait in memory");
                self.rig.postgres.start()?;
            }
            Fault::FreezeStore => self.rig.postgres.thaw()?,
            Fault::FillStoreDisk => {
                self.store_disk()?.free()?;
                self.revive_store()?;
            }
            Fault::CutStore | Fault::SilenceStore | Fault::SlowStore | Fault::MuteStore | Fault::LoseStore => {
                self.store_link.set(Flow::Open);
            }
            Fault::KillBroker => self.broker.start()?,
            Fault::FreezeBroker => self.broker.thaw()?,
            Fault::CutBroker | Fault::SilenceBroker | Fault::SlowBroker | Fault::MuteBroker => {
                self.broker_link.set(Flow::Open);
            }
            Fault::FillSpoolDisk => {
                self.spool.free()?;
                self.rig.postgres.start()?;
            }
            Fault::KillUpkeep => {
                if let Some(mut upkeep) = self.upkeep.take() {
                    upkeep.kill()?;
                    upkeep.wait()?;
                }
            }
        }
        Ok(())
    }

    fn second(&mut self) -> Result<&mut MonitorProcess> {
        self.second.as_mut().context("there is no second monitor")
    }

    fn store_disk(&self) -> Result<&SmallDisk> {
        self.rig.postgres.disk().context("Postgres has no disk of its own")
    }

    /// A Postgres that could not write its log has ended, or ends just now.
    fn revive_store(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.rig.sql("create temporary table t as select 1").is_err() {
            ensure!(
                Instant::now() < deadline,
                "Postgres does not recover:\n{}",
                self.rig.postgres.log()
            );
            if !self.rig.postgres.is_running() {
                self.rig.postgres.start()?;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// RabbitMQ 3.10 writes down lazily that it has a quorum queue, and killed before, it never elects its leader again.
    fn until_queue_is_registered(&mut self) -> Result<()> {
        let Broker::Rabbitmq(server, EventQueueType::Quorum) = &self.broker else {
            return Ok(());
        };
        let rig = &self.rig;
        self.monitor.until("the event queue is on disk", PATIENCE, |_| {
            let queue = rig.sql("select event_queue from kanchi.heartbeat").unwrap_or_default();
            !queue.is_empty() && server.has_registered(&queue)
        })
    }
}

fn first(rig: &Rig) -> Result<MonitorProcess> {
    rig.monitor(&["--instance", "orders-monitor-0"])
}

/// Starts the second monitor, which has links that never fail.
fn second(rig: &Rig) -> Result<MonitorProcess> {
    let (config, spool) = (rig.path(SECOND), rig.spool("second-spool"));
    MonitorProcess::start(&config, &spool, &["--instance", "orders-monitor-1"])
}

/// Returns a URL that goes over a link.
fn through(url: &str, port: u16, link: &Link) -> String {
    url.replace(&format!("127.0.0.1:{port}"), &format!("127.0.0.1:{}", link.port()))
}
