//! What else listens to Celery's events, beside the monitor: how much of one stream each handles, and what that takes.
//!
//! Each gets a Redis of its own, RabbitMQ in turn, and the same events. What it has handled is what it says itself; of all of them only the
//! monitor has made anything durable by then.

use std::time::Duration;

use anyhow::{Context as _, Result};
use kanchi_test_load::{AmqpPublisher, RedisPublisher, Stream, Workload, now};
use kanchi_test_servers::peer::Program;
use kanchi_test_servers::rabbitmq::Rabbitmq;
use kanchi_test_servers::redis::Redis;
use tokio::runtime::Runtime;

use crate::Sizes;
use crate::drive::{Blocking, Brake, Publisher, Until, publish, publish_beside};
use crate::figures::say;
use crate::floor;
use crate::listener::{Kind, Listener};
use crate::older::postgres;

/// A stream need not be longer: none of them gets slower or faster later.
const LONGEST: Duration = Duration::from_mins(1);

/// Events that are published at once.
const BURST: u64 = 100_000;

/// Rows that F is taken from.
const FLOOR: u64 = 500_000;

/// Tells the seed of what only shows that a listener listens.
const PROBE: u64 = 1 << 33;

/// When nothing more is handled for so long, nothing more comes.
const QUIET: Duration = Duration::from_secs(5);

const KINDS: [Kind; 3] = [
    Kind::Peer(Program::Flower),
    Kind::Peer(Program::CeleryReceiver),
    Kind::Monitor,
];

const HEAD: &str = "\
| listener | what | published | handled | lost | events/s | × F | processor per event | memory | kept |
|---|---|---|---|---|---|---|---|---|---|";

pub(crate) fn measure(runtime: &Runtime, workload: Workload, sizes: Sizes) -> Result<()> {
    let against = {
        let postgres = postgres()?;
        postgres.create_installation("kanchi")?;
        floor::copy_rate(&postgres, workload, FLOOR)?
    };
    let mut lines = vec![format!("\nF is {against:.0} events a second\n\n{HEAD}")];
    let mut shown = |kind: Kind, what: &str, heard: &Heard| {
        let line = heard.line(kind, what, against);
        say(&line);
        lines.push(line);
    };
    for kind in KINDS {
        let heard = stream_on_redis(runtime, kind, workload, sizes.stream.min(LONGEST))?;
        shown(kind, "Redis, as fast as it can", &heard);
    }
    for kind in KINDS {
        shown(kind, "Redis, burst", &burst_on_redis(runtime, kind, workload)?);
    }
    let rabbit = Rabbitmq::start_new()?;
    for kind in KINDS {
        shown(
            kind,
            "RabbitMQ, burst",
            &burst_on_rabbitmq(runtime, &rabbit, kind, workload)?,
        );
    }
    say(&lines.join("\n"));
    Ok(())
}

fn stream_on_redis(runtime: &Runtime, kind: Kind, workload: Workload, length: Duration) -> Result<Heard> {
    let redis = Redis::start_new()?;
    let listener = Listener::start(runtime, kind, &redis.url(0))?;
    let mut publisher = RedisPublisher::connect(redis.port())?;
    let base = listening(&listener, workload, &mut publisher)?;
    hear(&listener, base, workload, |stream| {
        let until = Until::Time(now() + length.as_micros() as i64);
        publish_beside(stream, &mut publisher, until, kind.brake(), || {
            listener.handled().unwrap_or_default().saturating_sub(base)
        })
    })
}

fn burst_on_redis(runtime: &Runtime, kind: Kind, workload: Workload) -> Result<Heard> {
    let redis = Redis::start_new()?;
    let listener = Listener::start(runtime, kind, &redis.url(0))?;
    let heard = burst(&listener, workload, &mut RedisPublisher::connect(redis.port())?)?;
    let log = redis.log();
    let cut = log.lines().filter(|line| line.contains("output buffer limits")).count();
    say(&format!("Redis cut {} off {cut} times", kind.name()));
    Ok(heard)
}

fn burst_on_rabbitmq(runtime: &Runtime, rabbit: &Rabbitmq, kind: Kind, workload: Workload) -> Result<Heard> {
    let listener = Listener::start(runtime, kind, &rabbit.url())?;
    let publisher = runtime.block_on(AmqpPublisher::connect(&rabbit.url()))?;
    let mut blocking = Blocking {
        runtime,
        publisher: &publisher,
    };
    burst(&listener, workload, &mut blocking)
}

fn burst(listener: &Listener, workload: Workload, publisher: &mut impl Publisher) -> Result<Heard> {
    let base = listening(listener, workload, publisher)?;
    hear(listener, base, workload, |stream| {
        publish(stream, publisher, Until::Events(BURST), Brake::None)
    })
}

/// Publishes single tasks until one was heard; returns how many events were handled once all of these are.
fn listening(listener: &Listener, workload: Workload, publisher: &mut impl Publisher) -> Result<u64> {
    let mut probe = Stream::new(Workload::short(workload.seed + PROBE));
    let patience = now() + 60_000_000;
    while listener.handled()? == 0 {
        anyhow::ensure!(now() < patience, "it hears nothing:\n{}", listener.log());
        let one = Until::Tasks(probe.tasks() + 1);
        publish(&mut probe, publisher, one, Brake::None)?;
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(settled(listener, u64::MAX, Duration::from_secs(1))?.0)
}

/// Waits until so much is handled, or nothing more for a while; returns how much that is, and since when.
fn settled(listener: &Listener, all: u64, quiet: Duration) -> Result<(u64, i64)> {
    let (mut handled, mut since) = (listener.handled()?, now());
    while handled < all && now() - since < quiet.as_micros() as i64 {
        std::thread::sleep(Duration::from_millis(100));
        let more = listener.handled()?;
        if more != handled {
            (handled, since) = (more, now());
        }
    }
    Ok((handled, since))
}

/// What a listener made of what was published.
struct Heard {
    published: u64,
    handled: u64,
    /// Seconds from the first event published to the last one handled.
    seconds: f64,
    /// Processor seconds.
    processor: f64,
    /// Highest resident memory, bytes.
    peak: u64,
}

/// Publishes a stream to a listener that has handled so many events of others.
fn hear(
    listener: &Listener,
    base: u64,
    workload: Workload,
    publish: impl FnOnce(&mut Stream) -> Result<()>,
) -> Result<Heard> {
    let mut stream = Stream::new(workload);
    let (first, used) = (now(), listener.processor_seconds());
    publish(&mut stream)?;
    let (handled, last) = settled(listener, base + stream.events(), QUIET).context("the listener is gone")?;
    Ok(Heard {
        published: stream.events(),
        handled: handled - base,
        seconds: (last - first) as f64 / 1e6,
        processor: listener.processor_seconds() - used,
        peak: listener.peak_memory(),
    })
}

impl Heard {
    fn line(&self, kind: Kind, what: &str, against: f64) -> String {
        let rate = self.handled as f64 / self.seconds;
        let lost = self.published.saturating_sub(self.handled) as f64 / self.published as f64;
        format!(
            "| {} | {what} | {} | {} | {:.1} % | {rate:.0} | {:.2} | {:.1} µs | {:.0} MiB | {} |",
            kind.name(),
            self.published,
            self.handled,
            lost * 100.0,
            rate / against,
            self.processor / self.handled.max(1) as f64 * 1e6,
            self.peak as f64 / f64::from(1 << 20),
            kind.keeps(),
        )
    }
}
