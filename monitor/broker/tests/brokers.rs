//! The broker crate against real servers and a real Celery.

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
