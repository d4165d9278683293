//! RabbitMQ and Redis behind one seam: event stream, queues, remote control.
//!
//! The rest of the monitor never sees a protocol: it drains [`EventStream`], acknowledges what it has committed, samples
//! queues with [`QueueSampler`] and talks to workers through [`Control`]. This crate does not decode events and knows
//! nothing of the store. It never declares one of Celery's exchanges with other arguments than Celery's, and under
//! `read_only` it publishes nothing at all.

mod amqp;
mod backoff;
pub mod control;
mod handover;
mod net;
pub mod queues;
pub mod report;
mod resp;
pub mod results;
pub mod spec;
pub mod stream;
mod time;

pub use control::{Command, Control, ControlError, Reply};
pub use kanchi_contract::BrokerUrl as SecretUrl;
pub use kanchi_domain::UnixMicros;
pub use queues::{InFlight, QueueSample, QueueSampler, SampleError};
pub use report::{ConnectReason, ConnectionReport, ConnectionState, Gap, GapCause};
pub use results::{Record, ResultBackend, ResultError, ScanPage};
pub use spec::{BrokerConnectSpec, TlsFiles};
pub use stream::{Delivery, DeliveryTag, EventStream, EventStreamOptions, Framing, StreamItem};
