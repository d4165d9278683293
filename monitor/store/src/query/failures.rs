//! Groups of failures that are alike.

use kanchi_domain::{Fingerprint, TaskState, UnixMicros};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::error::{During, Error, ErrorKind, Result};
use crate::query::cursor;
use crate::query::filter::{TaskFilter, Words};
use crate::query::{PageRequest, StoreQuery};

const OPERATION: &str = "list groups of failures";

/// Most groups of one page.
const LIMIT: u16 = 100;

/// Brokers of a list by count: all their groups are looked at, a thousand each.
const COUNTED_BROKERS: usize = 16;

/// Failures of one task name, with one type of exception and, but for what varies, one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailureGroup {
    /// The broker's key.
    pub broker_key: i32,
    /// Names the group; groups of several brokers have the same where their failures are alike.
    pub fingerprint: Fingerprint,
    /// Task name; empty if it is not known.
    pub task: String,
    /// Type of the exception; empty if it is not known.
    pub exception_class: String,
    /// Its message without what varies.
    pub message: String,
    /// Tasks that failed so, since the group is known.
    pub failed: u64,
    /// Those of them that failed after at least one retry.
    pub critical: u64,
    /// When the first of them failed.
    pub first_seen_at: UnixMicros,
    /// When the last of them failed.
    pub last_seen_at: UnixMicros,
    /// The last of them.
    pub last_task_id: String,
    /// Its exception as Celery wrote it, first kilobyte.
    pub example: String,
}

impl FailureGroup {
    /// Returns a filter for the tasks of the group, and of those others of the same name and exception whose message is
    /// another: messages are normalised by nobody but the monitor.
    pub fn tasks(&self) -> TaskFilter {
        let words = |word: String| {
            if word.is_empty() {
                Words::default()
            } else {
                Words::one(word)
            }
        };
        let class = &self.exception_class;
        TaskFilter {
            brokers: Some(vec![self.broker_key]),
            state: Words::one(TaskState::Failure.as_str()),
            name: words(self.task.clone()),
            exception: words(if class.is_empty() {
                String::new()
            } else {
                format!("*{class}*")
            }),
            ..TaskFilter::default()
        }
    }
}

/// How groups are ordered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FailureOrder {
    /// Those that failed last come first.
    #[default]
    LastSeen,
    /// Those with the most failures come first. At most 16 brokers.
    Count,
}

impl FailureOrder {
    fn letter(self) -> &'static str {
        match self {
            Self::LastSeen => "l",
            Self::Count => "c",
        }
    }
}

/// A page of groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FailurePage {
    /// The groups, in order.
    pub groups: Vec<FailureGroup>,
    /// Where the next page begins; `None`: this was the last.
    pub next: Option<String>,
}

/// The place of a group: what the list is ordered by, then broker, then fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    value: i64,
    broker_key: i32,
    fingerprint: Fingerprint,
}

impl Place {
    /// Before all groups, in either order.
    const FIRST: Self = Self {
        value: 253_402_300_799_999_999,
        broker_key: i32::MIN,
        fingerprint: Fingerprint(0),
    };

    fn write(self, order: FailureOrder) -> String {
        let text = format!(
            "{}.{}.{}.{}",
            order.letter(),
            self.value,
            self.broker_key,
            self.fingerprint
        );
        cursor::encode(&text)
    }

    fn read(text: &str, order: FailureOrder) -> Result<Self> {
        cursor::decode(text, |text| {
            let mut parts = text.split('.');
            let is_of_order = parts.next()? == order.letter();
            let place = Self {
                value: parts
                    .next()?
                    .parse()
                    .ok()
                    .filter(|value| (0..=Self::FIRST.value).contains(value))?,
                broker_key: parts.next()?.parse().ok()?,
                fingerprint: parts.next()?.parse().ok()?,
            };
            (is_of_order && parts.next().is_none()).then_some(place)
        })
    }
}

