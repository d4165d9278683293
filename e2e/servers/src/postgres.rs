//! A real Postgres for tests: its own data directory, a free port, gone when dropped.
//!
//! Postgres refuses to run as root; a test run as root starts it as the machine's `postgres` user (or `nobody`).

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::disk::SmallDisk;
use crate::{child, free_port};

/// How the server is started.
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    /// Write to disk for real; off, it is several times faster and loses data when the machine dies, not when it is killed.
    pub fsync: bool,
    /// Certificate and key (PEM): the server then takes TLS, and refuses TCP connections without it.
    pub tls: Option<(String, String)>,
    /// More settings, as in `postgresql.conf`.
    pub settings: Vec<(String, String)>,
    /// MiB of a disk of its own, which can be filled.
    pub disk: Option<u32>,
}

/// A running (or stopped) Postgres.
#[derive(Debug)]
pub struct Postgres {
    // Before the folder that it lies in: unmounted first.
    disk: Option<SmallDisk>,
    directory: TempDir,
    port: u16,
    user: Option<String>,
    running: bool,
}

/// Superuser of the server.
pub const SUPERUSER: &str = "postgres";
/// The superuser's password: tests log in with passwords, as clusters do.
pub const SUPERUSER_PASSWORD: &str = "superuser-of-a-test";

impl Postgres {
    /// Starts a server that does not sync to disk, without TLS.
    pub fn start_new() -> Result<Self> {
        Self::with(&PostgresOptions::default())
    }

    /// Starts a server.
    pub fn with(options: &PostgresOptions) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("kanchi-pg-")
            .tempdir()
            .context("no temporary folder")?;
        let data = directory.path().join("data");
        let mut server = Self {
            disk: options.disk.map(|size| SmallDisk::mount(&data, size)).transpose()?,
            directory,
            port: free_port()?,
            user: server_user(),
            running: false,
        };
        fs::set_permissions(server.directory.path(), fs::Permissions::from_mode(0o755))?;
        server.initialise(options)?;
        server.start()?;
        Ok(server)
    }

    /// Returns the port; it stays the same over [`Self::stop`] and [`Self::start`].
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the process id of the server, whose children are its backends; 0 while it is stopped.
    pub fn pid(&self) -> u32 {
        let text = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        text.lines()
            .next()
            .and_then(|line| line.trim().parse().ok())
            .unwrap_or(0)
    }

    /// Returns the URL of a database for the superuser.
    pub fn url(&self, database: &str) -> String {
        self.url_of(SUPERUSER, SUPERUSER_PASSWORD, database)
    }

    /// Returns the URL of a database for any role.
    pub fn url_of(&self, role: &str, password: &str, database: &str) -> String {
        format!("postgres://{role}:{password}@127.0.0.1:{}/{database}", self.port)
    }

    /// Creates a database owned by a new role of the same name that may create roles, as an installation's is, and
    /// returns that role's URL.
    pub fn create_installation(&self, name: &str) -> Result<String> {
        self.sql(
            "postgres",
            &format!("create role {name} login createrole password 'owner-of-a-test'"),
        )?;
        self.sql("postgres", &format!("create database {name} owner {name}"))?;
        Ok(self.url_of(name, "owner-of-a-test", name))
    }

    /// Runs SQL as the superuser through `psql` and returns what it prints: rows as lines, columns separated by `|`.
    pub fn sql(&self, database: &str, sql: &str) -> Result<String> {
        self.sql_at(&self.url(database), sql)
    }

    /// Runs SQL at a URL, as any role, like [`Self::sql`].
    pub fn sql_at(&self, url: &str, sql: &str) -> Result<String> {
        let output = Command::new(tool("psql")?)
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql, url])
            .stdin(Stdio::null())
            .output()
            .context("psql did not start")?;
        Ok(checked("psql", &output)?.trim_end().to_owned())
    }

    /// Stops the server at once, ending all sessions: an outage. Data stays.
    pub fn stop(&mut self) -> Result<()> {
        self.stop_in("fast")
    }

    /// Kills the server without a checkpoint: a crash. Data that was synced stays.
    pub fn crash(&mut self) -> Result<()> {
        self.stop_in("immediate")
    }

    /// Starts the server again on the same port and data.
    pub fn start(&mut self) -> Result<()> {
        let data = self.data();
        let log = self.directory.path().join("log");
        let options = format!("-p {}", self.port);
        let output = self
            .command("pg_ctl")?
            .args(["start", "-w", "-t", "60", "-D"])
            .args([
                data.as_os_str(),
                OsStr::new("-l"),
                log.as_os_str(),
                OsStr::new("-o"),
                OsStr::new(&options),
            ])
            // The server inherits these: with pipes, waiting for the output would be waiting for the server.
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .context("pg_ctl did not start")?;
        ensure!(output.success(), "postgres did not start:\n{}", self.log());
        self.running = true;
        self.wait_until_ready()
    }

    /// Returns the disk that was asked for.
    pub fn disk(&self) -> Option<&SmallDisk> {
        self.disk.as_ref()
    }

    /// Says whether the server still runs; a full disk can end it.
    pub fn is_running(&self) -> bool {
        let pid = self.pid();
        pid != 0 && Path::new("/proc").join(pid.to_string()).exists()
    }

    /// Freezes the server and its sessions: connections stay open and nothing answers.
    pub fn freeze(&self) -> Result<()> {
        // The server first, so that no session begins meanwhile.
        child::signal("STOP", &[self.pid()])?;
        child::signal("STOP", &child::children(self.pid()))
    }

    /// Ends a freeze.
    pub fn thaw(&self) -> Result<()> {
        child::signal("CONT", &child::children(self.pid()))?;
        child::signal("CONT", &[self.pid()])
    }

    /// Returns the server's log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    fn stop_in(&mut self, mode: &str) -> Result<()> {
        if self.running {
            self.running = false;
            let data = self.data();
            let mut command = self.command("pg_ctl")?;
            let output = command
                .args(["stop", "-w", "-m", mode, "-D"])
                .arg(&data)
                .stdin(Stdio::null())
                .output()?;
            checked("pg_ctl stop", &output)?;
        }
        Ok(())
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn initialise(&self, options: &PostgresOptions) -> Result<()> {
        if let Some(user) = &self.user {
            run(Command::new("chown").arg(user).arg(self.directory.path()))?;
            if self.disk.is_some() {
                run(Command::new("chown").arg(user).arg(self.data()))?;
            }
        }
        let password_file = self.directory.path().join("password");
        fs::write(&password_file, SUPERUSER_PASSWORD)?;
        fs::set_permissions(&password_file, fs::Permissions::from_mode(0o644))?;
        let data = self.data();
        let mut initdb = self.command("initdb")?;
        initdb
            .args([
                "--no-sync",
                "--encoding=UTF8",
                "--locale=C",
                "--auth=scram-sha-256",
                "-U",
                SUPERUSER,
            ])
            .arg(format!("--pwfile={}", password_file.display()))
            .arg("-D")
            .arg(&data);
        run(&mut initdb)?;
        self.configure(options)
    }

    fn configure(&self, options: &PostgresOptions) -> Result<()> {
        let data = self.data();
        let on = if options.fsync { "on" } else { "off" };
        let mut lines = vec![
            "listen_addresses = '127.0.0.1'".to_owned(),
            format!("unix_socket_directories = '{}'", self.directory.path().display()),
            format!("fsync = {on}"),
            format!("full_page_writes = {on}"),
            "password_encryption = 'scram-sha-256'".to_owned(),
            "timezone = 'UTC'".to_owned(),
        ];
        if let Some((certificate, key)) = &options.tls {
            self.own_file(&data.join("server.crt"), certificate)?;
            self.own_file(&data.join("server.key"), key)?;
            lines.push("ssl = on".to_owned());
            self.own_file(
                &data.join("pg_hba.conf"),
                "local all all scram-sha-256\nhostssl all all all scram-sha-256\n",
            )?;
        }
        lines.extend(
            options
                .settings
                .iter()
                .map(|(name, value)| format!("{name} = '{value}'")),
        );
        let path = data.join("postgresql.conf");
        let mut text = fs::read_to_string(&path)?;
        text.push_str(&lines.join("\n"));
        text.push('\n');
        self.own_file(&path, &text)
    }

    /// Writes a file that the server's user owns and no one else reads.
    fn own_file(&self, path: &Path, text: &str) -> Result<()> {
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        match &self.user {
            Some(user) => run(Command::new("chown").arg(user).arg(path)),
            None => Ok(()),
        }
    }

    fn command(&self, name: &str) -> Result<Command> {
        let path = tool(name)?;
        let mut command = match &self.user {
            Some(user) => {
                let mut command = Command::new("setpriv");
                command
                    .args(["--reuid", user, "--regid", &group_of(user)?, "--clear-groups"])
                    .arg(path);
                command
            }
            None => Command::new(path),
        };
        // The server's user may not enter the caller's folder.
        command.current_dir(self.directory.path());
        Ok(command)
    }

    fn wait_until_ready(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.sql("postgres", "select 1").is_err() {
            ensure!(
                Instant::now() < deadline,
                "postgres takes no connection:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // `immediate`: the data is thrown away anyway. Nothing to report to: a failure leaves a stray process.
        drop(self.stop_in("immediate"));
    }
}

fn checked(what: &str, output: &Output) -> Result<String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    bail!("{what} failed: {}{text}", String::from_utf8_lossy(&output.stderr))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{command:?} did not start"))?;
    checked(&format!("{command:?}"), &output).map(drop)
}

