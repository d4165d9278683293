//! What the operator asks of Postgres, by `pg_stat_statements`.

use anyhow::{Context as _, Result};

use crate::cluster::Cluster;

/// Statements of a role so far, and the milliseconds that Postgres spent on them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Statements {
    pub(crate) calls: u64,
    pub(crate) milliseconds: f64,
}

/// Makes Postgres count.
pub(crate) fn begin(cluster: &Cluster) -> Result<()> {
    cluster
        .postgres
        .sql("postgres", "create extension pg_stat_statements")
        .map(drop)
}

impl Statements {
    pub(crate) fn of(cluster: &Cluster, role: &str) -> Result<Self> {
        let sql = format!(
            "select coalesce(sum(calls), 0)::bigint, coalesce(sum(total_exec_time + total_plan_time), 0)::double precision
             from pg_stat_statements where userid = '{role}'::regrole"
        );
        let line = cluster.postgres.sql("postgres", &sql)?;
        let (calls, milliseconds) = line.split_once('|').context("no statistics")?;
        Ok(Self {
            calls: calls.parse()?,
            milliseconds: milliseconds.parse()?,
        })
    }

    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            calls: self.calls - before.calls,
            milliseconds: self.milliseconds - before.milliseconds,
        }
    }
}
