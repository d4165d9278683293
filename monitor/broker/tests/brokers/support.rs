//! What the tests share: specs, publishers, and waiting for what a stream yields.

use std::time::Duration;

use kanchi_broker::{
    BrokerConnectSpec, ConnectReason, ConnectionReport, ConnectionState, Delivery, EventStream, EventStreamOptions,
    Gap, StreamItem, UnixMicros,
};
use kanchi_contract::{BrokerUrl, Celery, EventQueue, EventQueueType};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Longest wait for anything; the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) fn spec(url: &str) -> BrokerConnectSpec {
    BrokerConnectSpec {
        url: BrokerUrl::parse(url).expect("a test's URL"),
        tls: None,
        celery: Celery {
            event_exchange: "celeryev".into(),
            control_exchange: "celery".into(),
            enable_events: true,
            global_key_prefix: String::new(),
            event_queue: EventQueue {
                queue_type: EventQueueType::Classic,
                max_length_bytes: 1 << 30,
                expires_seconds: 600,
            },
        },
        read_only: false,
        broker_key: "shop/orders".into(),
    }
}

pub(crate) fn now() -> UnixMicros {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    UnixMicros(since.as_micros() as i64)
}

/// A stream and all that it has yielded.
pub(crate) struct Watched {
    pub(crate) stream: EventStream,
    pub(crate) deliveries: Vec<Delivery>,
    pub(crate) gaps: Vec<Gap>,
    pub(crate) reports: Vec<ConnectionReport>,
    /// Until when everything is here, as told last.
    pub(crate) complete_until: Option<UnixMicros>,
}

impl Watched {
    pub(crate) fn open(spec: &BrokerConnectSpec) -> Self {
        Self::open_with(spec, EventStreamOptions::default())
    }

    pub(crate) fn open_with(spec: &BrokerConnectSpec, options: EventStreamOptions) -> Self {
        let stream = EventStream::open(spec.clone(), options, CancellationToken::new());
        Self {
            stream,
            deliveries: Vec::new(),
            gaps: Vec::new(),
            reports: Vec::new(),
            complete_until: None,
        }
    }

    /// Opens a stream and waits until it is connected.
    pub(crate) async fn connected(spec: &BrokerConnectSpec) -> Self {
        Self::connected_with(spec, EventStreamOptions::default()).await
    }

    pub(crate) async fn connected_with(spec: &BrokerConnectSpec, options: EventStreamOptions) -> Self {
        let mut watched = Self::open_with(spec, options);
        watched
            .until("connected", |watched| watched.is(ConnectionState::Connected))
            .await;
        watched
    }

    /// Takes what comes until the condition holds.
    pub(crate) async fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            let waiting = tokio::time::timeout_at(deadline, self.stream.next()).await;
            let Ok(next) = waiting else {
                panic!("no {what} within {PATIENCE:?}; {}", self.seen())
            };
            let Some(item) = next else {
                panic!("the stream ended before {what}; {}", self.seen())
            };
            self.keep(item);
        }
    }

    /// Takes what comes until nothing has come for a while.
    pub(crate) async fn until_quiet(&mut self, quiet: Duration) {
        let mut until = Instant::now() + quiet;
        while let Ok(Some(item)) = tokio::time::timeout_at(until, self.stream.next()).await {
            // That nothing is missing is told all the time.
            if !matches!(item, StreamItem::Complete(_)) {
                until = Instant::now() + quiet;
            }
            self.keep(item);
        }
    }

    pub(crate) async fn deliveries(&mut self, count: usize) {
        self.until(&format!("{count} deliveries"), |watched| {
            watched.deliveries.len() >= count
        })
        .await;
    }

    pub(crate) async fn reason(&mut self, reason: ConnectReason) {
        self.until(reason.as_str(), |watched| {
            watched.reports.iter().any(|report| report.reason == Some(reason))
        })
        .await;
    }

    pub(crate) async fn reconnected(&mut self) {
        self.until("reconnected", |watched| {
            watched
                .reports
                .iter()
                .any(|report| report.state == ConnectionState::Disconnected)
                && watched.is(ConnectionState::Connected)
        })
        .await;
    }

    pub(crate) fn is(&self, state: ConnectionState) -> bool {
        self.reports.last().is_some_and(|report| report.state == state)
    }

    pub(crate) fn ack_all(&self) {
        if let Some(last) = self.deliveries.last() {
            self.stream.ack_through(last.tag);
        }
    }

    pub(crate) fn bodies(&self) -> Vec<String> {
        self.deliveries
            .iter()
            .map(|delivery| String::from_utf8_lossy(&delivery.body).into_owned())
            .collect()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.deliveries.iter().map(|delivery| delivery.body.len()).sum()
    }

    fn keep(&mut self, item: StreamItem) {
        match item {
            StreamItem::Delivery(delivery) => self.deliveries.push(delivery),
            StreamItem::Gap(gap) => self.gaps.push(gap),
            StreamItem::Connection(report) => self.reports.push(report),
            StreamItem::Complete(until) => self.complete_until = Some(until),
        }
    }

    pub(crate) fn seen(&self) -> String {
        format!(
            "{} deliveries, gaps {:?}, reports {:?}",
            self.deliveries.len(),
            self.gaps,
            self.reports
        )
    }
}

/// Publishes as a worker does: transient messages to a topic exchange it has declared.
pub(crate) struct Publisher {
    pub(crate) channel: Channel,
    pub(crate) connection: Connection,
}

impl Publisher {
    pub(crate) async fn connect(url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default())
            .await
            .expect("a publisher");
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Self { channel, connection }
    }

    /// Declares the event exchange as every Celery process does; fails if it is another one.
    pub(crate) async fn declare(&self) {
        let options = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        self.channel
            .exchange_declare("celeryev".into(), ExchangeKind::Topic, options, FieldTable::default())
            .await
            .expect("Celery's own declaration");
    }

    pub(crate) async fn event(&self, body: &[u8]) {
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_content_encoding("utf-8".into())
            .with_delivery_mode(1)
            .with_priority(0);
        let options = BasicPublishOptions::default();
        self.channel
            .basic_publish("celeryev".into(), "task.multi".into(), options, body, properties)
            .await
            .unwrap()
            .await
            .unwrap();
    }

    pub(crate) async fn events(&self, range: std::ops::Range<usize>) {
        for number in range {
            self.event(number.to_string().as_bytes()).await;
        }
    }
}

/// Waits until a condition holds.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