/// Returns the user to run the server as, when this process is root.
fn server_user() -> Option<String> {
    let exists = |name: &str| group_of(name).is_ok();
    child::is_root().then(|| {
        ["postgres", "nobody"]
            .into_iter()
            .find(|name| exists(name))
            .unwrap_or("nobody")
            .to_owned()
    })
}

fn group_of(user: &str) -> Result<String> {
    let passwd = fs::read_to_string("/etc/passwd").context("no /etc/passwd")?;
    let line = passwd.lines().find(|line| line.split(':').next() == Some(user));
    let group = line
        .and_then(|line| line.split(':').nth(3))
        .with_context(|| format!("no user {user}"))?;
    Ok(group.to_owned())
}

/// Finds a Postgres program: `PG_BIN`, then Debian's folders (newest first), then `PATH`.
fn tool(name: &str) -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("PG_BIN") {
        return Ok(PathBuf::from(folder).join(name));
    }
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            Some((
                entry.file_name().to_str()?.parse().ok()?,
                entry.path().join("bin").join(name),
            ))
        })
        .filter(|(_, path)| path.exists())
        .collect();
    versions.sort();
    if let Some((_, path)) = versions.pop() {
        return Ok(path);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.exists())
        .with_context(|| format!("{name} is not installed (Debian: apt-get install postgresql), and PG_BIN is not set"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_its_data_over_an_outage_and_ends_when_dropped() {
        let mut server = Postgres::start_new().unwrap();
        let port = server.port();
        server.create_installation("kanchi").unwrap();
        server.sql("kanchi", "create table t as select 1 as n").unwrap();
        server.stop().unwrap();
        assert!(server.sql("kanchi", "select 1").is_err());
        server.start().unwrap();
        assert_eq!(server.sql("kanchi", "select n from t").unwrap(), "1");
        drop(server);
        assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    }
}
