//! Where Postgres is, and who asks: a URL whose secret parts never show.

use std::fmt;
use std::str::FromStr;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

use crate::error::{Error, ErrorKind, Result};

/// A Postgres URL with its password, and the certificate authorities to trust.
///
/// `Debug` and `Display` show neither password nor query parameters.
#[derive(Clone)]
pub struct StoreUrl {
    url: Url,
    ca_pem: Option<Vec<u8>>,
}

impl StoreUrl {
    /// Parses `postgres://user:password@host:port/database?sslmode=verify-full`.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |why: &str| Error::new(ErrorKind::Invalid, "parse the store URL", why);
        let url = Url::parse(text.trim()).map_err(|error| invalid(&error.to_string()))?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(invalid("the scheme is neither postgres nor postgresql"));
        }
        if url.username().is_empty() {
            return Err(invalid("no user name"));
        }
        if url.path().trim_matches('/').is_empty() {
            return Err(invalid("no database name"));
        }
        Ok(Self { url, ca_pem: None })
    }

    /// Trusts these certificate authorities (PEM); the server's name is then verified unless the URL says otherwise.
    #[must_use]
    pub fn with_ca(mut self, pem: Vec<u8>) -> Self {
        self.ca_pem = Some(pem);
        self
    }

    /// Returns the same server and database for another role.
    pub fn for_role(&self, role: &str, password: &str) -> Result<Self> {
        let mut other = self.clone();
        // The one character that the URL would not encode.
        let password = password.replace('%', "%25");
        let done = other
            .url
            .set_username(role)
            .and_then(|()| other.url.set_password(Some(&password)));
        done.map_err(|()| Error::new(ErrorKind::Invalid, "write a store URL", "the URL takes no credentials"))?;
        Ok(other)
    }

    /// Returns the same database, role and password at another address: pods may know the server by another name.
    pub fn with_address(&self, host: &str, port: Option<u16>) -> Result<Self> {
        let mut other = self.clone();
        let failed = |why: &str| Error::new(ErrorKind::Invalid, "write a store URL", why);
        other
            .url
            .set_host(Some(host))
            .map_err(|error| failed(&error.to_string()))?;
        other
            .url
            .set_port(port.or(self.url.port()))
            .map_err(|()| failed("the URL takes no port"))?;
        Ok(other)
    }

    /// Returns the same URL with a setting that each connection has from its start.
    pub(crate) fn with_setting(&self, name: &str, value: &str) -> Self {
        let mut options = format!("-c {name}={value}");
        let mut pairs = Vec::new();
        for (key, before) in self.url.query_pairs() {
            match key.as_ref() {
                // The last one of a name wins.
                "options" => options = format!("{before} {options}"),
                _ => pairs.push((key.into_owned(), before.into_owned())),
            }
        }
        pairs.push(("options".to_owned(), options));
        let mut other = self.clone();
        set_query(&mut other.url, &pairs);
        other
    }

    /// Returns the URL with its password, to be written into a Secret and nowhere else.
    pub fn expose(&self) -> &str {
        self.url.as_str()
    }

    /// Returns the certificate authorities that were set.
    pub fn ca(&self) -> Option<&[u8]> {
        self.ca_pem.as_deref()
    }

    /// Returns `host:port/database`: where, without who.
    pub fn endpoint(&self) -> String {
        let host = self.url.host_str().unwrap_or("localhost");
        format!("{host}:{}{}", self.url.port().unwrap_or(5432), self.url.path())
    }

    /// Returns the role that this URL logs in as.
    pub fn role(&self) -> &str {
        self.url.username()
    }

    pub(crate) fn connect_options(&self, application: &str) -> Result<PgConnectOptions> {
        let mut options = PgConnectOptions::from_str(self.url.as_str())
            .map_err(|error| Error::new(ErrorKind::Invalid, "read the store URL", error.to_string()))?
            .application_name(application);
        if let Some(pem) = &self.ca_pem {
            options = options.ssl_root_cert_from_pem(pem.clone());
            if !self
                .url
                .query_pairs()
                .any(|(key, _)| key == "sslmode" || key == "ssl-mode")
            {
                options = options.ssl_mode(PgSslMode::VerifyFull);
            }
        }
        Ok(options)
    }
}

/// Writes query parameters into a Postgres URL: libpq, unlike a web form, takes no plus sign for a blank.
pub fn set_query(url: &mut Url, pairs: &[(String, String)]) {
    if pairs.is_empty() {
        url.set_query(None);
        return;
    }
    url.query_pairs_mut().clear().extend_pairs(pairs);
    let written = url.query().map(|query| query.replace('+', "%20"));
    url.set_query(written.as_deref());
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "postgres://<redacted>@{}", self.endpoint())
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialEq for StoreUrl {
    fn eq(&self, other: &Self) -> bool {
        self.url == other.url && self.ca_pem == other.ca_pem
    }
}

impl Eq for StoreUrl {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_shows_the_password() {
        let url = StoreUrl::parse("postgres://kanchi:canary@db:5433/kanchi?sslpassword=canary").unwrap();
        assert_eq!(
            format!("{url} {url:?}"),
            "postgres://<redacted>@db:5433/kanchi postgres://<redacted>@db:5433/kanchi"
        );
    }

    #[test]
    fn a_password_with_every_special_character_survives() {
        let url = StoreUrl::parse("postgres://kanchi:x@db/kanchi").unwrap();
        let other = url.for_role("kanchi_m_1", "a/b@c:d?e#f%g h").unwrap();
        let again = StoreUrl::parse(other.expose()).unwrap();
        assert_eq!(again, other);
        assert_eq!(other.role(), "kanchi_m_1");
        let encoded = url.for_role("kanchi_m_1", "%41+").unwrap();
        assert_eq!(encoded.expose(), "postgres://kanchi_m_1:%2541+@db/kanchi");
    }

    #[test]
    fn a_setting_joins_the_options_that_are_there() {
        let url = StoreUrl::parse("postgres://kanchi:x@db/kanchi?options=-c%20jit=off&sslmode=require").unwrap();
        assert_eq!(
            url.with_setting("kanchi.broker", "42").expose(),
            "postgres://kanchi:x@db/kanchi?sslmode=require&options=-c%20jit%3Doff%20-c%20kanchi.broker%3D42"
        );
        let url = StoreUrl::parse("postgres://kanchi:x@db/kanchi").unwrap();
        assert_eq!(
            url.with_setting("kanchi.broker", "42").expose(),
            "postgres://kanchi:x@db/kanchi?options=-c%20kanchi.broker%3D42"
        );
    }

    #[test]
    fn refuses_what_is_no_postgres_url() {
        for text in ["", "redis://a@b/c", "postgres://host/db", "postgres://user@host"] {
            assert_eq!(StoreUrl::parse(text).unwrap_err().kind(), ErrorKind::Invalid, "{text}");
        }
    }
}
