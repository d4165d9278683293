//! Whether anything has grown.

use crate::sizes::{GROWING, Sizes};

/// How many times its size of the early hour a table may have that holds what is now.
const FLAT: f64 = 1.2;

/// The same of the bytes a row of a table that grows by right.
const ROW: f64 = 1.1;

/// Bytes more, of any table: a few dozen pages that come and go.
const SLACK: i64 = 256 * 1024;

/// Of `batch`: digests are kept by number, 4 MiB of them, and short runs do not have so many by the early hour.
const BATCH_SLACK: i64 = 5 * 1024 * 1024;

/// Of the catalog: partitions come and go with the days.
const CATALOG_SLACK: i64 = 4 * 1024 * 1024;

/// Prints a line for each table; returns whether one is larger than it may be.
pub(crate) fn print(early: &Sizes, last: &Sizes, early_hour: u64, last_hour: u64) -> bool {
    println!(
        "{:<18} {:>12} {:>12} {:>12}  verdict",
        "KiB",
        format!("hour {early_hour}"),
        format!("hour {last_hour}"),
        "allowed"
    );
    let mut is_missed = false;
    for (table, bytes) in &last.bytes {
        let was = early.bytes.get(table).copied().unwrap_or_default();
        let (was, what) = match GROWING.iter().find(|name| *name == table) {
            Some(_) => (
                early.bytes_a_row(table) * last.rows.get(table.as_str()).copied().unwrap_or_default() as f64,
                "rows",
            ),
            None => (was as f64, "size"),
        };
        let (factor, slack) = match (what, table.as_str()) {
            ("rows", _) => (ROW, SLACK),
            (_, "batch") => (FLAT, BATCH_SLACK),
            (_, "pg_catalog") => (FLAT, CATALOG_SLACK),
            _ => (FLAT, SLACK),
        };
        let allowed = was * factor + slack as f64;
        let is_over = *bytes as f64 > allowed;
        is_missed |= is_over;
        println!(
            "{table:<18} {:>12.0} {:>12} {:>12.0}  {}",
            was / 1024.0,
            bytes / 1024,
            allowed / 1024.0,
            if is_over { "GROWS" } else { "ok" }
        );
    }
    println!(
        "history, events, statistics and samples: what the rows of hour {last_hour} would take at the bytes a row of hour {early_hour} stands in its place"
    );
    is_missed
}
