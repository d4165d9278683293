//! RabbitMQ: AMQP 0-9-1 by way of lapin, on sockets of our own.

pub(crate) mod connection;
pub(crate) mod control;
pub(crate) mod events;
mod prefetch;
pub(crate) mod sampler;
mod socket;
pub(crate) mod topology;

use lapin::types::{AMQPValue, FieldTable, ShortString};

/// A name that came from outside; AMQP's short strings end at 255 bytes.
fn short(name: &str) -> Option<ShortString> {
    ShortString::try_new(name.to_owned()).ok()
}

/// Argument tables of declarations.
fn table(entries: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in entries {
        if let Some(key) = short(key) {
            table.insert(key, value.clone());
        }
    }
    table
}
