//! What the probes answer.
//!
//! Ready means that the configuration was read. Live means that every long-lived task still turns: each one holds a
//! [`Pulse`] and beats it; a task that is stuck or gone stops beating and the kubelet restarts the process. Neither
//! depends on the broker or on Postgres: a restart heals none of their faults.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Shared state of the probes.
#[derive(Clone, Debug)]
pub struct Health {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    started: Instant,
    ready: AtomicBool,
    standing_by: AtomicBool,
    pulses: Mutex<Vec<Pulse>>,
}

/// One task's sign of life.
#[derive(Clone, Debug)]
pub struct Pulse {
    name: &'static str,
    limit: Duration,
    started: Instant,
    last_ms: Arc<AtomicU64>,
}

impl Health {
    /// Returns a state that is live and not yet ready.
    pub fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                started: Instant::now(),
                ready: AtomicBool::new(false),
                standing_by: AtomicBool::new(false),
                pulses: Mutex::new(Vec::new()),
            }),
        }
    }

    /// The configuration was read: ready from now on.
    pub fn set_ready(&self) {
        self.inner.ready.store(true, Ordering::Release);
    }

    /// The process drains: not ready any more.
    pub fn set_not_ready(&self) {
        self.inner.ready.store(false, Ordering::Release);
    }

    /// Tells whether the process is ready.
    pub fn is_ready(&self) -> bool {
        self.inner.ready.load(Ordering::Acquire)
    }

    /// Another process does the work, and this one waits; as ready as any.
    pub fn set_standing_by(&self, standing_by: bool) {
        self.inner.standing_by.store(standing_by, Ordering::Release);
    }

    /// Tells whether another process does the work.
    pub fn is_standing_by(&self) -> bool {
        self.inner.standing_by.load(Ordering::Acquire)
    }

    /// Registers a task that promises to beat at least once within `limit`.
    pub fn pulse(&self, name: &'static str, limit: Duration) -> Pulse {
        let pulse = Pulse {
            name,
            limit,
            started: self.inner.started,
            last_ms: Arc::new(AtomicU64::new(0)),
        };
        pulse.beat();
        self.inner
            .pulses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(pulse.clone());
        pulse
    }

    /// Returns the names of the tasks that were silent for longer than they promised.
    pub fn stuck(&self) -> Vec<&'static str> {
        let pulses = self.inner.pulses.lock().unwrap_or_else(PoisonError::into_inner);
        pulses
            .iter()
            .filter(|pulse| pulse.silence() > pulse.limit)
            .map(|pulse| pulse.name)
            .collect()
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl Pulse {
    /// The task is alive.
    pub fn beat(&self) {
        self.last_ms.store(self.elapsed_ms(), Ordering::Relaxed);
    }

    fn silence(&self) -> Duration {
        Duration::from_millis(self.elapsed_ms().saturating_sub(self.last_ms.load(Ordering::Relaxed)))
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn becomes_ready_only_when_told() {
        let health = Health::new();
        assert!(!health.is_ready());
        health.set_ready();
        assert!(health.is_ready());
    }

    #[test]
    fn names_a_task_that_stopped_beating_and_no_other() {
        let health = Health::new();
        let alive = health.pulse("alive", Duration::from_hours(1));
        let _stuck = health.pulse("stuck", Duration::ZERO);
        let deadline = Instant::now() + Duration::from_secs(5);
        while health.stuck().is_empty() && Instant::now() < deadline {
            std::thread::yield_now();
            alive.beat();
        }
        assert_eq!(health.stuck(), ["stuck"]);
    }
}
