//! News about the connection and about what was missed.

use kanchi_domain::UnixMicros;

/// Where the connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectionState {
    /// The first attempt is under way.
    Connecting,
    /// Events flow.
    Connected,
    /// No connection; attempts go on for ever.
    Disconnected,
}

impl ConnectionState {
    /// Returns the name used in status, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "Connecting",
            Self::Connected => "Connected",
            Self::Disconnected => "Disconnected",
        }
    }
}

/// Why there is no connection: a fixed set, used as condition reason and metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectReason {
    /// Nobody listens there.
    ConnectionRefused,
    /// No route to the host.
    HostUnreachable,
    /// The host name does not resolve.
    DnsFailed,
    /// Wrong user or password.
    AuthenticationFailed,
    /// The certificate was not accepted, or the peer does not speak TLS.
    TlsFailed,
    /// The user may not do what a monitor needs.
    AccessRefused,
    /// RabbitMQ has no such virtual host.
    VhostNotFound,
    /// The event exchange exists with other parameters than Celery's.
    ExchangeMismatch,
    /// The peer did not answer in time.
    Timeout,
    /// The broker does not offer something that is needed.
    NotImplemented,
    /// The broker refuses or drops connections for want of resources, or is starting or shutting down.
    BrokerUnavailable,
    /// An established connection broke.
    ConnectionLost,
    /// The peer speaks another protocol, or broke its own.
    ProtocolError,
    /// The certificates or key in the configuration cannot be used.
    InvalidConfiguration,
}

impl ConnectReason {
    /// Returns the name used in conditions and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConnectionRefused => "ConnectionRefused",
            Self::HostUnreachable => "HostUnreachable",
            Self::DnsFailed => "DnsFailed",
            Self::AuthenticationFailed => "AuthenticationFailed",
            Self::TlsFailed => "TlsFailed",
            Self::AccessRefused => "AccessRefused",
            Self::VhostNotFound => "VhostNotFound",
            Self::ExchangeMismatch => "ExchangeMismatch",
            Self::Timeout => "Timeout",
            Self::NotImplemented => "NotImplemented",
            Self::BrokerUnavailable => "BrokerUnavailable",
            Self::ConnectionLost => "ConnectionLost",
            Self::ProtocolError => "ProtocolError",
            Self::InvalidConfiguration => "InvalidConfiguration",
        }
    }
}

/// A change of the connection, or of the reason why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionReport {
    /// Where the connection stands.
    pub state: ConnectionState,
    /// Why there is no connection; `None` while there is one.
    pub reason: Option<ConnectReason>,
    /// For people; free of credentials.
    pub message: String,
    /// Product and version once known, for example `RabbitMQ 3.10.8`.
    pub broker_version: Option<String>,
    /// RabbitMQ: the queue in which events wait. To be kept and passed back as
    /// [`EventStreamOptions::previous_queue`](crate::EventStreamOptions::previous_queue) by the next process, so that a
    /// queue left behind by a changed configuration is drained and deleted.
    pub event_queue: Option<String>,
    /// When this became so.
    pub at: UnixMicros,
}

/// Why events may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GapCause {
    /// RabbitMQ restarted and a classic queue lost its (transient) messages, or the queue vanished with the broker's data.
    BrokerRestart,
    /// The queue was unused for longer than its expiry and RabbitMQ deleted it.
    QueueExpired,
    /// The queue reached its bound and RabbitMQ dropped the oldest events.
    QueueOverflow,
    /// The Redis subscription was interrupted.
    SubscriberCut,
    /// Ring and disk spool were full; events were dropped here.
    SpoolFull,
    /// The disk spool could not be read back.
    SpoolDamaged,
    /// No monitor was running and the transport keeps nothing (Redis).
    MonitorRestart,
}

impl GapCause {
    /// Returns the name used in the store, status and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BrokerRestart => "BrokerRestart",
            Self::QueueExpired => "QueueExpired",
            Self::QueueOverflow => "QueueOverflow",
            Self::SubscriberCut => "SubscriberCut",
            Self::SpoolFull => "SpoolFull",
            Self::SpoolDamaged => "SpoolDamaged",
            Self::MonitorRestart => "MonitorRestart",
        }
    }
}

/// A span of time of which events may be missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The last moment known to be complete.
    pub from: UnixMicros,
    /// The first moment known to be complete again; `None` while the gap is open.
    pub to: Option<UnixMicros>,
    /// Why.
    pub cause: GapCause,
    /// How many events are missing, where that can be told.
    pub estimated_events: Option<u64>,
}
