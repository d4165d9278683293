//! The usual ground of a test: a broker in the test's namespace, Kanchi watching it, the sample application on it.

use std::fs;
use std::time::Duration;

use anyhow::Context;

use crate::broker::BrokerManifest;
use crate::cluster::{checkout, setting};
use crate::scope::Scope;
use crate::services::Service;
use crate::shop::{Shop, ShopOptions};

/// What carries the events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// RabbitMQ.
    RabbitMq,
    /// Redis.
    Redis,
}

/// Name of the broker that [`Scope::watch`] applies.
pub const ORDERS: &str = "orders";

impl Transport {
    /// Returns the service that it needs.
    pub fn service(self) -> Service {
        match self {
            Self::RabbitMq => Service::RabbitMq,
            Self::Redis => Service::Redis,
        }
    }

    /// Returns the URL for a user of the service.
    pub fn url(self, user: &str, password: &str) -> String {
        match self {
            Self::RabbitMq => format!("amqp://{user}:{password}@rabbitmq:5672/"),
            Self::Redis => format!("redis://{user}:{password}@redis:6379/0"),
        }
    }

    /// Returns the monitor's URL.
    pub fn monitor_url(self) -> String {
        self.url("kanchi", "watching")
    }

    /// Returns the application's URL.
    pub fn shop_url(self) -> String {
        self.url("shop", "selling")
    }
}

impl Scope {
    /// Installs Kanchi, starts the services and applies broker [`ORDERS`]; waits until it is ready and reachable.
    pub async fn watch(&self, transport: Transport) -> anyhow::Result<()> {
        self.watch_as(transport, BrokerManifest::new(ORDERS)).await
    }

    /// The same with a manifest that says more.
    pub async fn watch_as(&self, transport: Transport, broker: BrokerManifest) -> anyhow::Result<()> {
        self.prepare(transport).await?;
        self.cluster
            .apply_broker(&self.namespace, &broker, &transport.monitor_url())
            .await?;
        self.cluster
            .await_ready(&self.namespace, ORDERS, Duration::from_secs(60))
            .await
            .map(drop)
    }

    /// Installs Kanchi and starts the services; Redis always, for results and journals.
    pub async fn prepare(&self, transport: Transport) -> anyhow::Result<()> {
        self.cluster.install().await?;
        let services: &[Service] = match transport {
            Transport::RabbitMq => &[Service::RabbitMq, Service::Redis],
            Transport::Redis => &[Service::Redis],
        };
        self.cluster.start(&self.namespace, services).await
    }

    /// Starts the sample application on the newest Celery.
    pub async fn shop(&self, transport: Transport) -> anyhow::Result<Shop> {
        let options = ShopOptions::new("shop", &setting("KANCHI_CELERY_IMAGE")?, &transport.shop_url());
        self.cluster.start_shop(&self.namespace, &options).await
    }
}

impl Shop {
    /// Runs a script of `e2e/tests/scripts/` with the application's Python and settings.
    pub async fn script(&self, scope: &Scope, name: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let path = checkout(&format!("e2e/tests/scripts/{name}.py"));
        let text = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
        self.exec(&scope.cluster, &[&["python", "-c", &text], arguments].concat())
            .await
    }
}
