//! Broker URLs as Celery reads them: pure parsing, credentials redacted.
//!
//! The rules are those of kombu's `parse_url` (Python's `urlparse`), not those of browsers: user, password and virtual host
//! are percent-decoded, `amqp://h`, `amqp://h/`, `amqp://h//` and `amqp://h/%2F` all mean virtual host `/`. The operator
//! uses this for transport, endpoint and refusal; the monitor for connecting. Nothing here ever prints a credential: errors
//! name the rule that was broken, not the text that broke it.

use std::fmt;

/// Why a broker URL was refused. No variant carries text of the URL except its scheme.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokerUrlError {
    /// Nothing but white space.
    #[error("failed to read the broker URL: it is empty")]
    Empty,
    /// No `scheme://`.
    #[error("failed to read the broker URL: it has no scheme such as amqp:// or redis://")]
    NoScheme,
    /// A transport that this release does not speak.
    #[error(
        "failed to read the broker URL: transport {0:?} is not supported; use amqp, amqps, pyamqp, redis or rediss"
    )]
    UnsupportedScheme(String),
    /// `A;B` lists of servers.
    #[error("failed to read the broker URL: lists of servers separated by ; are not supported; name one")]
    ServerList,
    /// No host.
    #[error("failed to read the broker URL: it has no host")]
    NoHost,
    /// Not a port number.
    #[error("failed to read the broker URL: its port is not a number between 1 and 65535")]
    BadPort,
    /// Not UTF-8 once percent-decoded.
    #[error("failed to read the broker URL: its percent-encoding does not give UTF-8 text; write a literal % as %25")]
    BadEncoding,
    /// The database of a Redis URL.
    #[error("failed to read the broker URL: the Redis database is not a number")]
    BadDatabase,
    /// `ssl_cert_reqs`.
    #[error("failed to read the broker URL: ssl_cert_reqs must be CERT_NONE, CERT_OPTIONAL or CERT_REQUIRED")]
    BadCertReqs,
    /// White space or a control character.
    #[error("failed to read the broker URL: it contains white space or a control character")]
    BadCharacter,
}

impl BrokerUrlError {
    /// Returns which rule was broken, for a URL that is not a broker's.
    pub fn rule(&self) -> String {
        let text = self.to_string();
        text.strip_prefix("failed to read the broker URL: ")
            .unwrap_or(&text)
            .to_owned()
    }
}

/// A family of brokers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// AMQP 0-9-1: RabbitMQ.
    Amqp,
    /// Redis or one of its kin.
    Redis,
}

impl Transport {
    /// Returns the name shown to people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Amqp => "RabbitMQ",
            Self::Redis => "Redis",
        }
    }
}

/// How the server's certificate is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verification {
    /// Chain and host name, the default.
    Full,
    /// Not at all: `ssl_cert_reqs=CERT_NONE`.
    None,
}

/// Whether the connection is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encryption {
    /// Plain TCP.
    Plain,
    /// TLS.
    Tls(Verification),
}

/// A broker's URL, taken apart. `Debug` and `Display` redact the credentials.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct BrokerUrl {
    scheme: String,
    transport: Transport,
    encryption: Encryption,
    host: String,
    port: u16,
    username: Option<String>,
    password: Option<String>,
    vhost: String,
    database: u32,
}

