//! Between validation and building: the broker's part of the store, a role of its own and its password.
//!
//! The password lives in the operator-owned Secret and nowhere else. It is made anew only when it is lost; the role is
//! set to what the Secret holds, so that a mismatch heals. The role that brokers share where none can be made has its
//! password from an administrator, and nothing here changes it.

use std::time::{Duration, Instant};

use kanchi_store::{BrokerKey, BrokerSpec, RetentionPolicy, RoleMode};
use rand::RngExt;
use rand::distr::Alphanumeric;
use url::Url;

use super::validate::Validated;
use crate::context::Context;
use crate::secret_text::SecretText;
use crate::store_link::{self, Credentials, REQUEST_LIMIT, bounded};

/// A grant is checked against the store again after this long.
const TRUST: Duration = Duration::from_hours(1);

/// 32 characters of 62: 190 bits.
const PASSWORD_CHARACTERS: usize = 32;

/// What a broker was given in the store.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Its key.
    pub key: BrokerKey,
    /// Whether its monitor has a role of its own; `None`: not asked since this operator started.
    pub mode: Option<RoleMode>,
    /// The monitor's URL, with its password.
    pub url: SecretText,
    /// Certificate authorities of the store.
    pub ca: Option<SecretText>,
    /// What was asked for.
    asked: Asked,
    /// When.
    at: Instant,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    display_name: Option<String>,
    retention: RetentionPolicy,
    namespace_uid: String,
    password: Option<SecretText>,
    credentials: Option<Credentials>,
}

/// What the operator-owned Secret holds of an earlier grant.
#[derive(Clone, Debug)]
pub struct Existing {
    /// The monitor's URL.
    pub url: SecretText,
    /// Certificate authorities of the store.
    pub ca: Option<SecretText>,
    /// The key, from the status.
    pub key: Option<i32>,
}

impl Existing {
    /// Returns the password within the URL, if it is one that we made. Never a shared role's, which all tenants know:
    /// a role of the broker's own must not get it.
    fn password(&self) -> Option<SecretText> {
        let url = Url::parse(self.url.expose_str()?).ok()?;
        let password = url.password()?;
        let (database, key) = url.username().strip_prefix("kanchi_m_")?.split_once('_')?;
        let _own = (database.parse::<u32>().ok()?, key.parse::<u32>().ok()?);
        let ours = password.len() == PASSWORD_CHARACTERS && password.chars().all(|c| c.is_ascii_alphanumeric());
        ours.then(|| SecretText::new(password))
    }
}

/// Returns what the broker has in the store, asking the store only where that is not known yet.
///
/// While the store is away a broker that was granted before goes on with what its Secret holds.
pub async fn grant(
    context: &Context,
    validated: &Validated,
    namespace_uid: &str,
    existing: Option<&Existing>,
) -> Result<Grant, store_link::Error> {
    let remembered = context.memory.with(&validated.uid, |object| object.grant.clone());
    let (admin, credentials) = match context.store.admin() {
        Ok(connected) => connected,
        Err(error) => return remembered.or_else(|| without_store(validated, existing)).ok_or(error),
    };
    let mut asked = Asked {
        display_name: validated.display_name.clone(),
        retention: validated.retention_policy,
        namespace_uid: namespace_uid.to_owned(),
        password: existing.and_then(Existing::password),
        credentials: Some(credentials.clone()),
    };
    if let Some(grant) = remembered.filter(|grant| grant.asked == asked && grant.at.elapsed() < TRUST) {
        return Ok(grant);
    }
    let password = asked.password.take().unwrap_or_else(new_password);
    let spec = BrokerSpec {
        namespace_uid: namespace_uid.to_owned(),
        namespace: validated.identity.namespace.clone(),
        name: validated.identity.name.clone(),
        display_name: validated.display_name.clone(),
        retention: validated.retention_policy,
    };
    let key = bounded(
        "prepare the broker's part of the store",
        REQUEST_LIMIT,
        admin.ensure_broker(&spec),
    )
    .await?;
    context.store.keep(key, &validated.uid);
    let text = password.expose_str().unwrap_or_default();
    let mode = bounded(
        "prepare the monitor's role",
        REQUEST_LIMIT,
        admin.ensure_role(key, text),
    )
    .await?;
    let url = admin.monitor_url(key, mode, text).map_err(store_link::Error::Store)?;
    let url = context.store.source().for_monitors(&url)?;
    let ca = credentials.owner.ca().map(SecretText::new);
    let url = SecretText::new(url);
    // What the next pass will read back from the Secret.
    asked.password = Existing {
        url: url.clone(),
        ca: None,
        key: None,
    }
    .password();
    let grant = Grant {
        key,
        mode: Some(mode),
        url,
        ca,
        asked,
        at: Instant::now(),
    };
    context.memory.with(&validated.uid, |object| {
        object.grant = Some(grant.clone());
        object.key = Some(key);
    });
    Ok(grant)
}

#[cfg(test)]
impl Grant {
    /// Returns a grant that no store gave.
    pub(super) fn for_tests(key: BrokerKey, mode: Option<RoleMode>, url: &str, ca: Option<&str>) -> Self {
        let asked = Asked {
            display_name: None,
            retention: RetentionPolicy::default(),
            namespace_uid: String::new(),
            password: None,
            credentials: None,
        };
        Self {
            key,
            mode,
            url: SecretText::new(url),
            ca: ca.map(SecretText::new),
            asked,
            at: Instant::now(),
        }
    }
}

fn without_store(validated: &Validated, existing: Option<&Existing>) -> Option<Grant> {
    let existing = existing?;
    Some(Grant {
        key: BrokerKey(existing.key?),
        mode: None,
        url: existing.url.clone(),
        ca: existing.ca.clone(),
        asked: Asked {
            display_name: None,
            retention: validated.retention_policy,
            namespace_uid: String::new(),
            password: None,
            credentials: None,
        },
        at: Instant::now(),
    })
}

fn new_password() -> SecretText {
    let mut random = rand::rng();
    let text: String = (0..PASSWORD_CHARACTERS)
        .map(|_| char::from(random.sample(Alphanumeric)))
        .collect();
    SecretText::new(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn existing(url: &str) -> Existing {
        Existing {
            url: SecretText::new(url),
            ca: None,
            key: Some(7),
        }
    }

    #[test]
    fn a_password_is_kept_when_it_is_one_of_ours_and_lost_otherwise() {
        let password = new_password();
        let text = password.expose_str().unwrap();
        let url = format!("postgres://kanchi_m_16384_7:{text}@db/kanchi?sslmode=verify-full");
        assert_eq!(existing(&url).password().as_ref(), Some(&password));
        for lost in [
            "",
            "postgres://kanchi_m_16384_7@db/kanchi",
            "postgres://kanchi_m_16384_7:short@db/kanchi",
            "garbage",
        ] {
            assert_eq!(existing(lost).password(), None, "{lost}");
        }
    }

    #[test]
    fn the_password_of_a_shared_role_is_never_that_of_an_own_one() {
        let password = new_password();
        let text = password.expose_str().unwrap();
        for role in ["kanchi_m_shared", "kanchi_m_shared_7", "kanchi"] {
            let url = format!("postgres://{role}:{text}@db/kanchi?options=-c%20kanchi.broker%3D7");
            assert_eq!(existing(&url).password(), None, "{role}");
        }
    }

    #[test]
    fn passwords_are_long_and_differ() {
        assert_ne!(new_password(), new_password());
        assert_eq!(new_password().expose().len(), PASSWORD_CHARACTERS);
    }
}
