//! Which brokers there are: their keys and the classes of their rows.

use sqlx::Row;

use crate::admin::StoreAdmin;
use crate::error::{During, Result};
use crate::retention::RetentionPolicy;

/// A broker's key in the store; part of its role's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BrokerKey(pub i32);

/// Which broker: its key belongs to (installation, namespace uid, name).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerSpec {
    /// UID of the namespace: another tenant's namespace of the same name is another broker.
    pub namespace_uid: String,
    /// Namespace, for reading.
    pub namespace: String,
    /// Name of the resource.
    pub name: String,
    /// Name for people.
    pub display_name: Option<String>,
    /// Classes of its rows.
    pub retention: RetentionPolicy,
}

impl StoreAdmin {
    /// Returns the broker's key, adopting its history; makes one for a new broker.
    pub async fn ensure_broker(&self, broker: &BrokerSpec) -> Result<BrokerKey> {
        const OPERATION: &str = "ensure a broker";
        // Writes only what changed, so that a restart of the operator with a thousand brokers writes nothing.
        let changed = sqlx::query(include_str!("../sql/ensure_broker.sql"));
        let row = bind_spec(changed, broker)
            .fetch_optional(&self.pool)
            .await
            .during(OPERATION)?;
        if let Some(row) = row {
            return Ok(BrokerKey(row.get(0)));
        }
        let query = sqlx::query(
            "select broker_id from kanchi.broker where namespace_uid = $1 and name = $2 and purge_ordered_at is null",
        );
        let row = query
            .bind(&broker.namespace_uid)
            .bind(&broker.name)
            .fetch_one(&self.pool)
            .await
            .during(OPERATION)?;
        Ok(BrokerKey(row.get(0)))
    }

    /// Changes the classes that new rows of a broker go to, for reading; writers get them by their configuration.
    pub async fn set_retention(&self, key: BrokerKey, retention: RetentionPolicy) -> Result<()> {
        let query = sqlx::query(
            "update kanchi.broker set succeeded_days = $2, failed_days = $3, events_days = $4, statistics_days = $5
             where broker_id = $1 and (succeeded_days, failed_days, events_days, statistics_days) is distinct from ($2, $3, $4, $5)",
        );
        let [succeeded, failed, events, statistics] = days(retention);
        let query = query
            .bind(key.0)
            .bind(succeeded)
            .bind(failed)
            .bind(events)
            .bind(statistics);
        query.execute(&self.pool).await.during("set the retention").map(drop)
    }

    /// Takes the right to log in from a broker's own role and ends its sessions, and fences its writer: a role that
    /// brokers share goes on. History stays and is adopted by [`Self::ensure_broker`].
    pub async fn retire_broker(&self, key: BrokerKey) -> Result<()> {
        const OPERATION: &str = "retire a broker";
        self.lock_role(key).await?;
        let query = sqlx::query(
            "with retired as (
                update kanchi.broker set retired_at = now() where broker_id = $1 and retired_at is null
                returning broker_id)
             update kanchi.writer w set epoch = w.epoch + 1 from retired where w.broker_id = retired.broker_id",
        );
        query.bind(key.0).execute(&self.pool).await.during(OPERATION).map(drop)
    }
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

fn bind_spec<'q>(query: Query<'q>, broker: &'q BrokerSpec) -> Query<'q> {
    let [succeeded, failed, events, statistics] = days(broker.retention);
    query
        .bind(&broker.namespace_uid)
        .bind(&broker.namespace)
        .bind(&broker.name)
        .bind(broker.display_name.as_deref())
        .bind(succeeded)
        .bind(failed)
        .bind(events)
        .bind(statistics)
}

fn days(retention: RetentionPolicy) -> [i16; 4] {
    [
        retention.succeeded,
        retention.failed,
        retention.events,
        retention.statistics,
    ]
    .map(|class| i16::try_from(class.days()).unwrap_or(i16::MAX))
}
