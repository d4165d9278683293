//! Remote control on RabbitMQ: requests to the fanout exchange, answers in an exclusive queue.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Consumer, ExchangeKind};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use uuid::Uuid;

use super::connection::{AmqpConnection, Purpose, failed, reply_code};
use super::{short, table};
use crate::control::{MAX_REPLIES, Reply, Request, read_reply};
use crate::handover::lock;
use crate::net::ConnectError;
use crate::report::ConnectReason;
use crate::spec::BrokerConnectSpec;

/// Content type and body of an answer.
type Answer = (Option<String>, Vec<u8>);
type Pending = Arc<Mutex<HashMap<String, mpsc::Sender<Answer>>>>;

/// Answers that wait for their request's task; it does nothing but take them.
const ANSWERS: usize = 1024;
const TIMEOUT: Duration = Duration::from_secs(5);

/// A connection with its reply queue; serves any number of requests at once.
pub(crate) struct AmqpControl {
    spec: BrokerConnectSpec,
    connection: AmqpConnection,
    channel: Channel,
    oid: String,
    requests: ShortString,
    replies: String,
    pending: Pending,
    reader: AbortHandle,
}

impl fmt::Debug for AmqpControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpControl")
            .field("oid", &self.oid)
            .finish_non_exhaustive()
    }
}

impl Drop for AmqpControl {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl AmqpControl {
    pub(crate) async fn open(spec: &BrokerConnectSpec) -> Result<Self, ConnectError> {
        let purpose = Purpose {
            name: "control",
            heartbeat: Duration::from_secs(20),
            timeout: TIMEOUT,
            ledger: None,
        };
        let connection = AmqpConnection::open(spec, purpose).await?;
        let requests = format!("{}.pidbox", spec.celery.control_exchange);
        let replies = format!("reply.{requests}");
        let setup = async {
            let request_name = declare(&connection, spec, &requests, ExchangeKind::Fanout).await?;
            let reply_name = declare(&connection, spec, &replies, ExchangeKind::Direct).await?;
            let oid = Uuid::new_v4().to_string();
            let opened = open_replies(&connection, &oid, &reply_name).await;
            let (channel, consumer) = opened.map_err(|error| failed(spec, &error))?;
            Ok::<_, ConnectError>((request_name, oid, channel, consumer))
        };
        let (requests, oid, channel, consumer) = match tokio::time::timeout(TIMEOUT, setup).await {
            Ok(ready) => ready?,
            Err(_elapsed) => {
                return Err(ConnectError::new(
                    ConnectReason::Timeout,
                    "no answer while opening remote control",
                ));
            }
        };
        let pending = Pending::default();
        let reader = tokio::spawn(read(consumer, Arc::clone(&pending))).abort_handle();
        Ok(Self {
            spec: spec.clone(),
            connection,
            channel,
            oid,
            requests,
            replies,
            pending,
            reader,
        })
    }

    /// Whether this connection is alive and was made by this spec.
    pub(crate) fn serves(&self, spec: &BrokerConnectSpec) -> bool {
        self.spec == *spec
            && self.connection.connection.status().connected()
            && self.channel.status().connected()
            && !self.reader.is_finished()
    }

    pub(crate) async fn broadcast(
        &self,
        spec: &BrokerConnectSpec,
        request: &Request,
        timeout: Duration,
    ) -> Result<Vec<Reply>, ConnectError> {
        let (sender, mut answers) = mpsc::channel(ANSWERS);
        lock(&self.pending).insert(request.ticket.clone(), sender);
        let _forget = Forget {
            pending: &self.pending,
            ticket: &request.ticket,
        };
        let deadline = Instant::now() + timeout;
        self.send(spec, request, Some((&self.replies, &self.oid))).await?;
        let mut replies = Vec::new();
        while replies.len() < request.expected().min(MAX_REPLIES) {
            match tokio::time::timeout_at(deadline, answers.recv()).await {
                Ok(Some((content_type, body))) => replies.extend(read_reply(content_type.as_deref(), &body)),
                Ok(None) if replies.is_empty() => {
                    let message = "the connection broke while answers were awaited";
                    return Err(ConnectError::new(ConnectReason::ConnectionLost, message));
                }
                Ok(None) | Err(_) => break,
            }
        }
        Ok(replies)
    }

    pub(crate) async fn publish(&self, spec: &BrokerConnectSpec, request: &Request) -> Result<(), ConnectError> {
        self.send(spec, request, None).await
    }

