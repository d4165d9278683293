//! Records of tasks in a Redis result backend (`celery.backends.base.KeyValueStoreBackend`). Reads only.

use std::fmt;
use std::time::Duration;

use redis::{AsyncCommands, RedisError};

use super::channels::escape_glob;
use super::commands::{Commands, failed};
use crate::net::ConnectError;
use crate::results::{MAX_RECORD_BYTES, Record, ScanPage};
use crate::spec::BrokerConnectSpec;

const RESPONSE: Duration = Duration::from_secs(10);
/// Bytes of records in one answer, unless a single one is larger.
const ANSWER_BYTES: u64 = 1 << 20;
const SCAN_COUNT: usize = 1_000;
/// What Celery puts before a task's id.
const TASK_KEY: &str = "celery-task-meta-";

pub(crate) struct RedisResults {
    spec: BrokerConnectSpec,
    prefix: String,
    commands: Commands,
}

impl fmt::Debug for RedisResults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisResults")
            .field("spec", &self.spec)
            .finish_non_exhaustive()
    }
}

impl RedisResults {
    pub(crate) async fn open(spec: &BrokerConnectSpec) -> Result<Self, ConnectError> {
        Ok(Self {
            prefix: task_prefix(&spec.celery.global_key_prefix),
            spec: spec.clone(),
            commands: Commands::open(spec, RESPONSE).await?,
        })
    }

    pub(crate) async fn records(&mut self, ids: &[&str]) -> Result<Vec<Record>, ConnectError> {
        let keys: Vec<String> = ids.iter().map(|id| format!("{}{id}", self.prefix)).collect();
        self.read(&keys).await.map_err(|error| failed(&self.spec, &error))
    }

    async fn read(&mut self, keys: &[String]) -> Result<Vec<Record>, RedisError> {
        let mut lengths = self.lengths(keys).await?;
        lengths.truncate(portion(&lengths));
        let is_read = |length: &u64| (1..=MAX_RECORD_BYTES).contains(length);
        let wanted: Vec<&String> = keys
            .iter()
            .zip(&lengths)
            .filter(|(_, length)| is_read(length))
            .map(|(key, _)| key)
            .collect();
        let mut values = match wanted.as_slice() {
            [] => Vec::new(),
            wanted => self.commands.connection.mget::<_, Vec<Option<Vec<u8>>>>(wanted).await?,
        }
        .into_iter();
        let record = |length: &u64| match length {
            length if is_read(length) => values.next().flatten().map_or(Record::None, Record::Bytes),
            0 => Record::None,
            _ => Record::TooLarge,
        };
        Ok(lengths.iter().map(record).collect())
    }

    /// A key that holds something else than a string is somebody else's, and counts as empty.
    async fn lengths(&mut self, keys: &[String]) -> Result<Vec<u64>, RedisError> {
        let mut pipeline = redis::pipe();
        pipeline.ignore_errors();
        for key in keys {
            pipeline.strlen(key);
        }
        let answers: Vec<redis::RedisResult<u64>> = pipeline.query_async(&mut self.commands.connection).await?;
        let length = |answer: redis::RedisResult<u64>| match answer {
            Err(error) if error.code() == Some("WRONGTYPE") => Ok(0),
            other => other,
        };
        answers.into_iter().map(length).collect()
    }

    pub(crate) async fn scan(&mut self, cursor: u64) -> Result<ScanPage, ConnectError> {
        let pattern = format!("{}*", escape_glob(&self.prefix));
        let (next, keys): (u64, Vec<Vec<u8>>) = redis::cmd("SCAN")
            .arg(cursor)
            .arg("MATCH")
            .arg(pattern)
            .arg("COUNT")
            .arg(SCAN_COUNT)
            .query_async(&mut self.commands.connection)
            .await
            .map_err(|error| failed(&self.spec, &error))?;
        let id = |key: Vec<u8>| {
            let key = String::from_utf8(key).ok()?;
            Some(key.strip_prefix(&self.prefix)?.to_owned()).filter(|id| !id.is_empty())
        };
        Ok(ScanPage {
            ids: keys.into_iter().filter_map(id).collect(),
            next,
        })
    }
}

/// Returns how many of the values of these lengths fit into one answer, at least one; those that are not read count nothing.
fn portion(lengths: &[u64]) -> usize {
    let mut bytes = 0;
    let fits = lengths.iter().take_while(|length| {
        bytes += Some(**length).filter(|length| *length <= MAX_RECORD_BYTES).unwrap_or(0);
        bytes <= ANSWER_BYTES
    });
    fits.count().max(1)
}

/// Celery puts an underscore after a prefix that does not end in one of `:_-.`.
fn task_prefix(global: &str) -> String {
    if global.is_empty() || global.ends_with([':', '_', '-', '.']) {
        format!("{global}{TASK_KEY}")
    } else {
        format!("{global}_{TASK_KEY}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_joined_as_celery_joins_it() {
        for (global, prefix) in [
            ("", "celery-task-meta-"),
            ("acme", "acme_celery-task-meta-"),
            ("acme:", "acme:celery-task-meta-"),
            ("acme.", "acme.celery-task-meta-"),
        ] {
            assert_eq!(task_prefix(global), prefix);
        }
    }

    #[test]
    fn an_answer_is_bounded_and_never_empty() {
        assert_eq!(portion(&[1, ANSWER_BYTES - 1, 1]), 2);
        assert_eq!(portion(&[MAX_RECORD_BYTES, 1]), 1);
        assert_eq!(
            portion(&[MAX_RECORD_BYTES + 1, 0, 1]),
            3,
            "what is not read takes no room"
        );
        assert_eq!(portion(&[1]), 1);
    }
}
