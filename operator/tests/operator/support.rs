//! What a test of the operator runs against: a real API server, a real Postgres, and the operator itself.

pub(crate) mod cluster;
pub(crate) mod log;
pub(crate) mod operator;
pub(crate) mod world;

pub(crate) use cluster::eventually;