    async fn send(
        &self,
        spec: &BrokerConnectSpec,
        request: &Request,
        reply_to: Option<(&str, &str)>,
    ) -> Result<(), ConnectError> {
        let headers = table(&[
            ("clock", AMQPValue::LongInt(1)),
            ("expires", AMQPValue::Double(request.expires)),
        ]);
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_content_encoding("utf-8".into())
            .with_delivery_mode(2)
            .with_priority(0)
            .with_headers(headers);
        let body = request.body(reply_to);
        let publishing = async {
            self.channel
                .basic_publish(
                    self.requests.clone(),
                    ShortString::default(),
                    BasicPublishOptions::default(),
                    &body,
                    properties,
                )
                .await?
                .await
        };
        match tokio::time::timeout(TIMEOUT, publishing).await {
            Ok(Ok(_confirmation)) => Ok(()),
            Ok(Err(error)) => Err(failed(spec, &error)),
            Err(_elapsed) => Err(ConnectError::new(
                ConnectReason::Timeout,
                "the broker did not confirm the request",
            )),
        }
    }
}

/// Takes a request's ticket out again, also if its future is dropped.
struct Forget<'a> {
    pending: &'a Pending,
    ticket: &'a str,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(self.pending).remove(self.ticket);
    }
}

/// Looks an exchange up; only if it is missing it is declared, with exactly Celery's parameters.
async fn declare(
    connection: &AmqpConnection,
    spec: &BrokerConnectSpec,
    exchange: &str,
    kind: ExchangeKind,
) -> Result<ShortString, ConnectError> {
    let Some(name) = short(exchange) else {
        let message = "the control exchange's name is longer than 255 bytes";
        return Err(ConnectError::new(ConnectReason::InvalidConfiguration, message));
    };
    let open = async || connection.channel().await.map_err(|error| failed(spec, &error));
    let passive = ExchangeDeclareOptions {
        passive: true,
        ..ExchangeDeclareOptions::default()
    };
    let channel = open().await?;
    match channel
        .exchange_declare(name.clone(), kind.clone(), passive, FieldTable::default())
        .await
    {
        Ok(()) => drop(channel.close(200, "OK".into()).await),
        Err(error) if reply_code(&error) == Some(404) => {
            let channel = open().await?;
            let celerys = ExchangeDeclareOptions::default();
            let declared = channel
                .exchange_declare(name.clone(), kind, celerys, FieldTable::default())
                .await;
            declared.map_err(|error| failed(spec, &error))?;
            drop(channel.close(200, "OK".into()).await);
        }
        Err(error) => return Err(failed(spec, &error)),
    }
    Ok(name)
}

async fn open_replies(
    connection: &AmqpConnection,
    oid: &str,
    exchange: &ShortString,
) -> Result<(Channel, Consumer), lapin::Error> {
    let channel = connection.channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let queue = short(&format!("{oid}.{exchange}")).unwrap_or_default();
    let options = QueueDeclareOptions {
        exclusive: true,
        auto_delete: true,
        ..QueueDeclareOptions::default()
    };
    // A virtual host may make quorum queues by default, which cannot be exclusive.
    let classic = AMQPValue::LongString("classic".into());
    let arguments = table(&[("x-expires", AMQPValue::LongInt(10_000)), ("x-queue-type", classic)]);
    channel.queue_declare(queue.clone(), options, arguments).await?;
    let key = short(oid).unwrap_or_default();
    let bind = QueueBindOptions::default();
    channel
        .queue_bind(queue.clone(), exchange.clone(), key, bind, FieldTable::default())
        .await?;
    let consume = BasicConsumeOptions {
        no_ack: true,
        ..BasicConsumeOptions::default()
    };
    let consumer = channel
        .basic_consume(queue, ShortString::default(), consume, FieldTable::default())
        .await?;
    Ok((channel, consumer))
}

/// Gives each answer to the request whose ticket it carries; late ones are dropped.
async fn read(mut consumer: Consumer, pending: Pending) {
    while let Some(Ok(delivery)) = consumer.next().await {
        let headers = delivery.properties.headers().as_ref();
        let ticket = match headers.and_then(|headers| headers.inner().get("ticket")) {
            Some(AMQPValue::LongString(ticket)) => String::from_utf8_lossy(ticket.as_bytes()).into_owned(),
            Some(_) | None => continue,
        };
        let Some(sender) = lock(&pending).get(&ticket).cloned() else {
            continue;
        };
        let content_type = delivery
            .properties
            .content_type()
            .as_ref()
            .map(|text| text.as_str().to_owned());
        if sender.try_send((content_type, delivery.data)).is_err() {
            tracing::debug!(ticket, "dropped an answer to remote control: too many at once");
        }
    }
    // Whoever still waits learns that nothing more will come.
    lock(&pending).clear();
}
