//! The beginning of the event path: the task that owns the broker's stream.
//!
//! RabbitMQ: what is delivered waits in a short channel and, beyond it, unacknowledged at the broker: the stream's own
//! bound in bytes is the back-pressure. Redis: the stream is drained without pause into the [`Buffer`].

use std::collections::VecDeque;
use std::sync::Arc;

use kanchi_broker::{ConnectionState, Delivery, DeliveryTag, EventStream, Framing, StreamItem};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::intake::buffer::{Buffer, Waiting};
use crate::intake::message::Message;
use crate::settings::SettingsWatch;
use crate::shared::Shared;

/// Items asked of the stream at once; a bound on the work between two looks at acknowledgements and shutdown.
const ITEMS_AT_ONCE: usize = 512;

/// Portions that wait between stream and decoder; their bytes are bounded by the stream's budget.
pub const PORTIONS: usize = 2;

/// Owns the stream until the end.
#[derive(Debug)]
pub struct Pump {
    /// The stream.
    pub stream: EventStream,
    /// Shared state.
    pub shared: Arc<Shared>,
    /// Settings in force.
    pub settings: SettingsWatch,
    /// The newest tag that is durable.
    pub acknowledged: watch::Receiver<u64>,
    /// Ends taking messages.
    pub drain: CancellationToken,
    /// Ends the stream, after the last acknowledgement.
    pub end: CancellationToken,
}

/// Where the pump puts messages.
#[derive(Debug)]
pub enum Sink {
    /// RabbitMQ.
    Channel(mpsc::Sender<Vec<Message>>),
    /// Redis.
    Buffer(Arc<Buffer>),
}

/// Where the decoder takes messages from.
#[derive(Debug)]
pub enum Source {
    /// RabbitMQ.
    Channel(mpsc::Receiver<Vec<Message>>),
    /// Redis.
    Buffer(Arc<Buffer>, Vec<Waiting>),
}

impl Source {
    /// Appends what is there, waiting for the first message; `false` at the end. Cancel-safe.
    pub async fn take(&mut self, into: &mut VecDeque<Message>, max_bytes: usize) -> bool {
        match self {
            Self::Channel(receiver) => match receiver.recv().await {
                Some(portion) => {
                    into.extend(portion);
                    true
                }
                None => false,
            },
            Self::Buffer(buffer, waiting) => {
                let more = buffer.take(waiting, max_bytes).await;
                into.extend(waiting.drain(..).map(|message| Message {
                    tag: message.tag,
                    maybe_stored: message.maybe_stored,
                    may_repeat: message.may_repeat,
                    arrived: message.arrived,
                    body: message.body,
                    framing: Framing::Envelope,
                }));
                more
            }
        }
    }

    /// Tells whether nothing waits right now.
    pub fn is_idle(&self) -> bool {
        match self {
            Self::Channel(receiver) => receiver.is_empty(),
            Self::Buffer(buffer, _) => buffer.fill().waiting_bytes == 0,
        }
    }
}

impl Pump {
    /// Runs until the drain, then acknowledges until the end.
    pub async fn run(mut self, sink: Sink) {
        match sink {
            Sink::Channel(sender) => self.run_channel(sender).await,
            Sink::Buffer(buffer) => self.run_buffer(&buffer).await,
        }
        self.acknowledge_until_the_end().await;
    }

    async fn run_channel(&mut self, sender: mpsc::Sender<Vec<Message>>) {
        let mut items = Vec::new();
        let mut portion: Vec<Message> = Vec::new();
        loop {
            tokio::select! {
                () = self.drain.cancelled() => return,
                Ok(()) = self.acknowledged.changed() => self.acknowledge(),
                Ok(()) = self.settings.changed() => self.reload(),
                permit = sender.reserve(), if !portion.is_empty() => match permit {
                    Ok(permit) => permit.send(std::mem::take(&mut portion)),
                    Err(_) => return,
                },
                count = self.stream.next_batch(&mut items, ITEMS_AT_ONCE), if portion.is_empty() => {
                    if count == 0 {
                        return;
                    }
                    for item in items.drain(..) {
                        if let Some(delivery) = self.news(item, None) {
                            portion.push(message_of(delivery));
                        }
                    }
                    self.shared.metrics.messages.inc_by(portion.len() as u64);
                }
            }
        }
    }

