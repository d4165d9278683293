//! The monitor's own queue on the event exchange, and how what went wrong with it is noticed.
//!
//! | entity | what for |
//! |---|---|
//! | `kanchi.<broker>.<hash>` | durable queue of events, bounded in bytes, expiring, drop-head, single active consumer |
//! | `….dropped` (fanout exchange and queue of one message) | RabbitMQ moves a message here when the bound drops it: that one is there proves an overflow, and no other part of AMQP would tell |
//! | `….alive` (classic queues only) | a queue that is not durable: gone after a restart of the node, which a durable classic queue survives without its transient messages |
//!
//! The hash covers every argument and the exchange, because RabbitMQ refuses a declaration that differs from what is there.
//! Celery's exchange is looked up first and then declared with exactly Celery's parameters, which changes nothing if it
//! exists, creates it as a worker would if not, and tells if it is another one.

use std::time::Duration;

use kanchi_contract::EventQueueType;
use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};
use sha2::{Digest, Sha256};

use super::connection::{AmqpConnection, failed, reply_code};
use super::{short, table};
use crate::net::ConnectError;
use crate::report::ConnectReason;
use crate::spec::BrokerConnectSpec;

/// RabbitMQ counts expiry in milliseconds up to this.
const MAX_EXPIRY: u64 = 4_294_967_295;
/// Companions live longer than the queue, so that they never expire first.
const COMPANION_MARGIN: u64 = 3_600_000;
/// Leaves room for the suffixes within AMQP's 255 bytes.
const MAX_READABLE: usize = 160;

/// Names and arguments of the queue of one configuration.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct QueuePlan {
    pub(super) name: String,
    pub(super) exchange: String,
    pub(super) queue_type: EventQueueType,
    pub(super) expires: Duration,
    arguments: Vec<(&'static str, AMQPValue)>,
}

impl QueuePlan {
    pub(super) fn new(spec: &BrokerConnectSpec, major: Option<u32>) -> Self {
        let settings = &spec.celery.event_queue;
        let expires = settings
            .expires_seconds
            .saturating_mul(1000)
            .clamp(1000, MAX_EXPIRY - COMPANION_MARGIN);
        let bytes = i64::try_from(settings.max_length_bytes).unwrap_or(i64::MAX);
        let (queue_type, quorum) = match settings.queue_type {
            EventQueueType::Classic => ("classic", false),
            EventQueueType::Quorum => ("quorum", true),
        };
        let mut arguments = vec![
            ("x-queue-type", text(queue_type)),
            ("x-max-length-bytes", AMQPValue::LongLongInt(bytes)),
            ("x-expires", AMQPValue::LongLongInt(expires as i64)),
            ("x-overflow", text("drop-head")),
            ("x-single-active-consumer", AMQPValue::Boolean(true)),
        ];
        if quorum && major.is_some_and(|major| major >= 4) {
            // RabbitMQ 4 drops a message after 20 deliveries; each reconnect while Postgres is away is one.
            arguments.push(("x-delivery-limit", AMQPValue::LongLongInt(-1)));
        }
        let exchange = spec.celery.event_exchange.clone();
        let name = queue_name(&spec.broker_key, &exchange, &arguments);
        arguments.push(("x-dead-letter-exchange", text(&dropped(&name))));
        let expires = Duration::from_millis(expires);
        Self {
            name,
            exchange,
            queue_type: settings.queue_type,
            expires,
            arguments,
        }
    }

    pub(super) fn is_classic(&self) -> bool {
        self.queue_type == EventQueueType::Classic
    }

    fn companion_arguments(&self) -> Vec<(&'static str, AMQPValue)> {
        let expires = self.expires.as_millis() as u64 + COMPANION_MARGIN;
        vec![
            ("x-queue-type", text("classic")),
            ("x-expires", AMQPValue::LongLongInt(expires as i64)),
        ]
    }
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn queue_name(broker_key: &str, exchange: &str, arguments: &[(&str, AMQPValue)]) -> String {
    let mut hash = Sha256::new();
    hash.update(broker_key);
    hash.update([0]);
    hash.update(exchange);
    for (key, value) in arguments {
        hash.update([0]);
        hash.update(key);
        hash.update(format!("={value:?}"));
    }
    let digest = hash.finalize();
    let hash = digest.first_chunk::<4>().map_or(0, |first| u32::from_be_bytes(*first));
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') {
            c
        } else {
            '.'
        }
    };
    let readable: String = broker_key.chars().map(plain).take(MAX_READABLE).collect();
    format!("kanchi.{readable}.{hash:08x}")
}

/// Name of the companions that receive what the bound drops.
pub(super) fn dropped(queue: &str) -> String {
    format!("{queue}.dropped")
}

/// Name of the companion that does not survive a restart.
pub(super) fn alive(queue: &str) -> String {
    format!("{queue}.alive")
}

/// What was found before anything was declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The queue was there.
    pub(super) queue: bool,
    /// The queue that does not survive a restart was there; `None` where it is not used or not allowed.
    pub(super) alive: Option<bool>,
}

