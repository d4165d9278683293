//! The event stream on Redis: subscribe to every channel that events may come on, and never stop reading.
//!
//! Redis cuts a subscriber that falls behind, and forgets what is published meanwhile. So the reader only finds frames and
//! hands them over; what the ingester cannot take within the budget is dropped and told as a gap. Redis is asked for a pong
//! every second: it answers in order, so that with the answer all is here that was published before the question. Bytes
//! alone prove less: over a slow or silent link they are as old as what is still on its way.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kanchi_contract::Transport;
use kanchi_domain::UnixMicros;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::channels::event_patterns;
use super::commands::{reason_of, redacted};
use super::wire::{self, Found, Frame, Kind, Span};
use crate::backoff::Backoff;
use crate::net::{self, ConnectError, Socket};
use crate::report::{ConnectReason, ConnectionState, GapCause};
use crate::spec::BrokerConnectSpec;
use crate::stream::{Delivery, DeliveryTag, Framing, Interrupted, StreamItem, StreamTask};
use crate::time::now;

/// Read at a time; large enough that a burst costs few system calls.
const CHUNK: usize = 128 * 1024;
/// Room left in a chunk below which a new one is begun. Messages keep the whole chunk alive that they were read into, so
/// a chunk must be filled: at a message a read, one chunk each would make a ring of 8 MiB take a hundred.
const LEAST_ROOM: usize = 16 * 1024;
/// A larger message is passed over and told as a gap; Celery's largest are far below.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;
/// Messages share the memory they were read into; beside a message larger than this the small ones get their own.
const LARGE: usize = 1024 * 1024;

/// How often Redis is asked for a pong. What was published since the last one that was answered is not certain to be here.
const PING: Duration = Duration::from_secs(1);

/// Longest wait between attempts to connect: what is published meanwhile is lost.
const MAX_WAIT: Duration = Duration::from_secs(1);

enum Ended {
    Interrupted(Interrupted),
    Failed(ConnectError),
}

/// Runs until stopped, or until the spec names another transport.
pub(crate) async fn run(task: &mut StreamTask) -> Interrupted {
    let mut backoff = Backoff::new(task.options.max_backoff.min(MAX_WAIT));
    loop {
        let spec = task.specs.borrow_and_update().clone();
        if spec.url.transport() != Transport::Redis {
            return Interrupted::Reload;
        }
        if !task.connected_before {
            task.report(ConnectionState::Connecting, None, None, None);
        }
        match serve(task, &spec, &mut backoff).await {
            Ended::Interrupted(Interrupted::Stop) => return Interrupted::Stop,
            Ended::Interrupted(Interrupted::Reload) => continue,
            Ended::Failed(error) => task.report(ConnectionState::Disconnected, Some(&error), None, None),
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next_delay()) => {}
            interrupted = StreamTask::interrupted(&task.stop, &mut task.specs) => match interrupted {
                Interrupted::Stop => return Interrupted::Stop,
                Interrupted::Reload => {}
            },
        }
    }
}

async fn serve(task: &mut StreamTask, spec: &BrokerConnectSpec, backoff: &mut Backoff) -> Ended {
    let timeout = task.options.connect_timeout;
    let setup = async {
        let socket = net::connect(&spec.url, spec.tls.as_ref(), timeout).await?;
        let mut subscriber = Subscriber {
            socket,
            buffer: BytesMut::with_capacity(CHUNK),
        };
        let version = tokio::time::timeout(timeout, subscriber.subscribe(spec))
            .await
            .map_err(|_elapsed| {
                ConnectError::new(
                    ConnectReason::Timeout,
                    format!("no answer to the subscription within {timeout:?}"),
                )
            })??;
        Ok::<_, ConnectError>((subscriber, version))
    };
    let outcome = tokio::select! {
        outcome = setup => outcome,
        interrupted = StreamTask::interrupted(&task.stop, &mut task.specs) => return Ended::Interrupted(interrupted),
    };
    let (mut subscriber, version) = match outcome {
        Ok(ready) => ready,
        Err(error) => return Ended::Failed(error),
    };
    if let Some(from) = task.complete_until {
        let cause = if task.connected_before {
            GapCause::SubscriberCut
        } else {
            GapCause::MonitorRestart
        };
        task.gap(from, cause, None);
    }
    task.complete(now());
    task.connected_before = true;
    backoff.reset();
    task.report(ConnectionState::Connected, None, version, None);
    subscriber.read(task).await
}

struct Subscriber {
    socket: Socket,
    buffer: BytesMut,
}

