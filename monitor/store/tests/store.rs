//! The store on a real Postgres.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

#[path = "store/world.rs"]
mod world;

#[path = "store/admin.rs"]
mod admin;
#[path = "store/events.rs"]
mod events;
#[path = "store/failures.rs"]
mod failures;
#[path = "store/generations.rs"]
mod generations;
#[path = "store/lease.rs"]
mod lease;
#[path = "store/live_lists.rs"]
mod live_lists;
#[path = "store/marks.rs"]
mod marks;
#[path = "store/plans.rs"]
mod plans;
#[path = "store/purge.rs"]
mod purge;
#[path = "store/queries.rs"]
mod queries;
#[path = "store/query_plans.rs"]
mod query_plans;
#[path = "store/repair.rs"]
mod repair;
#[path = "store/settle.rs"]
mod settle;
#[path = "store/shared_role.rs"]
mod shared_role;
#[path = "store/slices.rs"]
mod slices;
#[path = "store/statistics.rs"]
mod statistics;
#[path = "store/tenancy.rs"]
mod tenancy;
#[path = "store/writer.rs"]
mod writer;
