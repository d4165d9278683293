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

impl StoreAdmin {
    /// Vacuums the live table if enough rows in it are dead; says whether it did. Call every few seconds.
    ///
    /// Postgres itself looks once a minute. Until then new rows are written behind the dead ones, and the table outgrows the
    /// server's buffers: each of its pages is then read, written and logged in full for a row or two.
    pub async fn make_room(&self) -> Result<bool> {
        let is_full: bool = sqlx::query(IS_FULL)
            .fetch_one(&self.pool)
            .await
            .during(OPERATION)?
            .get(0);
        if is_full {
            let mut connection = connection::open(&self.url, APPLICATION).await?;
            connection
                .execute("set statement_timeout = '10min'")
                .await
                .during(OPERATION)?;
            let done = connection.execute(VACUUM).await.during(OPERATION);
            connection::close(connection).await;
            done?;
        }
        Ok(is_full)
    }
}