impl Subscriber {
    /// Authenticates, asks for the version, subscribes; returns the version.
    async fn subscribe(&mut self, spec: &BrokerConnectSpec) -> Result<Option<String>, ConnectError> {
        let mut commands = Vec::new();
        if let Some(password) = spec.url.password() {
            match spec.url.username() {
                Some(user) => wire::encode(&mut commands, &[b"AUTH", user.as_bytes(), password.as_bytes()]),
                None => wire::encode(&mut commands, &[b"AUTH", password.as_bytes()]),
            }
            self.send(&commands).await?;
            self.reply().await?.map_err(|text| refused(spec, &text))?;
            commands.clear();
        }
        wire::encode(&mut commands, &[b"CLIENT", b"SETNAME", b"kanchi-events"]);
        wire::encode(&mut commands, &[b"INFO", b"server"]);
        self.send(&commands).await?;
        // An ACL may forbid both; neither is needed to watch.
        if let Err(text) = self.reply().await?
            && matches!(
                reason_of(&text),
                ConnectReason::AuthenticationFailed | ConnectReason::BrokerUnavailable
            )
        {
            return Err(refused(spec, &text));
        }
        let version = self.reply().await?.ok().and_then(|info| version(&info));
        let patterns = event_patterns(spec);
        let parts: Vec<&[u8]> = std::iter::once(b"PSUBSCRIBE".as_slice())
            .chain(patterns.iter().map(String::as_bytes))
            .collect();
        commands.clear();
        wire::encode(&mut commands, &parts);
        self.send(&commands).await?;
        for _pattern in &patterns {
            self.reply().await?.map_err(|text| refused(spec, &text))?;
        }
        Ok(version)
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), ConnectError> {
        let written = async {
            self.socket.write_all(bytes).await?;
            self.socket.flush().await
        };
        written.await.map_err(|error| lost(&error))
    }

    /// Reads one reply to a command; the inner error is the server's.
    async fn reply(&mut self) -> Result<Result<String, String>, ConnectError> {
        loop {
            match wire::find(&self.buffer, 0) {
                Found::Frame(frame) => {
                    let text = String::from_utf8_lossy(frame.field(0).of(&self.buffer)).into_owned();
                    drop(self.buffer.split_to(frame.end));
                    return Ok(if frame.kind == Kind::Error { Err(text) } else { Ok(text) });
                }
                Found::Incomplete(_needed) => self.fill(0).await?,
                Found::Invalid => return Err(not_redis()),
            }
        }
    }

    /// Reads what has come; `needed` more bytes are known to come.
    async fn fill(&mut self, needed: usize) -> Result<(), ConnectError> {
        if self.buffer.capacity() - self.buffer.len() < needed.max(LEAST_ROOM) {
            self.buffer.reserve(needed.max(CHUNK));
        }
        match self.socket.read_buf(&mut self.buffer).await {
            Ok(0) => Err(ConnectError::new(
                ConnectReason::ConnectionLost,
                "the server closed the connection",
            )),
            Ok(_count) => Ok(()),
            Err(error) => Err(lost(&error)),
        }
    }

    /// Asks for a pong that says when it was asked for.
    async fn ping(&mut self) -> Result<(), ConnectError> {
        let mut ping = Vec::new();
        wire::encode(&mut ping, &[b"PING", now().0.to_string().as_bytes()]);
        self.send(&ping).await
    }

