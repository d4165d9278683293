//! What a test of the operator runs against: a real API server, a real Postgres, and the operator itself.

pub(crate) mod cluster;
pub(crate) mod operator;
pub(crate) mod world;

use std::time::{Duration, Instant};

/// Waits until a check gives a value; panics with the last complaint when it does not in time.
pub(crate) async fn eventually<T, F, Fut>(what: &str, within: Duration, mut check: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, String>>,
{
    let deadline = Instant::now() + within;
    loop {
        match check().await {
            Ok(value) => return value,
            Err(complaint) if Instant::now() >= deadline => panic!("{what} not within {within:?}: {complaint}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}
