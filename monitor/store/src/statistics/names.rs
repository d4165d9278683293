//! The names of tasks, learned as their counts are rolled up: no batch and no monitor has any work with it.

use std::collections::BTreeMap;

use sqlx::{PgConnection, Row};

use super::{Dimension, OTHER};
use crate::error::{During, Result};

const OPERATION: &str = "save task names";

/// Names of a broker that are kept: those that were seen last.
const NAMES: i64 = 10_000;

/// Names that are sent together.
const TOGETHER: usize = 2_000;

/// First and last minute of each name, in seconds since 1970.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<(i32, String), (i64, i64)>);

impl Names {
    /// A minute has counts under this key.
    pub(super) fn add(&mut self, broker: i32, dimension: Dimension, key: &str, minute: i64) {
        if dimension != Dimension::Task || key.is_empty() || key == OTHER {
            return;
        }
        let (first, last) = self.0.entry((broker, key.to_owned())).or_insert((minute, minute));
        *first = minute.min(*first);
        *last = minute.max(*last);
    }

    /// Writes what is news. A name beyond the bound pushes out the one that was seen last before all others.
    pub(super) async fn save(self, connection: &mut PgConnection) -> Result<()> {
        let names: Vec<_> = self.0.into_iter().collect();
        for names in names.chunks(TOGETHER) {
            let seconds = |time: i64| time.saturating_mul(1_000_000);
            let query = sqlx::query(include_str!("../sql/save_task_names.sql"))
                .bind(names.iter().map(|((broker, _), _)| *broker).collect::<Vec<_>>())
                .bind(names.iter().map(|((_, name), _)| name.as_str()).collect::<Vec<_>>())
                .bind(names.iter().map(|(_, (first, _))| seconds(*first)).collect::<Vec<_>>())
                .bind(names.iter().map(|(_, (_, last))| seconds(*last)).collect::<Vec<_>>());
            let grown = query.fetch_all(&mut *connection).await.during(OPERATION)?;
            if grown.is_empty() {
                continue;
            }
            let grown: Vec<i32> = grown.iter().map(|row| row.get(0)).collect();
            let query = sqlx::query(
                "delete from kanchi.task_name n using (
                    select broker_id, name,
                        row_number() over (partition by broker_id order by last_seen_at desc, name) as number
                    from kanchi.task_name where broker_id = any ($1)) as ranked
                 where ranked.number > $2 and n.broker_id = ranked.broker_id and n.name = ranked.name",
            );
            let query = query.bind(grown).bind(NAMES);
            query.execute(&mut *connection).await.during(OPERATION)?;
        }
        Ok(())
    }
}