/// Checks the exchange and declares everything; `Found` tells what has happened meanwhile.
pub(super) async fn declare(
    connection: &AmqpConnection,
    spec: &BrokerConnectSpec,
    plan: &QueuePlan,
) -> Result<Found, ConnectError> {
    check_exchange(connection, spec, &plan.exchange).await?;
    let queue = exists(connection, spec, &plan.name).await?;
    let mut survivor = match plan.queue_type {
        EventQueueType::Classic => Some(exists(connection, spec, &alive(&plan.name)).await?),
        EventQueueType::Quorum => None,
    };
    let channel = connection.channel().await.map_err(|error| failed(spec, &error))?;
    declare_queue(&channel, plan)
        .await
        .map_err(|error| unusable(spec, plan, &error))?;
    drop(channel.close(200, "OK".into()).await);
    if survivor.is_some() && renew(connection, plan).await.is_err() {
        // RabbitMQ 4 can be told to refuse queues that are neither durable nor exclusive.
        survivor = None;
    }
    Ok(Found { queue, alive: survivor })
}

fn unusable(spec: &BrokerConnectSpec, plan: &QueuePlan, error: &lapin::Error) -> ConnectError {
    let mut refused = failed(spec, error);
    if reply_code(error) == Some(406) && refused.message.contains("x-queue-type") {
        refused.reason = ConnectReason::NotImplemented;
    }
    refused.message = format!("the queue {} cannot be declared: {}", plan.name, refused.message);
    refused
}

async fn declare_queue(channel: &Channel, plan: &QueuePlan) -> Result<(), lapin::Error> {
    let dropped = name(&dropped(&plan.name));
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    let exchange = ExchangeDeclareOptions {
        durable: true,
        auto_delete: true,
        ..ExchangeDeclareOptions::default()
    };
    channel
        .exchange_declare(dropped.clone(), ExchangeKind::Fanout, exchange, FieldTable::default())
        .await?;
    let mut arguments = plan.companion_arguments();
    arguments.push(("x-max-length", AMQPValue::LongLongInt(1)));
    channel
        .queue_declare(dropped.clone(), durable, table(&arguments))
        .await?;
    let bind = QueueBindOptions::default();
    channel
        .queue_bind(
            dropped.clone(),
            dropped,
            ShortString::default(),
            bind,
            FieldTable::default(),
        )
        .await?;
    channel
        .queue_declare(name(&plan.name), durable, table(&plan.arguments))
        .await?;
    channel
        .queue_bind(
            name(&plan.name),
            name(&plan.exchange),
            name("#"),
            bind,
            FieldTable::default(),
        )
        .await
}

/// Declares the queue that does not survive a restart; repeated now and then, or it would expire.
pub(super) async fn renew(connection: &AmqpConnection, plan: &QueuePlan) -> Result<(), lapin::Error> {
    let channel = connection.channel().await?;
    let options = QueueDeclareOptions::default();
    channel
        .queue_declare(name(&alive(&plan.name)), options, table(&plan.companion_arguments()))
        .await?;
    channel.close(200, "OK".into()).await
}

/// The dropped-queue expires as well; asking for it with its own arguments renews it.
pub(super) async fn renew_dropped(channel: &Channel, plan: &QueuePlan) -> Result<(), lapin::Error> {
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    let mut arguments = plan.companion_arguments();
    arguments.push(("x-max-length", AMQPValue::LongLongInt(1)));
    channel
        .queue_declare(name(&dropped(&plan.name)), durable, table(&arguments))
        .await
        .map(drop)
}

async fn check_exchange(
    connection: &AmqpConnection,
    spec: &BrokerConnectSpec,
    exchange: &str,
) -> Result<(), ConnectError> {
    let Some(exchange_name) = short(exchange) else {
        let message = "the event exchange's name is longer than 255 bytes";
        return Err(ConnectError::new(ConnectReason::InvalidConfiguration, message));
    };
    let open = async || connection.channel().await.map_err(|error| failed(spec, &error));
    let passive = ExchangeDeclareOptions {
        passive: true,
        ..ExchangeDeclareOptions::default()
    };
    let looked_up = open()
        .await?
        .exchange_declare(
            exchange_name.clone(),
            ExchangeKind::Topic,
            passive,
            FieldTable::default(),
        )
        .await;
    let exists = match &looked_up {
        Ok(()) => true,
        Err(error) if reply_code(error) == Some(404) => false,
        Err(error) => return Err(failed(spec, error)),
    };
    let channel = open().await?;
    let celerys = ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    match channel
        .exchange_declare(exchange_name, ExchangeKind::Topic, celerys, FieldTable::default())
        .await
    {
        Ok(()) => {
            drop(channel.close(200, "OK".into()).await);
            Ok(())
        }
        // May not declare, so cannot compare; binding to it will do.
        Err(error) if exists && reply_code(&error) == Some(403) => Ok(()),
        Err(error) if reply_code(&error) == Some(406) => Err(ConnectError::new(
            ConnectReason::ExchangeMismatch,
            format!(
                "exchange {exchange:?} is not the durable topic exchange that Celery declares; workers cannot publish \
                 events to it either: {}",
                failed(spec, &error).message
            ),
        )),
        Err(error) => Err(failed(spec, &error)),
    }
}

