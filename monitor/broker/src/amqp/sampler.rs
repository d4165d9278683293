//! Queue depths on RabbitMQ by passive declarations: immediate, read-only, and each error costs its channel.

use std::time::Duration;

use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

use super::connection::{AmqpConnection, Purpose, failed, reply_code};
use super::short;
use crate::net::ConnectError;
use crate::queues::QueueSample;
use crate::report::ConnectReason;
use crate::spec::BrokerConnectSpec;

const TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) struct AmqpSampler {
    spec: BrokerConnectSpec,
    connection: AmqpConnection,
    channel: Option<Channel>,
}

impl AmqpSampler {
    pub(crate) async fn open(spec: &BrokerConnectSpec) -> Result<Self, ConnectError> {
        let purpose = Purpose {
            name: "queues",
            heartbeat: Duration::from_secs(20),
            timeout: TIMEOUT,
            ledger: None,
        };
        let connection = AmqpConnection::open(spec, purpose).await?;
        Ok(Self {
            spec: spec.clone(),
            connection,
            channel: None,
        })
    }

    pub(crate) async fn sample(&mut self, names: &[&str]) -> Result<Vec<QueueSample>, ConnectError> {
        let mut samples = Vec::with_capacity(names.len());
        for name in names {
            match tokio::time::timeout(TIMEOUT, self.one(name)).await {
                Ok(sample) => samples.extend(sample?),
                Err(_elapsed) => {
                    return Err(ConnectError::new(
                        ConnectReason::Timeout,
                        "the broker did not tell a queue's depth",
                    ));
                }
            }
        }
        Ok(samples)
    }

    async fn one(&mut self, name: &str) -> Result<Option<QueueSample>, ConnectError> {
        let Some(queue) = short(name) else { return Ok(None) };
        let channel = match self.channel.take() {
            Some(channel) => channel,
            None => self
                .connection
                .channel()
                .await
                .map_err(|error| failed(&self.spec, &error))?,
        };
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        match channel.queue_declare(queue, passive, FieldTable::default()).await {
            Ok(declared) => {
                self.channel = Some(channel);
                Ok(Some(QueueSample {
                    name: name.to_owned(),
                    ready: Some(u64::from(declared.message_count())),
                    unacked: None,
                    consumers: Some(u64::from(declared.consumer_count())),
                }))
            }
            // The channel is gone now; the next queue gets another.
            Err(error) => match reply_code(&error) {
                Some(404) => Ok(None),
                // It exists: exclusive to another connection, or hidden from this user.
                Some(405 | 403) => Ok(Some(QueueSample {
                    name: name.to_owned(),
                    ready: None,
                    unacked: None,
                    consumers: None,
                })),
                Some(_) | None => Err(failed(&self.spec, &error)),
            },
        }
    }
}
