//! Room in the live table, which tasks pass through.

use sqlx::{Executor, Row};

use crate::admin::{APPLICATION, StoreAdmin};
use crate::connection;
use crate::error::{During, Result};

const OPERATION: &str = "make room in the live table";

/// Dead rows that are worth a vacuum, some 12 MB; and a fifth of the live ones, for the indexes are read whole.
const IS_FULL: &str = "select pg_stat_get_dead_tuples(t) >= greatest(20000, pg_stat_get_live_tuples(t) / 5)
    from (select 'kanchi.task_live'::regclass as t) as live";

/// Not shortened, which would lock writers out; not waiting for a vacuum of the server's own.
const VACUUM: &str = "vacuum (skip_locked, truncate false) kanchi.task_live";

/// What [`StoreAdmin::make_room`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Few rows are dead.
    Enough,
    /// Dead rows are gone, and new ones take their place.
    Made,
    /// As many are dead as before: a transaction that began before they died holds them, or a vacuum of the server's own is at it.
    Held,
}

impl StoreAdmin {
    /// Vacuums the live table if enough rows in it are dead. Call every few seconds.
    ///
    /// Postgres itself looks once a minute. Until then new rows are written behind the dead ones, and the table outgrows the
    /// server's buffers: each of its pages is then read, written and logged in full for a row or two.
    pub async fn make_room(&self) -> Result<Room> {
        if !self.is_full().await? {
            return Ok(Room::Enough);
        }
        let mut connection = connection::open(&self.url, APPLICATION).await?;
        connection
            .execute("set statement_timeout = '10min'")
            .await
            .during(OPERATION)?;
        let done = connection.execute(VACUUM).await.during(OPERATION);
        connection::close(connection).await;
        done?;
        Ok(if self.is_full().await? { Room::Held } else { Room::Made })
    }

    async fn is_full(&self) -> Result<bool> {
        let answer = sqlx::query(IS_FULL).fetch_one(&self.pool).await;
        Ok(answer.during(OPERATION)?.get(0))
    }
}
