//! Generations of history, in which its index of tasks by id is written: see `0002_partitions.sql`.

use crate::admin::StoreAdmin;
use crate::error::{During, Result};

impl StoreAdmin {
    /// Begins the next generation if it is time. Call every few seconds: the less often, the more of the index an insert writes to.
    pub async fn advance_generation(&self) -> Result<()> {
        let query = sqlx::query("select kanchi.advance_generation()");
        let done = query.execute(&self.pool).await;
        done.map(drop).during("begin a generation of history")
    }
}
