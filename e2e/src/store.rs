//! Questions to Postgres, asked with `psql` in its own pod.

use anyhow::Context;
use serde::de::DeserializeOwned;

use crate::cluster::Cluster;
use crate::install::STORE_NAMESPACE;
use crate::services::Service;

impl Cluster {
    /// Runs a query as superuser in Kanchi's database and returns its rows.
    pub async fn query<T: DeserializeOwned>(&self, sql: &str) -> anyhow::Result<Vec<T>> {
        let wrapped = format!("select coalesce(json_agg(t), '[]') from ({sql}) t");
        let text = self.psql(&wrapped).await?;
        serde_json::from_str(&text).with_context(|| format!("unexpected answer to {sql}"))
    }

    /// Runs a statement as superuser in Kanchi's database and returns what `psql` prints, unaligned.
    pub async fn psql(&self, sql: &str) -> anyhow::Result<String> {
        self.exec(
            STORE_NAMESPACE,
            &Service::Postgres.pod(),
            &["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "kanchi", "-c", sql],
        )
        .await
    }

    /// Runs a statement with a role's own URL; the error is the database's.
    pub async fn psql_as(&self, url: &str, sql: &str) -> anyhow::Result<String> {
        self.exec(
            STORE_NAMESPACE,
            &Service::Postgres.pod(),
            &["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", sql],
        )
        .await
    }
}
