//! The wall clock. Everything else takes the time as an argument.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the microseconds since the Unix epoch, UTC.
pub fn now_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
