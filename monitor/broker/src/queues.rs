//! Depth of queues, and which queues there are.

use std::collections::BTreeSet;

use kanchi_contract::Transport;

use crate::amqp::sampler::AmqpSampler;
use crate::net::ConnectError;
use crate::report::ConnectReason;
use crate::resp::sampler::RedisSampler;
use crate::spec::BrokerConnectSpec;

/// Why queues were not sampled.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// No connection.
    #[error("failed to reach the broker for queue sampling: {message}")]
    Unavailable {
        /// Why.
        reason: ConnectReason,
        /// For people; free of credentials.
        message: String,
    },
}

impl From<ConnectError> for SampleError {
    fn from(error: ConnectError) -> Self {
        Self::Unavailable {
            reason: error.reason,
            message: error.message,
        }
    }
}

/// One queue at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSample {
    /// Name of the queue.
    pub name: String,
    /// Messages that wait, over all priorities; `None`: the broker does not tell (exclusive queue of somebody else).
    pub ready: Option<u64>,
    /// Messages delivered and not acknowledged, where the broker tells for a single queue.
    pub unacked: Option<u64>,
    /// Consumers, where the broker tells: one per worker and queue, not one per process.
    pub consumers: Option<u64>,
}

/// Messages delivered to workers and not acknowledged, over all queues (Redis).
#[derive(Clone, Debug, PartialEq)]
pub struct InFlight {
    /// How many.
    pub count: u64,
    /// When the oldest was delivered, Unix seconds.
    pub oldest_since: Option<f64>,
}

enum Sampler {
    Amqp(Box<AmqpSampler>),
    Redis(Box<RedisSampler>),
}

/// Samples queues on a connection of its own that is opened at need.
pub struct QueueSampler {
    spec: BrokerConnectSpec,
    open: Option<Sampler>,
}

impl std::fmt::Debug for QueueSampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueueSampler")
            .field("spec", &self.spec)
            .finish_non_exhaustive()
    }
}

impl QueueSampler {
    /// Makes a sampler; connects at the first sample.
    pub fn new(spec: BrokerConnectSpec) -> Self {
        Self { spec, open: None }
    }

    /// Samples these queues; internal ones and ones that do not exist (RabbitMQ) are left out.
    pub async fn sample(&mut self, names: &BTreeSet<String>) -> Result<Vec<QueueSample>, SampleError> {
        let wanted: Vec<&str> = names
            .iter()
            .map(String::as_str)
            .filter(|name| !self.is_internal(name))
            .collect();
        let outcome = match self.opened().await? {
            Sampler::Amqp(sampler) => sampler.sample(&wanted).await,
            Sampler::Redis(sampler) => sampler.sample(&wanted).await,
        };
        self.checked(outcome)
    }

    /// Counts what workers hold, over all queues; `None` where the broker does not tell (RabbitMQ).
    pub async fn in_flight(&mut self) -> Result<Option<InFlight>, SampleError> {
        let outcome = match self.opened().await? {
            Sampler::Amqp(_) => Ok(None),
            Sampler::Redis(sampler) => sampler.in_flight().await.map(Some),
        };
        self.checked(outcome)
    }

    /// Names the queues that the broker itself tells of: Redis' bindings; nothing on RabbitMQ.
    pub async fn discover(&mut self) -> Result<BTreeSet<String>, SampleError> {
        let outcome = match self.opened().await? {
            Sampler::Amqp(_) => Ok(BTreeSet::new()),
            Sampler::Redis(sampler) => sampler.discover().await,
        };
        let names = self.checked(outcome)?;
        Ok(names.into_iter().filter(|name| !self.is_internal(name)).collect())
    }

    /// Uses a new spec from the next sample on.
    pub fn reload(&mut self, spec: BrokerConnectSpec) {
        if spec != self.spec {
            *self = Self::new(spec);
        }
    }

    async fn opened(&mut self) -> Result<&mut Sampler, SampleError> {
        let sampler = match self.open.take() {
            Some(sampler) => sampler,
            None => match self.spec.url.transport() {
                Transport::Amqp => Sampler::Amqp(Box::new(AmqpSampler::open(&self.spec).await?)),
                Transport::Redis => Sampler::Redis(Box::new(RedisSampler::open(&self.spec).await?)),
            },
        };
        Ok(self.open.insert(sampler))
    }

    /// A sampler that failed is not used again.
    fn checked<T>(&mut self, outcome: Result<T, ConnectError>) -> Result<T, SampleError> {
        outcome.map_err(|error| {
            self.open = None;
            error.into()
        })
    }

    fn is_internal(&self, name: &str) -> bool {
        is_internal(name, &self.spec.celery.event_exchange)
    }
}

/// Whether a queue belongs to Celery's or Kanchi's own machinery, or cannot be a queue's name.
fn is_internal(name: &str, event_exchange: &str) -> bool {
    let event_queue = |prefix: &str| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'));
    name.is_empty()
        || name.len() > 255
        || name.ends_with(".pidbox")
        || event_queue("celeryev")
        || event_queue(event_exchange)
        || name.starts_with("celery_delayed_")
        || name.starts_with("amq.gen-")
        || name.starts_with("kanchi.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machinery_is_told_from_queues_of_tasks() {
        for internal in [
            "worker1@host.celery.pidbox",
            "0f0a.reply.celery.pidbox",
            "celeryev.0b1c",
            "myev.0b1c",
            "celery_delayed_27",
            "amq.gen-abc",
            "kanchi.shop.orders.0a1b2c3d",
            "",
        ] {
            assert!(is_internal(internal, "myev"), "{internal}");
        }
        for task_queue in ["celery", "billing", "celeryevents", "worker@host.dq2", "kanchi"] {
            assert!(!is_internal(task_queue, "myev"), "{task_queue}");
        }
    }
}
