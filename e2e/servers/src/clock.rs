//! A clock that is wrong for one worker and its pool processes: Python's `time.time`, which Celery stamps events by.
//!
//! libfaketime does not do: with it, Python's own `time.sleep` fails.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::process::Command;

/// A clock that can be set while workers run by it. What they measure durations with is left alone, as when a real clock is set.
#[derive(Debug)]
pub struct Clock {
    folder: TempDir,
}

impl Clock {
    /// Makes a clock that is off by so many seconds: ahead if positive.
    pub fn new(seconds_off: i64) -> Result<Self> {
        let folder = tempfile::tempdir().context("failed to make a folder for a clock")?;
        // Python runs a module of this name before anything else.
        let module = folder.path().join("sitecustomize.py");
        fs::write(module, include_str!("clock.py")).context("failed to write a clock's module")?;
        let clock = Self { folder };
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

    /// Lets a Python whose modules are in this folder run by the clock.
    pub(crate) fn apply(&self, command: &mut Command, modules: &str) {
        let path = format!("{}:{modules}", self.folder.path().display());
        command.env("PYTHONPATH", path).env("CLOCK_FILE", self.file());
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("clock")
    }
}
