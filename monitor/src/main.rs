//! The thin binary `kanchi-monitor`: parse arguments, start telemetry, build, run, drain.

use std::process::ExitCode;

use clap::Parser;

mod args;
mod owner;
mod run;

/// A third of the processor time of the event path less than glibc's takes; how it is set up is in the Dockerfile.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let args = args::Args::parse();
    match args.command {
        args::Command::Run(command) => run::run(&command),
        args::Command::Migrate(command) => owner::migrate(&command),
        args::Command::Upkeep(command) => owner::upkeep(&command),
    }
}

/// Exit code of a bad configuration (`EX_USAGE`): a crash loop on a typo can be told from a fault.
const BAD_CONFIGURATION: u8 = 64;

/// Exit code of a monitor that another one has replaced (`EX_TEMPFAIL`).
const REPLACED: u8 = 75;