impl StoreQuery {
    /// Returns a page of the groups of failures of these brokers, or of one task name. A group that fails meanwhile moves to
    /// the front of the list: on later pages it is missing.
    ///
    /// At most 100 groups a page.
    pub async fn failure_groups(
        &self,
        brokers: Option<&[i32]>,
        task: Option<&str>,
        order: FailureOrder,
        request: &PageRequest,
    ) -> Result<FailurePage> {
        let limit = request.limit.clamp(1, LIMIT);
        let after = match &request.cursor {
            Some(text) => Place::read(text, order)?,
            None => Place::FIRST,
        };
        let mut snapshot = self.snapshot(OPERATION).await?;
        let brokers = self.brokers(&mut snapshot, brokers).await?;
        let statement = match order {
            FailureOrder::Count if brokers.len() > COUNTED_BROKERS => {
                let message = format!("a list in the order of counts takes at most {COUNTED_BROKERS} brokers");
                return Err(Error::new(ErrorKind::Invalid, OPERATION, message));
            }
            FailureOrder::Count => include_str!("../sql/failure_page_count.sql"),
            FailureOrder::LastSeen => include_str!("../sql/failure_page_last_seen.sql"),
        };
        let rows = sqlx::query(statement)
            .bind(&brokers)
            .bind(after.value)
            .bind(after.broker_key)
            .bind(Uuid::from_u128(after.fingerprint.0))
            .bind(task)
            .bind(i64::from(limit) + 1)
            .fetch_all(&mut *snapshot)
            .await
            .during(OPERATION)?;
        snapshot.rollback().await.during(OPERATION)?;
        let limit = usize::from(limit);
        let last = rows.get(limit.saturating_sub(1)).filter(|_| rows.len() > limit);
        Ok(FailurePage {
            next: last.map(|row| place(row).write(order)),
            groups: rows.iter().take(limit).map(group).collect(),
        })
    }

    /// Returns one group of failures.
    pub async fn failure_group(&self, broker_key: i32, fingerprint: Fingerprint) -> Result<Option<FailureGroup>> {
        const OPERATION: &str = "load a group of failures";
        let mut connection = self.acquire(OPERATION).await?;
        let query = sqlx::query(
            "select 0::bigint, broker_id, fingerprint, task, exception_class, message, failed, critical,
                kanchi.unix_micros(first_seen_at), kanchi.unix_micros(last_seen_at), last_task_id, example
             from kanchi.failure_group where broker_id = $1 and fingerprint = $2",
        );
        let query = query.bind(broker_key).bind(Uuid::from_u128(fingerprint.0));
        let row = query.fetch_optional(&mut *connection).await.during(OPERATION)?;
        Ok(row.as_ref().map(group))
    }
}

fn place(row: &PgRow) -> Place {
    Place {
        value: row.get(0),
        broker_key: row.get(1),
        fingerprint: Fingerprint(row.get::<Uuid, _>(2).as_u128()),
    }
}

fn group(row: &PgRow) -> FailureGroup {
    FailureGroup {
        broker_key: row.get(1),
        fingerprint: Fingerprint(row.get::<Uuid, _>(2).as_u128()),
        task: row.get(3),
        exception_class: row.get(4),
        message: row.get(5),
        failed: row.get::<i64, _>(6).unsigned_abs(),
        critical: row.get::<i64, _>(7).max(0).unsigned_abs(),
        first_seen_at: UnixMicros(row.get(8)),
        last_seen_at: UnixMicros(row.get(9)),
        last_task_id: row.get(10),
        example: row.get(11),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_as_it_was() {
        let place = Place {
            value: 7,
            broker_key: 42,
            fingerprint: Fingerprint(u128::MAX),
        };
        let text = place.write(FailureOrder::Count);
        assert_eq!(Place::read(&text, FailureOrder::Count).unwrap(), place);
        assert!(Place::read(&text, FailureOrder::LastSeen).is_err());
        for damaged in ["", "####", "Yw", "Yy4tMS4xLjE"] {
            assert!(Place::read(damaged, FailureOrder::Count).is_err(), "{damaged}");
        }
    }
}
