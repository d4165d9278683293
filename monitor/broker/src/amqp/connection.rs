//! Opening a connection to RabbitMQ, and what its refusals mean.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_rs::Runtime;
use async_rs::util::RuntimeParts;
use lapin::tcp::AsyncTcpStream;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Channel, Connection, ConnectionProperties, ErrorKind};
use tokio::runtime::Handle;
use tokio_util::compat::TokioAsyncReadCompatExt;

use super::short;
use super::socket::{Greeting, MeteredSocket, SocketReactor};
use crate::handover::{Ledger, lock};
use crate::net::{self, ConnectError};
use crate::report::ConnectReason;
use crate::spec::BrokerConnectSpec;

/// Lapin keeps 32 frames in and 32 out; the default of 128 KiB a frame would cost 8 MiB a connection.
const FRAME_MAX: u32 = 32 * 1024;

/// What a connection is for: shown in the management UI, and its bounds.
pub(crate) struct Purpose {
    pub(crate) name: &'static str,
    pub(crate) heartbeat: Duration,
    pub(crate) timeout: Duration,
    pub(crate) ledger: Option<Arc<Ledger>>,
}

/// An open connection and who answered.
pub(crate) struct AmqpConnection {
    pub(crate) connection: Connection,
    pub(crate) product: Option<String>,
    pub(crate) version: Option<String>,
    timeout: Duration,
}

impl AmqpConnection {
    /// Connects and authenticates.
    pub(crate) async fn open(spec: &BrokerConnectSpec, purpose: Purpose) -> Result<Self, ConnectError> {
        if short(spec.url.vhost()).is_none() {
            return Err(ConnectError::new(
                ConnectReason::VhostNotFound,
                "a virtual host has at most 255 bytes",
            ));
        }
        let socket = net::connect(&spec.url, spec.tls.as_ref(), purpose.timeout).await?;
        let greeting = Greeting::default();
        let socket = MeteredSocket::new(socket.compat(), purpose.ledger, greeting.clone());
        // Lapin may ask for a socket more than once; this one is for the first time, and reconnecting is ours to do.
        let socket = Mutex::new(Some(socket));
        let handle = Handle::current();
        let kit = RuntimeParts::new(
            async_rs::Tokio::default().with_handle(handle.clone()),
            SocketReactor(handle),
        );
        let properties = ConnectionProperties::default()
            .with_connection_name(format!("kanchi {} {}", purpose.name, spec.broker_key).into());
        let opening = Connection::connector(
            uri(spec, purpose.heartbeat),
            Runtime::new(kit),
            async move |_uri, _runtime| match lock(&socket).take() {
                Some(socket) => Ok(AsyncTcpStream::Plain(socket)),
                None => Err(std::io::Error::from(std::io::ErrorKind::ConnectionAborted).into()),
            },
            properties,
        );
        let connection = match tokio::time::timeout(purpose.timeout, opening).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Err(refused(spec, &error)),
            Err(_elapsed) => {
                return Err(ConnectError::new(
                    ConnectReason::Timeout,
                    "no answer to the AMQP handshake",
                ));
            }
        };
        Ok(Self {
            connection,
            product: greeting.property("product"),
            version: greeting.property("version"),
            timeout: purpose.timeout,
        })
    }

    /// Returns `RabbitMQ 3.10.8`, as far as known.
    pub(crate) fn broker_version(&self) -> Option<String> {
        match (&self.product, &self.version) {
            (Some(product), Some(version)) => Some(format!("{product} {version}")),
            (Some(only), None) | (None, Some(only)) => Some(only.clone()),
            (None, None) => None,
        }
    }

    /// Returns the first number of the version.
    pub(crate) fn major(&self) -> Option<u32> {
        self.version.as_deref()?.split('.').next()?.parse().ok()
    }

    /// Opens a channel that an error may close without harm.
    pub(crate) async fn channel(&self) -> Result<Channel, lapin::Error> {
        self.connection.create_channel().await
    }

    /// Bounds a call whose answer may wait behind deliveries. Lapin (4.12) never answers one that it takes just when the connection breaks.
    pub(crate) async fn within<T>(
        &self,
        call: impl Future<Output = Result<T, lapin::Error>> + Send,
    ) -> Result<T, lapin::Error> {
        within(self.timeout.saturating_mul(3), call).await
    }

    /// Says goodbye, so that the broker does not log a broken connection; does not wait for long.
    pub(crate) async fn close(self) {
        let closing = self.connection.close(200, "OK".into());
        drop(tokio::time::timeout(Duration::from_secs(2), closing).await);
    }
}

