//! What Celery applications would send, generated from a seed: for tests, benchmarks and the fault suite.
//!
//! A [`Workload`] says how its tasks live; a [`Stream`] gives their events at the time they are due, on the wall clock or on
//! a clock that a [`Recording`] steps through; [`Messages`] packs events into bodies as workers do; a publisher sends them as
//! kombu does. Two streams of one seed have the same tasks with the same events; their times are those of the run.

mod dice;
mod event;
mod messages;
mod publish;
mod recording;
mod stream;
mod workload;

pub use dice::Dice;
pub use event::Event;
pub use messages::{Message, Messages};
pub use publish::{AmqpPublisher, RedisPublisher, envelope};
pub use recording::{Recorded, RecordedMessage, Recording};
pub use stream::{Stream, now};
pub use workload::{Outcome, Workload, task_id};
