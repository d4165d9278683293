//! One channel of RabbitMQ, consuming one queue.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, pending};
use futures::{FutureExt, StreamExt};
use kanchi_domain::UnixMicros;
use lapin::message::Delivery as AmqpDelivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Consumer};

use super::acker::Acker;
use super::{Consumption, Ended};
use crate::amqp::connection::AmqpConnection;
use crate::amqp::topology::{self, QueuePlan};
use crate::net::ConnectError;
use crate::report::{ConnectReason, ConnectionState, GapCause};
use crate::stream::{Delivery, DeliveryTag, Framing, StreamItem, StreamTask};
use crate::time::now;

/// How often overflow is looked for.
const UPKEEP: Duration = Duration::from_secs(15);
/// How often the broker is asked whether messages wait, until none does.
const CATCH_UP_CHECK: Duration = Duration::from_secs(1);
/// How often a queue that is being drained is looked at.
const DRAIN_CHECK: Duration = Duration::from_millis(500);
/// Looks in a row that must find nothing left: a process that ends cancels its consumer a moment before its messages come
/// back, and no look shows those.
const DRAINED: u32 = 4;
/// How often companions are renewed, in upkeeps.
const RENEWAL: u32 = 20;
/// Deliveries handed over together.
const BATCH: usize = 256;

/// Whether the consumer goes on.
enum Consumed {
    More,
    End,
}

/// One channel, consuming one queue.
pub(super) struct Session<'a> {
    state: &'a mut Consumption,
    task: &'a mut StreamTask,
    connection: &'a AmqpConnection,
    plan: &'a QueuePlan,
    queue: String,
    draining: bool,
    pub(super) channel: Channel,
    /// Tag of the stream = `base` + tag of the channel, which counts from 1.
    base: u64,
    prefetch: u16,
    upkeeps: u32,
    /// Little or nothing waited in the queue, and nothing was held back since: what is published comes at once.
    caught_up: bool,
    backlog: Option<Backlog>,
}

/// What waited in the queue when the broker was asked.
#[derive(Clone, Copy, Debug)]
struct Backlog {
    asked: UnixMicros,
    /// Once this tag is here, so is all that waited.
    through: u64,
    is_small: bool,
}

impl<'a> Session<'a> {
    /// Opens a channel on `connection` that will consume `queue`.
    pub(super) async fn open(
        state: &'a mut Consumption,
        task: &'a mut StreamTask,
        connection: &'a AmqpConnection,
        plan: &'a QueuePlan,
        queue: String,
        draining: bool,
    ) -> Result<Self, lapin::Error> {
        let channel = connection.channel().await?;
        let base = task.last_tag;
        if let Some(tag) = task.handover.acknowledged() {
            state.ledger.acknowledged(tag);
        }
        state.ledger.begin(base);
        let (held, _foreign, _unacked) = state.ledger.held();
        let prefetch = state.prefetch.wanted(held);
        Ok(Self {
            state,
            task,
            connection,
            plan,
            queue,
            draining,
            channel,
            base,
            prefetch,
            upkeeps: 0,
            caught_up: false,
            backlog: None,
        })
    }

    /// Consumes and acknowledges side by side: an answer of the broker may wait behind deliveries that only an
    /// acknowledgement makes room for.
    pub(super) async fn run(&mut self) -> Result<Ended, lapin::Error> {
        let acker = Acker {
            handover: Arc::clone(&self.task.handover),
            ledger: Arc::clone(&self.state.ledger),
            channel: self.channel.clone(),
            base: self.base,
        };
        let (stop, mut specs) = (self.task.stop.clone(), self.task.specs.clone());
        let outcome = tokio::select! {
            outcome = self.consume() => outcome,
            failed = acker.run() => failed,
            () = acker.overloaded() => Ok(Ended::Overloaded),
            interrupted = StreamTask::interrupted(&stop, &mut specs) => Ok(Ended::Interrupted(interrupted)),
        };
        if outcome.is_ok() {
            acker.acknowledge_all().await?;
        }
        outcome
    }

    async fn consume(&mut self) -> Result<Ended, lapin::Error> {
        // The first look comes at once: what was dropped while nobody was there must be known before the first delivery.
        self.upkeep().await;
        loop {
            let subscribing =
                tokio::time::timeout(self.task.options.connect_timeout.saturating_mul(3), self.subscribe());
            let Ok(subscribed) = subscribing.await else {
                // A quorum queue without a leader: it can be declared, but does not answer.
                let message = format!("the queue {} does not answer; has it lost its leader?", self.queue);
                return Ok(Ended::Failed(ConnectError::new(ConnectReason::Timeout, message)));
            };
            let mut consumer = subscribed?;
            // The next process must find a queue that is not drained yet, so that one is reported as long as it lasts.
            let (version, queue) = (self.connection.broker_version(), Some(self.queue.clone()));
            self.task.report(ConnectionState::Connected, None, version, queue);
            if let Some(ended) = self.deliver(&mut consumer).await? {
                return Ok(ended);
            }
            tracing::debug!(prefetch = self.prefetch, "changed the prefetch");
        }
    }

