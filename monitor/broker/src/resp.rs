//! Redis: events by pub/sub on a reader of our own, everything else by the redis crate on sockets of our own.
//!
//! The redis crate's pub/sub queues what it has read without a bound and does not show when it last heard of the server,
//! so that the hot path, a few lines of RESP2, is read here.

pub(crate) mod channels;
pub(crate) mod commands;
pub(crate) mod control;
pub(crate) mod events;
pub(crate) mod results;
pub(crate) mod sampler;
mod wire;
