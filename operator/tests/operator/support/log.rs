//! What the operators of all tests log: kept in memory, and shown with what fails.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Mutex, Once, PoisonError};

use tracing_subscriber::EnvFilter;

/// Lines that are kept; the oldest go first.
const KEPT: usize = 400;

static LINES: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());
static KEEPING: Once = Once::new();

/// Keeps what is logged from now on.
pub(crate) fn keep() {
    KEEPING.call_once(|| {
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new("info"))
            .with_ansi(false)
            .with_writer(|| Keeper);
        subscriber.init();
    });
}

/// Returns the last lines.
pub(crate) fn last() -> String {
    let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    lines.iter().map(String::as_str).collect()
}

/// Takes one line at a time.
struct Keeper;

impl Write for Keeper {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= KEPT {
            lines.pop_front();
        }
        lines.push_back(String::from_utf8_lossy(line).into_owned());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
