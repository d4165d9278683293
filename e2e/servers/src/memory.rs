//! How much memory processes take; see proc(5).

use std::fs;
use std::ops::Add;

use crate::processor::with_descendants;

/// Memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// What is in memory, pages of the program and its libraries included.
    pub resident: u64,
    /// The same, with each page that several processes share divided among them.
    pub proportional: u64,
    /// What is no file's: heap and stacks.
    pub anonymous: u64,
}

impl Add for Memory {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            resident: self.resident + other.resident,
            proportional: self.proportional + other.proportional,
            anonymous: self.anonymous + other.anonymous,
        }
    }
}

/// Returns the memory of one process; nothing of one that has ended.
pub fn memory(pid: u32) -> Memory {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    Memory {
        resident: bytes(&text, "Rss:"),
        proportional: bytes(&text, "Pss:"),
        anonymous: bytes(&text, "Anonymous:"),
    }
}

/// Returns the memory of a process and its descendants.
pub fn memory_of_all(pid: u32) -> Memory {
    let all = with_descendants(pid).into_iter().map(memory);
    all.fold(Memory::default(), Add::add)
}

/// Returns the most that was resident of one process so far, in bytes.
pub fn peak_memory(pid: u32) -> u64 {
    bytes(
        &fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default(),
        "VmHWM:",
    )
}

/// Reads a line like `Pss:   4096 kB`.
fn bytes(text: &str, name: &str) -> u64 {
    let found = text.lines().find_map(|line| line.strip_prefix(name));
    let number = found.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    number.unwrap_or_default() * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_memory_and_shares_some_of_it() {
        let own = memory(std::process::id());
        assert!(own.resident >= own.proportional && own.proportional > 0, "{own:?}");
        assert!(
            own.anonymous > 0 && peak_memory(std::process::id()) >= own.anonymous,
            "{own:?}"
        );
    }
}
