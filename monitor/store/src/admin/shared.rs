//! The one role that all monitors share where the store's user may not create roles.
//!
//! An administrator makes it. It gets what an own role has, and is as plain as one: its password lies in a Secret in every
//! tenant's namespace. Nothing here makes, changes or drops it.

use std::fmt;

use sqlx::{PgConnection, Row};

use crate::admin::StoreAdmin;
use crate::error::{During, Error, ErrorKind, Result};
use crate::migration;

/// What the name of a shared role begins with; the migrations know it, too.
const PREFIX: &str = "kanchi_m_shared";

/// The longest name that Postgres does not cut.
const LONGEST_NAME: usize = 63;

const OPERATION: &str = "use the shared role";

/// Name and password of the shared role. `Debug` shows the name only.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedRole {
    name: String,
    password: String,
}

impl SharedRole {
    /// Checks a name, `kanchi_m_shared` or `kanchi_m_shared_<word>`, and that there is a password; the line break with
    /// which editors end files is no part of that.
    pub fn new(name: &str, password: &str) -> Result<Self> {
        let invalid = |why: String| Error::new(ErrorKind::Invalid, OPERATION, why);
        let is_word = |word: &str| {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            !word.is_empty() && word.chars().all(plain)
        };
        let named = match name.strip_prefix(PREFIX) {
            Some("") => true,
            Some(rest) => name.len() <= LONGEST_NAME && rest.strip_prefix('_').is_some_and(is_word),
            None => false,
        };
        if !named {
            let why = format!("the role {name:?} is not called {PREFIX} or {PREFIX}_<word> (a-z, 0-9, _)");
            return Err(invalid(why));
        }
        let password = password.trim_end_matches(['\r', '\n']);
        if password.is_empty() || password.chars().any(char::is_control) {
            return Err(invalid(format!(
                "the password of {name} is empty or has control characters"
            )));
        }
        Ok(Self {
            name: name.to_owned(),
            password: password.to_owned(),
        })
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn password(&self) -> &str {
        &self.password
    }
}

impl fmt::Debug for SharedRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedRole")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl StoreAdmin {
    /// Lets monitors share this role where the store's user may not create roles. Where it may, the role is not used.
    #[must_use]
    pub fn with_shared_role(mut self, role: Option<SharedRole>) -> Self {
        self.shared = role;
        self
    }

    /// Checks the shared role, and gives it its rights if the migrator, who came before it was made, did not.
    pub(super) async fn ensure_shared(&self, shared: &SharedRole) -> Result<()> {
        let mut transaction = self.pool.begin().await.during(OPERATION)?;
        if check(&mut transaction, &shared.name).await? == Found::Ready {
            return Ok(());
        }
        // Many brokers come at once; granting at the same time fails on the catalog's rows.
        migration::lock(&mut transaction).await?;
        grant(&mut transaction, &shared.name).await?;
        transaction.commit().await.during(OPERATION)
    }
}

/// Gives the shared role the rights of this schema, where it is there and needed.
pub(crate) async fn grant_migrated(connection: &mut PgConnection, shared: &SharedRole) -> Result<()> {
    if may_create_roles(connection).await? {
        return Ok(());
    }
    match check(connection, &shared.name).await {
        Ok(Found::Ready | Found::WithoutRights) => grant(connection, &shared.name).await,
        // Brokers say so; the store itself is as it should be.
        Err(error) if error.kind() == ErrorKind::Forbidden => {
            tracing::warn!(%error, "monitors cannot share a role");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Whether this user may create roles: then each broker gets one.
pub(super) async fn may_create_roles(connection: &mut PgConnection) -> Result<bool> {
    let query = sqlx::query("select rolcreaterole or rolsuper from pg_roles where rolname = current_user");
    let row = query.fetch_one(connection).await.during("ensure a role")?;
    Ok(row.get(0))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Ready,
    WithoutRights,
}

/// Refuses a role that is not there, cannot log in, or may do more than monitors should.
async fn check(connection: &mut PgConnection, name: &str) -> Result<Found> {
    let query = sqlx::query(
        "select rolcanlogin,
            rolsuper or rolcreaterole or rolcreatedb or rolreplication or rolbypassrls,
            exists (select from pg_auth_members where member = pg_roles.oid),
            has_function_privilege(oid, 'kanchi.begin_epoch(text)', 'execute')
         from pg_roles where rolname = $1",
    );
    let row = query.bind(name).fetch_optional(connection).await.during(OPERATION)?;
    let refused = |why: &str| {
        let message = format!("the shared role {name} {why}: make it as docs/install.md says");
        Err(Error::new(ErrorKind::Forbidden, OPERATION, message))
    };
    let Some(row) = row else {
        return refused("does not exist");
    };
    if !row.get::<bool, _>(0) {
        return refused("may not log in");
    }
    // Every tenant holds its password.
    if row.get(1) {
        return refused("is a superuser, or may create roles or databases, replicate or bypass row-level security");
    }
    if row.get(2) {
        return refused("is a member of another role and may do what that may");
    }
    Ok(if row.get(3) { Found::Ready } else { Found::WithoutRights })
}

async fn grant(connection: &mut PgConnection, name: &str) -> Result<()> {
    let query = sqlx::query("select kanchi.grant_to($1)").bind(name);
    query.execute(connection).await.during(OPERATION).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_only_names_that_the_schema_takes_for_shared() {
        let long = format!("kanchi_m_shared_{}", "x".repeat(47));
        for name in ["kanchi_m_shared", "kanchi_m_shared_shop2", &long] {
            assert_eq!(SharedRole::new(name, "secret\n").unwrap().name(), name);
        }
        let too_long = format!("{long}x");
        for name in [
            "",
            "kanchi",
            "kanchi_m_7",
            "kanchi_m_shared_",
            "kanchi_m_sharedshop",
            "kanchi_m_shared_Shop",
            &too_long,
        ] {
            assert_eq!(
                SharedRole::new(name, "secret").unwrap_err().kind(),
                ErrorKind::Invalid,
                "{name}"
            );
        }
    }

    #[test]
    fn needs_a_password_and_never_shows_it() {
        let role = SharedRole::new("kanchi_m_shared", "canary\r\n").unwrap();
        assert_eq!(role.password(), "canary");
        assert!(!format!("{role:?}").contains("canary"));
        for password in ["", "\n", "canary\nof two lines"] {
            let error = SharedRole::new("kanchi_m_shared", password).unwrap_err();
            assert!(!error.to_string().contains("canary"), "{error}");
        }
    }
}