impl BrokerUrl {
    /// Parses a URL; white space around it is ignored, as files often end in a newline.
    pub fn parse(text: &str) -> Result<Self, BrokerUrlError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(BrokerUrlError::Empty);
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(BrokerUrlError::BadCharacter);
        }
        let (scheme, rest) = text.split_once("://").ok_or(BrokerUrlError::NoScheme)?;
        let scheme = scheme.to_ascii_lowercase();
        let (transport, tls) = match scheme.as_str() {
            "amqp" | "pyamqp" => (Transport::Amqp, false),
            "amqps" => (Transport::Amqp, true),
            "redis" => (Transport::Redis, false),
            "rediss" => (Transport::Redis, true),
            other => return Err(BrokerUrlError::UnsupportedScheme(printable_scheme(other))),
        };
        if rest.contains(";amqp") || rest.contains(";pyamqp") || rest.contains(";redis") {
            return Err(BrokerUrlError::ServerList);
        }
        let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (userinfo, server) = authority
            .rsplit_once('@')
            .map_or((None, authority), |(user, server)| (Some(user), server));
        let (username, password) = credentials(userinfo)?;
        let default_port = match (transport, tls) {
            (Transport::Amqp, false) => 5672,
            (Transport::Amqp, true) => 5671,
            (Transport::Redis, _) => 6379,
        };
        let (host, port) = host_and_port(server, default_port)?;
        let path = decode(path)?;
        let (vhost, database) = match transport {
            Transport::Amqp if path.is_empty() => ("/".to_owned(), 0),
            Transport::Amqp => (path, 0),
            Transport::Redis => (String::new(), database(&path)?),
        };
        let encryption = if tls {
            Encryption::Tls(verification(query)?)
        } else {
            Encryption::Plain
        };
        Ok(Self {
            scheme,
            transport,
            encryption,
            host,
            port,
            username,
            password,
            vhost,
            database,
        })
    }

    /// Returns the scheme as written, in lower case.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// Returns which protocol is spoken.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// Returns whether and how the connection is encrypted.
    pub fn encryption(&self) -> Encryption {
        self.encryption
    }

    /// Returns the host, without brackets if it is an IPv6 address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the port, the scheme's default if none was written.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the user name, decoded; a secret's neighbour, so never log it.
    pub fn username(&self) -> Option<&str> {
        self.username.as_deref()
    }

    /// Returns the password, decoded.
    pub fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// Returns the virtual host of RabbitMQ, empty for Redis.
    pub fn vhost(&self) -> &str {
        &self.vhost
    }

    /// Returns the database of Redis, 0 for RabbitMQ.
    pub fn database(&self) -> u32 {
        self.database
    }

    /// Returns where the broker is, without credentials: `host:port`, then `/vhost` unless that is the default one, or
    /// `/db`. Two URLs with equal endpoints and transports mean the same broker.
    pub fn endpoint(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.to_ascii_lowercase()
        };
        match self.transport {
            Transport::Amqp if self.vhost == "/" => format!("{host}:{}", self.port),
            Transport::Amqp => format!("{host}:{}/{}", self.port, self.vhost),
            Transport::Redis => format!("{host}:{}/{}", self.port, self.database),
        }
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let credentials = if self.username.is_some() || self.password.is_some() {
            "<redacted>@"
        } else {
            ""
        };
        write!(f, "{}://{credentials}{}", self.scheme, self.endpoint())
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BrokerUrl({self})")
    }
}

/// A scheme is shown in messages; what stands before `://` may be anything if somebody pasted a password there.
fn printable_scheme(scheme: &str) -> String {
    let harmless = scheme.len() <= 20
        && scheme
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    if harmless {
        scheme.to_owned()
    } else {
        "<unreadable>".to_owned()
    }
}

fn credentials(userinfo: Option<&str>) -> Result<(Option<String>, Option<String>), BrokerUrlError> {
    let Some(userinfo) = userinfo else {
        return Ok((None, None));
    };
    let (user, password) = match userinfo.split_once(':') {
        Some((user, password)) => (user, Some(decode(password)?)),
        None => (userinfo, None),
    };
    let user = decode(user)?;
    Ok(((!user.is_empty()).then_some(user), password.filter(|p| !p.is_empty())))
}

fn host_and_port(server: &str, default: u16) -> Result<(String, u16), BrokerUrlError> {
    let (host, port) = if let Some(rest) = server.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or(BrokerUrlError::NoHost)?;
        (host, after.strip_prefix(':'))
    } else {
        server
            .split_once(':')
            .map_or((server, None), |(host, port)| (host, Some(port)))
    };
    if host.is_empty() {
        return Err(BrokerUrlError::NoHost);
    }
    let port = match port {
        None | Some("") => default,
        Some(text) => text
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or(BrokerUrlError::BadPort)?,
    };
    Ok((decode(host)?, port))
}

fn database(path: &str) -> Result<u32, BrokerUrlError> {
    let path = path.trim_matches('/');
    if path.is_empty() {
        Ok(0)
    } else {
        path.parse().ok().ok_or(BrokerUrlError::BadDatabase)
    }
}

/// `ssl_ca_certs` and its kin name files in the application's own pods; here certificates come from the configuration.
fn verification(query: &str) -> Result<Verification, BrokerUrlError> {
    let Some(value) = query.split('&').find_map(|pair| pair.strip_prefix("ssl_cert_reqs=")) else {
        return Ok(Verification::Full);
    };
    match decode(value)?.to_ascii_uppercase().trim_start_matches("CERT_") {
        "REQUIRED" | "OPTIONAL" => Ok(Verification::Full),
        "NONE" => Ok(Verification::None),
        _ => Err(BrokerUrlError::BadCertReqs),
    }
}

