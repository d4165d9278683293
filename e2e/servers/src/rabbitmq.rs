//! A real RabbitMQ for tests: its own node, folders, ports and port mapper, gone when dropped. Data stays over a restart.
//!
//! Erlang's port mapper (`epmd`) is usually a daemon that outlives every node; here each server has its own, in the
//! foreground and on a port of its own, so that nothing is left behind and two test runs never meet.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::certificates::Certificates;
use crate::child::{Group, tail, wait_until_answering};
use crate::free_port;

/// A user and what it may do.
#[derive(Clone, Debug)]
pub struct RabbitmqUser {
    /// Name.
    pub name: String,
    /// Password.
    pub password: String,
    /// Virtual host, then regular expressions for configure, write and read.
    pub permissions: Vec<(String, [String; 3])>,
}

/// How the server is started. `guest`/`guest` may do everything on `/` and on all virtual hosts.
#[derive(Clone, Debug, Default)]
pub struct RabbitmqOptions {
    /// Virtual hosts besides `/`.
    pub vhosts: Vec<String>,
    /// Users besides `guest`.
    pub users: Vec<RabbitmqUser>,
    /// TLS on a port of its own, beside the plain one.
    pub tls: Option<Arc<Certificates>>,
    /// More lines of rabbitmq.conf.
    pub settings: Vec<String>,
}

/// A running (or stopped) RabbitMQ.
#[derive(Debug)]
pub struct Rabbitmq {
    directory: TempDir,
    node: String,
    port: u16,
    tls_port: u16,
    dist_port: u16,
    epmd_port: u16,
    epmd: Option<Group>,
    group: Option<Group>,
}

impl Rabbitmq {
    /// Starts a server with `guest`/`guest`.
    pub fn start_new() -> Result<Self> {
        Self::with(&RabbitmqOptions::default())
    }

    /// Starts a server.
    pub fn with(options: &RabbitmqOptions) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("kanchi-rabbit-")
            .tempdir()
            .context("no temporary folder")?;
        let node = format!("kanchi-{}@localhost", uuid::Uuid::new_v4().simple());
        let mut server = Self {
            directory,
            node,
            port: free_port()?,
            tls_port: free_port()?,
            dist_port: free_port()?,
            epmd_port: free_port()?,
            epmd: None,
            group: None,
        };
        server.configure(options)?;
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

    /// Returns the URL of `guest` on `/`.
    pub fn url(&self) -> String {
        self.url_of("guest", "guest", "%2F")
    }

    /// Returns a URL; the parts are percent-encoded by the caller.
    pub fn url_of(&self, user: &str, password: &str, vhost: &str) -> String {
        format!("amqp://{user}:{password}@127.0.0.1:{}/{vhost}", self.port)
    }

    /// Returns the URL of `guest` on `/` over TLS.
    pub fn tls_url(&self) -> String {
        format!("amqps://guest:guest@localhost:{}/%2F", self.tls_port)
    }

    /// Runs `rabbitmqctl` and returns what it prints.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.command("rabbitmqctl")?;
        let output = command
            .args(["-q", "-n", &self.node])
            .args(arguments)
            .stdin(Stdio::null())
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
        ensure!(
            output.status.success(),
            "rabbitmqctl failed: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(text)
    }

