//! A child process with everything it starts, ended with the value that stands for it.

use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A process group of our own: the child and its descendants.
///
/// A guardian ends it and removes its folder should this process die without dropping it: killed, or the value a static.
#[derive(Debug)]
pub(crate) struct Group {
    child: Child,
    guardian: Option<Child>,
}

/// Arguments: our process, the group, the folder.
const GUARDIAN: &str = r#"
while kill -0 "$1" 2>/dev/null; do sleep 0.5; done
kill -s KILL -- "-$2" 2>/dev/null
rm -rf -- "$3"
"#;

impl Group {
    /// Starts a command as a new group; its output goes to a file in its folder.
    pub(crate) fn start(command: &mut Command, folder: &Path) -> Result<Self> {
        let log = folder.join("log");
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .context("cannot write the log")?;
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("{command:?} did not start"))?;
        let mut group = Self { child, guardian: None };
        let (ours, theirs) = (std::process::id().to_string(), group.pid().to_string());
        let guardian = Command::new("sh")
            .args(["-c", GUARDIAN, "guardian", &ours, &theirs])
            .arg(folder)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("sh did not start")?;
        group.guardian = Some(guardian);
        Ok(group)
    }

    /// Returns the process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal to the whole group.
    pub(crate) fn signal(&self, signal: &str) -> Result<()> {
        let status = Command::new("kill")
            .args([&format!("-{signal}"), "--", &format!("-{}", self.pid())])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .context("kill did not start")?;
        if status.success() {
            Ok(())
        } else {
            bail!("no process group {}", self.pid())
        }
    }

    /// Asks the process alone to end, and waits; what is left is killed.
    pub(crate) fn terminate(mut self, patience: Duration) {
        drop(signal("TERM", &[self.pid()]));
        let deadline = Instant::now() + patience;
        while !self.has_ended() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Descendants may have outlived the child; none must outlive the test.
        drop(self.signal("KILL"));
        drop(self.child.wait());
        if let Some(mut guardian) = self.guardian.take() {
            drop(guardian.kill());
            drop(guardian.wait());
        }
    }
}

/// Sends a signal to processes; one that has ended meanwhile is none of it.
pub(crate) fn signal(signal: &str, pids: &[u32]) -> Result<()> {
    let pids = pids.iter().filter(|pid| **pid != 0).map(u32::to_string);
    let status = Command::new("kill")
        .arg(format!("-{signal}"))
        .arg("--")
        .args(pids)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.context("kill did not start").map(drop)
}

/// Whether this process may do everything.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// Returns the children of a process.
pub(crate) fn children(parent: u32) -> Vec<u32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Waits until a server answers this greeting with at least one byte.
pub(crate) fn wait_until_answering(
    port: u16,
    greeting: &[u8],
    patience: Duration,
    group: &mut Group,
    log: &Path,
) -> Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        if answers(port, greeting).is_ok() {
            return Ok(());
        }
        if group.has_ended() || Instant::now() > deadline {
            bail!("no answer on port {port}:\n{}", tail(log));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn answers(port: u16, greeting: &[u8]) -> Result<()> {
    let patience = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), patience)?;
    stream.set_read_timeout(Some(patience))?;
    std::io::Write::write_all(&mut stream, greeting)?;
    stream.read_exact(&mut [0])?;
    Ok(())
}

/// Returns the end of a log.
pub(crate) fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines
        .get(lines.len().saturating_sub(60)..)
        .unwrap_or_default()
        .join("\n")
}
