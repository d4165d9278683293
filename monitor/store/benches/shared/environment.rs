//! What a benchmark is told, and what time it is.

use std::time::SystemTime;

use anyhow::Context as _;
use kanchi_domain::UnixMicros;

/// Returns the number in an environment variable.
pub(crate) fn number(name: &str, default: u64) -> anyhow::Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name} is no number")),
        Err(_) => Ok(default),
    }
}

pub(crate) fn now() -> anyhow::Result<UnixMicros> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(UnixMicros(i64::try_from(since.as_micros())?))
}
