//! All SQL of Kanchi: schema, migrations, partitions, roles, batched writes.
//!
//! Four doors, by who knocks:
//!
//! - [`StoreWriter`] and [`StoreReporter`]: one monitor, under the database role of its own broker (two connections, and one more under load).
//! - [`StoreAdmin`]: the operator, under the role that owns the schema.
//! - [`StoreQuery`]: the API, with the queries of its pages, under the owner's role in read-only sessions.
//! - [`StoreReader`]: whoever compares or exports all of a broker's tasks.
//!
//! No other crate writes SQL. Times are microseconds since the Unix epoch, UTC.

pub mod admin;
pub mod error;
pub mod model;
pub mod packed;
pub mod query;
pub mod reader;
pub mod retention;
pub mod statistics;
pub mod url;
pub mod writer;

mod connection;
mod migration;
mod scram;

pub use admin::{
    BrokerKey, BrokerSpec, Expiring, Hints, HourCounts, MonitorReport, Purge, Purged, RoleMode, Room, SharedRole,
    StoreAdmin, TopQueue, Upkeep,
};
pub use error::{Error, ErrorKind, Result};
pub use kanchi_domain::UnixMicros;
pub use model::{
    Batch, BatchHead, DeadLetter, EventChunk, FailureDelta, GapRepair, GapRow, Heartbeat, KnownGap, LastFailure,
    LiveTask, PendingGap, QueueRow, TaskChanges, WorkerRow,
};
pub use packed::{PackedEvents, Packer, UnpackError};
pub use query::{
    FailureGroup, FailureOrder, FailurePage, PageRequest, StoreQuery, TaskFilter, TaskName, TaskOrder, TaskPage,
    TaskSummary, TimeField, Words,
};
pub use reader::{StoreReader, StoredTask};
pub use retention::{RetentionClass, RetentionPolicy};
pub use statistics::{RolledUp, StatisticDelta};
pub use url::StoreUrl;
pub use writer::{
    Ending, Epoch, Held, HeldPage, HeldTask, Holder, Lease, OpenPage, OpenTask, Previous, Renewal, Settled,
    StoreReporter, StoreWriter, Stored, TakenOver, Walk,
};

/// Version of the schema that this build writes; [`StoreAdmin::migrate`] brings a database there.
pub const SCHEMA_VERSION: i32 = migration::LATEST;