    /// Stops the server in good order.
    pub fn stop(&mut self) {
        if let Some(group) = self.group.take() {
            group.terminate(Duration::from_secs(30));
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

    /// Starts the server again on the same ports and data.
    pub fn start(&mut self) -> Result<()> {
        let log = self.path("log");
        if self.epmd.is_none() {
            let mut command = Command::new("epmd");
            command.args(["-port", &self.epmd_port.to_string(), "-address", "127.0.0.1"]);
            command.current_dir(self.directory.path());
            self.epmd = Some(Group::start(&mut command, self.directory.path())?);
        }
        let mut group = Group::start(&mut self.command("rabbitmq-server")?, self.directory.path())?;
        wait_until_answering(
            self.port,
            b"AMQP\x00\x00\x09\x01",
            Duration::from_mins(2),
            &mut group,
            &log,
        )?;
        self.group = Some(group);
        Ok(())
    }

    /// Whether the registry of quorum queues on disk has this queue; killed before, the server forgets it.
    pub fn has_registered(&self, queue: &str) -> bool {
        let registry = self
            .path("mnesia")
            .join(&self.node)
            .join("quorum")
            .join(&self.node)
            .join("names.dets");
        let bytes = fs::read(registry).unwrap_or_default();
        bytes
            .windows(queue.len().max(1))
            .any(|window| window == queue.as_bytes())
    }

    /// Returns the end of the server's log.
    pub fn log(&self) -> String {
        tail(&self.path("log"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, name: &str) -> Result<Command> {
        let mut command = Command::new(tool(name)?);
        command
            .env("HOME", self.directory.path())
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODENAME", &self.node)
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", self.port.to_string())
            .env("RABBITMQ_DIST_PORT", self.dist_port.to_string())
            .env("RABBITMQ_MNESIA_BASE", self.path("mnesia"))
            .env("RABBITMQ_LOG_BASE", self.path("logs"))
            .env("RABBITMQ_LOGS", "-")
            .env("RABBITMQ_CONFIG_FILE", self.path("rabbitmq"))
            .env("RABBITMQ_CONF_ENV_FILE", self.path("no-such-file"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", self.path("enabled_plugins"))
            // Two schedulers are enough, and busy waiting would take the processor from the code under test.
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none",
            )
            .current_dir(self.directory.path());
        Ok(command)
    }

    fn configure(&self, options: &RabbitmqOptions) -> Result<()> {
        fs::create_dir_all(self.path("mnesia"))?;
        fs::create_dir_all(self.path("logs"))?;
        fs::write(self.path("enabled_plugins"), "[].\n")?;
        fs::write(self.path("definitions.json"), definitions(options).to_string())?;
        let mut lines = vec![
            format!("listeners.tcp.default = 127.0.0.1:{}", self.port),
            format!("load_definitions = {}", self.path("definitions.json").display()),
            "loopback_users = none".to_owned(),
            // The machine may be full; that is not what is tested.
            "disk_free_limit.absolute = 1MB".to_owned(),
        ];
        if let Some(certificates) = &options.tls {
            let path = |name: &str| certificates.path(name).display().to_string();
            lines.push(format!("listeners.ssl.default = 127.0.0.1:{}", self.tls_port));
            lines.push(format!("ssl_options.cacertfile = {}", path("ca.crt")));
            lines.push(format!("ssl_options.certfile = {}", path("server.crt")));
            lines.push(format!("ssl_options.keyfile = {}", path("server.key")));
            lines.push("ssl_options.verify = verify_peer".to_owned());
        }
        lines.extend(options.settings.iter().cloned());
        fs::write(self.path("rabbitmq.conf"), lines.join("\n") + "\n").context("cannot write rabbitmq.conf")
    }
}

impl Drop for Rabbitmq {
    fn drop(&mut self) {
        // The node first: it would complain about a missing port mapper.
        self.group = None;
        self.epmd = None;
    }
}

fn definitions(options: &RabbitmqOptions) -> Value {
    let mut vhosts = vec!["/".to_owned()];
    vhosts.extend(options.vhosts.iter().cloned());
    let mut users = vec![json!({ "name": "guest", "password": "guest", "tags": "administrator" })];
    let mut permissions: Vec<Value> = vhosts
        .iter()
        .map(|vhost| permission("guest", vhost, ".*", ".*", ".*"))
        .collect();
    for user in &options.users {
        users.push(json!({ "name": user.name, "password": user.password, "tags": "" }));
        for (vhost, [configure, write, read]) in &user.permissions {
            permissions.push(permission(&user.name, vhost, configure, write, read));
        }
    }
    let vhosts: Vec<Value> = vhosts.iter().map(|name| json!({ "name": name })).collect();
    json!({ "users": users, "vhosts": vhosts, "permissions": permissions })
}

fn permission(user: &str, vhost: &str, configure: &str, write: &str, read: &str) -> Value {
    json!({ "user": user, "vhost": vhost, "configure": configure, "write": write, "read": read })
}

/// Finds a RabbitMQ script. Debian's own in `/usr/sbin` insist on the `rabbitmq` user and the system's folders.
fn tool(name: &str) -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("RABBITMQ_HOME") {
        return Ok(Path::new(&home).join("sbin").join(name));
    }
    fs::read_dir("/usr/lib/rabbitmq/lib")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("sbin").join(name))
        .find(|path| path.exists())
        .with_context(|| format!("{name} is not installed (Debian: apt-get install rabbitmq-server)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_its_data_over_a_restart_and_leaves_no_process_behind() {
        let options = RabbitmqOptions {
            vhosts: vec!["shop".into()],
            ..RabbitmqOptions::default()
        };
        let mut server = Rabbitmq::with(&options).unwrap();
        assert!(server.ctl(&["list_vhosts"]).unwrap().contains("shop"));
        server.ctl(&["add_vhost", "later"]).unwrap();
        server.stop();
        server.start().unwrap();
        assert!(server.ctl(&["list_vhosts"]).unwrap().contains("later"));
        // By where they work: a port that was freed may be another server's by now.
        let directory = server.directory.path().display().to_string();
        let processes = || {
            let all = fs::read_dir("/proc").unwrap().flatten();
            let places = all.filter_map(|process| fs::read_link(process.path().join("cwd")).ok());
            places
                .filter(|place| place.to_string_lossy().starts_with(&directory))
                .count()
        };
        assert!(processes() >= 2, "the node and its port mapper");
        drop(server);
        // Killed processes are gone in a moment, not at once.
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while processes() > 0 && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(processes(), 0);
    }
}
