//! All SQL: schema, migrations, partitions, roles, batched writes.
