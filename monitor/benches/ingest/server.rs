//! What Postgres did while something was measured.

use anyhow::{Context as _, Result};

use crate::rig::Rig;

/// Counters of a server, or what they grew by.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Written {
    /// Checkpoints.
    pub(crate) checkpoints: u64,
    /// Bytes of its log (WAL).
    pub(crate) log: u64,
}

impl Written {
    /// Reads the counters. The statistics of checkpoints have had a view of their own since Postgres 17.
    pub(crate) fn so_far(rig: &Rig) -> Result<Self> {
        let separate = rig.sql("select to_regclass('pg_catalog.pg_stat_checkpointer') is not null")?;
        let checkpoints = match separate.trim() {
            "t" => "(select num_timed + num_requested from pg_stat_checkpointer)",
            _ => "(select checkpoints_timed + checkpoints_req from pg_stat_bgwriter)",
        };
        let row = rig.sql(&format!(
            "select {checkpoints}, pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint"
        ))?;
        let (checkpoints, log) = row.trim().split_once('|').context("two counters")?;
        Ok(Self {
            checkpoints: checkpoints.parse()?,
            log: log.parse()?,
        })
    }

    /// Returns what was done since then.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            checkpoints: self.checkpoints.saturating_sub(before.checkpoints),
            log: self.log.saturating_sub(before.log),
        }
    }
}
