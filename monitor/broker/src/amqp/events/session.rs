//! One channel of RabbitMQ, consuming one queue.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::{BoxFuture, pending};
use futures::{FutureExt, StreamExt};
use kanchi_domain::UnixMicros;
use lapin::message::Delivery as AmqpDelivery;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Consumer};
use tokio::time::MissedTickBehavior;

use super::acker::Acker;
use super::completeness::{Completeness, LOOK, Look, Position};
use super::{Consumption, Ended};
use crate::amqp::connection::{AmqpConnection, within};
use crate::amqp::topology::{self, QueuePlan};
use crate::net::ConnectError;
use crate::report::{ConnectReason, ConnectionState, GapCause};
use crate::stream::{Delivery, DeliveryTag, Framing, StreamItem, StreamTask};
use crate::time::now;

/// How often a queue that is being drained is looked at.
const DRAIN_CHECK: Duration = Duration::from_millis(500);
/// Looks in a row that must find nothing left: a process that ends cancels its consumer a moment before its messages come
/// back, and no look shows those.
const DRAINED: u32 = 4;
/// How often companions are renewed.
const RENEWAL: Duration = Duration::from_mins(5);
/// Deliveries handed over together.
const BATCH: usize = 256;

/// Whether the consumer goes on.
enum Consumed {
    More,
    End,
}

/// A look that is under way, or what is left to be done about the last one.
type Looking<'a> = BoxFuture<'a, Option<(Look, Option<Dropped>)>>;

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
    completeness: Completeness,
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
        let channel = connection.within(connection.channel()).await?;
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
            completeness: Completeness::default(),
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
            self.connection.within(acker.acknowledge_all()).await?;
        }
        outcome
    }

    async fn consume(&mut self) -> Result<Ended, lapin::Error> {
        // What was dropped while nobody was there must be known before the first delivery.
        let timeout = self.task.options.connect_timeout;
        if let Ok(Some(dropped)) = look_for_dropped(self.connection, self.plan, timeout).await {
            self.tell_overflow();
            dropped.was_told(timeout).await;
        }
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
        let mut renewal = tokio::time::interval_at(tokio::time::Instant::now() + RENEWAL, RENEWAL);
        let mut drain_check = tokio::time::interval(DRAIN_CHECK);
        let mut look = tokio::time::interval(LOOK);
        // One that took long is not made up for: the next one confirms it, and must come later.
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut drained = 0;
        self.completeness = Completeness::default();
        let channel = self.channel.clone();
        let mut cancelling: BoxFuture<'_, Result<(), lapin::Error>> = pending().boxed();
        let mut looking: Option<Looking<'a>> = None;
        let mut cancelled = false;
        loop {
            tokio::select! {
                // Deliveries first: an answer says that those before it were sent.
                biased;
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
                // Beside the deliveries: the answer comes behind those that only an acknowledgement makes room for.
                found = async { looking.as_mut()?.await }, if looking.is_some() => {
                    looking = found.and_then(|(look, dropped)| self.found(look, dropped));
                }
                _at = look.tick(), if looking.is_none() && !cancelled => {
                    let (last_tag, now) = (self.task.last_tag, Instant::now());
                    if self.completeness.wants_look(last_tag, now) {
                        let claim = self.completeness.begin_look(last_tag, now);
                        looking = Some(self.look(claim));
                    }
                }
                _at = renewal.tick(), if self.plan.is_classic() => self.renew().await,
                _at = drain_check.tick(), if self.draining => {
                    let (_held, _foreign, unacked) = self.state.ledger.held();
                    // Another consumer is a process before this one, whose connection the broker has not given up yet; what
                    // it holds comes back then. No consumer at all is what is said of a quorum queue whose leader is busy.
                    let queue = self.connection.within(topology::look(&self.channel, &self.queue)).await?;
                    let done = unacked == 0 && queue.ready == 0 && queue.consumers == 1;
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
                (self.completeness, looking) = (Completeness::default(), None);
            }
        }
    }

    /// Hands over this delivery and those that are there already.
    fn hand_over(&mut self, first: AmqpDelivery, consumer: &mut Consumer) -> Result<Consumed, lapin::Error> {
        let mut batch = vec![self.convert(first)];
        let mut outcome = Ok(Consumed::More);
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
                    break;
                }
            }
        }
        self.task.handover.push(batch);
        self.completeness.delivered(self.position());
        let is_behind = !self.completeness.is_caught_up();
        self.state.ledger.window(self.prefetch, is_behind);
        self.task.handover.ack_arrived.notify_one();
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

    fn position(&self) -> Position {
        Position {
            last_tag: self.task.last_tag,
            outstanding: self.state.ledger.outstanding().count(),
            prefetch: self.prefetch,
        }
    }

    fn wanted_prefetch(&mut self) -> Option<u16> {
        let (held, foreign, unacked) = self.state.ledger.held();
        self.state.prefetch.change(self.prefetch, held, unacked, foreign)
    }

    /// Asks the broker for the state of the queue.
    fn look(&self, claim: Option<UnixMicros>) -> Looking<'a> {
        let (connection, plan, timeout) = (self.connection, self.plan, self.task.options.connect_timeout);
        let (channel, queue) = (self.channel.clone(), self.queue.clone());
        let looking = async move {
            let asked = now();
            let dropped = look_for_dropped(connection, plan, timeout).await;
            // The answer comes behind deliveries, which may have to wait for the store.
            let queue = within(timeout.saturating_mul(3), topology::look(&channel, &queue)).await;
            let look = Look {
                asked,
                claim,
                overflowed: dropped.as_ref().ok().map(Option::is_some),
                queue: queue.ok(),
            };
            Some((look, dropped.ok().flatten()))
        };
        looking.boxed()
    }

    /// Takes a look's answer; returns what is left to be done about it.
    fn found(&mut self, look: Look, dropped: Option<Dropped>) -> Option<Looking<'a>> {
        if dropped.is_some() {
            self.tell_overflow();
        }
        // Of a queue that is being drained all is here when it is empty; the present one holds what came since.
        if !self.draining
            && let Some(until) = self.completeness.found(look, self.position())
        {
            self.task.complete(until);
        }
        let (dropped, timeout) = (dropped?, self.task.options.connect_timeout);
        let telling = async move {
            dropped.was_told(timeout).await;
            None
        };
        Some(telling.boxed())
    }

    fn tell_overflow(&self) {
        let from = self.task.complete_until.unwrap_or_else(now);
        self.task.gap(from, GapCause::QueueOverflow, None);
    }

    /// Keeps the companion alive that does not survive a restart. What fails here is tried again at the next renewal.
    async fn renew(&self) {
        let renewing = topology::renew(self.connection, self.plan);
        if let Err(error) = within(self.task.options.connect_timeout, renewing).await {
            tracing::debug!("failed to renew a companion queue: {error}");
        }
    }
}

