//! Database roles of monitors: one per broker, made and rotated here.

use sqlx::{Executor, Row};

use crate::admin::{BrokerKey, StoreAdmin, shared};
use crate::error::{During, Error, ErrorKind, Result};
use crate::scram;
use crate::url::StoreUrl;

/// How monitors log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleMode {
    /// Each broker has a role of its own: the Secret in a tenant's namespace opens that tenant's rows only.
    Own,
    /// The store's user may not create roles: monitors share one, and so do tenants.
    Shared,
}

impl RoleMode {
    /// Returns the name used in conditions and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Own => "Own",
            Self::Shared => "Shared",
        }
    }
}

/// A monitor opens three at most: one for batches and, under load, one for batches that go ahead; one for reports, which alone
/// one that stands by has until it takes over. With two monitors, and the sessions that a lost node leaves behind, which must
/// not keep a successor out that is to fence them.
const CONNECTION_LIMIT: u32 = 9;

impl StoreAdmin {
    /// Returns the name of a broker's role. Roles are shared by all databases of a server, hence the database's number in it:
    /// of two installations on one server neither must ever change the other's.
    pub fn role(&self, key: BrokerKey) -> String {
        format!("kanchi_m_{}_{}", self.database, key.0)
    }

    /// Makes the broker's role, or sets its password; sessions that are open stay open.
    ///
    /// The server gets a SCRAM verifier, so neither its log nor its statistics ever see the password. The password
    /// must be ASCII without control characters.
    ///
    /// Where the store's user lacks CREATEROLE, the role of [`Self::with_shared_role`] is used instead, if there is one.
    /// Only then: any other failure is an error, for a mistake must not quietly cost the isolation.
    pub async fn ensure_role(&self, key: BrokerKey, password: &str) -> Result<RoleMode> {
        const OPERATION: &str = "ensure a role";
        if password.len() < 16 || !password.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::new(
                ErrorKind::Invalid,
                OPERATION,
                "a password needs 16 or more printable ASCII characters",
            ));
        }
        let mut transaction = self.pool.begin().await.during(OPERATION)?;
        if !shared::may_create_roles(&mut transaction).await? {
            drop(transaction);
            return self.share_role().await;
        }
        let query = sqlx::query(
            "select kanchi.monitor_group(), exists (select from pg_roles where rolname = $1),
                exists (select from pg_roles where rolname = kanchi.monitor_group())",
        );
        let row = query
            .bind(self.role(key))
            .fetch_one(&mut *transaction)
            .await
            .during(OPERATION)?;
        let (group, exists): (String, bool) = (row.get(0), row.get(1));
        if !row.get::<bool, _>(2) {
            // The right to create roles came after the migration, or the database was restored under a new number.
            transaction
                .execute("select kanchi.grant_rights()")
                .await
                .during(OPERATION)?;
        }
        let verb = if exists { "alter" } else { "create" };
        let role = self.role(key);
        let verifier = scram::verifier(password, rand::random());
        let statement = format!(
            "{verb} role {role} login inherit connection limit {CONNECTION_LIMIT} password '{verifier}';
             grant \"{group}\" to {role}"
        );
        transaction.execute(statement.as_str()).await.during(OPERATION)?;
        transaction.commit().await.during(OPERATION)?;
        Ok(RoleMode::Own)
    }

    async fn share_role(&self) -> Result<RoleMode> {
        let Some(shared) = &self.shared else {
            let message = "the store's user may not create roles: run \"alter role <user> createrole\" as an \
                           administrator of Postgres, or let all monitors, and so all tenants, share one role by the \
                           chart's store.sharedRole (docs/install.md)";
            return Err(Error::new(ErrorKind::Forbidden, "ensure a role", message));
        };
        self.ensure_shared(shared).await?;
        Ok(RoleMode::Shared)
    }

    /// Returns the URL that a broker's monitor uses. A shared role has a password of its own, and says its broker by an
    /// option of the connection: set once it is open, a pooler would hand the setting on to other brokers' monitors.
    pub fn monitor_url(&self, key: BrokerKey, mode: RoleMode, password: &str) -> Result<StoreUrl> {
        match (mode, &self.shared) {
            (RoleMode::Own, _) => self.url.for_role(&self.role(key), password),
            (RoleMode::Shared, Some(shared)) => {
                let url = self.url.for_role(shared.name(), shared.password())?;
                Ok(url.with_setting("kanchi.broker", &key.0.to_string()))
            }
            (RoleMode::Shared, None) => Err(Error::new(
                ErrorKind::Invalid,
                "write a store URL",
                "no shared role is configured",
            )),
        }
    }

    /// Takes the right to log in, and ends the sessions where the server lets us.
    pub(super) async fn lock_role(&self, key: BrokerKey) -> Result<()> {
        const OPERATION: &str = "lock a role";
        if !self.role_exists(key).await? {
            return Ok(());
        }
        let role = self.role(key);
        self.pool
            .execute(format!("alter role {role} nologin").as_str())
            .await
            .during(OPERATION)?;
        // Ending sessions needs membership; a role without login whose last session lingers can do no lasting harm.
        let statement = format!(
            "grant {role} to current_user; select pg_terminate_backend(pid) from pg_stat_activity where usename = '{role}'"
        );
        if let Err(error) = self.pool.execute(statement.as_str()).await {
            tracing::warn!(%error, role, "sessions of a retired broker were not ended");
        }
        Ok(())
    }

    pub(super) async fn drop_role(&self, key: BrokerKey) -> Result<()> {
        if self.role_exists(key).await? {
            let statement = format!("drop role {}", self.role(key));
            self.pool.execute(statement.as_str()).await.during("drop a role")?;
        }
        Ok(())
    }

    async fn role_exists(&self, key: BrokerKey) -> Result<bool> {
        let query = sqlx::query("select exists (select from pg_roles where rolname = $1)").bind(self.role(key));
        Ok(query.fetch_one(&self.pool).await.during("look up a role")?.get(0))
    }
}
