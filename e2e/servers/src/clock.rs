//! A clock that is wrong for one worker and its pool processes: Python's `time.time`, which Celery stamps events by.
//!
//! libfaketime does not do: with it, Python's own `time.sleep` fails.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::process::Command;

/// A clock that can be set while workers run by it. What they measure durations with is left alone, as when a real clock is set.
///
/// Copies of it are the same clock; a worker keeps one to its end.
#[derive(Clone, Debug)]
pub struct Clock {
    folder: Arc<TempDir>,
}

impl Clock {
    /// Makes a clock that is off by so many seconds: ahead if positive.
    pub fn new(seconds_off: i64) -> Result<Self> {
        let folder = tempfile::tempdir().context("failed to make a folder for a clock")?;
        // Python runs a module of this name before anything else.
        let module = folder.path().join("sitecustomize.py");
        fs::write(module, include_str!("clock.py")).context("failed to write a clock's module")?;
        let clock = Self {
            folder: Arc::new(folder),
        };
        clock.set(seconds_off)?;
        Ok(clock)
    }

    /// Sets the clock, for workers that run already too.
    pub fn set(&self, seconds_off: i64) -> Result<()> {
        // Never seen half written.
        let partly = self.folder.path().join("partly");
        fs::write(&partly, seconds_off.to_string()).context("failed to write a clock")?;
        fs::rename(partly, self.file()).context("failed to set a clock")
    }

    /// Lets a Python run by the clock, beside the modules that it has on its path already.
    pub(crate) fn apply(&self, command: &mut Command) {
        let set = command.as_std().get_envs().find(|(name, _)| *name == "PYTHONPATH");
        let modules = set.and_then(|(_, modules)| modules).unwrap_or_default();
        let mut path = self.folder.path().as_os_str().to_owned();
        path.push(":");
        path.push(modules);
        command.env("PYTHONPATH", path).env("CLOCK_FILE", self.file());
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("clock")
    }
}
