//! The broker crate against real servers and a real Celery.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::similar_names,
    reason = "a test fails by panicking, and a sampler yields samples"
)]

#[path = "brokers/celery.rs"]
mod celery;
#[path = "brokers/rabbitmq.rs"]
mod rabbitmq;
#[path = "brokers/rabbitmq_faults.rs"]
mod rabbitmq_faults;
#[path = "brokers/redis.rs"]
mod redis;
#[path = "brokers/support.rs"]
mod support;
