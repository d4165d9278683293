//! The operator: `CeleryBroker` resources in, monitors out.
//!
//! Every replica keeps its watches warm; only the holder of the Lease writes, and the client itself refuses a write
//! without it ([`gate`]). The operator is the only writer of Kubernetes objects and of the store's schema.

pub mod api;
pub mod args;
pub mod backoff;
pub mod crd_check;
pub mod events;
pub mod gate;
pub mod lease;
pub mod names;
pub mod rollout;
pub mod secret_index;
pub mod secret_text;
pub mod wake;
