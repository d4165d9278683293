//! Ordinary commands on Redis, and what its errors mean.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisConnectionInfo, RedisError};
use tokio::task::AbortHandle;

use crate::net::{self, ConnectError};
use crate::report::ConnectReason;
use crate::spec::BrokerConnectSpec;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection with its driver, which ends with it.
pub(crate) struct Commands {
    pub(crate) connection: MultiplexedConnection,
    driver: AbortHandle,
}

impl Drop for Commands {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Commands {
    /// Connects, authenticates and selects the database.
    pub(crate) async fn open(spec: &BrokerConnectSpec, response: Duration) -> Result<Self, ConnectError> {
        let socket = net::connect(&spec.url, spec.tls.as_ref(), CONNECT_TIMEOUT).await?;
        let mut info = RedisConnectionInfo::default()
            .set_db(i64::from(spec.url.database()))
            // Not every ACL allows it, and it is of no use here.
            .set_skip_set_lib_name();
        if let Some(user) = spec.url.username() {
            info = info.set_username(user);
        }
        if let Some(password) = spec.url.password() {
            info = info.set_password(password);
        }
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(response));
        let opening = MultiplexedConnection::new_with_config(&info, socket, config);
        match tokio::time::timeout(CONNECT_TIMEOUT, opening).await {
            Ok(Ok((connection, driver))) => Ok(Self {
                connection,
                driver: tokio::spawn(driver).abort_handle(),
            }),
            Ok(Err(error)) => Err(failed(spec, &error)),
            Err(_elapsed) => Err(ConnectError::new(
                ConnectReason::Timeout,
                "no answer to the Redis handshake",
            )),
        }
    }
}

/// Says what an error of the redis crate means.
pub(crate) fn failed(spec: &BrokerConnectSpec, error: &RedisError) -> ConnectError {
    let reason = if error.is_timeout() {
        ConnectReason::Timeout
    } else if let Some(code) = error.code() {
        reason_of(&format!("{code} {}", error.detail().unwrap_or_default()))
    } else if error.kind() == redis::ErrorKind::AuthenticationFailed {
        ConnectReason::AuthenticationFailed
    } else if error.is_io_error() {
        ConnectReason::ConnectionLost
    } else {
        ConnectReason::ProtocolError
    };
    ConnectError::new(reason, redacted(spec, &error.to_string()))
}

/// Redis names the user in some of its replies.
pub(super) fn redacted(spec: &BrokerConnectSpec, text: &str) -> String {
    let mut text = text.to_owned();
    if let Some(user) = spec.url.username() {
        text = text.replace(&format!("User {user} "), "User <redacted> ");
    }
    match spec.url.password() {
        Some(password) if password.len() > 3 => text.replace(password, "<redacted>"),
        Some(_) | None => text,
    }
}

/// Says what an error reply of the server means, by its first word.
pub(super) fn reason_of(text: &str) -> ConnectReason {
    match text.split_whitespace().next().unwrap_or_default() {
        "NOAUTH" | "WRONGPASS" | "AUTH" => ConnectReason::AuthenticationFailed,
        "NOPERM" | "DENIED" => ConnectReason::AccessRefused,
        "LOADING" | "BUSY" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" => ConnectReason::BrokerUnavailable,
        "ERR" if text.contains("max number of clients") => ConnectReason::BrokerUnavailable,
        "ERR" if text.contains("AUTH") || text.contains("invalid password") => ConnectReason::AuthenticationFailed,
        "ERR" if text.contains("unknown command") => ConnectReason::NotImplemented,
        _other => ConnectReason::ProtocolError,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::spec;

    #[test]
    fn server_errors_become_reasons() {
        for (text, reason) in [
            ("NOAUTH Authentication required.", ConnectReason::AuthenticationFailed),
            (
                "WRONGPASS invalid username-password pair or user is disabled.",
                ConnectReason::AuthenticationFailed,
            ),
            (
                "ERR AUTH <password> called without any password configured",
                ConnectReason::AuthenticationFailed,
            ),
            ("ERR invalid password", ConnectReason::AuthenticationFailed),
            (
                "NOPERM this user has no permissions to access",
                ConnectReason::AccessRefused,
            ),
            (
                "LOADING Redis is loading the dataset in memory",
                ConnectReason::BrokerUnavailable,
            ),
            ("ERR max number of clients reached", ConnectReason::BrokerUnavailable),
        ] {
            assert_eq!(reason_of(text), reason, "{text}");
        }
    }

    #[test]
    fn neither_user_nor_password_is_repeated() {
        let shown = redacted(
            &spec("redis://eve:hunter2@h"),
            "NOPERM User eve has no permissions, hunter2",
        );
        assert_eq!(shown, "NOPERM User <redacted> has no permissions, <redacted>");
    }
}
