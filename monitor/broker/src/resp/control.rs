//! Remote control on Redis: a `PUBLISH`, and a list into which workers push their answers.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use redis::AsyncCommands;
use redis::RedisError;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

use super::channels::{SEPARATOR, control_channels};
use super::commands::{Commands, failed};
use crate::control::{MAX_REPLIES, Reply, Request, read_reply};
use crate::net::ConnectError;
use crate::report::ConnectReason;
use crate::spec::BrokerConnectSpec;

/// A blocking pop waits a second at a time.
const POP_SECONDS: f64 = 1.0;
const RESPONSE: Duration = Duration::from_secs(4);
/// A worker that looked the binding up before it was removed may still push; its answer is waited for, then removed.
const STRAGGLERS: Duration = Duration::from_millis(300);
/// Should the process die before it cleans up, the list goes by itself.
const LIST_EXPIRY_SECONDS: i64 = 60;

pub(crate) async fn cast(spec: &BrokerConnectSpec, request: &Request) -> Result<(), ConnectError> {
    let mut commands = Commands::open(spec, RESPONSE).await?;
    publish(&mut commands, spec, request, None)
        .await
        .map_err(|error| failed(spec, &error))
}

/// Runs in a task of its own, so that a caller who loses patience does not leave keys behind.
pub(crate) async fn broadcast(
    spec: BrokerConnectSpec,
    request: Request,
    timeout: Duration,
) -> Result<Vec<Reply>, ConnectError> {
    let (sender, mut outcome) = mpsc::channel(1);
    let task = tokio::spawn(async move {
        let mut commands = match Commands::open(&spec, RESPONSE).await {
            Ok(commands) => commands,
            Err(error) => {
                drop(sender.send(Err(error)).await);
                return;
            }
        };
        let mailbox = Mailbox::new(&spec);
        let collected = mailbox
            .ask(&mut commands, &spec, &request, Instant::now() + timeout)
            .await;
        drop(sender.send(collected.map_err(|error| failed(&spec, &error))).await);
        if let Err(error) = mailbox.remove(&mut commands).await {
            tracing::debug!("failed to remove a reply list, it expires by itself: {error}");
        }
    });
    // The task goes on to clean up after it has sent its outcome; it sends none only if it was cut down itself.
    drop(task);
    let cut_down = || {
        Err(ConnectError::new(
            ConnectReason::ConnectionLost,
            "remote control was interrupted",
        ))
    };
    outcome.recv().await.unwrap_or_else(cut_down)
}

/// The list for the answers to one request, and its entry in the reply exchange's bindings.
struct Mailbox {
    oid: String,
    exchange: String,
    list: String,
    bindings: String,
    member: String,
}

impl Mailbox {
    fn new(spec: &BrokerConnectSpec) -> Self {
        let prefix = &spec.celery.global_key_prefix;
        let oid = Uuid::new_v4().to_string();
        let exchange = format!("reply.{}.pidbox", spec.celery.control_exchange);
        let queue = format!("{oid}.{exchange}");
        Self {
            list: format!("{prefix}{queue}"),
            bindings: format!("{prefix}_kombu.binding.{exchange}"),
            member: format!("{oid}{SEPARATOR}{SEPARATOR}{queue}"),
            oid,
            exchange,
        }
    }

    async fn ask(
        &self,
        commands: &mut Commands,
        spec: &BrokerConnectSpec,
        request: &Request,
        deadline: Instant,
    ) -> Result<Vec<Reply>, RedisError> {
        commands
            .connection
            .sadd::<_, _, ()>(&self.bindings, &self.member)
            .await?;
        publish(commands, spec, request, Some((&self.exchange, &self.oid))).await?;
        let mut replies = Vec::new();
        let mut expiring = false;
        while replies.len() < request.expected().min(MAX_REPLIES) {
            let popping = commands
                .connection
                .brpop::<_, Option<(String, Vec<u8>)>>(&self.list, POP_SECONDS);
            match tokio::time::timeout_at(deadline, popping).await {
                Ok(Ok(Some((_list, envelope)))) => replies.extend(open_envelope(&envelope, &request.ticket)),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_elapsed) => break,
            }
            if !expiring {
                expiring = true;
                commands
                    .connection
                    .expire::<_, ()>(&self.list, LIST_EXPIRY_SECONDS)
                    .await?;
            }
        }
        Ok(replies)
    }

    async fn remove(&self, commands: &mut Commands) -> Result<(), RedisError> {
        commands
            .connection
            .srem::<_, _, ()>(&self.bindings, &self.member)
            .await?;
        tokio::time::sleep(STRAGGLERS).await;
        commands.connection.del::<_, ()>(&self.list).await
    }
}

/// Publishes where workers listen; the unlikely channels are tried only if nobody listens on the likely one.
async fn publish(
    commands: &mut Commands,
    spec: &BrokerConnectSpec,
    request: &Request,
    reply_to: Option<(&str, &str)>,
) -> Result<(), RedisError> {
    let envelope = envelope(spec, request, reply_to);
    for channel in control_channels(spec) {
        let listeners: u64 = commands.connection.publish(channel, envelope.as_str()).await?;
        if listeners > 0 {
            break;
        }
    }
    Ok(())
}

fn envelope(spec: &BrokerConnectSpec, request: &Request, reply_to: Option<(&str, &str)>) -> String {
    json!({
        "body": STANDARD.encode(request.body(reply_to)),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": { "clock": 1, "expires": request.expires },
        "properties": {
            "delivery_mode": 2,
            "delivery_info": { "exchange": format!("{}.pidbox", spec.celery.control_exchange), "routing_key": "" },
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": Uuid::new_v4().to_string(),
        },
    })
    .to_string()
}

fn open_envelope(envelope: &[u8], ticket: &str) -> Vec<Reply> {
    let Ok(envelope) = serde_json::from_slice::<Value>(envelope) else {
        return Vec::new();
    };
    let text = |pointer: &str| envelope.pointer(pointer).and_then(Value::as_str);
    if text("/headers/ticket") != Some(ticket) {
        return Vec::new();
    }
    let body = text("/body").unwrap_or_default();
    let body = match text("/properties/body_encoding") {
        Some("base64") => STANDARD.decode(body).unwrap_or_default(),
        Some(_) | None => body.as_bytes().to_vec(),
    };
    read_reply(text("/content-type"), &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_by_its_ticket_in_both_body_encodings() {
        for (encoding, body) in [
            ("base64", STANDARD.encode(r#"{"w@h":{"ok":"pong"}}"#)),
            ("utf-8", r#"{"w@h":{"ok":"pong"}}"#.into()),
        ] {
            let envelope = json!({
                "body": body, "content-type": "application/json", "headers": { "ticket": "t1" },
                "properties": { "body_encoding": encoding },
            })
            .to_string();
            let replies = open_envelope(envelope.as_bytes(), "t1");
            assert_eq!(replies.len(), 1, "{encoding}");
            assert_eq!(
                (replies[0].worker.as_str(), &replies[0].value),
                ("w@h", &json!({ "ok": "pong" }))
            );
            assert!(open_envelope(envelope.as_bytes(), "t2").is_empty());
        }
    }
}
