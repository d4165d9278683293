//! Questions to Postgres, asked with `psql` in its own pod.

use anyhow::Context;
use serde::de::DeserializeOwned;

use crate::cluster::Cluster;
use crate::install::STORE_NAMESPACE;
use crate::services::Service;

/// Every task, unfinished and finished, as a relation for a query's `from`.
pub const TASKS: &str = "(select broker_id, task_id, name, state, facts from kanchi.task_live
    union all select broker_id, task_id, name, state, facts from kanchi.task)";

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

    /// Tries many statements with a role's own URL, each in a transaction of its own; returns what each one that was
    /// allowed printed, `None` for each that was refused.
    pub async fn attempts(&self, url: &str, statements: &[String]) -> anyhow::Result<Vec<Option<String>>> {
        let mut outcomes = Vec::with_capacity(statements.len());
        // The command travels in a URL, which must not become too long.
        for part in statements.chunks(40) {
            let mut command = vec!["psql".to_owned(), "-XAt".to_owned(), "-d".to_owned(), url.to_owned()];
            for statement in part {
                command.extend([
                    "-c".to_owned(),
                    "\\echo #".to_owned(),
                    "-c".to_owned(),
                    statement.clone(),
                ]);
            }
            // The exit code is the last one's.
            command.extend(["-c".to_owned(), "\\echo #".to_owned()]);
            let command: Vec<_> = command.iter().map(String::as_str).collect();
            let printed = self.exec(STORE_NAMESPACE, &Service::Postgres.pod(), &command).await?;
            let said: Vec<_> = printed.split("#\n").skip(1).take(part.len()).map(str::trim).collect();
            anyhow::ensure!(
                said.len() == part.len(),
                "{} answers to {} statements",
                said.len(),
                part.len()
            );
            outcomes.extend(
                said.into_iter()
                    .map(|text| Some(text.to_owned()).filter(|text| !text.is_empty())),
            );
        }
        Ok(outcomes)
    }
}
