//! Tasks in the hands of workers: what a loss or a return changes.

use sqlx::Row;
use sqlx::postgres::PgRow;

use crate::connection::within;
use crate::error::{During, Result};
use crate::writer::StoreReporter;

/// Live tasks that one page looks at: some milliseconds, and at most a few megabytes where all of them match.
pub(super) const PAGE: i32 = 2_000;

/// Which tasks are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Those in `STARTED` or a custom state.
    Running,
    /// Those in `ORPHANED`.
    Orphaned,
}

/// How far a walk over the live tasks has got; it begins with the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walk {
    pub(super) first_seen: i64,
    pub(super) task_id: String,
}

impl Walk {
    /// Returns where a walk goes on behind a page of `(first_seen, task_id, …)`; `None` where it was empty.
    pub(super) fn behind(rows: &[PgRow]) -> Option<Self> {
        rows.last().map(|row| Self {
            first_seen: row.get(0),
            task_id: row.get(1),
        })
    }
}

/// A task and its encoded facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldTask {
    /// Id of the task.
    pub task_id: String,
    /// What [`kanchi_domain::TaskFacts::decode`] reads.
    pub facts: Vec<u8>,
}

/// One page of a walk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldPage {
    /// The tasks found, at most 2,000.
    pub tasks: Vec<HeldTask>,
    /// Where the walk goes on; `None` at its end.
    pub next: Option<Walk>,
}

impl StoreReporter {
    /// Returns the next page of the live tasks that these workers hold. A page looks at 2,000 live tasks, whoever holds
    /// them, so that its time is bounded; it may be empty and the walk go on.
    pub async fn held(&mut self, workers: &[String], held: Held, walk: &Walk) -> Result<HeldPage> {
        const OPERATION: &str = "look for the tasks of workers";
        let mut connection = self.link.take().await?;
        let query = sqlx::query("select first_seen, task_id, facts from kanchi.held($1, $2, $3, $4, $5)")
            .bind(workers)
            .bind(held == Held::Orphaned)
            .bind(walk.first_seen)
            .bind(&walk.task_id)
            .bind(PAGE);
        let call = async { query.fetch_all(&mut connection).await.during(OPERATION) };
        let result = within(OPERATION, call).await;
        self.link.put(connection, &result);
        let rows = result?;
        let next = Walk::behind(&rows);
        let task = |row: &PgRow| {
            let facts: Option<Vec<u8>> = row.get(2);
            facts.map(|facts| HeldTask {
                task_id: row.get(1),
                facts,
            })
        };
        Ok(HeldPage {
            tasks: rows.iter().filter_map(task).collect(),
            next,
        })
    }

    /// Removes workers that left long ago. One that is online stays.
    pub async fn forget_workers(&mut self, hostnames: &[String]) -> Result<()> {
        const OPERATION: &str = "forget workers";
        let mut connection = self.link.take().await?;
        let query = sqlx::query("select kanchi.forget_workers($1)").bind(hostnames);
        let call = async { query.execute(&mut connection).await.during(OPERATION).map(drop) };
        let result = within(OPERATION, call).await;
        self.link.put(connection, &result);
        result
    }
}
