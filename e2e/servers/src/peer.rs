//! Other programs that listen to Celery's events, which Kanchi is measured beside; each ends with the value that stands for it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::child::{Group, tail, wait_until_answering};
use crate::{celery, free_port, python};

/// Version of Flower.
const FLOWER: &str = "2.2.0";

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Flower with its own defaults.
    Flower,
    /// Celery's event receiver and state, and a count: the least that a program made of them does.
    CeleryReceiver,
}

impl Program {
    /// Returns the name for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flower => "Flower 2.2.0",
            Self::CeleryReceiver => "Celery's receiver and state alone",
        }
    }

    /// Returns what starts it; installs it at first use.
    fn command(self, broker_url: &str, port: u16) -> Result<Command> {
        let port = port.to_string();
        Ok(match self {
            Self::Flower => {
                // Redis' transport of a newer kombu asks for packaging, which nothing else of this installs.
                let requirements = [&format!("flower=={FLOWER}"), "celery[redis]", "packaging"];
                let bin = python::environment(&format!("flower-{FLOWER}"), &requirements.map(str::to_owned))?;
                let mut command = Command::new(bin.join("celery"));
                command.args([
                    "--broker",
                    broker_url,
                    "flower",
                    "--address=127.0.0.1",
                    "--logging=warning",
                ]);
                command.arg(format!("--port={port}"));
                command
            }
            Self::CeleryReceiver => {
                let bin = python::environment(celery::NEWEST, &celery::requirements(celery::NEWEST))?;
                let mut command = Command::new(bin.join("python"));
                command.args(["-c", include_str!("celery_receiver.py"), broker_url, &port]);
                command
            }
        })
    }
}

/// A program that runs.
#[derive(Debug)]
pub struct Peer {
    program: Program,
    port: u16,
    group: Group,
    folder: TempDir,
}

impl Peer {
    /// Installs a program at first use and starts it. Whether it listens already is only to be seen by what it handles.
    ///
    /// # Errors
    ///
    /// It cannot be installed, or does not answer within a minute.
    pub fn start(program: Program, broker_url: &str) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("kanchi-peer-")
            .tempdir()
            .context("no temporary folder")?;
        let port = free_port()?;
        let mut command = program.command(broker_url, port)?;
        command.current_dir(folder.path());
        let mut group = Group::start(&mut command, folder.path())?;
        let (greeting, patience) = (b"GET / HTTP/1.0\r\n\r\n", Duration::from_mins(1));
        wait_until_answering(port, greeting, patience, &mut group, &folder.path().join("log"))?;
        Ok(Self {
            program,
            port,
            group,
            folder,
        })
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.group.pid()
    }

    /// Returns how many task events it says that it has handled.
    ///
    /// # Errors
    ///
    /// It does not answer, or with something else.
    pub fn handled(&self) -> Result<u64> {
        match self.program {
            // Its counters of each worker; /metrics has a series for each worker, task name and type, and costs it more.
            Program::Flower => {
                let answer: Value = serde_json::from_str(&self.get("/workers?json=1")?)?;
                let workers = answer["data"].as_array().context("no list of workers")?;
                Ok(workers.iter().map(task_events).sum())
            }
            Program::CeleryReceiver => Ok(self.get("/")?.trim().parse()?),
        }
    }

    /// Returns the end of what it logged.
    pub fn log(&self) -> String {
        tail(&self.folder.path().join("log"))
    }

    fn get(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        // A program with much to do may take its time.
        stream.set_read_timeout(Some(Duration::from_mins(1)))?;
        write!(stream, "GET {path} HTTP/1.0\r\nhost: 127.0.0.1\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("half an answer")?;
        let status = head.lines().next().unwrap_or_default();
        ensure!(status.contains(" 200 "), "{path}: {status}");
        Ok(body.to_owned())
    }
}

/// Returns how many task events a worker of Flower's list has sent.
fn task_events(worker: &Value) -> u64 {
    let fields = worker.as_object().into_iter().flatten();
    let counts = fields.filter(|(name, _)| name.starts_with("task-"));
    counts.filter_map(|(_, count)| count.as_u64()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flowers_worker_has_a_count_for_each_type_of_event() {
        let worker: Value = serde_json::json!({
            "task-sent": 3, "task-received": 2, "worker-heartbeat": 9, "hostname": "celery@one", "status": true
        });
        assert_eq!(task_events(&worker), 5);
    }
}
