//! End-to-end tests on a real cluster: verbs here, tests in `tests/`, one file per area.
//!
//! A test runs in [`scoped`], or in [`scoped_alone`] when it touches what all share: it gets a namespace of its own,
//! labelled with the test's name and enforcing the Pod Security level `restricted`; when it fails, the states and logs of
//! everything in there are printed before the namespace goes.
//! Nothing here sleeps: every verb that waits names its condition and its deadline ([`wait`]).
//!
//! The cluster is the one whose settings `e2e/lab/lab env` prints: the lab, or a cluster that the user has named. A
//! KUBECONFIG that merely happens to be set is not taken.

pub mod audit;
pub mod broker;
pub mod cluster;
pub mod exec;
pub mod expected;
pub mod faults;
pub mod install;
pub mod report;
pub mod scope;
pub mod services;
pub mod shop;
pub mod store;
pub mod verbs;
pub mod wait;
pub mod watched;

pub use cluster::Cluster;
pub use scope::{Scope, scoped, scoped_alone};
pub use wait::until;
pub use watched::Transport;
