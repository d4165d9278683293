//! Source, decode, reduce, one transaction a batch, acknowledge; workers, queues, heartbeat.
