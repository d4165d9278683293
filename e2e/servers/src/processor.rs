//! How much processor time a server has used, alone and with all the processes it started.

use std::collections::HashMap;
use std::fs;

/// Clock ticks a second of `/proc`: `USER_HZ`, 100 on every Linux of today.
const TICKS: f64 = 100.0;

/// Returns the processor seconds that a process and its descendants have used, those that have ended included; none for
/// process 0.
pub fn processor_seconds(pid: u32) -> f64 {
    let all = with_descendants(pid).into_iter().filter_map(stat);
    all.map(|stat| (stat.own + stat.ended) / TICKS).sum()
}

/// Returns the processor seconds that one process has used without those that it started.
pub fn own_processor_seconds(pid: u32) -> f64 {
    stat(pid).map_or(0.0, |stat| stat.own / TICKS)
}

/// Returns a process and all that it started, as far as they run; none for process 0.
pub(crate) fn with_descendants(pid: u32) -> Vec<u32> {
    if pid == 0 {
        return Vec::new();
    }
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    for entry in entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        if let Some(stat) = stat(entry) {
            children.entry(stat.parent).or_default().push(entry);
        }
    }
    let (mut all, mut left) = (Vec::new(), vec![pid]);
    while let Some(pid) = left.pop() {
        all.push(pid);
        left.extend(children.remove(&pid).unwrap_or_default());
    }
    all
}

struct Stat {
    parent: u32,
    /// Ticks of the process itself.
    own: f64,
    /// Ticks of children that it has waited for.
    ended: f64,
}

/// Reads what a process has used; see proc(5).
fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field)?.parse::<f64>().ok();
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        own: ticks(11)? + ticks(12)?,
        ended: ticks(13)? + ticks(14)?,
    })
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
