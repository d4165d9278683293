//! The names of tasks that a broker has seen.

use kanchi_domain::UnixMicros;
use sqlx::Row;
use sqlx::postgres::PgRow;

use crate::error::{During, Result};
use crate::query::StoreQuery;

/// Most names of one page.
const LIMIT: u16 = 1_000;

/// A task name that a broker has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskName {
    /// The broker's key.
    pub broker_key: i32,
    /// The name.
    pub name: String,
    /// The minute of the first event that was counted under it.
    pub first_seen_at: UnixMicros,
    /// The minute of the last one, or up to ten minutes before.
    pub last_seen_at: UnixMicros,
}

impl StoreQuery {
    /// Returns the task names that begin with `prefix`, by broker and name (byte by byte), behind the one given; at most
    /// `limit` and 1,000.
    pub async fn task_names(
        &self,
        brokers: Option<&[i32]>,
        prefix: &str,
        after: Option<(i32, &str)>,
        limit: u16,
    ) -> Result<Vec<TaskName>> {
        const OPERATION: &str = "list task names";
        let mut snapshot = self.snapshot(OPERATION).await?;
        let brokers = self.brokers(&mut snapshot, brokers).await?;
        let (broker_key, name) = after.unwrap_or((i32::MIN, ""));
        let rows = sqlx::query(include_str!("../sql/task_name_page.sql"))
            .bind(&brokers)
            .bind(broker_key)
            .bind(name)
            .bind(prefix)
            .bind(i64::from(limit.clamp(1, LIMIT)))
            .fetch_all(&mut *snapshot)
            .await
            .during(OPERATION)?;
        snapshot.rollback().await.during(OPERATION)?;
        let one = |row: &PgRow| TaskName {
            broker_key: row.get(0),
            name: row.get(1),
            first_seen_at: UnixMicros(row.get(2)),
            last_seen_at: UnixMicros(row.get(3)),
        };
        Ok(rows.iter().map(one).collect())
    }
}
