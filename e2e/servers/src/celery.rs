//! A real Celery: the sample application of `examples/celery-app` in a virtual environment of any Celery version.
//!
//! The environment is made once per version and shared by all tests; workers and publishers are child processes that end with
//! the value that stands for them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::clock::Clock;
use crate::python;

/// The version that is used where none is asked for.
pub const NEWEST: &str = "newest";

/// A Celery version, installed and ready to run.
#[derive(Clone, Debug)]
pub struct Celery {
    /// Folder with `python` and `celery`.
    bin: PathBuf,
    /// Environment of every process.
    settings: Vec<(String, String)>,
}

/// One published task, as the publisher saw it.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Published {
    /// What was asked for, for example `retry-success`.
    pub kind: String,
    /// Its part in the canvas, for example `chord.body`; the kind itself for a plain task.
    pub role: String,
    /// Task id.
    pub id: String,
    /// Task name.
    pub name: String,
    /// Positional arguments.
    pub args: Vec<serde_json::Value>,
    /// Keyword arguments.
    pub kwargs: serde_json::Map<String, serde_json::Value>,
    /// Queue it went to.
    pub queue: String,
    /// Id of the first task of its chain.
    #[serde(default)]
    pub root: Option<String>,
    /// Id of the task before it in its chain.
    #[serde(default)]
    pub parent: Option<String>,
}

/// How a worker is started.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// Node name before the `@`.
    pub name: String,
    /// Processes.
    pub concurrency: u32,
    /// Queues, comma-separated.
    pub queues: String,
    /// Whether task events are on from the start (`-E`).
    pub events: Events,
    /// More arguments of `celery worker`.
    pub arguments: Vec<String>,
    /// A clock of its own.
    pub clock: Option<Clock>,
}

/// Whether a worker sends task events from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Events {
    /// `worker_send_task_events` is on.
    On,
    /// Off, until someone broadcasts `enable_events`.
    Off,
}

impl Default for WorkerOptions {
    fn default() -> Self {
        Self {
            name: "worker".into(),
            concurrency: 2,
            queues: "orders,mail".into(),
            events: Events::On,
            arguments: Vec::new(),
            clock: None,
        }
    }
}

/// A running worker; killed on drop.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    log: PathBuf,
    _folder: TempDir,
    /// It runs by it to its end.
    _clock: Option<Clock>,
}

// === impl Celery ===

impl Celery {
    /// Installs a Celery version (or [`NEWEST`]) unless it is in the cache, and points it at a broker.
    pub async fn install(version: &str, broker_url: &str) -> anyhow::Result<Self> {
        let bin = environment(version).await?;
        let app = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/celery-app");
        let app = app.canonicalize().context("failed to find examples/celery-app")?;
        let settings = vec![
            ("BROKER_URL".to_owned(), broker_url.to_owned()),
            ("PYTHONPATH".to_owned(), app.display().to_string()),
            ("PYTHONDONTWRITEBYTECODE".to_owned(), "1".to_owned()),
            // The tests may run as root; Celery warns about it at length.
            ("C_FORCE_ROOT".to_owned(), "1".to_owned()),
        ];
        Ok(Self { bin, settings })
    }

