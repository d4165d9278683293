//! Brokers and Postgres as pods, from `e2e/services/`.

use std::fs;
use std::time::Duration;

use anyhow::Context;

use crate::cluster::{Cluster, Kind as ClusterKind, checkout};
use crate::verbs::STATEFUL_SET;

/// The name that the manifests carry: the lab's one image of all services.
const LAB_IMAGE: &str = "kanchi.lab/services:1";

/// How long a service may take to come up on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// A service around Kanchi.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// `redis:6379`, users `shop`, `kanchi`, `admin`.
    Redis,
    /// `rabbitmq:5672`, users `shop`, `kanchi`.
    RabbitMq,
    /// `postgres:5432`, role and database `kanchi`.
    Postgres,
}

impl Service {
    /// Returns its name: of the StatefulSet, of the Service, and its pod's without `-0`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::RabbitMq => "rabbitmq",
            Self::Postgres => "postgres",
        }
    }

    /// Returns its only pod.
    pub fn pod(self) -> String {
        format!("{}-0", self.name())
    }

    /// Returns the image that serves it in a cluster with a registry.
    fn public_image(self) -> &'static str {
        match self {
            Self::Redis => "docker.io/library/redis:7.2",
            Self::RabbitMq => "docker.io/library/rabbitmq:3.13",
            Self::Postgres => "docker.io/library/postgres:15",
        }
    }

    /// Returns its manifest for a cluster.
    pub fn manifest(self, cluster: ClusterKind) -> anyhow::Result<String> {
        let path = checkout(&format!("e2e/services/{}.yaml", self.name()));
        let text = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
        Ok(match cluster {
            ClusterKind::Lab => text,
            ClusterKind::Own => text.replace(LAB_IMAGE, self.public_image()),
        })
    }
}

impl Cluster {
    /// Starts services in a namespace and waits until they are ready.
    pub async fn start(&self, namespace: &str, services: &[Service]) -> anyhow::Result<()> {
        for service in services {
            self.apply_yaml(&service.manifest(self.kind)?, namespace).await?;
        }
        for service in services {
            self.await_rollout(STATEFUL_SET, service.name(), namespace, PATIENCE)
                .await?;
        }
        Ok(())
    }

    /// Stops a service; its data stay.
    pub async fn stop(&self, namespace: &str, service: Service) -> anyhow::Result<()> {
        self.scale(STATEFUL_SET, service.name(), namespace, 0, PATIENCE).await
    }

    /// Starts a stopped service again.
    pub async fn resume(&self, namespace: &str, service: Service) -> anyhow::Result<()> {
        self.scale(STATEFUL_SET, service.name(), namespace, 1, PATIENCE).await
    }

    /// Runs `rabbitmqctl` with these arguments.
    pub async fn rabbitmqctl(&self, namespace: &str, arguments: &str) -> anyhow::Result<String> {
        let script = format!("PATH=/usr/lib/rabbitmq/bin:/opt/rabbitmq/sbin:$PATH rabbitmqctl --quiet {arguments}");
        self.exec(namespace, &Service::RabbitMq.pod(), &["sh", "-c", &script])
            .await
    }

    /// Runs `redis-cli` as administrator with these arguments.
    pub async fn redis_cli(&self, namespace: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let command = [
            &["redis-cli", "--no-auth-warning", "--user", "admin", "--pass", "admin"],
            arguments,
        ]
        .concat();
        self.exec(namespace, &Service::Redis.pod(), &command).await
    }
}
