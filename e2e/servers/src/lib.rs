//! Real Postgres, Redis, RabbitMQ and Celery processes for tests: free ports, temporary folders, ended on drop.

pub mod celery;
pub mod certificates;
mod child;
pub mod postgres;
pub mod rabbitmq;
pub mod redis;
