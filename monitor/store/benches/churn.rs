//! Whether anything grows that should not: `make bench-churn`.
//!
//! A day of tasks that come and go, retried, long-running, late and repeated ones among them, goes through a monitor's own store
//! doors into a Postgres, and the operator's leader does its work meanwhile. After each simulated hour it prints sizes, and at
//! the end whether each table is what it was at the end of the second hour. `docs/performance.md` says how time is simulated.

#![expect(clippy::print_stdout, reason = "a program for people who measure")]

#[path = "shared/environment.rs"]
mod environment;
#[path = "churn/leader.rs"]
mod leader;
#[path = "churn/lives.rs"]
mod lives;
#[path = "churn/monitor.rs"]
mod monitor;
#[path = "churn/sizes.rs"]
mod sizes;
#[path = "churn/verdict.rs"]
mod verdict;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::ensure;
use kanchi_store::{StoreAdmin, StoreUrl};
use kanchi_test_servers::postgres::{Postgres, PostgresOptions};

use crate::environment::{now, number};
use crate::leader::Leader;
use crate::lives::{Calendar, Lives};
use crate::monitor::Monitor;
use crate::sizes::{Meter, Sizes};

/// What everything is compared with: the longest tasks of the first hour end with this one, so as many are open from then on as ever.
const BASELINE_HOUR: u64 = 2;

/// Postgres looks for dead rows once a minute, and an hour is over here in about that: it looks each second, which is about as
/// often an hour as it would.
const SETTINGS: [(&str, &str); 1] = [("autovacuum_naptime", "1s")];

fn main() -> anyhow::Result<ExitCode> {
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> anyhow::Result<ExitCode> {
    let hours = number("KANCHI_BENCH_HOURS", 24)?;
    let batches = number("KANCHI_BENCH_BATCHES", 40)?;
    let tasks = number("KANCHI_BENCH_TASKS", 2_000)?;
    ensure!(hours > BASELINE_HOUR, "KANCHI_BENCH_HOURS: more than {BASELINE_HOUR}");
    ensure!(batches > 0 && tasks > 0, "no batches, or no tasks in them");

    // It is about sizes: nothing is lost by not syncing, and it is over sooner.
    let server = Postgres::with(&PostgresOptions {
        settings: SETTINGS
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
        ..PostgresOptions::default()
    })?;
    let owner = StoreUrl::parse(&server.create_installation("kanchi")?)?;
    let admin = StoreAdmin::connect(&owner).await?;
    admin.migrate().await?;
    let mut day = Day {
        lives: Lives::new(Calendar::ending_at(now()?, hours, batches), tasks),
        monitor: Monitor::new(&admin, batches).await?,
        leader: Leader::new(admin, &owner).await?,
        meter: Meter::new(&owner).await?,
        batches,
    };
    println!(
        "{hours} hours of {batches} batches, {tasks} tasks begin in each, after an hour of the day before; sizes in KiB with indexes and TOAST, bytes a row"
    );
    day.begin().await?;
    day.run(hours).await
}

/// The simulation.
struct Day {
    lives: Lives,
    monitor: Monitor,
    leader: Leader,
    meter: Meter,
    batches: u64,
}

impl Day {
    /// An hour of the day before, for retention to have something to let go of.
    async fn begin(&mut self) -> anyhow::Result<()> {
        self.leader.begin().await?;
        self.hour(0).await?;
        self.leader.midnight().await?;
        Ok(())
    }

    async fn run(&mut self, hours: u64) -> anyhow::Result<ExitCode> {
        println!("{}", Sizes::heading());
        let (mut baseline, mut last) = (Sizes::default(), Sizes::default());
        let midnight = BASELINE_HOUR.max(hours / 2);
        for hour in 1..=hours {
            let began = Instant::now();
            self.hour(hour).await?;
            last = self.meter.read().await?;
            println!("{hour:>4} {} {:>6.0?}", last.line(), began.elapsed());
            if hour == BASELINE_HOUR {
                baseline = last.clone();
            }
            if hour == midnight {
                println!("     midnight: {}", self.leader.midnight().await?);
            }
        }
        println!("{}", self.monitor.told());
        println!("{}", self.leader.told());
        let is_missed = verdict::print(&baseline, &last, BASELINE_HOUR, hours);
        Ok(if is_missed {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        })
    }

    /// Stores an hour's batches, and does what is due between them.
    async fn hour(&mut self, hour: u64) -> anyhow::Result<()> {
        for batch in 0..self.batches {
            let happenings = self.lives.batch(hour * self.batches + batch)?;
            self.monitor.store(hour, &happenings).await?;
            self.monitor.report(hour).await?;
            self.leader.between_batches().await?;
            // Upkeep is every ten minutes, the monitor's other chores every minute.
            if batch % self.batches.div_ceil(6) == 0 {
                self.leader.upkeep().await?;
                self.monitor.begin_a_minute().await?;
            }
        }
        self.monitor.begin_a_minute().await?;
        self.monitor.report(hour).await?;
        self.leader.between_batches().await
    }
}
