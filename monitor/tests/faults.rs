//! Nothing lost, nothing double: processes are killed and stopped, links cut and slowed, disks filled, at random moments
//! under load; then every published event is looked for in the store.
//!
//! A run is made of a seed and a length, `KANCHI_FAULTS_SEED` (else random, and printed) and `KANCHI_FAULTS_SECONDS` (else
//! each fault once). The seed decides the faults, their order and times, and the events; a failure names it.

#[path = "faults/course.rs"]
mod course;
#[path = "faults/fault.rs"]
mod fault;
#[path = "faults/ledger.rs"]
mod ledger;
#[path = "faults/publisher.rs"]
mod publisher;
#[expect(dead_code, reason = "shared with other tests, which use all of it")]
#[path = "run/rig.rs"]
mod rig;
#[path = "faults/scene.rs"]
mod scene;

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use kanchi_contract::EventQueueType;
use kanchi_test_load::Dice;
use kanchi_test_servers::rabbitmq::Rabbitmq;
use kanchi_test_servers::redis::Redis;

use crate::course::Course;
use crate::fault::{Fault, Pace, Plan, Round};
use crate::ledger::Promise;
use crate::scene::{Broker, Monitors, Scene, SpoolDisk};

/// What a run is made of.
#[derive(Clone, Copy, Debug)]
struct Run {
    seed: u64,
    /// `None`: until each fault was there once.
    length: Option<Duration>,
}

impl Run {
    fn from_environment() -> Result<Self> {
        let number = |name: &str| -> Result<Option<u64>> {
            let text = std::env::var(name).ok();
            text.map(|text| {
                text.parse()
                    .with_context(|| format!("{name} must be a number, not {text:?}"))
            })
            .transpose()
        };
        let random = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        Ok(Self {
            seed: number("KANCHI_FAULTS_SEED")?.unwrap_or(u64::from(random.subsec_nanos())),
            length: number("KANCHI_FAULTS_SECONDS")?.map(Duration::from_secs),
        })
    }

    /// Publishes while one fault after the other comes and goes, and then compares.
    async fn play(self, case: Case) -> Result<()> {
        let name = case.name;
        say(&format!("{name}: KANCHI_FAULTS_SEED={}", self.seed));
        let mut course = Course::new(case.broker.keeps(), case.monitors, case.spool);
        let mut scene = Scene::new(case.broker, case.monitors, case.spool).await?;
        let pace = self.length.map_or(case.pace, |_length| Pace::Usual);
        let publisher = scene.publish(self.seed);
        let begin = Instant::now();
        let mut plan = Plan::new(Dice::new(self.seed), case.faults, pace);
        let mut rounds: Vec<Round> = Vec::new();
        while self
            .length
            .map_or(!plan.is_through(), |length| begin.elapsed() < length)
        {
            let round = plan.next_round();
            say(&format!("{name}: {:>4} s {round}", begin.elapsed().as_secs()));
            let played = scene
                .play(&round)
                .await
                .with_context(|| format!("{round} (seed {})", self.seed))?;
            course.played(played);
            rounds.push(round);
        }
        let ledger = publisher.stop()?;
        let verdict = scene.verdict(&ledger, case.promise, &course);
        let report = verdict.with_context(|| {
            let rounds: Vec<String> = rounds.iter().map(Round::to_string).collect();
            format!("{name}, seed {}, faults:\n  {}", self.seed, rounds.join("\n  "))
        })?;
        say(&format!(
            "{name}: {} rounds in {} s; {report}; {}",
            rounds.len(),
            begin.elapsed().as_secs(),
            course.counts()
        ));
        Ok(())
    }
}

/// One test.
struct Case {
    name: &'static str,
    broker: Broker,
    monitors: Monitors,
    spool: SpoolDisk,
    faults: Vec<Fault>,
    /// Unless the length of the run is given.
    pace: Pace,
    promise: Promise,
}

impl Case {
    /// One monitor, to which all happens that can happen with this broker.
    fn alone(name: &'static str, broker: Broker, promise: Promise) -> Self {
        Self {
            name,
            faults: broker.faults(),
            broker,
            monitors: Monitors::One,
            spool: SpoolDisk::Scarce,
            pace: Pace::Usual,
            promise,
        }
    }

    /// Two monitors, and what can happen to them.
    fn with_standby(name: &'static str, broker: Broker, promise: Promise) -> Self {
        Self {
            monitors: Monitors::Two,
            faults: Fault::OF_TWO.to_vec(),
            ..Self::alone(name, broker, promise)
        }
    }
}

/// Says how far the run is; a run at length takes hours.
fn say(text: &str) {
    let mut stderr = std::io::stderr().lock();
    // Nobody may be listening.
    drop(writeln!(stderr, "{text}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_quorum_queue_every_event_is_stored_once() -> Result<()> {
    let broker = Broker::Rabbitmq(Rabbitmq::start_new()?, EventQueueType::Quorum);
    let case = Case::alone("quorum queue", broker, Promise::Exact);
    Run::from_environment()?.play(case).await
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_classic_queue_what_is_missing_lies_in_a_gap() -> Result<()> {
    let broker = Broker::Rabbitmq(Rabbitmq::start_new()?, EventQueueType::Classic);
    let case = Case::alone("classic queue", broker, Promise::OutsideGaps);
    Run::from_environment()?.play(case).await
}

#[tokio::test(flavor = "multi_thread")]
async fn from_redis_what_is_missing_lies_in_a_gap() -> Result<()> {
    let broker = Broker::Redis(Redis::start_new()?);
    let case = Case::alone("redis", broker, Promise::OutsideGaps);
    Run::from_environment()?.play(case).await
}

#[tokio::test(flavor = "multi_thread")]
async fn from_redis_every_event_is_stored_once_whatever_happens_to_the_store() -> Result<()> {
    let broker = Broker::Redis(Redis::start_new()?);
    let case = Case {
        faults: Fault::OF_STORE.to_vec(),
        spool: SpoolDisk::Ample,
        pace: Pace::Quick,
        ..Case::alone("redis, the store", broker, Promise::Exact)
    };
    Run::from_environment()?.play(case).await
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_quorum_queue_with_a_standby_every_event_is_stored_once() -> Result<()> {
    let broker = Broker::Rabbitmq(Rabbitmq::start_new()?, EventQueueType::Quorum);
    let case = Case::with_standby("quorum queue, two monitors", broker, Promise::Exact);
    Run::from_environment()?.play(case).await
}

#[tokio::test(flavor = "multi_thread")]
async fn from_redis_with_a_standby_what_is_missing_lies_in_a_gap() -> Result<()> {
    let broker = Broker::Redis(Redis::start_new()?);
    let case = Case::with_standby("redis, two monitors", broker, Promise::OutsideGaps);
    Run::from_environment()?.play(case).await
}
