//! Waiting for a condition, with a deadline and a word on what was missing.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::bail;

/// How often a condition is looked at.
const STEP: Duration = Duration::from_millis(250);

/// What a look at a condition found.
#[derive(Debug)]
pub enum Look<T> {
    /// It holds.
    Done(T),
    /// Not yet; the text says what was seen instead.
    NotYet(String),
}

impl<T> Look<T> {
    /// Changes what was found.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Look<U> {
        match self {
            Self::Done(value) => Look::Done(change(value)),
            Self::NotYet(seen) => Look::NotYet(seen),
        }
    }
}

/// Looks at a condition until it holds; fails with what was seen last when the time is up.
///
/// An error of the look counts as "not yet": a pod that restarts refuses connections for a moment. A look that takes long
/// is taken less often, so that it leaves the machine to what it waits for.
pub async fn until<T, F, R>(what: &str, within: Duration, mut look: F) -> anyhow::Result<T>
where
    F: FnMut() -> R,
    R: Future<Output = anyhow::Result<Look<T>>>,
{
    let begin = Instant::now();
    loop {
        let looked = Instant::now();
        let seen = match look().await {
            Ok(Look::Done(value)) => return Ok(value),
            Ok(Look::NotYet(seen)) => seen,
            Err(error) => format!("{error:#}"),
        };
        if begin.elapsed() > within {
            bail!("{what}: not within {} s; last seen: {seen}", within.as_secs());
        }
        tokio::time::sleep(looked.elapsed().max(STEP)).await;
    }
}

/// Fails as soon as a condition breaks; returns when it has held for so long.
pub async fn holds<F, R>(what: &str, for_: Duration, mut look: F) -> anyhow::Result<()>
where
    F: FnMut() -> R,
    R: Future<Output = anyhow::Result<Look<()>>>,
{
    let begin = Instant::now();
    while begin.elapsed() < for_ {
        if let Look::NotYet(seen) = look().await? {
            bail!("{what}: broken after {:.1} s: {seen}", begin.elapsed().as_secs_f64());
        }
        tokio::time::sleep(STEP).await;
    }
    Ok(())
}

/// Turns a comparison into a look.
pub fn seen<T>(done: bool, value: T, otherwise: impl FnOnce(&T) -> String) -> Look<T> {
    if done {
        Look::Done(value)
    } else {
        Look::NotYet(otherwise(&value))
    }
}
