//! `kanchi-monitor run` as a process, on real brokers and a real Postgres.

#[path = "run/celery.rs"]
mod celery;
#[path = "run/rig.rs"]
mod rig;

#[path = "run/rabbitmq.rs"]
mod rabbitmq;
#[path = "run/redis.rs"]
mod redis;