/// The sign that something was dropped, taken and not acknowledged: when this process ends before it has told of it, the next
/// one finds it.
struct Dropped {
    channel: Channel,
    tag: u64,
}

impl Dropped {
    /// It was told of. Should this fail, it is told of twice.
    async fn was_told(self, timeout: Duration) {
        let forgetting = async {
            self.channel.basic_ack(self.tag, BasicAckOptions::default()).await?;
            self.channel.close(200, "OK".into()).await
        };
        if let Err(error) = within(timeout, forgetting).await {
            tracing::debug!("failed to forget an overflow that was told of: {error}");
        }
    }
}

/// Looks whether something was dropped since the last time, and keeps the queue alive that tells it.
async fn look_for_dropped(
    connection: &AmqpConnection,
    plan: &QueuePlan,
    timeout: Duration,
) -> Result<Option<Dropped>, lapin::Error> {
    let looking = async {
        let channel = connection.channel().await?;
        topology::renew_dropped(&channel, plan).await?;
        let dropped = topology::name(&topology::dropped(&plan.name));
        let found = channel.basic_get(dropped, BasicGetOptions { no_ack: false }).await?;
        if let Some(message) = found {
            let tag = message.delivery.delivery_tag;
            return Ok(Some(Dropped { channel, tag }));
        }
        channel.close(200, "OK".into()).await?;
        Ok(None)
    };
    let looked = within(timeout, looking).await;
    looked.inspect_err(|error| tracing::debug!("failed to look for an overflow: {error}"))
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
