//! Numbered migrations: applied in order, each in one transaction, never edited after release, expand only.

use sqlx::{Connection, Executor, PgConnection, Row};

use crate::admin::{SharedRole, grant_migrated};
use crate::error::{During, Error, ErrorKind, Result};

struct Migration {
    version: i32,
    name: &'static str,
    sql: &'static str,
}

const MIGRATIONS: [Migration; 5] = [
    Migration {
        version: 1,
        name: "tables",
        sql: include_str!("../migrations/0001_tables.sql"),
    },
    Migration {
        version: 2,
        name: "partitions",
        sql: include_str!("../migrations/0002_partitions.sql"),
    },
    Migration {
        version: 3,
        name: "monitor",
        sql: include_str!("../migrations/0003_monitor.sql"),
    },
    Migration {
        version: 4,
        name: "rights",
        sql: include_str!("../migrations/0004_rights.sql"),
    },
    Migration {
        version: 5,
        name: "queries",
        sql: include_str!("../migrations/0005_queries.sql"),
    },
];

/// The version that this build writes.
pub(crate) const LATEST: i32 = 5;

/// The oldest server whose SQL is used here.
const OLDEST_SERVER: i32 = 140_000;

const OPERATION: &str = "migrate the schema";

/// Brings the schema to [`LATEST`]. Several may try at once: a row lock lets one work and the others wait.
pub(crate) async fn run(connection: &mut PgConnection, shared: Option<&SharedRole>) -> Result<()> {
    check_server(connection).await?;
    bootstrap(connection).await?;
    let mut transaction = connection.begin().await.during(OPERATION)?;
    lock(&mut transaction).await?;
    let row = sqlx::query("select coalesce(max(version), 0) from kanchi.migration");
    let applied: i32 = row.fetch_one(&mut *transaction).await.during(OPERATION)?.get(0);
    if applied > LATEST {
        let message =
            format!("the database's schema is version {applied}, this build knows up to {LATEST}: update Kanchi");
        return Err(Error::new(ErrorKind::SchemaTooNew, OPERATION, message));
    }
    for migration in MIGRATIONS.iter().filter(|migration| migration.version > applied) {
        apply(&mut transaction, migration).await?;
    }
    if applied < LATEST || !has_group(&mut transaction).await? {
        let own_roles: bool = sqlx::query("select kanchi.grant_rights()")
            .fetch_one(&mut *transaction)
            .await
            .during(OPERATION)?
            .get(0);
        if !own_roles {
            tracing::warn!("the store's user may not create roles: monitors cannot have one each");
        }
    }
    if let Some(shared) = shared {
        grant_migrated(&mut transaction, shared).await?;
    }
    transaction.commit().await.during(OPERATION)
}

/// Takes the lock that migration and upkeep share, until the end of the transaction. A row lock in a table that only
/// the owner can see: an advisory lock could be taken and kept by any role.
pub(crate) async fn lock(connection: &mut PgConnection) -> Result<()> {
    connection
        .execute("select from kanchi.upkeep_lock for update")
        .await
        .during(OPERATION)?;
    Ok(())
}

async fn apply(connection: &mut PgConnection, migration: &Migration) -> Result<()> {
    tracing::info!(
        version = migration.version,
        name = migration.name,
        "applying a migration"
    );
    connection.execute(migration.sql).await.during(OPERATION)?;
    sqlx::query("insert into kanchi.migration (version, name) values ($1, $2)")
        .bind(migration.version)
        .bind(migration.name)
        .execute(connection)
        .await
        .during(OPERATION)?;
    Ok(())
}

async fn has_group(connection: &mut PgConnection) -> Result<bool> {
    let query = "select exists (select from pg_roles where rolname = kanchi.monitor_group())";
    Ok(sqlx::query(query).fetch_one(connection).await.during(OPERATION)?.get(0))
}

async fn check_server(connection: &mut PgConnection) -> Result<()> {
    let query = "select current_setting('server_version_num')::integer, current_setting('server_version')";
    let row = sqlx::query(query).fetch_one(connection).await.during(OPERATION)?;
    if row.get::<i32, _>(0) < OLDEST_SERVER {
        let message = format!("Postgres {} is too old: 14 or newer is needed", row.get::<String, _>(1));
        return Err(Error::new(ErrorKind::Invalid, OPERATION, message));
    }
    Ok(())
}

/// Makes what the migrator itself stands on. Two at once may collide in the catalog; the loser tries again.
async fn bootstrap(connection: &mut PgConnection) -> Result<()> {
    let mut attempts = 0;
    loop {
        let done = connection.execute(include_str!("sql/bootstrap.sql")).await;
        match done {
            Ok(_) => return Ok(()),
            Err(error) if attempts < 5 && is_collision(&error) => attempts += 1,
            Err(error) => return Err(Error::sql(OPERATION, error)),
        }
    }
}

fn is_collision(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    // Unique violation in a catalog, duplicate schema, duplicate table, tuple concurrently updated.
    matches!(code.as_deref(), Some("23505" | "42P06" | "42P07" | "XX000"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_are_numbered_without_holes() {
        let versions: Vec<i32> = MIGRATIONS.iter().map(|migration| migration.version).collect();
        assert_eq!(versions, (1..=LATEST).collect::<Vec<_>>());
    }
}
