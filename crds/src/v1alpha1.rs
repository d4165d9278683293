//! Version `v1alpha1`. Changes are additive: no field goes, none becomes required, no rule becomes narrower.

mod celery;
mod celery_broker;
pub mod condition;
mod connection;
mod pods;
mod recording;
mod status;

pub use celery::{CelerySettings, EventQueue, EventQueueType, ResultBackend};
pub use celery_broker::{CeleryBroker, CeleryBrokerSpec, ReclaimPolicy};
pub use condition::{ConditionType, Reason};
pub use connection::{ClientCertificateRef, Connection, SecretKeyRef, Tls, Transport};
pub use pods::{MonitorPods, Resources};
pub use recording::{PayloadStore, Payloads, Queues, Retention, RetentionClass, Workers};
pub use status::{CeleryBrokerStatus, HourCounts, QueueStatus};

/// Name of this version.
pub const VERSION: &str = "v1alpha1";