    async fn run_buffer(&mut self, buffer: &Buffer) {
        let mut items = Vec::new();
        let mut tick = tokio::time::interval(std::time::Duration::from_secs(1));
        loop {
            tokio::select! {
                () = self.drain.cancelled() => break,
                Ok(()) = self.settings.changed() => {
                    self.reload();
                    if self.settings.borrow().has_standby() {
                        buffer.keep_digests();
                    }
                }
                Ok(()) = self.acknowledged.changed() => buffer.release_through(*self.acknowledged.borrow_and_update()),
                _ = tick.tick() => {
                    buffer.flush();
                    for gap in buffer.take_gaps(self.shared.now(), false) {
                        self.shared.gap(&gap);
                    }
                    self.shared.metrics.buffer(&buffer.fill());
                }
                count = self.stream.next_batch(&mut items, ITEMS_AT_ONCE) => {
                    if count == 0 {
                        break;
                    }
                    let mut messages = 0;
                    for item in items.drain(..) {
                        if let Some(delivery) = self.news(item, Some(buffer)) {
                            messages += 1;
                            buffer.push(delivery.arrived, delivery.body);
                        }
                    }
                    self.shared.metrics.messages.inc_by(messages);
                }
            }
        }
        for gap in buffer.take_gaps(self.shared.now(), true) {
            self.shared.gap(&gap);
        }
        buffer.close();
    }

    /// Passes on news of the connection and gaps; returns messages.
    fn news(&self, item: StreamItem, buffer: Option<&Buffer>) -> Option<Delivery> {
        match item {
            StreamItem::Delivery(delivery) => {
                self.shared.arrived(delivery.arrived);
                return Some(delivery);
            }
            // What one that stands by did not hear is no gap: the other one did.
            StreamItem::Gap(gap) if buffer.is_some_and(|buffer| buffer.hides(&gap)) => {}
            StreamItem::Gap(gap) => self.shared.gap(&gap),
            StreamItem::Connection(report) => {
                if report.state == ConnectionState::Connected
                    && let Some(gap) = buffer.and_then(|buffer| buffer.connected(report.at))
                {
                    self.shared.gap(&gap);
                }
                self.shared.connection(report);
            }
            StreamItem::Complete(until) => self.shared.received_all_until(until),
        }
        None
    }

    fn acknowledge(&mut self) {
        let tag = *self.acknowledged.borrow_and_update();
        self.stream.ack_through(DeliveryTag(tag));
    }

    fn reload(&mut self) {
        let spec = self.settings.borrow_and_update().broker.clone();
        self.stream.reload(spec);
    }

    /// After the drain: what is still being committed is acknowledged, then the connection is closed in order.
    async fn acknowledge_until_the_end(&mut self) {
        let mut items = Vec::new();
        loop {
            tokio::select! {
                Ok(()) = self.acknowledged.changed() => self.acknowledge(),
                () = self.end.cancelled() => break,
            }
        }
        if self.acknowledged.has_changed().unwrap_or(false) {
            self.acknowledge();
        }
        // Read to its end, so that acknowledgements are written out; messages read now stay unacknowledged.
        while self.stream.next_batch(&mut items, ITEMS_AT_ONCE).await > 0 {
            items.clear();
        }
        self.shared.metrics.set_connection(ConnectionState::Disconnected);
    }
}

fn message_of(delivery: Delivery) -> Message {
    Message {
        tag: delivery.tag.0,
        maybe_stored: delivery.redelivered,
        may_repeat: true,
        arrived: delivery.arrived,
        body: delivery.body,
        framing: delivery.framing,
    }
}
