//! The passes under way: how the liveness probe learns that one is stuck.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Start times of the passes under way.
#[derive(Clone, Debug, Default)]
pub struct Passes {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    running: HashMap<u64, Instant>,
}

/// A pass; it ends when this is dropped.
#[derive(Debug)]
pub struct Running {
    passes: Passes,
    id: u64,
}

impl Passes {
    /// Notes that a pass began.
    pub fn begin(&self) -> Running {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.next += 1;
        let id = inner.next;
        inner.running.insert(id, Instant::now());
        Running {
            passes: self.clone(),
            id,
        }
    }

    /// Returns how long the longest pass has been running.
    pub fn longest(&self) -> Option<Duration> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.running.values().map(Instant::elapsed).max()
    }

    /// Returns how many are running.
    pub fn count(&self) -> usize {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).running.len()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.passes
            .inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .running
            .remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_counts_until_it_is_dropped() {
        let passes = Passes::default();
        assert_eq!(passes.longest(), None);
        let running = passes.begin();
        assert_eq!(passes.count(), 1);
        assert!(passes.longest().is_some());
        drop(running);
        assert_eq!(passes.count(), 0);
    }
}