/// Asks for a queue without touching it.
pub(super) async fn exists(
    connection: &AmqpConnection,
    spec: &BrokerConnectSpec,
    queue: &str,
) -> Result<bool, ConnectError> {
    let looking = async {
        let channel = connection.channel().await?;
        look(&channel, queue).await?;
        drop(channel.close(200, "OK".into()).await);
        Ok(())
    };
    match connection.within(looking).await {
        Ok(()) => Ok(true),
        Err(error) if reply_code(&error) == Some(404) => Ok(false),
        Err(error) => Err(failed(spec, &error)),
    }
}

/// What a queue holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    /// Messages that are ready. Those that a consumer has and did not acknowledge are not among them.
    pub(super) ready: u32,
    /// Consumers.
    pub(super) consumers: u32,
}

/// Looks at a queue.
pub(super) async fn look(channel: &Channel, queue: &str) -> Result<Held, lapin::Error> {
    let passive = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let found = channel
        .queue_declare(name(queue), passive, FieldTable::default())
        .await?;
    Ok(Held {
        ready: found.message_count(),
        consumers: found.consumer_count(),
    })
}

/// Stops events from arriving in a queue of an earlier configuration; what it holds stays.
pub(super) async fn unbind(connection: &AmqpConnection, queue: &str, exchange: &str) -> Result<(), lapin::Error> {
    let channel = connection.channel().await?;
    channel
        .queue_unbind(name(queue), name(exchange), name("#"), FieldTable::default())
        .await?;
    channel.close(200, "OK".into()).await
}

/// Deletes a drained queue and its companions. RabbitMQ refuses if a message has slipped in, or if somebody consumes it and
/// may hold messages: those are not counted as its contents, and would be gone. A quorum queue cannot be deleted under
/// conditions and is left to expire.
pub(super) async fn delete(connection: &AmqpConnection, queue: &str) -> Result<(), lapin::Error> {
    let channel = connection.channel().await?;
    let done_with = QueueDeleteOptions {
        if_empty: true,
        if_unused: true,
        ..QueueDeleteOptions::default()
    };
    channel.queue_delete(name(queue), done_with).await?;
    for companion in [dropped(queue), alive(queue)] {
        channel
            .queue_delete(name(&companion), QueueDeleteOptions::default())
            .await?;
    }
    channel
        .exchange_delete(name(&dropped(queue)), ExchangeDeleteOptions::default())
        .await?;
    channel.close(200, "OK".into()).await
}

/// Our own names and the checked exchange fit; anything else becomes the empty name, which RabbitMQ refuses.
pub(super) fn name(text: &str) -> ShortString {
    short(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::spec;
    use kanchi_contract::EventQueue;

    fn plan(change: impl FnOnce(&mut BrokerConnectSpec)) -> QueuePlan {
        let mut spec = spec("amqp://h");
        change(&mut spec);
        QueuePlan::new(&spec, Some(3))
    }

    #[test]
    fn a_name_is_readable_stable_and_differs_with_every_argument() {
        let first = plan(|_| ());
        assert!(first.name.starts_with("kanchi.shop.orders."), "{}", first.name);
        assert_eq!(first.name, plan(|_| ()).name);
        let changed = [
            plan(|spec| spec.celery.event_queue.queue_type = EventQueueType::Quorum).name,
            plan(|spec| spec.celery.event_queue.max_length_bytes += 1).name,
            plan(|spec| spec.celery.event_queue.expires_seconds += 1).name,
            plan(|spec| spec.celery.event_exchange = "other".into()).name,
            plan(|spec| spec.broker_key = "shop.orders".into()).name,
        ];
        let distinct: std::collections::BTreeSet<_> = changed.iter().chain([&first.name]).collect();
        assert_eq!(distinct.len(), 6);
    }

    #[test]
    fn names_and_expiry_stay_within_what_rabbitmq_takes() {
        let long = plan(|spec| {
            spec.broker_key = format!("{}/{}", "n".repeat(63), "ü".repeat(253));
            let queue_type = EventQueueType::Classic;
            spec.celery.event_queue = EventQueue {
                queue_type,
                max_length_bytes: u64::MAX,
                expires_seconds: u64::MAX,
            };
        });
        assert!(dropped(&long.name).len() <= 255);
        assert!(long.expires.as_millis() as u64 + COMPANION_MARGIN <= MAX_EXPIRY);
    }

    #[test]
    fn rabbitmq_4_is_asked_not_to_drop_after_twenty_deliveries() {
        let mut spec = spec("amqp://h");
        spec.celery.event_queue.queue_type = EventQueueType::Quorum;
        assert_ne!(QueuePlan::new(&spec, Some(3)).name, QueuePlan::new(&spec, Some(4)).name);
    }
}
