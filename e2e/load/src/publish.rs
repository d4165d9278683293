//! Sends messages as kombu does.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::messages::Message;

/// Replies that are waited for together; a bound on what Redis must keep for us.
const REPLIES_AT_ONCE: usize = 1000;

/// Publishes to a Redis channel: one `PUBLISH` of an envelope a message.
#[derive(Debug)]
pub struct RedisPublisher {
    stream: std::io::BufWriter<TcpStream>,
    replies: TcpStream,
    owed: usize,
    envelope: Vec<u8>,
    /// The database in a channel's name; any connection may publish to it.
    database: u32,
}

impl RedisPublisher {
    /// Connects to a Redis without password on this machine.
    pub fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        let replies = stream.try_clone()?;
        replies.set_read_timeout(Some(Duration::from_mins(1)))?;
        Ok(Self {
            stream: std::io::BufWriter::with_capacity(256 * 1024, stream),
            replies,
            owed: 0,
            envelope: Vec::new(),
            database: 0,
        })
    }

    /// Publishes as a client of this database from now on.
    pub fn choose_database(&mut self, database: u32) {
        self.database = database;
    }

    /// Publishes a message.
    pub fn publish(&mut self, message: &Message<'_>) -> Result<()> {
        let mut envelope = std::mem::take(&mut self.envelope);
        envelope.clear();
        write_envelope(
            &mut envelope,
            message.body.as_bytes(),
            message.routing_key,
            message.hostname,
        );
        let sent = self.publish_raw(message.routing_key, &envelope);
        self.envelope = envelope;
        sent
    }

    /// Publishes bytes as they are.
    pub fn publish_raw(&mut self, routing_key: &str, envelope: &[u8]) -> Result<()> {
        let database = self.database;
        let digits = database.checked_ilog10().unwrap_or_default() as usize + 1;
        write!(
            self.stream,
            "*3\r\n$7\r\nPUBLISH\r\n${}\r\n/{database}.celeryev/{routing_key}\r\n${}\r\n",
            11 + digits + routing_key.len(),
            envelope.len()
        )?;
        self.stream.write_all(envelope)?;
        self.stream.write_all(b"\r\n")?;
        self.owed += 1;
        if self.owed >= REPLIES_AT_ONCE {
            self.flush()?;
        }
        Ok(())
    }

    /// Waits until Redis has taken everything.
    pub fn flush(&mut self) -> Result<()> {
        self.stream.flush()?;
        let mut buffer = [0; 16 * 1024];
        while self.owed > 0 {
            let count = self.replies.read(&mut buffer)?;
            anyhow::ensure!(count > 0, "Redis closed the connection");
            anyhow::ensure!(!buffer[..count].contains(&b'-'), "Redis refused a message");
            let replies = buffer[..count].split(|byte| *byte == b'\n').count() - 1;
            self.owed -= replies.min(self.owed);
        }
        Ok(())
    }
}

/// Wraps a body as kombu's virtual transports do.
pub fn envelope(body: &[u8], routing_key: &str, hostname: &str) -> Vec<u8> {
    let mut out = Vec::new();
    write_envelope(&mut out, body, routing_key, hostname);
    out
}

fn write_envelope(out: &mut Vec<u8>, body: &[u8], routing_key: &str, hostname: &str) {
    out.extend_from_slice(br#"{"body": ""#);
    let begin = out.len();
    out.resize(begin + body.len().div_ceil(3) * 4, 0);
    // The space is exactly what is needed.
    let written = STANDARD.encode_slice(body, &mut out[begin..]).unwrap_or_default();
    out.truncate(begin + written);
    for part in [
        r#"", "content-encoding": "utf-8", "content-type": "application/json", "headers": {"hostname": ""#,
        hostname,
        r#""}, "properties": {"delivery_mode": 1, "delivery_info": {"exchange": "celeryev", "routing_key": ""#,
        routing_key,
        r#""}, "priority": 0, "body_encoding": "base64", "delivery_tag": "813d4536-e96d-4319-99bb-f0a2dc3d6f2a"}}"#,
    ] {
        out.extend_from_slice(part.as_bytes());
    }
}

/// Publishes to RabbitMQ's `celeryev`.
pub struct AmqpPublisher {
    /// For what a test does besides publishing.
    pub channel: lapin::Channel,
    _connection: lapin::Connection,
}

impl std::fmt::Debug for AmqpPublisher {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("AmqpPublisher").finish_non_exhaustive()
    }
}

impl AmqpPublisher {
    /// Connects, and declares the exchange as Celery does.
    pub async fn connect(url: &str) -> Result<Self> {
        let connection = lapin::Connection::connect(url, lapin::ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let durable = lapin::options::ExchangeDeclareOptions {
            durable: true,
            ..Default::default()
        };
        channel
            .exchange_declare(
                "celeryev".into(),
                lapin::ExchangeKind::Topic,
                durable,
                lapin::types::FieldTable::default(),
            )
            .await?;
        channel
            .confirm_select(lapin::options::ConfirmSelectOptions::default())
            .await?;
        Ok(Self {
            channel,
            _connection: connection,
        })
    }

    /// Publishes a message; the confirmation is not awaited for each, [`Self::flush`] waits for all.
    pub async fn publish(&self, message: &Message<'_>) -> Result<()> {
        let properties = lapin::BasicProperties::default()
            .with_content_type("application/json".into())
            .with_content_encoding("utf-8".into())
            .with_delivery_mode(1)
            .with_priority(0);
        let _confirmation = self
            .channel
            .basic_publish(
                "celeryev".into(),
                message.routing_key.into(),
                lapin::options::BasicPublishOptions::default(),
                message.body.as_bytes(),
                properties,
            )
            .await?;
        Ok(())
    }

    /// Waits until RabbitMQ has taken everything.
    pub async fn flush(&self) -> Result<()> {
        let returned = self.channel.wait_for_confirms().await?;
        anyhow::ensure!(returned.is_empty(), "{} messages came back", returned.len());
        Ok(())
    }
}
