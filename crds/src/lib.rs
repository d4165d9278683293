//! The custom resources of group `kanchi.io`.
//!
//! Types only: no client, no I/O. The operator, the command line and the tests share them; `crdgen` writes the YAML that
//! clusters get from [`crds`]. Field documentation here is what `kubectl explain` prints and what the reference pages say.

pub mod chart_readme;
pub mod generate;
pub mod quantity;
pub mod reference;
pub mod schema;
pub mod v1alpha1;

pub use quantity::{ByteSize, Period, QuantityError};
pub use schema::crds;
pub use v1alpha1::*;

/// API group of every resource.
pub const GROUP: &str = "kanchi.io";

/// Annotation on a `CeleryBroker`: with the value `true` the operator changes nothing it made, but keeps the status live.
pub const PAUSED_ANNOTATION: &str = "kanchi.io/paused";

/// Finalizer of a `CeleryBroker` under `reclaimPolicy: Delete`: its history is deleted before it goes.
pub const HISTORY_FINALIZER: &str = "kanchi.io/history";
