//! The operator against a real API server, real controllers and a real Postgres.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

mod children;
mod chores;
mod deletion;
mod leadership;
mod references;
mod reports;
mod rollouts;
mod shared_role;
mod standby;
