//! The ingest path beside Postgres's own COPY.

fn main() {}
