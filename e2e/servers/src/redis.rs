//! A real Redis for tests: a free port, a temporary folder, gone when dropped. Data stays over a restart.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::certificates::Certificates;
use crate::child::{Group, wait_until_answering};
use crate::free_port;

/// How the server is started.
#[derive(Clone, Debug, Default)]
pub struct RedisOptions {
    /// Password of the default user.
    pub password: Option<String>,
    /// More users, as in `user <this>` of redis.conf, for example `monitor on >secret +@all ~* &*`.
    pub users: Vec<String>,
    /// TLS on a port of its own, beside the plain one.
    pub tls: Option<Arc<Certificates>>,
    /// Whether clients must show a certificate.
    pub client_certificates: ClientCertificates,
    /// More lines of redis.conf.
    pub settings: Vec<String>,
}

/// Whether clients must show a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificates {
    /// They need not.
    #[default]
    Optional,
    /// They must.
    Required,
}

/// A running (or stopped) Redis.
#[derive(Debug)]
pub struct Redis {
    directory: TempDir,
    port: u16,
    tls_port: u16,
    options: RedisOptions,
    group: Option<Group>,
}

impl Redis {
    /// Starts a server without password.
    pub fn start_new() -> Result<Self> {
        Self::with(RedisOptions::default())
    }

    /// Starts a server.
    pub fn with(options: RedisOptions) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("kanchi-redis-")
            .tempdir()
            .context("no temporary folder")?;
        let mut server = Self {
            directory,
            port: free_port()?,
            tls_port: free_port()?,
            options,
            group: None,
        };
        server.start()?;
        Ok(server)
    }

    /// Returns the process id of the server, or of the script that started it; 0 while it is stopped.
    pub fn pid(&self) -> u32 {
        self.group.as_ref().map_or(0, Group::pid)
    }

    /// Returns the port; it stays the same over [`Self::stop`] and [`Self::start`].
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the port for TLS.
    pub fn tls_port(&self) -> u16 {
        self.tls_port
    }

    /// Returns the URL of a database with the default user's password, if there is one.
    pub fn url(&self, database: u32) -> String {
        let password = self
            .options
            .password
            .as_deref()
            .map(|password| format!(":{password}@"))
            .unwrap_or_default();
        format!("redis://{password}127.0.0.1:{}/{database}", self.port)
    }

    /// Returns the URL of database 0 for an ACL user.
    pub fn url_of(&self, user: &str, password: &str) -> String {
        format!("redis://{user}:{password}@127.0.0.1:{}/0", self.port)
    }

    /// Returns the URL of database 0 over TLS.
    pub fn tls_url(&self) -> String {
        let password = self
            .options
            .password
            .as_deref()
            .map(|password| format!(":{password}@"))
            .unwrap_or_default();
        format!("rediss://{password}localhost:{}/0", self.tls_port)
    }

    /// Runs a command of `redis-cli` and returns what it prints.
    pub fn cli(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &self.port.to_string()]);
        if let Some(password) = &self.options.password {
            command.args(["--no-auth-warning", "-a", password]);
        }
        let output = command
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("redis-cli did not start")?;
        let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
        ensure!(
            output.status.success(),
            "redis-cli failed: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(text)
    }

    /// Returns the server's log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Stops the server; it saves its data.
    pub fn stop(&mut self) {
        if let Some(group) = self.group.take() {
            group.terminate(Duration::from_secs(10));
        }
    }

    /// Kills the server without a word.
    pub fn kill(&mut self) {
        self.group = None;
    }

    /// Freezes the server: connections stay open and nothing answers, as behind a broken network.
    pub fn freeze(&self) -> Result<()> {
        self.group.as_ref().context("not running")?.signal("STOP")
    }

    /// Ends a freeze.
    pub fn thaw(&self) -> Result<()> {
        self.group.as_ref().context("not running")?.signal("CONT")
    }

    /// Starts the server again on the same port and data.
    pub fn start(&mut self) -> Result<()> {
        let configuration = self.directory.path().join("redis.conf");
        std::fs::write(&configuration, self.configuration())?;
        let log = self.directory.path().join("log");
        let mut group = Group::start(Command::new("redis-server").arg(&configuration), self.directory.path())?;
        wait_until_answering(self.port, b"PING\r\n", Duration::from_secs(30), &mut group, &log)?;
        self.group = Some(group);
        Ok(())
    }

    fn configuration(&self) -> String {
        let mut lines = vec![
            "bind 127.0.0.1".to_owned(),
            format!("port {}", self.port),
            format!("dir {}", self.directory.path().display()),
            // Saved when stopped, not in between.
            "save 3600 1000000".to_owned(),
            "daemonize no".to_owned(),
        ];
        lines.extend(
            self.options
                .password
                .iter()
                .map(|password| format!("requirepass {password}")),
        );
        lines.extend(self.options.users.iter().map(|user| format!("user {user}")));
        if let Some(certificates) = &self.options.tls {
            let path = |name: &str| certificates.path(name).display().to_string();
            lines.push(format!("tls-port {}", self.tls_port));
            lines.push(format!("tls-cert-file {}", path("server.crt")));
            lines.push(format!("tls-key-file {}", path("server.key")));
            lines.push(format!("tls-ca-cert-file {}", path("ca.crt")));
            let required = self.options.client_certificates == ClientCertificates::Required;
            lines.push(format!(
                "tls-auth-clients {}",
                if required { "yes" } else { "optional" }
            ));
        }
        lines.extend(self.options.settings.iter().cloned());
        lines.join("\n") + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_its_data_over_a_restart_and_ends_when_dropped() {
        let mut server = Redis::with(RedisOptions {
            password: Some("pw".into()),
            ..RedisOptions::default()
        })
        .unwrap();
        let port = server.port();
        server.cli(&["SET", "k", "v"]).unwrap();
        server.stop();
        assert!(server.cli(&["GET", "k"]).is_err());
        server.start().unwrap();
        assert_eq!(server.cli(&["GET", "k"]).unwrap(), "v");
        drop(server);
        assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    }
}