/// Waits so long for an answer.
pub(crate) async fn within<T>(
    timeout: Duration,
    call: impl Future<Output = Result<T, lapin::Error>> + Send,
) -> Result<T, lapin::Error> {
    let answer = tokio::time::timeout(timeout, call).await;
    answer.unwrap_or_else(|_elapsed| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))
}

fn uri(spec: &BrokerConnectSpec, heartbeat: Duration) -> AMQPUri {
    let url = &spec.url;
    AMQPUri {
        // Encryption is done by the time lapin sees the socket.
        scheme: AMQPScheme::AMQP,
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo {
                username: url.username().unwrap_or("guest").to_owned(),
                password: url.password().unwrap_or("guest").to_owned(),
            },
            host: url.host().to_owned(),
            port: url.port(),
        },
        vhost: url.vhost().to_owned(),
        query: AMQPQueryString {
            frame_max: Some(FRAME_MAX),
            heartbeat: Some(u16::try_from(heartbeat.as_secs().max(1)).unwrap_or(u16::MAX)),
            ..AMQPQueryString::default()
        },
    }
}

/// Code of AMQP's reply, if the broker gave one.
pub(crate) fn reply_code(error: &lapin::Error) -> Option<u16> {
    if let ErrorKind::ProtocolError(reply) = error.kind() {
        Some(reply.get_id())
    } else {
        None
    }
}

fn refused(spec: &BrokerConnectSpec, error: &lapin::Error) -> ConnectError {
    let mut refused = failed(spec, error);
    // A socket that is closed during the handshake says nothing by itself; old brokers refuse a password like this, and
    // a TLS port hangs up on a plain client.
    if refused.reason == ConnectReason::ConnectionLost {
        refused.reason = ConnectReason::ProtocolError;
        refused.message = format!(
            "the peer closed the connection during the AMQP handshake ({})",
            refused.message
        );
    }
    // While the handshake lasts, 403 is about the password, not about a resource.
    if reply_code(error) == Some(403) {
        refused.reason = ConnectReason::AuthenticationFailed;
    }
    refused
}

/// Says what an error on an established connection means.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "lapin's list is open; the rest are states of a broken connection"
)]
pub(crate) fn failed(spec: &BrokerConnectSpec, error: &lapin::Error) -> ConnectError {
    let message = redacted(spec, &error.to_string());
    let reason = match error.kind() {
        ErrorKind::ProtocolError(reply) => match reply.get_id() {
            403 => ConnectReason::AccessRefused,
            530 if message.contains("not found") => ConnectReason::VhostNotFound,
            530 if message.contains("refused") => ConnectReason::AccessRefused,
            540 => ConnectReason::NotImplemented,
            320 | 506 | 530 | 541 => ConnectReason::BrokerUnavailable,
            406 if message.contains("timed out") => ConnectReason::ConnectionLost,
            _other => ConnectReason::ProtocolError,
        },
        ErrorKind::MissingHeartbeatError => ConnectReason::Timeout,
        ErrorKind::ParsingError(_) | ErrorKind::InvalidProtocolVersion(_) => ConnectReason::ProtocolError,
        _other => ConnectReason::ConnectionLost,
    };
    ConnectError::new(reason, message)
}

/// RabbitMQ names the user in its replies.
fn redacted(spec: &BrokerConnectSpec, text: &str) -> String {
    let mut text = text.to_owned();
    if let Some(user) = spec.url.username() {
        text = text.replace(&format!("'{user}'"), "<redacted>");
    }
    match spec.url.password() {
        Some(password) if password.len() > 3 => text.replace(password, "<redacted>"),
        Some(_) | None => text,
    }
}