    /// Hands over messages until something ends it.
    async fn read(&mut self, task: &mut StreamTask) -> Ended {
        let heartbeat = task.options.heartbeat.max(Duration::from_millis(100));
        let mut heard = Instant::now();
        let mut check = tokio::time::interval(PING.min(heartbeat));
        let mut needed = 0_usize;
        loop {
            let missing = needed.saturating_sub(self.buffer.len());
            tokio::select! {
                filled = self.fill(missing) => {
                    if let Err(error) = filled {
                        return Ended::Failed(error);
                    }
                    heard = Instant::now();
                    if self.buffer.len() >= needed {
                        match self.hand_over(task) {
                            Ok(more) => needed = more,
                            Err(error) => return Ended::Failed(error),
                        }
                    }
                }
                at = check.tick() => {
                    let silent = at.saturating_duration_since(heard);
                    if silent >= heartbeat.saturating_mul(2) {
                        let message = format!("nothing heard for {} s", silent.as_secs());
                        return Ended::Failed(ConnectError::new(ConnectReason::Timeout, message));
                    }
                    match tokio::time::timeout(heartbeat, self.ping()).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => return Ended::Failed(error),
                        Err(_elapsed) => {
                            let error = ConnectError::new(ConnectReason::Timeout, "the connection takes no data");
                            return Ended::Failed(error);
                        }
                    }
                }
                interrupted = StreamTask::interrupted(&task.stop, &mut task.specs) => {
                    drop(self.socket.shutdown().await);
                    return Ended::Interrupted(interrupted);
                }
            }
        }
    }

    /// Hands over the messages in the buffer; returns how many bytes there must be before another look is worth it.
    fn hand_over(&mut self, task: &mut StreamTask) -> Result<usize, ConnectError> {
        let mut at = 0;
        let mut payloads: Vec<Span> = Vec::with_capacity(128);
        let mut complete = None;
        let incomplete = loop {
            match wire::find(&self.buffer, at) {
                Found::Frame(frame) => {
                    payloads.extend(self.payload(&frame)?);
                    complete = pong(&frame, &self.buffer).or(complete);
                    at = frame.end;
                }
                Found::Incomplete(needed) => break needed,
                Found::Invalid => return Err(not_redis()),
            }
        };
        if incomplete - at > MAX_MESSAGE {
            let message = format!("a message of more than {} MiB", MAX_MESSAGE / 1024 / 1024);
            return Err(ConnectError::new(ConnectReason::ProtocolError, message));
        }
        let chunk = self.buffer.split_to(at).freeze();
        let arrived = now();
        let body = |span: Span| {
            let part = chunk.slice(span.start..span.end);
            let pins_more = chunk.len() > LARGE && part.len() < LARGE;
            if pins_more { Bytes::copy_from_slice(&part) } else { part }
        };
        let items = payloads.into_iter().map(|span| {
            task.last_tag += 1;
            StreamItem::Delivery(Delivery {
                tag: DeliveryTag(task.last_tag),
                redelivered: false,
                arrived,
                body: body(span),
                framing: Framing::Envelope,
            })
        });
        task.handover.push_bounded(items, task.options.budget_bytes);
        // Behind the messages that came before it, and some that came after.
        if let Some(until) = complete {
            task.complete(until);
        }
        Ok(incomplete - at)
    }

    fn payload(&self, frame: &Frame) -> Result<Option<Span>, ConnectError> {
        match frame.kind {
            // Told off in the middle of a subscription: revoked rights, a server that shuts down.
            Kind::Error => {
                let text = String::from_utf8_lossy(frame.field(0).of(&self.buffer)).into_owned();
                // Without its details, which may name the user.
                let code = text.split_whitespace().next().unwrap_or_default();
                Err(ConnectError::new(
                    reason_of(&text),
                    format!("the server ended the subscription: {code}"),
                ))
            }
            Kind::Text | Kind::Array => Ok(frame.payload(&self.buffer)),
        }
    }
}

/// Returns when a pong was asked for, if this is one.
fn pong(frame: &Frame, buffer: &[u8]) -> Option<UnixMicros> {
    let is_pong = frame.count == 2 && frame.field(0).of(buffer) == b"pong";
    let asked = std::str::from_utf8(frame.field(1).of(buffer))
        .ok()
        .filter(|_| is_pong)?;
    asked.parse().ok().map(UnixMicros)
}

fn lost(error: &std::io::Error) -> ConnectError {
    ConnectError::new(ConnectReason::ConnectionLost, format!("the connection broke: {error}"))
}

fn not_redis() -> ConnectError {
    ConnectError::new(
        ConnectReason::ProtocolError,
        "the peer does not speak the Redis protocol",
    )
}

fn refused(spec: &BrokerConnectSpec, text: &str) -> ConnectError {
    ConnectError::new(reason_of(text), redacted(spec, text))
}

/// Product and version of `INFO server`; Valkey reports the Redis version it is compatible with, beside its own.
fn version(info: &str) -> Option<String> {
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    match field("valkey_version:") {
        Some(version) => Some(format!("Valkey {version}")),
        None => field("redis_version:").map(|version| format!("Redis {version}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pong_says_when_it_was_asked_for() {
        let asked = |buffer: &[u8]| match wire::find(buffer, 0) {
            Found::Frame(frame) => pong(&frame, buffer),
            other @ (Found::Incomplete(_) | Found::Invalid) => panic!("{other:?}"),
        };
        assert_eq!(asked(b"*2\r\n$4\r\npong\r\n$3\r\n170\r\n"), Some(UnixMicros(170)));
        assert_eq!(asked(b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"), None);
        assert_eq!(asked(b"*3\r\n$7\r\nmessage\r\n$4\r\npong\r\n$3\r\n170\r\n"), None);
    }

    #[test]
    fn the_version_is_read_from_info() {
        assert_eq!(
            version("# Server\r\nredis_version:7.0.15\r\nos:Linux\r\n").as_deref(),
            Some("Redis 7.0.15")
        );
        let valkey = "redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.0.1\r\n";
        assert_eq!(version(valkey).as_deref(), Some("Valkey 8.0.1"));
        assert_eq!(version("-"), None);
    }
}
