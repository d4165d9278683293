//! How much processor time a server has used, with all the processes it started.

use std::collections::HashMap;
use std::fs;

/// Clock ticks a second of `/proc`: `USER_HZ`, 100 on every Linux of today.
const TICKS: f64 = 100.0;

/// Returns the processor seconds that a process and its descendants have used, those that have ended included; none for
/// process 0.
pub fn processor_seconds(pid: u32) -> f64 {
    if pid == 0 {
        return 0.0;
    }
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    let mut used: HashMap<u32, f64> = HashMap::new();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    for pid in pids {
        if let Some((parent, ticks)) = stat(pid) {
            children.entry(parent).or_default().push(pid);
            used.insert(pid, ticks / TICKS);
        }
    }
    let (mut total, mut left) = (0.0, vec![pid]);
    while let Some(pid) = left.pop() {
        total += used.get(&pid).copied().unwrap_or_default();
        left.extend(children.remove(&pid).unwrap_or_default());
    }
    total
}

/// Reads parent and ticks of a process: its own and those of children it has waited for; see proc(5).
fn stat(pid: u32) -> Option<(u32, f64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let parent = fields.get(1)?.parse().ok()?;
    let ticks = fields
        .get(11..15)?
        .iter()
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    Some((parent, ticks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_seen_and_so_is_that_of_a_child_that_has_ended() {
        let begin = processor_seconds(std::process::id());
        let status = std::process::Command::new("sh")
            .args(["-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"])
            .status();
        assert!(status.is_ok_and(|status| status.success()));
        assert!(processor_seconds(std::process::id()) > begin);
    }
}
