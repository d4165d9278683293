//! The thin binary `kanchi-operator`.

use std::process::ExitCode;

use clap::Parser;
use kanchi_operator::args::Args;
use kanchi_operator::lease::chain;
use kanchi_operator::run;

/// The conventional code of a usage error: tells a wrong setting from a fault.
const USAGE: u8 = 64;

// All passes run in one task: a thread for each processor of a large node would only take memory.
#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let args = Args::parse();
    let log = match kanchi_runtime::telemetry::init(args.log_format.into(), &args.log_level) {
        Ok(log) => log,
        Err(error) => {
            // The one thing that cannot be logged.
            use std::io::Write as _;
            let _ignored = writeln!(std::io::stderr(), "{}", chain(&error));
            return ExitCode::from(USAGE);
        }
    };
    match run::run(args, log).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %chain(&error), "ended");
            ExitCode::FAILURE
        }
    }
}
