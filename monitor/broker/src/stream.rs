//! The stream of events, whatever the transport.

use std::time::Duration;

use crate::time::UnixMicros;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::report::{ConnectionReport, Gap};
use crate::spec::BrokerConnectSpec;

/// Position of a delivery: grows strictly over the life of a stream, across reconnects too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryTag(pub u64);

/// How the bytes of a [`Delivery`] are to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Framing {
    /// AMQP: the body as the sender serialized it, with the properties that say how.
    Message {
        /// `content_type` of the message.
        content_type: Option<String>,
        /// `content_encoding` of the message.
        content_encoding: Option<String>,
        /// Header `compression`.
        compression: Option<String>,
    },
    /// Redis: kombu's JSON envelope, for `kanchi_domain::decode_virtual_envelope`.
    Envelope,
}

/// One message from the broker.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// For [`EventStream::ack_through`].
    pub tag: DeliveryTag,
    /// The broker says it may have been delivered before.
    pub redelivered: bool,
    /// When it was read from the connection.
    pub arrived: UnixMicros,
    /// The bytes.
    pub body: Bytes,
    /// How to read them.
    pub framing: Framing,
}

/// What a stream yields, in order.
#[derive(Clone, Debug)]
pub enum StreamItem {
    /// A message.
    Delivery(Delivery),
    /// Between the deliveries before and after this, events may be missing.
    Gap(Gap),
    /// The connection changed.
    Connection(ConnectionReport),
}

/// Bounds and times of a stream.
#[derive(Clone, Debug)]
pub struct EventStreamOptions {
    /// Bytes delivered and not yet acknowledged (RabbitMQ), or read and not yet taken by `next` (Redis).
    pub budget_bytes: usize,
    /// Longest wait between two attempts to connect.
    pub max_backoff: Duration,
    /// Time an attempt to connect may take.
    pub connect_timeout: Duration,
    /// AMQP heartbeat, and how often a quiet Redis subscription is pinged.
    pub heartbeat: Duration,
    /// When a monitor was last known to be connected and caught up; `None` on the very first start, which is no gap.
    pub last_seen: Option<UnixMicros>,
    /// RabbitMQ: the queue that the last process used, from [`ConnectionReport::event_queue`].
    pub previous_queue: Option<String>,
}

impl Default for EventStreamOptions {
    fn default() -> Self {
        Self {
            budget_bytes: 16 * 1024 * 1024,
            max_backoff: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            heartbeat: Duration::from_secs(10),
            last_seen: None,
            previous_queue: None,
        }
    }
}

/// A stream of events that reconnects for ever and is bounded in bytes.
#[derive(Debug)]
pub struct EventStream {}

impl EventStream {
    /// Starts the stream's task. It ends when the token is cancelled or the stream is dropped.
    pub fn open(spec: BrokerConnectSpec, options: EventStreamOptions, shutdown: CancellationToken) -> Self {
        drop((spec, options, shutdown));
        Self {}
    }

    /// Returns the next item; `None` once the stream has been shut down and drained. Cancel-safe.
    pub async fn next(&mut self) -> Option<StreamItem> {
        None
    }

    /// Appends what is there, at most `limit` items, waiting for the first; returns how many, 0 at the end. Cancel-safe.
    pub async fn next_batch(&mut self, into: &mut Vec<StreamItem>, limit: usize) -> usize {
        let _unused = (into, limit);
        0
    }

    /// Acknowledges this delivery and all before it. Redis: frees nothing, as nothing is held.
    pub fn ack_through(&self, tag: DeliveryTag) {
        let _unused = tag;
    }

    /// Connects again by a new spec, if it differs. Nothing that was delivered is lost: what is not acknowledged yet is
    /// delivered again. A RabbitMQ queue whose arguments changed is replaced, drained and deleted.
    pub fn reload(&self, spec: BrokerConnectSpec) {
        drop(spec);
    }
}
