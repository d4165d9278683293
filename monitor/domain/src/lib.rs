//! Celery events and the task state machine: pure, no I/O, no clock, no async.
//!
//! The way of an event: bytes of a message → [`decode`] → [`Event`] → [`PayloadPolicy::apply`] → [`TaskFacts::absorb`] →
//! [`TaskFacts::project`] → [`TaskRow`]. The row is a function of the set of distinct events, so order, duplicates and
//! batches do not matter. `docs/states.md` says what each event does, and what becomes of bad input.

mod decode;
mod envelope;
mod event;
mod facts;
mod failure;
mod found;
mod orphan;
mod payload;
mod progress;
mod project;
mod reject;
mod state;
mod text;
mod time;

pub use decode::{BodyEncoding, Decoded, Limits, RawMessage, decode, decode_into};
pub use envelope::{Envelope, decode_virtual_envelope};
pub use event::{
    Event, EventId, EventKind, PayloadField, PayloadFields, ProgressFields, Repair, Repairs, TaskId, WorkerFields,
};
pub use facts::{Absorbed, FactsError, TaskFacts, TaskStep};
pub use failure::{Failure, Fingerprint, NoFingerprint};
pub use found::{RecordFault, RunningInfo};
pub use orphan::Running;
pub use payload::{PayloadPolicy, PayloadStore};
pub use progress::ProgressStep;
pub use project::{Attempt, AttemptDelivery, AttemptOutcome, EXPIRY_GRACE, Progress, TaskRow};
pub use reject::{Reject, RejectReason};
pub use state::{OutcomeClass, TaskMark, TaskState};
pub use time::UnixMicros;
