//! Gaps that wait for their repair, and the tasks that it is about.

use kanchi_domain::UnixMicros;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::connection::within;
use crate::error::{During, Result};
use crate::model::{GapRepair, GapRow, PendingGap};
use crate::writer::StoreReporter;
use crate::writer::copy::clamped;
use crate::writer::held::{PAGE, Walk};
use crate::writer::json;

/// Gaps that are repaired together.
const GAPS: i64 = 100;

/// A live task that has not ended, as far as is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenTask {
    /// Id of the task.
    pub task_id: String,
    /// Its state as it is stored.
    pub state: String,
}

/// One page of a walk over them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenPage {
    /// The tasks found, at most 2,000.
    pub tasks: Vec<OpenTask>,
    /// Where the walk goes on; `None` at its end.
    pub next: Option<Walk>,
}

impl StoreReporter {
    /// Returns the oldest closed gaps whose repair has not ended, at most 100.
    pub async fn pending_gaps(&mut self) -> Result<Vec<PendingGap>> {
        const OPERATION: &str = "look for gaps to repair";
        let mut connection = self.link.take().await?;
        let query = sqlx::query(
            "select gap_id, (extract(epoch from from_at) * 1000000)::bigint, (extract(epoch from to_at) * 1000000)::bigint,
                cause, estimated_events, extract(epoch from now() - noted_at)::bigint
             from kanchi.own_gap where to_at is not null and repaired_at is null order by from_at limit $1",
        )
        .bind(GAPS);
        let call = async { query.fetch_all(&mut connection).await.during(OPERATION) };
        let result = within(OPERATION, call).await;
        self.link.put(connection, &result);
        let one = |row: &PgRow| PendingGap {
            gap: GapRow {
                id: row.get(0),
                from: UnixMicros(row.get(1)),
                to: Some(UnixMicros(row.get(2))),
                cause: row.get(3),
                estimated_events: row.get::<Option<i64>, _>(4).map(i64::unsigned_abs),
            },
            known_seconds: u64::try_from(row.get::<i64, _>(5)).unwrap_or(0),
        };
        Ok(result?.iter().map(one).collect())
    }

    /// Stores what the repair of gaps came to. What was stored of one before stays.
    pub async fn save_repairs(&mut self, repairs: &[(Uuid, GapRepair)]) -> Result<()> {
        const OPERATION: &str = "save the repair of gaps";
        let Some(rows) = json::repairs(repairs) else {
            return Ok(());
        };
        let mut connection = self.link.take().await?;
        let query = sqlx::query("select kanchi.save_repairs($1)").bind(rows);
        let call = async { query.execute(&mut connection).await.during(OPERATION).map(drop) };
        let result = within(OPERATION, call).await;
        self.link.put(connection, &result);
        result
    }

    /// Returns the next page of the live tasks that have not ended and were first seen before a moment. A page looks at
    /// 2,000 live tasks, so that its time is bounded; it may be empty and the walk go on.
    pub async fn open_tasks(&mut self, before: UnixMicros, walk: &Walk) -> Result<OpenPage> {
        const OPERATION: &str = "look for tasks that have not ended";
        let mut connection = self.link.take().await?;
        let query = sqlx::query("select first_seen, task_id, state from kanchi.unended($1, $2, $3, $4)")
            .bind(clamped(before))
            .bind(walk.first_seen)
            .bind(&walk.task_id)
            .bind(PAGE);
        let call = async { query.fetch_all(&mut connection).await.during(OPERATION) };
        let result = within(OPERATION, call).await;
        self.link.put(connection, &result);
        let rows = result?;
        let next = Walk::behind(&rows);
        let task = |row: &PgRow| {
            let state: Option<String> = row.get(2);
            state.map(|state| OpenTask {
                task_id: row.get(1),
                state,
            })
        };
        Ok(OpenPage {
            tasks: rows.iter().filter_map(task).collect(),
            next,
        })
    }

    /// Returns those of these tasks that are neither live nor stored in history since a moment; at most 1,000 ids a call.
    pub async fn unknown_tasks(&mut self, ids: &[String], since: UnixMicros) -> Result<Vec<String>> {
        const OPERATION: &str = "look for unknown tasks";
        let mut connection = self.link.take().await?;
        let query = sqlx::query(
            "select i from unnest($1) as i
             where i not in (select task_id from kanchi.load_facts($1))
                and i not in (select kanchi.archived($1, to_timestamp($2::double precision / 1000000), null))",
        )
        .bind(ids)
        .bind(clamped(since));
        let call = async { query.fetch_all(&mut connection).await.during(OPERATION) };
        let result = within(OPERATION, call).await;
        self.link.put(connection, &result);
        Ok(result?.iter().map(|row| row.get(0)).collect())
    }
}
