//! Publishes without end while everything else goes wrong, and keeps a ledger.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use kanchi_test_load::{AmqpPublisher, Messages, RecordedMessage, RedisPublisher, Stream, Workload, now};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use uuid::Uuid;

use crate::ledger::{Ledger, Sent};

/// Tasks that begin each second; each has some four events.
const TASKS_PER_SECOND: u64 = 400;

/// Bytes of a task of ballast; there are eighty a second. In batches that cannot be stored and in the ring there is room for 17 MiB.
const BALLAST: usize = 48 << 10;

/// How often what is due is published.
const EVERY: Duration = Duration::from_millis(25);

/// A broker that does not confirm within this is connected to anew.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(30);

/// Who publishes straight to the broker.
#[derive(Clone, Debug)]
pub(crate) enum Address {
    Amqp(String),
    Redis(u16),
}

enum Connection {
    Amqp(Box<AmqpPublisher>),
    Redis(RedisPublisher),
}

/// A publisher at work, on a thread of its own: it may wait for a broker that stands still.
pub(crate) struct Publisher {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<Result<Ledger>>,
}

impl Publisher {
    /// Begins; while `ballast` is set, with tasks that fill the memory of a monitor.
    pub(crate) fn start(address: Address, seed: u64, ballast: Arc<AtomicBool>) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ends);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(publish(address, seed, &ballast, &told))
        });
        Self { ends, thread }
    }

    /// Ends publishing; returns what was published.
    pub(crate) fn stop(self) -> Result<Ledger> {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_panic| anyhow!("the publisher panicked"))?
    }
}

async fn publish(address: Address, seed: u64, ballast: &AtomicBool, ends: &AtomicBool) -> Result<Ledger> {
    let workload = Workload::realistic(seed);
    let (mut stream, mut messages) = (Stream::new(workload), Messages::new(workload.workers));
    let (mut ledger, mut connection) = (Ledger::default(), None);
    let (begin, mut heavy) = (Instant::now(), 1);
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !ends.load(Ordering::Relaxed) {
        ticks.tick().await;
        let due_by_now = begin.elapsed().as_millis() as u64 * TASKS_PER_SECOND / 1_000;
        stream.begin(due_by_now.saturating_sub(stream.tasks()), now());
        let mut due = Vec::new();
        stream.take_due(now(), |event| {
            messages.push(event, |message| due.push(RecordedMessage::from(message)));
        });
        if ballast.load(Ordering::Relaxed) {
            due.extend([heavy_task(seed, heavy), heavy_task(seed, heavy + 1)]);
            heavy += 2;
        }
        if due.is_empty() {
            continue;
        }
        let from = now();
        let confirmed = send(&mut connection, &address, &due).await.is_ok();
        if !confirmed {
            // Whether the broker has them is not known; the next ones go over a new connection.
            connection = None;
        }
        let sent = Sent {
            from,
            to: now(),
            confirmed,
        };
        for message in &due {
            ledger.add(&message.body, sent)?;
        }
    }
    Ok(ledger)
}

/// Returns a task with many arguments, of which nothing more is heard.
fn heavy_task(seed: u64, number: u64) -> RecordedMessage {
    let hostname = "celery@heavy".to_owned();
    let id = Uuid::from_u64_pair(seed, number);
    let (seconds, arguments) = (now() as f64 / 1e6, "-".repeat(BALLAST));
    let body = format!(
        r#"{{"type": "task-received", "uuid": "{id}", "name": "heavy", "args": "{arguments}", "kwargs": "{{}}", "hostname": "{hostname}", "utcoffset": 0, "pid": 1, "clock": {number}, "timestamp": {seconds:.6}}}"#
    );
    RecordedMessage {
        routing_key: "task.received",
        hostname,
        body,
    }
}

async fn send(connection: &mut Option<Connection>, address: &Address, messages: &[RecordedMessage]) -> Result<()> {
    if connection.is_none() {
        *connection = Some(connect(address).await?);
    }
    let connection = connection.as_mut().context("connected just now")?;
    match connection {
        Connection::Amqp(publisher) => {
            timeout(CONFIRMED_WITHIN, async {
                for message in messages {
                    publisher.publish(&message.as_message()).await?;
                }
                publisher.flush().await
            })
            .await?
        }
        Connection::Redis(publisher) => {
            for message in messages {
                publisher.publish(&message.as_message())?;
            }
            publisher.flush()
        }
    }
}

/// Connects; a broker that is away is tried again when the next events are due.
async fn connect(address: &Address) -> Result<Connection> {
    let connected = match address {
        Address::Amqp(url) => timeout(CONFIRMED_WITHIN, AmqpPublisher::connect(url))
            .await?
            .map(|publisher| Connection::Amqp(Box::new(publisher))),
        Address::Redis(port) => RedisPublisher::connect(*port).map(Connection::Redis),
    };
    if connected.is_err() {
        sleep(EVERY).await; // a refused connection costs nothing: not in a circle at full speed
    }
    connected
}
