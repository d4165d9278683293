//! The operator: `CeleryBroker` resources in, monitors out.
//!
//! Every replica keeps its watches warm; only the holder of the Lease writes, and the client itself refuses a write
//! without it ([`gate`]). The operator is the only writer of Kubernetes objects and of the store's schema.

pub mod api;
pub mod args;
pub mod backoff;
pub mod context;
pub mod controllers;
pub mod crd_check;
pub mod events;
pub mod gate;
pub mod lease;
pub mod memory;
pub mod metrics;
pub mod names;
pub mod passes;
pub mod rollout;
pub mod run;
pub mod secret_index;
pub mod secret_text;
pub mod store_link;
pub mod wake;
pub mod watched;
