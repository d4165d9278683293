//! The end-to-end tests: one file per area, one program, so that they link once.
//!
//! `make e2e` runs them all; `make e2e TEST=tenancy` those whose path has that word.

mod burst;
mod chain;
mod children;
mod definitions;
mod hostile;
mod leader;
mod lifecycle;
mod outage;
mod quiet;
mod secrets;
mod services;
mod tasks;
mod tenancy;
