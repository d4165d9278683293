//! One that listens to Celery's events: a monitor with a Postgres of its own, or another program.

use std::time::Duration;

use anyhow::{Context as _, Result};
use kanchi_test_servers::peer::{Peer, Program};
use kanchi_test_servers::{peak_memory, processor_seconds};
use tokio::runtime::Runtime;

use crate::drive;
use crate::older::postgres;
use crate::rig::{MonitorProcess, Rig};

/// Events that may be published to another program and not yet handled: seconds of its work. The 24,000 of a monitor would be more
/// than the 8 MiB that Redis, as it comes, lets a subscriber have waiting for a minute before it cuts it off.
const AHEAD: u64 = 8_000;

/// How often another program is asked how far it is: the answer costs it several milliseconds.
const PAUSE: Duration = Duration::from_millis(250);

/// Which listener.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Monitor,
    Peer(Program),
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Monitor => "Kanchi's monitor",
            Self::Peer(program) => program.name(),
        }
    }

    /// Returns where it has what it has handled.
    pub(crate) const fn keeps(self) -> &'static str {
        match self {
            Self::Monitor => "in Postgres",
            Self::Peer(Program::Flower) => "the last 100,000 tasks, in memory",
            Self::Peer(Program::CeleryReceiver) => "the last 10,000 tasks, in memory",
        }
    }

    /// Returns how many events a publisher may be ahead of it, and how often it is asked how far it is.
    pub(crate) const fn brake(self) -> (u64, Duration) {
        match self {
            Self::Monitor => (drive::AHEAD, drive::PAUSE),
            Self::Peer(_) => (AHEAD, PAUSE),
        }
    }
}

/// A running listener.
pub(crate) enum Listener {
    Monitor {
        process: MonitorProcess,
        // Dropped after the process, which ends first.
        _rig: Box<Rig>,
    },
    Peer(Peer),
}

impl Listener {
    /// Starts one at a broker. It may not hear everything yet.
    pub(crate) fn start(runtime: &Runtime, kind: Kind, broker_url: &str) -> Result<Self> {
        let program = match kind {
            Kind::Peer(program) => program,
            Kind::Monitor => {
                let rig = runtime.block_on(Rig::new(postgres()?, broker_url))?;
                rig.as_owner(&["upkeep"])?;
                let mut process = rig.monitor(&[])?;
                process.connected()?;
                return Ok(Self::Monitor {
                    process,
                    _rig: Box::new(rig),
                });
            }
        };
        Ok(Self::Peer(Peer::start(program, broker_url)?))
    }

    /// Returns how many task events it says that it has handled; a monitor has stored them then.
    pub(crate) fn handled(&self) -> Result<u64> {
        match self {
            Self::Monitor { process, .. } => Ok(drive::stored(process)),
            Self::Peer(peer) => peer.handled().with_context(|| peer.log()),
        }
    }

    /// Returns the processor seconds that it has used, without those of the broker and of Postgres.
    pub(crate) fn processor_seconds(&self) -> f64 {
        processor_seconds(self.pid())
    }

    /// Returns the most memory that it had so far, bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        peak_memory(self.pid())
    }

    pub(crate) fn log(&self) -> String {
        match self {
            Self::Monitor { process, .. } => process.log(),
            Self::Peer(peer) => peer.log(),
        }
    }

    fn pid(&self) -> u32 {
        match self {
            Self::Monitor { process, .. } => process.pid(),
            Self::Peer(peer) => peer.pid(),
        }
    }
}
