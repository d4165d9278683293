//! The one place of this crate that asks for the time: arrival is a fact of the transport.

use std::time::{SystemTime, UNIX_EPOCH};

use kanchi_domain::UnixMicros;

/// Returns the time of day.
pub(crate) fn now() -> UnixMicros {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMicros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
