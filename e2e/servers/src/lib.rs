//! Real Postgres, Redis, RabbitMQ and Celery processes for tests: free ports, temporary folders, ended on drop.

pub mod celery;
pub mod certificates;
mod child;
pub mod disk;
pub mod link;
mod port;
pub mod postgres;
mod processor;
pub mod rabbitmq;
pub mod redis;

pub use port::free_port;
pub use processor::processor_seconds;
