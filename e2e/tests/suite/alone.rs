//! Beside these no other test runs: they stop Postgres or the operator, or count what everybody does.

mod chain;
mod hostile;
mod leader;
mod no_store;
mod quiet;
mod releases;
