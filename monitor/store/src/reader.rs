//! Reading tasks back: by id, by list, by count.

use kanchi_domain::TaskRow;

use crate::error::{Error, ErrorKind, Result};
use crate::url::StoreUrl;

/// Reads what monitors stored. Opened by a monitor role it sees that broker only, whatever key is asked for.
#[derive(Debug)]
pub struct StoreReader {
    _url: StoreUrl,
}

/// A task as stored.
#[derive(Clone, Debug)]
pub struct StoredTask {
    /// The broker's key.
    pub broker_key: i32,
    /// The task.
    pub task_id: String,
    /// Whether the row is still in the live table.
    pub live: bool,
    /// `TaskFacts::encode()`.
    pub facts: Vec<u8>,
    /// The projection of the facts.
    pub row: TaskRow,
}

impl StoreReader {
    /// Connects.
    pub async fn connect(url: &StoreUrl) -> Result<Self> {
        let _ = url;
        Err(Error::new(ErrorKind::Other, "connect", "not built yet"))
    }

    /// Returns one task, live or settled; both merged while a late event waits to be settled.
    pub async fn task(&mut self, broker_key: i32, task_id: &str) -> Result<Option<StoredTask>> {
        let _ = (broker_key, task_id);
        Err(Error::new(ErrorKind::Other, "load a task", "not built yet"))
    }

    /// Returns the stored event arrays (JSON) of one task, in order of storage, at most 1,000.
    pub async fn events(&mut self, broker_key: i32, task_id: &str) -> Result<Vec<Vec<u8>>> {
        let _ = (broker_key, task_id);
        Err(Error::new(ErrorKind::Other, "load the events of a task", "not built yet"))
    }

    /// Counts the tasks of a broker by state, live and settled: for tests and small databases.
    pub async fn count_by_state(&mut self, broker_key: i32) -> Result<Vec<(String, u64)>> {
        let _ = broker_key;
        Err(Error::new(ErrorKind::Other, "count tasks", "not built yet"))
    }
}
