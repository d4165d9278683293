//! Real Postgres, Redis, RabbitMQ and Celery processes for tests, and the programs that Kanchi is measured beside: free ports,
//! temporary folders, ended on drop.

pub mod celery;
pub mod certificates;
mod child;
pub mod clock;
pub mod disk;
pub mod link;
mod memory;
pub mod peer;
mod port;
pub mod postgres;
mod processor;
mod python;
pub mod rabbitmq;
pub mod redis;

pub use memory::{Memory, memory, memory_of_all, peak_memory};
pub use port::free_port;
pub use processor::{own_processor_seconds, processor_seconds};
