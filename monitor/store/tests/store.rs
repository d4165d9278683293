//! The store on a real Postgres.

#[path = "store/world.rs"]
mod world;

#[path = "store/admin.rs"]
mod admin;
#[path = "store/tenancy.rs"]
mod tenancy;
#[path = "store/writer.rs"]
mod writer;