    /// Adds a setting of the application, for example `RESULT_BACKEND` or `JOURNAL`.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Publishes tasks of one kind and returns what was published.
    pub async fn publish(&self, kind: &str, count: usize) -> anyhow::Result<Vec<Published>> {
        let text = self.shop(&["publish", kind, &count.to_string()]).await?;
        text.lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("unexpected line {line:?}")))
            .collect()
    }

    /// Returns the journal of the tasks, one JSON object per step.
    pub async fn journal(&self) -> anyhow::Result<Vec<serde_json::Value>> {
        let text = self.shop(&["journal"]).await?;
        text.lines()
            .map(|line| serde_json::from_str(line).context("failed to read the journal"))
            .collect()
    }

    /// Runs `python -m shop` with these arguments and returns what it printed.
    pub async fn shop(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = self.command("python");
        command
            .args(["-m", "shop"])
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = command.output().await.context("failed to start python")?;
        if !output.status.success() {
            bail!("shop {arguments:?} failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        String::from_utf8(output.stdout).context("shop did not print UTF-8")
    }

    /// Starts a worker and waits until it consumes.
    pub async fn start_worker(&self, options: &WorkerOptions) -> anyhow::Result<Worker> {
        let folder = tempfile::tempdir().context("failed to make a folder for the worker")?;
        let (log, ready) = (folder.path().join("worker.log"), folder.path().join("ready"));
        let output = File::create(&log).context("failed to create the worker's log")?;
        let mut command = self.command("celery");
        command.args(["-A", "shop", "worker", "--loglevel", "INFO"]);
        command.args([
            "--concurrency",
            &options.concurrency.to_string(),
            "--queues",
            &options.queues,
        ]);
        command
            .args(["-n", &format!("{}@%h", options.name)])
            .args(&options.arguments);
        command
            .env("TASK_EVENTS", if options.events == Events::On { "1" } else { "0" })
            .env("READY_FILE", &ready);
        command
            .current_dir(folder.path())
            .kill_on_drop(true)
            .process_group(0)
            .stdin(Stdio::null());
        if let Some(clock) = &options.clock {
            clock.apply(&mut command);
        }
        command
            .stdout(output.try_clone().context("failed to share the worker's log")?)
            .stderr(output);
        let child = command.spawn().context("failed to start celery")?;
        let mut worker = Worker {
            child,
            log,
            _folder: folder,
            _clock: options.clock.clone(),
        };
        let deadline = Instant::now() + Duration::from_mins(1);
        while !ready.exists() {
            let ended = worker.child.try_wait().context("failed to ask for the worker")?;
            if ended.is_some() || Instant::now() > deadline {
                bail!("the worker did not become ready ({ended:?}):\n{}", worker.log());
            }
            tokio::time::sleep(Duration::from_millis(50)).await; // polls a condition with a deadline
        }
        Ok(worker)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        command
    }
}

// === impl Worker ===

impl Worker {
    /// Returns the process id of the worker's main process.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Returns what the worker has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Asks for a warm shutdown and waits for it: the worker says `worker-offline`.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.signal("TERM").await?;
        let ended = tokio::time::timeout(Duration::from_secs(30), self.child.wait()).await;
        ended
            .with_context(|| format!("the worker did not end:\n{}", self.log()))?
            .context("failed to wait for the worker")?;
        Ok(())
    }

    /// Kills the worker and its pool processes: nobody says goodbye.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        self.signal_group("KILL").await?;
        self.child.wait().await.context("failed to wait for the worker")?;
        Ok(())
    }

    /// Sends a signal to the main process, for example `STOP`.
    pub async fn signal(&self, name: &str) -> anyhow::Result<()> {
        let pid = self.pid().context("the worker has ended")?;
        run(Command::new("kill").args([&format!("-{name}"), &pid.to_string()])).await
    }

    async fn signal_group(&self, name: &str) -> anyhow::Result<()> {
        let pid = self.pid().context("the worker has ended")?;
        run(Command::new("kill").args([&format!("-{name}"), "--", &format!("-{pid}")])).await
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The pool processes are in the worker's own process group; killing the parent alone would leave them.
        if let Some(pid) = self.child.id() {
            let kill = std::process::Command::new("kill")
                .args(["-KILL", "--", &format!("-{pid}")])
                .status();
            drop(kill); // the process may have ended meanwhile
        }
    }
}

// === virtual environments ===

/// Returns the `bin` folder of the virtual environment of a version; makes it at first use.
async fn environment(version: &str) -> anyhow::Result<PathBuf> {
    let (name, requirements) = (version.to_owned(), requirements(version));
    // Installing blocks, and so does waiting for another process that installs.
    tokio::task::spawn_blocking(move || python::environment(&name, &requirements)).await?
}

/// Returns what pip must install. An old Celery gets the kombu of its time: it would accept a newer one, whose transports
/// then miss packages that only the newer Celery asks for.
pub(crate) fn requirements(version: &str) -> Vec<String> {
    let mut all = vec!["msgpack".into(), "pyyaml".into()];
    if version == NEWEST {
        all.push("celery[redis]".into());
    } else {
        let series = version.rsplit_once('.').map_or(version, |(series, _)| series);
        all.push(format!("celery[redis]=={version}"));
        all.push(format!("kombu=={series}.*"));
        all.push("packaging".into());
    }
    all
}

async fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .await
        .with_context(|| format!("failed to start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