    async fn subscribe(&self) -> Result<Consumer, lapin::Error> {
        self.channel
            .basic_qos(self.prefetch, BasicQosOptions::default())
            .await?;
        let (queue, options) = (topology::name(&self.queue), BasicConsumeOptions::default());
        self.channel
            .basic_consume(queue, topology::name(""), options, FieldTable::default())
            .await
    }

    /// Hands deliveries over; `None` when the consumer was cancelled for the sake of another prefetch.
    async fn deliver(&mut self, consumer: &mut Consumer) -> Result<Option<Ended>, lapin::Error> {
        let mut upkeep = tokio::time::interval_at(tokio::time::Instant::now() + UPKEEP, UPKEEP);
        let mut drain_check = tokio::time::interval(DRAIN_CHECK);
        let mut catch_up_check = tokio::time::interval(CATCH_UP_CHECK);
        let mut drained = 0;
        (self.caught_up, self.backlog) = (false, None);
        let channel = self.channel.clone();
        let mut cancelling: BoxFuture<'_, Result<(), lapin::Error>> = pending().boxed();
        let mut looking: Option<BoxFuture<'_, Option<(UnixMicros, topology::Held)>>> = None;
        let mut cancelled = false;
        loop {
            tokio::select! {
                delivery = consumer.next() => match delivery {
                    Some(Ok(delivery)) => match self.hand_over(delivery, consumer)? {
                        Consumed::More => {}
                        Consumed::End if cancelled => return Ok(None),
                        Consumed::End => return Err(cancelled_by_broker()),
                    },
                    Some(Err(error)) => return Err(error),
                    None if cancelled => return Ok(None),
                    None => return Err(cancelled_by_broker()),
                },
                done = &mut cancelling => {
                    done?;
                    cancelling = pending().boxed();
                }
                _at = upkeep.tick() => self.upkeep().await,
                _at = catch_up_check.tick(), if looking.is_none() && !self.caught_up && !self.draining && !cancelled => {
                    looking = Some(look_for_backlog(channel.clone(), self.queue.clone(), now()).boxed());
                }
                // Beside the deliveries: the answer comes behind those that only an acknowledgement makes room for.
                found = async { looking.as_mut()?.await }, if looking.is_some() => {
                    looking = None;
                    if let Some((asked, queue)) = found {
                        self.found_backlog(asked, queue);
                    }
                }
                _at = drain_check.tick(), if self.draining => {
                    let (_held, _foreign, unacked) = self.state.ledger.held();
                    // Another consumer is a process before this one, whose connection the broker has not given up yet; what
                    // it holds comes back then.
                    let queue = topology::look(&self.channel, &self.queue).await?;
                    let done = unacked == 0 && queue.ready == 0 && queue.consumers <= 1;
                    drained = if done { drained + 1 } else { 0 };
                    if drained >= DRAINED {
                        return Ok(Some(Ended::Drained));
                    }
                }
            }
            if !cancelled && let Some(wanted) = self.wanted_prefetch() {
                self.prefetch = wanted;
                let cancel = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
                cancelling = cancel.boxed();
                cancelled = true;
                // Until the next consumer delivers, the broker does not go by this prefetch.
                (self.caught_up, self.backlog, looking) = (false, None, None);
            }
        }
    }

    /// Hands over this delivery and those that are there already.
    fn hand_over(&mut self, first: AmqpDelivery, consumer: &mut Consumer) -> Result<Consumed, lapin::Error> {
        let mut batch = vec![self.convert(first)];
        let mut outcome = Ok(Consumed::More);
        let mut emptied = false;
        while batch.len() < BATCH {
            match consumer.next().now_or_never() {
                Some(Some(Ok(delivery))) => batch.push(self.convert(delivery)),
                Some(Some(Err(error))) => {
                    outcome = Err(error);
                    break;
                }
                Some(None) => {
                    outcome = Ok(Consumed::End);
                    break;
                }
                None => {
                    self.state.ledger.drained();
                    emptied = self.state.ledger.paused_for().is_zero();
                    break;
                }
            }
        }
        self.task.handover.push(batch);
        // Below the prefetch nothing is held back. That nothing is here alone says little: of a backlog the rest may be on its
        // way, and is lost with a broker that ends now.
        let (outstanding, prefetch) = (self.state.ledger.outstanding().count(), u64::from(self.prefetch));
        self.caught_up &= outstanding < prefetch;
        if let Some(backlog) = self.backlog.take_if(|backlog| self.task.last_tag >= backlog.through) {
            self.task.complete(backlog.asked);
            self.caught_up = backlog.is_small && self.has_room();
        }
        self.state.ledger.window(self.prefetch, !self.caught_up);
        self.task.handover.ack_arrived.notify_one();
        if emptied && self.caught_up {
            self.task.complete(now());
        }
        outcome
    }

