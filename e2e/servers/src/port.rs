//! Ports that a server can have, and have again after a restart.

use std::hash::{BuildHasher as _, RandomState};
use std::net::TcpListener;
use std::ops::Range;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, bail};

/// Below those that Linux gives to outgoing connections (from 32768 on): while a server is away, one of these would take its
/// port.
const PORTS: Range<u16> = 10_000..32_000;

/// Processes begin at different places, so that they seldom meet.
static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| AtomicU64::new(RandomState::new().hash_one(std::process::id())));

/// Returns a port that was free a moment ago, another one with each call.
///
/// # Errors
///
/// None is free.
pub fn free_port() -> Result<u16> {
    let count = PORTS.end - PORTS.start;
    for _ in PORTS {
        let place = NEXT.fetch_add(1, Ordering::Relaxed) % u64::from(count);
        let port = PORTS.start + u16::try_from(place)?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port of {PORTS:?} is free")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ports_are_free_and_not_given_twice() {
        let given: HashSet<u16> = (0..50).map(|_| free_port().unwrap_or_default()).collect();
        assert_eq!(given.len(), 50);
        assert!(given.iter().all(|port| PORTS.contains(port)));
    }
}
