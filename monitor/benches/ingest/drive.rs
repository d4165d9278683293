//! Publishes a stream in real time, no further ahead of the monitor than its buffers are made for.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use kanchi_test_load::{AmqpPublisher, Message, Messages, RedisPublisher, Stream, now};

use crate::rig::MonitorProcess;

/// Events that may be published and not yet stored by a monitor: three batches, and what fits into the ring.
pub(crate) const AHEAD: u64 = 24_000;

/// How often a monitor is asked how far it is. Not more often: the answer costs it a millisecond.
pub(crate) const PAUSE: Duration = Duration::from_millis(50);

/// Tasks that begin at once at most, so that events come in a stream and not in gushes.
const BEGIN_AT_ONCE: u64 = 64;

/// How often workers send lists that are not full, microseconds.
const FLUSH: i64 = 10_000;

/// Sends messages.
pub(crate) trait Publisher {
    fn publish(&mut self, message: &Message<'_>) -> Result<()>;
    fn flush(&mut self) -> Result<()>;
}

impl Publisher for RedisPublisher {
    fn publish(&mut self, message: &Message<'_>) -> Result<()> {
        Self::publish(self, message)
    }

    fn flush(&mut self) -> Result<()> {
        Self::flush(self)
    }
}

/// RabbitMQ's publisher for a thread that may block.
pub(crate) struct Blocking<'a> {
    pub(crate) runtime: &'a tokio::runtime::Runtime,
    pub(crate) publisher: &'a AmqpPublisher,
}

impl Publisher for Blocking<'_> {
    fn publish(&mut self, message: &Message<'_>) -> Result<()> {
        self.runtime.block_on(self.publisher.publish(message))
    }

    fn flush(&mut self) -> Result<()> {
        self.runtime.block_on(self.publisher.flush())
    }
}

/// When publishing ends.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    /// At this time; what is not due by then is not published.
    Time(i64),
    /// At this time, and not before so many events were published.
    TimeAndEvents(i64, u64),
    /// When so many events were published.
    Events(u64),
    /// When so many tasks have begun and all their events were published.
    Tasks(u64),
}

/// What holds a publisher back.
#[derive(Clone, Copy)]
pub(crate) enum Brake<'a> {
    /// Nothing.
    None,
    /// It may be so many events ahead of these, counted from the stream's beginning.
    Ahead(u64, &'a AtomicU64),
}

impl Brake<'_> {
    /// Returns how many events may be published now.
    fn room(self, published: u64) -> u64 {
        match self {
            Self::None => u64::MAX,
            Self::Ahead(by, of) => by.saturating_sub(published.saturating_sub(of.load(Ordering::Relaxed))),
        }
    }
}

/// Publishes until the end.
pub(crate) fn publish(
    stream: &mut Stream,
    publisher: &mut impl Publisher,
    until: Until,
    brake: Brake<'_>,
) -> Result<()> {
    let mut messages = Messages::new(stream.workload().workers);
    let mut flushed = now();
    loop {
        let time = now();
        let (more, ended) = match until {
            Until::Time(end) => (u64::MAX, time >= end),
            Until::TimeAndEvents(end, events) => (u64::MAX, time >= end && stream.events() >= events),
            Until::Events(events) => (u64::MAX, stream.events() >= events),
            Until::Tasks(tasks) => {
                let left = tasks.saturating_sub(stream.tasks());
                (left, left == 0 && stream.next_due().is_none())
            }
        };
        if ended {
            break;
        }
        let before = stream.events();
        stream.begin((brake.room(before) / 4).min(BEGIN_AT_ONCE).min(more), time);
        let mut result = Ok(());
        stream.take_due(time, |event| {
            messages.push(event, |message| {
                if result.is_ok() {
                    result = publisher.publish(message);
                }
            });
        });
        if time - flushed >= FLUSH {
            flushed = time;
            messages.flush(|message| {
                if result.is_ok() {
                    result = publisher.publish(message);
                }
            });
            publisher.flush()?;
        }
        result?;
        if stream.events() == before {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    let mut result = Ok(());
    messages.flush(|message| {
        if result.is_ok() {
            result = publisher.publish(message);
        }
    });
    result?;
    publisher.flush()
}

/// Publishes no further ahead than so many events of what has been handled, which is asked for again and again.
pub(crate) fn publish_beside(
    stream: &mut Stream,
    publisher: &mut impl Publisher,
    until: Until,
    (ahead, pause): (u64, Duration),
    handled: impl Fn() -> u64 + Sync,
) -> Result<()> {
    let already = stream.events();
    let (ours, done) = (AtomicU64::new(already), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                ours.fetch_max(already + handled(), Ordering::Relaxed);
                std::thread::sleep(pause);
            }
        });
        let result = publish(stream, publisher, until, Brake::Ahead(ahead, &ours));
        done.store(true, Ordering::Relaxed);
        result
    })
}

/// Publishes while the monitor stores, and waits until it has stored everything.
pub(crate) fn publish_and_store(
    stream: &mut Stream,
    publisher: &mut impl Publisher,
    until: Until,
    monitor: &mut MonitorProcess,
) -> Result<()> {
    let (already, base) = (stream.events(), stored(monitor));
    let watched: &MonitorProcess = monitor;
    publish_beside(stream, publisher, until, (AHEAD, PAUSE), || {
        stored(watched).saturating_sub(base)
    })?;
    let all = base + stream.events() - already;
    monitor.until("everything is stored", Duration::from_mins(15), |monitor| {
        stored(monitor) >= all || lost_on_the_way(monitor) > 0.0
    })
}

/// Returns how many events this process of the monitor has stored.
pub(crate) fn stored(monitor: &MonitorProcess) -> u64 {
    monitor.metric("kanchi_monitor_batch_events_sum").unwrap_or_default() as u64
}

/// Messages dropped, and times that Redis cut the monitor off.
fn lost_on_the_way(monitor: &MonitorProcess) -> f64 {
    ["dropped_messages_total", "gaps_total{reason=\"SubscriberCut\"}"]
        .iter()
        .filter_map(|series| monitor.metric(&format!("kanchi_monitor_{series}")))
        .sum()
}
