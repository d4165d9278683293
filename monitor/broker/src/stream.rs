//! The stream of events, whatever the transport.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kanchi_contract::Transport;
use kanchi_domain::UnixMicros;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Instrument;

use crate::handover::Handover;
use crate::net::ConnectError;
use crate::report::{ConnectReason, ConnectionReport, ConnectionState, Gap, GapCause};
use crate::spec::BrokerConnectSpec;
use crate::time::now;
use crate::{amqp, resp};

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
    /// All that was published until then came before this, or is told as a gap.
    Complete(UnixMicros),
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
    /// AMQP heartbeat; Redis: after twice as long without a byte the connection is given up.
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
            heartbeat: Duration::from_secs(5),
            last_seen: None,
            previous_queue: None,
        }
    }
}

/// A stream of events that reconnects for ever and is bounded in bytes.
///
/// Acknowledge every delivery in order, those of an earlier connection too: acknowledging frees their share of the budget,
/// and a delivery that was taken before a disconnect counts even though RabbitMQ will deliver it again, marked.
#[derive(Debug)]
pub struct EventStream {
    handover: Arc<Handover>,
    specs: watch::Sender<BrokerConnectSpec>,
    // Ends the task when the stream is dropped.
    _stop: DropGuard,
    taken: Vec<StreamItem>,
}

impl EventStream {
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a token is a handle; whoever opens a stream hands one over"
    )]
    /// Starts the stream's task. It ends when the token is cancelled or the stream is dropped.
    pub fn open(spec: BrokerConnectSpec, options: EventStreamOptions, shutdown: CancellationToken) -> Self {
        let handover = Arc::new(Handover::default());
        let (specs, receiver) = watch::channel(spec);
        let stop = shutdown.child_token();
        let task = StreamTask::new(options, Arc::clone(&handover), receiver, stop.clone());
        // Owned by the token: `stop` is cancelled when the stream is dropped, and every wait in the task watches it.
        drop(tokio::spawn(task.run().in_current_span()));
        Self {
            handover,
            specs,
            _stop: stop.drop_guard(),
            taken: Vec::new(),
        }
    }

    /// Returns the next item; `None` once the stream has been shut down and drained. Cancel-safe.
    pub async fn next(&mut self) -> Option<StreamItem> {
        if self.taken.is_empty() {
            let mut taken = Vec::new();
            self.handover.take(&mut taken, 64).await;
            taken.reverse();
            self.taken = taken;
        }
        self.taken.pop()
    }

    /// Appends what is there, at most `limit` items, waiting for the first; returns how many, 0 at the end. Cancel-safe.
    pub async fn next_batch(&mut self, into: &mut Vec<StreamItem>, limit: usize) -> usize {
        if self.taken.is_empty() {
            return self.handover.take(into, limit).await;
        }
        let count = self.taken.len().min(limit);
        into.extend((0..count).filter_map(|_| self.taken.pop()));
        count
    }

    /// Acknowledges this delivery and all before it. Redis: frees nothing, as nothing is held.
    pub fn ack_through(&self, tag: DeliveryTag) {
        self.handover.acknowledge(tag);
    }

    /// Connects again by a new spec, if it differs. Nothing that was delivered is lost: what is not acknowledged yet is
    /// delivered again. A RabbitMQ queue whose arguments changed is replaced, drained and deleted.
    pub fn reload(&self, spec: BrokerConnectSpec) {
        self.specs.send_if_modified(|present| {
            let differs = *present != spec;
            if differs {
                *present = spec;
            }
            differs
        });
    }
}

/// The task behind a stream: what outlives a single connection.
pub(crate) struct StreamTask {
    pub(crate) options: EventStreamOptions,
    pub(crate) handover: Arc<Handover>,
    pub(crate) specs: watch::Receiver<BrokerConnectSpec>,
    pub(crate) stop: CancellationToken,
    /// The highest tag handed out.
    pub(crate) last_tag: u64,
    /// The last moment up to which nothing is missing.
    pub(crate) complete_until: Option<UnixMicros>,
    /// Whether this process has been connected.
    pub(crate) connected_before: bool,
    reported: Option<(ConnectionState, Option<ConnectReason>, Option<String>)>,
}

/// Why a transport's part of the task returned.
pub(crate) enum Interrupted {
    /// The stream is to end.
    Stop,
    /// There is a new spec.
    Reload,
}

impl StreamTask {
    fn new(
        options: EventStreamOptions,
        handover: Arc<Handover>,
        specs: watch::Receiver<BrokerConnectSpec>,
        stop: CancellationToken,
    ) -> Self {
        let complete_until = options.last_seen;
        Self {
            options,
            handover,
            specs,
            stop,
            last_tag: 0,
            complete_until,
            connected_before: false,
            reported: None,
        }
    }

    async fn run(mut self) {
        loop {
            let transport = self.specs.borrow().url.transport();
            let ended = match transport {
                Transport::Amqp => amqp::events::run(&mut self).await,
                Transport::Redis => resp::events::run(&mut self).await,
            };
            match ended {
                Interrupted::Stop => break,
                Interrupted::Reload => {}
            }
        }
        self.handover.close();
    }

    /// Waits for a reason to leave whatever is being done.
    pub(crate) async fn interrupted(
        stop: &CancellationToken,
        specs: &mut watch::Receiver<BrokerConnectSpec>,
    ) -> Interrupted {
        tokio::select! {
            () = stop.cancelled() => Interrupted::Stop,
            changed = specs.changed() => match changed {
                Ok(()) => Interrupted::Reload,
                Err(_dropped) => Interrupted::Stop,
            },
        }
    }

    /// Tells of the connection, if there is something new to tell.
    pub(crate) fn report(
        &mut self,
        state: ConnectionState,
        error: Option<&ConnectError>,
        broker_version: Option<String>,
        event_queue: Option<String>,
    ) {
        let reason = error.map(|error| error.reason);
        let news = (state, reason, event_queue.clone());
        if self.reported.as_ref() == Some(&news) {
            return;
        }
        self.reported = Some(news);
        let message = error.map(|error| error.message.clone()).unwrap_or_default();
        if let Some(error) = error {
            tracing::warn!(reason = error.reason.as_str(), "no connection to the broker: {message}");
        } else {
            tracing::info!(
                state = state.as_str(),
                broker.version = broker_version,
                "broker connection"
            );
        }
        let at = now();
        let report = ConnectionReport {
            state,
            reason,
            message,
            broker_version,
            event_queue,
            at,
        };
        self.handover.push([StreamItem::Connection(report)]);
    }

    /// Tells that all came that was published until then.
    pub(crate) fn complete(&mut self, until: UnixMicros) {
        self.complete_until = Some(until);
        self.handover.complete(until);
    }

    /// Tells of a gap that has ended.
    pub(crate) fn gap(&self, from: UnixMicros, cause: GapCause, estimated_events: Option<u64>) {
        let gap = Gap {
            from,
            to: Some(now()),
            cause,
            estimated_events,
        };
        tracing::warn!(cause = cause.as_str(), "events may be missing");
        self.handover.push([StreamItem::Gap(gap)]);
    }
}
