//! What is measured: sizes of tables, and bytes a row where tables grow by right.

use std::collections::BTreeMap;

use kanchi_store::StoreUrl;
use sqlx::{Connection as _, PgConnection, Row as _};

/// Tables that grow with what is stored, until a partition is dropped.
pub(crate) const GROWING: [&str; 5] = ["task", "event_chunk", "statistic", "queue_sample", "worker_sample"];

/// A column of the hourly line: what it shows, and how wide it is.
const COLUMNS: [(&str, usize); 13] = [
    ("live", 7),
    ("heap", 7),
    ("indexes", 7),
    ("dead", 6),
    ("batch", 6),
    ("delta", 6),
    ("statistic", 9),
    ("worker", 6),
    ("failures", 8),
    ("generation", 10),
    ("event B", 7),
    ("task B", 6),
    ("statistic B", 11),
];

/// Sizes at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sizes {
    /// Bytes with indexes and TOAST; of growing tables those of the present day.
    pub(crate) bytes: BTreeMap<String, i64>,
    /// Rows of growing tables.
    pub(crate) rows: BTreeMap<&'static str, i64>,
    live: i64,
    live_heap: i64,
    live_indexes: i64,
    live_dead: i64,
}

impl Sizes {
    /// Returns what stands over the lines.
    pub(crate) fn heading() -> String {
        let columns = COLUMNS.iter().map(|(name, width)| format!("{name:>width$}"));
        format!("hour {}", columns.collect::<Vec<_>>().join(" "))
    }

    /// Returns the line of an hour.
    pub(crate) fn line(&self) -> String {
        let kib = |name: &str| self.bytes.get(name).copied().unwrap_or_default() / 1024;
        let values = [
            self.live,
            self.live_heap / 1024,
            self.live_indexes / 1024,
            self.live_dead,
            kib("batch"),
            kib("statistic_delta"),
            kib("statistic"),
            kib("worker"),
            kib("failure_group"),
            kib("task_generation"),
            self.bytes_a_row("event_chunk") as i64,
            self.bytes_a_row("task") as i64,
            self.bytes_a_row("statistic") as i64,
        ];
        let columns = values.iter().zip(COLUMNS);
        let columns = columns.map(|(value, (_, width))| format!("{value:>width$}"));
        columns.collect::<Vec<_>>().join(" ")
    }

    pub(crate) fn bytes_a_row(&self, table: &str) -> f64 {
        let rows = self.rows.get(table).copied().unwrap_or_default();
        self.bytes.get(table).copied().unwrap_or_default() as f64 / rows.max(1) as f64
    }
}

/// Reads sizes, by a connection of its own.
pub(crate) struct Meter {
    connection: PgConnection,
    /// The day on which the simulation began: rows of a simulated day before are in partitions of days before.
    today: String,
}

impl Meter {
    pub(crate) async fn new(owner: &StoreUrl) -> anyhow::Result<Self> {
        let mut connection = PgConnection::connect(owner.expose()).await?;
        let today = sqlx::query_scalar("select (now() at time zone 'UTC')::date::text");
        Ok(Self {
            today: today.fetch_one(&mut connection).await?,
            connection,
        })
    }

    pub(crate) async fn read(&mut self) -> anyhow::Result<Sizes> {
        let mut sizes = Sizes::default();
        let query = sqlx::query(include_str!("sizes.sql")).bind(&self.today);
        for row in query.fetch_all(&mut self.connection).await? {
            sizes.bytes.insert(row.get(0), row.get(1));
        }
        for table in GROWING {
            let sql = format!(
                "select count(*) from kanchi.{table} where stored_at >= $1::date::timestamp at time zone 'UTC'"
            );
            let rows = sqlx::query_scalar(&sql).bind(&self.today);
            sizes.rows.insert(table, rows.fetch_one(&mut self.connection).await?);
        }
        let query = sqlx::query(
            "select (select count(*) from kanchi.task_live), pg_table_size(t), pg_indexes_size(t), pg_stat_get_dead_tuples(t)
             from (select 'kanchi.task_live'::regclass as t) as live",
        );
        let row = query.fetch_one(&mut self.connection).await?;
        (sizes.live, sizes.live_heap) = (row.get(0), row.get(1));
        (sizes.live_indexes, sizes.live_dead) = (row.get(2), row.get(3));
        Ok(sizes)
    }
}
