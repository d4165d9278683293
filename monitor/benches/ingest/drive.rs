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

/// Events of most tasks.
const EVENTS_A_TASK: f64 = 4.0;

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
    /// So many events a second.
    Steady(u64),
    /// It may be so many events ahead of these, counted from the stream's beginning.
    Ahead(u64, &'a AtomicU64),
}

impl Brake<'_> {
    /// Returns how many tasks may begin now.
    fn tasks(self, published: u64, time: i64, pace: &mut Pace) -> u64 {
        match self {
            Self::None => BEGIN_AT_ONCE,
            Self::Steady(_) => pace.tasks(time),
            Self::Ahead(by, of) => {
                let handled = of.load(Ordering::Relaxed);
                let room = by.saturating_sub(published.saturating_sub(handled));
                pace.follow(time, handled);
                pace.tasks(time).min((room as f64 / EVENTS_A_TASK) as u64)
            }
        }
    }
}

/// Spreads tasks over time. What has been handled grows by a whole batch at once, and whoever published as much as soon as there was
/// room would begin all tasks of a batch within a few milliseconds: no fleet of workers does that.
struct Pace {
    /// Events a second that may begin.
    rate: f64,
    /// Tasks that may begin now.
    due: f64,
    last: i64,
    /// When `rate` was taken last from what is handled, and what had been handled then.
    from: Option<(i64, u64)>,
}

impl Pace {
    /// Events a second before anything is known.
    const FIRST: f64 = 60_000.0;
    const LEAST: f64 = 10_000.0;
    /// Microseconds that a rate is taken from: some batches.
    const STRETCH: i64 = 500_000;
    /// Seconds that are made up for.
    const MADE_UP: f64 = 0.03;

    fn new(time: i64, brake: Brake<'_>) -> Self {
        let rate = match brake {
            Brake::Steady(rate) => rate as f64,
            Brake::None | Brake::Ahead(..) => Self::FIRST,
        };
        Self {
            rate,
            due: 0.0,
            last: time,
            from: None,
        }
    }

    /// Lets a quarter more begin than was handled lately.
    fn follow(&mut self, time: i64, handled: u64) {
        let (since, before) = *self.from.get_or_insert((time, handled));
        let stretch = time - since;
        if stretch >= Self::STRETCH {
            let rate = (handled - before) as f64 / (stretch as f64 / 1e6);
            // A stall is no new pace.
            self.rate = (rate * 1.25).max(self.rate * 0.8).max(Self::LEAST);
            self.from = Some((time, handled));
        }
    }

    /// Returns how many tasks may begin.
    fn tasks(&mut self, time: i64) -> u64 {
        let passed = (time - self.last) as f64 / 1e6;
        self.last = time;
        // What was missed while this thread had no processor is made up for, not what was missed for want of room.
        let tasks_a_second = self.rate / EVENTS_A_TASK;
        self.due = (self.due + passed * tasks_a_second).min(Self::MADE_UP * tasks_a_second);
        let tasks = self.due.floor().min(BEGIN_AT_ONCE as f64);
        self.due -= tasks;
        tasks as u64
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
    let mut pace = Pace::new(flushed, brake);
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
        stream.begin(brake.tasks(before, time, &mut pace).min(more), time);
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