/// As Python's `unquote`: a `%` that two hexadecimal digits do not follow stands for itself.
fn decode(text: &str) -> Result<String, BrokerUrlError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if let (b'%', [high, low, tail @ ..]) = (byte, after)
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            bytes.push(high << 4 | low);
            rest = tail;
        } else {
            bytes.push(byte);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok().ok_or(BrokerUrlError::BadEncoding)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> BrokerUrl {
        BrokerUrl::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn every_way_to_write_the_default_virtual_host_means_it() {
        for text in [
            "amqp://h",
            "amqp://h/",
            "amqp://h//",
            "amqp://h/%2F",
            "amqp://h/%2f",
            "pyamqp://h",
        ] {
            assert_eq!(parse(text).vhost(), "/", "{text}");
            assert_eq!(parse(text).endpoint(), "h:5672", "{text}");
        }
        assert_eq!(parse("amqp://h/shop").vhost(), "shop");
        assert_eq!(parse("amqp://h//shop").vhost(), "/shop");
        assert_eq!(parse("amqp://h/a%2Fb").endpoint(), "h:5672/a/b");
    }

    #[test]
    fn credentials_and_virtual_host_are_percent_decoded() {
        let url = parse("amqps://us%40er:p%3Aa%2Fs%25s@Rabbit.shop:5671/v%20h\n");
        assert_eq!((url.username(), url.password()), (Some("us@er"), Some("p:a/s%s")));
        assert_eq!(url.vhost(), "v h");
        assert_eq!(url.encryption(), Encryption::Tls(Verification::Full));
        assert_eq!(url.endpoint(), "rabbit.shop:5671/v h");
        assert_eq!(parse("amqp://u:a@b@h").password(), Some("a@b"));
        assert_eq!(parse("amqp://u:50%off@h").password(), Some("50%off"));
    }

    #[test]
    fn redis_urls_have_an_optional_user_a_database_and_tls_parameters() {
        let url = parse("redis://:secret@cache/5");
        assert_eq!(
            (url.username(), url.password(), url.database(), url.port()),
            (None, Some("secret"), 5, 6379)
        );
        assert_eq!(url.endpoint(), "cache:6379/5");
        assert_eq!(parse("redis://h/").database(), 0);
        assert_eq!(parse("redis://acl:pw@h").username(), Some("acl"));
        for (query, expected) in [
            ("", Verification::Full),
            ("?ssl_cert_reqs=CERT_NONE", Verification::None),
            ("?ssl_cert_reqs=none", Verification::None),
            ("?ssl_cert_reqs=required&ssl_ca_certs=/etc/ca.pem", Verification::Full),
        ] {
            assert_eq!(
                parse(&format!("rediss://h:6380/0{query}")).encryption(),
                Encryption::Tls(expected),
                "{query}"
            );
        }
        assert_eq!(parse("redis://[::1]:7000/1").endpoint(), "[::1]:7000/1");
    }

    #[test]
    fn refusals_say_what_is_wrong_and_never_repeat_the_password() {
        for (text, expected) in [
            ("", BrokerUrlError::Empty),
            ("hunter2", BrokerUrlError::NoScheme),
            ("kafka://h", BrokerUrlError::UnsupportedScheme("kafka".into())),
            (
                "sentinel://:hunter2@h;sentinel://i",
                BrokerUrlError::UnsupportedScheme("sentinel".into()),
            ),
            (
                "redis+socket:///tmp/s",
                BrokerUrlError::UnsupportedScheme("redis+socket".into()),
            ),
            ("amqp://u:hunter2@a;amqp://u:hunter2@b", BrokerUrlError::ServerList),
            ("amqp://u:hunter2@", BrokerUrlError::NoHost),
            ("amqp://u:hunter2@h:99999", BrokerUrlError::BadPort),
            ("amqp://u:hunter2%ff@h", BrokerUrlError::BadEncoding),
            ("redis://:hunter2@h/x", BrokerUrlError::BadDatabase),
            ("rediss://:hunter2@h?ssl_cert_reqs=maybe", BrokerUrlError::BadCertReqs),
            ("amqp://u:hunter 2@h", BrokerUrlError::BadCharacter),
        ] {
            let error = BrokerUrl::parse(text).unwrap_err();
            assert_eq!(error, expected, "{text}");
            assert!(!error.to_string().contains("hunter"), "{error}");
        }
    }

    #[test]
    fn debug_and_display_redact_user_and_password() {
        let url = parse("amqp://canaryuser:canarypass@h/v");
        for shown in [format!("{url}"), format!("{url:?}"), format!("{url:#?}")] {
            assert!(!shown.contains("canary"), "{shown}");
            assert!(shown.contains("<redacted>@h:5672/v"), "{shown}");
        }
        assert_eq!(parse("redis://h").to_string(), "redis://h:6379/0");
    }
}