    fn convert(&mut self, delivery: AmqpDelivery) -> StreamItem {
        let tag = DeliveryTag(self.base + delivery.delivery_tag);
        let bytes = delivery.data.len();
        self.task.last_tag = tag.0;
        self.state.prefetch.seen(bytes);
        self.state.ledger.delivered(tag, bytes + size_of::<Delivery>());
        let text = |value: &Option<lapin::types::ShortString>| value.as_ref().map(|text| text.as_str().to_owned());
        let headers = delivery.properties.headers().as_ref();
        let compression = headers
            .and_then(|headers| headers.inner().get("compression"))
            .and_then(text_value);
        // A quorum queue counts deliveries; the flag is set by both kinds of queue.
        let counted = headers
            .and_then(|headers| headers.inner().get("x-delivery-count"))
            .is_some_and(positive);
        StreamItem::Delivery(Delivery {
            tag,
            redelivered: delivery.redelivered || counted,
            arrived: now(),
            framing: Framing::Message {
                content_type: text(delivery.properties.content_type()),
                content_encoding: text(delivery.properties.content_encoding()),
                compression,
            },
            body: Bytes::from(delivery.data),
        })
    }

    /// Tells whether the broker surely may send more: acknowledgements that are on their way make what is outstanding less than it
    /// counts.
    fn has_room(&self) -> bool {
        self.state.ledger.outstanding().count() < u64::from(self.prefetch).div_ceil(2)
    }

    fn wanted_prefetch(&mut self) -> Option<u16> {
        let (held, foreign, unacked) = self.state.ledger.held();
        self.state.prefetch.change(self.prefetch, held, unacked, foreign)
    }

    /// So much waited in the queue when the broker was asked.
    fn found_backlog(&mut self, asked: UnixMicros, queue: topology::Held) {
        // What another consumer holds comes back when the broker gives it up.
        if queue.consumers > 1 {
            return;
        }
        if queue.ready == 0 {
            (self.caught_up, self.backlog) = (self.has_room(), None);
            self.task.complete(asked);
            return;
        }
        // Under load something always waits. What is on its way already comes before it: at most the prefetch.
        self.backlog.get_or_insert_with(|| Backlog {
            asked,
            through: self.task.last_tag + u64::from(self.prefetch) + u64::from(queue.ready),
            is_small: queue.ready < u32::from(self.prefetch),
        });
    }

    /// Looks for an overflow and keeps the companions alive. What fails here is tried again at the next upkeep.
    async fn upkeep(&mut self) {
        self.upkeeps += 1;
        let looked = tokio::time::timeout(self.task.options.connect_timeout, self.overflowed()).await;
        match looked.unwrap_or_else(|_elapsed| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into())) {
            Ok(true) => {
                let from = self.task.complete_until.unwrap_or_else(now);
                self.task.gap(from, GapCause::QueueOverflow, None);
            }
            Ok(false) => {}
            Err(error) => {
                tracing::debug!("failed to look for an overflow: {error}");
                self.caught_up = false;
            }
        }
        let (_held, _foreign, unacked) = self.state.ledger.held();
        if self.caught_up && unacked == 0 && self.state.ledger.paused_for().is_zero() {
            self.task.complete(now());
        }
        if self.upkeeps.is_multiple_of(RENEWAL)
            && self.plan.is_classic()
            && let Err(error) = topology::renew(self.connection, self.plan).await
        {
            tracing::debug!("failed to renew a companion queue: {error}");
        }
    }

    async fn overflowed(&mut self) -> Result<bool, lapin::Error> {
        let channel = self.connection.channel().await?;
        topology::renew_dropped(&channel, self.plan).await?;
        let dropped = topology::name(&topology::dropped(&self.plan.name));
        let found = channel
            .basic_get(dropped, BasicGetOptions { no_ack: true })
            .await?
            .is_some();
        channel.close(200, "OK".into()).await?;
        Ok(found)
    }
}

/// Asks what waits in a queue; `None` where that cannot be told now.
async fn look_for_backlog(channel: Channel, queue: String, asked: UnixMicros) -> Option<(UnixMicros, topology::Held)> {
    let found = topology::look(&channel, &queue).await.ok()?;
    Some((asked, found))
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "AMQP has many types and two of them are text"
)]
fn text_value(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => String::from_utf8(text.as_bytes().to_vec()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str().to_owned()),
        _other => None,
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "AMQP has many types and these are whole numbers"
)]
fn positive(value: &AMQPValue) -> bool {
    match value {
        AMQPValue::LongLongInt(count) => *count > 0,
        AMQPValue::LongInt(count) => *count > 0,
        AMQPValue::LongUInt(count) => *count > 0,
        AMQPValue::ShortInt(count) => *count > 0,
        AMQPValue::ShortShortInt(count) => *count > 0,
        AMQPValue::ShortShortUInt(count) => *count > 0,
        AMQPValue::ShortUInt(count) => *count > 0,
        _other => false,
    }
}

/// RabbitMQ cancels a consumer whose queue was deleted or whose node went away.
fn cancelled_by_broker() -> lapin::Error {
    std::io::Error::new(std::io::ErrorKind::ConnectionReset, "the broker cancelled the consumer").into()
}
