//! A real monitor process on a real Postgres, and publishers that speak to real brokers.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use kanchi_contract::{
    Celery, EventQueue, EventQueueType, Identity, MonitorConfig, PayloadStore, Payloads, Queues, Retention, Workers,
    file,
};
use kanchi_domain::TaskRow;
use kanchi_store::{
    BrokerKey, BrokerSpec, PackedEvents, RetentionPolicy, StoreAdmin, StoreQuery, StoreUrl, UnixMicros,
};
use kanchi_test_servers::free_port;
use kanchi_test_servers::postgres::Postgres;

pub(crate) const PASSWORD: &str = "canary-password-of-a-monitor";

/// A Postgres with Kanchi's schema and one broker, which most tests speak of.
pub(crate) struct Rig {
    pub(crate) postgres: Postgres,
    broker: Registered,
}

/// A broker that is registered in the store, and the directory that its monitor has mounted.
pub(crate) struct Registered {
    pub(crate) config: MonitorConfig,
    pub(crate) key: BrokerKey,
    directory: tempfile::TempDir,
}

impl std::ops::Deref for Rig {
    type Target = Registered;

    fn deref(&self) -> &Registered {
        &self.broker
    }
}

impl std::ops::DerefMut for Rig {
    fn deref_mut(&mut self) -> &mut Registered {
        &mut self.broker
    }
}

impl Registered {
    /// Registers a broker and makes its role, as the operator does.
    pub(crate) async fn new(admin: &StoreAdmin, name: &str, broker_url: &str) -> Result<Self> {
        let spec = BrokerSpec {
            namespace_uid: "uid-of-shop".into(),
            namespace: "shop".into(),
            name: name.into(),
            display_name: None,
            retention: RetentionPolicy::default(),
        };
        let key = admin.ensure_broker(&spec).await?;
        let mode = admin.ensure_role(key, PASSWORD).await?;
        let url = admin.monitor_url(key, mode, PASSWORD)?;
        let broker = Self {
            config: config(key, name),
            key,
            directory: tempfile::tempdir()?,
        };
        std::fs::create_dir(broker.config_directory())?;
        broker.write(file::STORE_URL, url.expose())?;
        broker.write(file::BROKER_URL, broker_url)?;
        broker.write_config(|_| {})?;
        Ok(broker)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> Result<()> {
        // As the kubelet does it, a file is never seen half written.
        let path = self.config_directory().join(name);
        let partly = self.directory.path().join("partly");
        std::fs::write(&partly, text)?;
        Ok(std::fs::rename(partly, path)?)
    }

    pub(crate) fn write_config(&self, change: impl FnOnce(&mut MonitorConfig)) -> Result<()> {
        let mut config = self.config.clone();
        change(&mut config);
        self.write(file::CONFIG, &config.to_yaml()?)
    }

    pub(crate) fn config_directory(&self) -> std::path::PathBuf {
        self.directory.path().join("config")
    }

    pub(crate) fn monitor(&self, more: &[&str]) -> Result<MonitorProcess> {
        self.monitor_with_spool("spool", more)
    }

    /// Starts a monitor that has a spool of its own.
    pub(crate) fn monitor_with_spool(&self, name: &str, more: &[&str]) -> Result<MonitorProcess> {
        MonitorProcess::start(&self.config_directory(), &self.spool(name), more)
    }

    /// Returns the directory of a spool.
    pub(crate) fn spool(&self, name: &str) -> std::path::PathBuf {
        self.path(name)
    }

    /// Copies what the monitor has mounted, for another monitor that is to have other ways.
    pub(crate) fn copy_config(&self, name: &str) -> Result<()> {
        std::fs::create_dir(self.path(name))?;
        for entry in std::fs::read_dir(self.config_directory())? {
            let entry = entry?;
            std::fs::copy(entry.path(), self.path(name).join(entry.file_name()))?;
        }
        Ok(())
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }
}

impl Rig {
    pub(crate) async fn new(postgres: Postgres, broker_url: &str) -> Result<Self> {
        let owner = StoreUrl::parse(&postgres.create_installation("kanchi")?)?;
        let admin = StoreAdmin::connect(&owner).await?;
        admin.migrate().await?;
        let broker = Registered::new(&admin, "orders", broker_url).await?;
        std::fs::write(broker.directory.path().join("owner-url"), owner.expose())?;
        Ok(Self { postgres, broker })
    }

    /// Returns the store's URL for the owner of the schema, as the operator has it.
    pub(crate) fn owner(&self) -> Result<StoreUrl> {
        Ok(StoreUrl::parse(std::fs::read_to_string(self.owner_url())?.trim())?)
    }

    /// Returns a task as users see it now.
    pub(crate) async fn row(&self, id: &str) -> Result<Option<TaskRow>> {
        let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?;
        let found = StoreQuery::connect(&self.owner()?)
            .await?
            .task(None, id, UnixMicros(now))
            .await?;
        Ok(found.into_iter().next().map(|task| task.row))
    }

    fn owner_url(&self) -> std::path::PathBuf {
        self.directory.path().join("owner-url")
    }

    /// Runs `kanchi-monitor` as the schema's owner does; returns its log, and whether it went well.
    pub(crate) fn as_owner(&self, arguments: &[&str]) -> Result<(String, bool)> {
        let mut command = self.owner_command(arguments);
        let done = command
            .stderr(Stdio::inherit())
            .output()
            .context("run kanchi-monitor")?;
        Ok((String::from_utf8(done.stdout)?, done.status.success()))
    }

    /// Returns the command of a `kanchi-monitor` that is run as the schema's owner does.
    pub(crate) fn owner_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kanchi-monitor"));
        command
            .args(arguments)
            .arg("--database-url-file")
            .arg(self.owner_url())
            .stdin(Stdio::null());
        command
    }

    /// Runs SQL as the superuser.
    pub(crate) fn sql(&self, sql: &str) -> Result<String> {
        self.postgres.sql("kanchi", sql)
    }

    /// Returns how many events are stored.
    pub(crate) fn events(&self) -> Result<u64> {
        Ok(self
            .sql("select coalesce(sum(event_count), 0) from kanchi.event_chunk")?
            .trim()
            .parse()?)
    }

    /// Returns what is stored of tasks' events, in the order of storage: the task, its events as JSON. `only`: a condition.
    pub(crate) fn chunks(&self, only: &str) -> Result<Vec<(String, String)>> {
        let rows = self.sql(&format!(
            "select task_id, encode(events, 'hex') from kanchi.event_chunk where task_id is not null and {only} order by stored_at"
        ))?;
        rows.lines().map(chunk).collect()
    }

    /// Returns how many tasks are stored, live and settled, by state.
    pub(crate) fn tasks(&self) -> Result<String> {
        self.sql(
            "select string_agg(state || ':' || n, ' ' order by state) from (
                select state, count(*) n from (select state from kanchi.task_live union all select state from kanchi.task) t
                group by state) s",
        )
    }
}

fn chunk(row: &str) -> Result<(String, String)> {
    let (task, hex) = row.split_once('|').context("a row without events")?;
    let digits = hex.as_bytes().chunks(2).map(std::str::from_utf8);
    let bytes: Result<Vec<u8>> = digits.map(|two| Ok(u8::from_str_radix(two?, 16)?)).collect();
    let json = PackedEvents::from_stored(bytes?).unpack(Some(task))?;
    Ok((task.to_owned(), String::from_utf8(json)?))
}

fn config(key: BrokerKey, name: &str) -> MonitorConfig {
    MonitorConfig {
        broker: Identity {
            namespace: "shop".into(),
            name: name.into(),
        },
        broker_key: key.0,
        read_only: false,
        celery: Celery {
            event_exchange: "celeryev".into(),
            control_exchange: "celery".into(),
            enable_events: true,
            global_key_prefix: String::new(),
            event_queue: EventQueue {
                queue_type: EventQueueType::Classic,
                max_length_bytes: 1 << 30,
                expires_seconds: 86_400,
            },
        },
        result_backend: None,
        queues: Queues {
            include: vec!["celery".into()],
            sample_interval_seconds: 1,
        },
        workers: Workers {
            offline_after_seconds: 60,
            orphan_grace_seconds: 30,
        },
        payloads: Payloads {
            store: PayloadStore::Full,
            max_bytes: 65_536,
            redact_keys: vec![],
        },
        retention: Retention {
            succeeded_days: 14,
            failed_days: 30,
            events_days: 7,
            statistics_days: 365,
        },
        replicas: 1,
        log_level: "info".into(),
    }
}

/// What the image sets: memory is measured as users have it.
fn image_environment() -> impl Iterator<Item = (&'static str, &'static str)> {
    let lines = include_str!("../../Dockerfile").lines();
    let settings = lines
        .filter_map(|line| line.strip_prefix("ENV "))
        .flat_map(str::split_whitespace);
    settings.filter_map(|setting| setting.split_once('='))
}

/// A running `kanchi-monitor run`; killed when dropped.
pub(crate) struct MonitorProcess {
    child: Child,
    admin: SocketAddr,
    log: std::path::PathBuf,
}

impl MonitorProcess {
    pub(crate) fn start(config: &Path, spool: &Path, more: &[&str]) -> Result<Self> {
        let admin = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let log = config.with_file_name(format!("log-{}", admin.port()));
        let child = Command::new(env!("CARGO_BIN_EXE_kanchi-monitor"))
            .envs(image_environment())
            .arg("run")
            .arg("--config-dir")
            .arg(config)
            .arg("--spool-dir")
            .arg(spool)
            .arg("--admin-addr")
            .arg(admin.to_string())
            .args(more)
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&log)?)
            .stderr(Stdio::inherit())
            .spawn()
            .context("start kanchi-monitor")?;
        Ok(Self { child, admin, log })
    }

    /// Waits until the monitor is connected to its broker.
    pub(crate) fn connected(&mut self) -> Result<()> {
        self.until("connected", Duration::from_mins(1), |monitor| {
            monitor.metric("kanchi_monitor_connection{state=\"Connected\"}") == Some(1.0)
        })
    }

    /// Waits for a condition, and shows the log when it does not come.
    pub(crate) fn until(&mut self, what: &str, patience: Duration, condition: impl Fn(&Self) -> bool) -> Result<()> {
        let deadline = Instant::now() + patience;
        while !condition(self) {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "the monitor ended with {status} while waiting for: {what}\n{}",
                    self.log()
                );
            }
            if Instant::now() > deadline {
                bail!(
                    "not within {patience:?}: {what}\n{}\n{}",
                    self.log(),
                    self.metrics().unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub(crate) fn log(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    pub(crate) fn whole_log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn get(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.admin)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    pub(crate) fn metrics(&self) -> Result<String> {
        self.get("/metrics")
    }

    /// Returns the value of one series.
    pub(crate) fn metric(&self, series: &str) -> Option<f64> {
        let text = self.metrics().ok()?;
        text.lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }

    /// Ends the process as a crash would.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks the process to end, and waits for it.
    pub(crate) fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal("TERM")?;
        self.ended()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: &str) -> Result<()> {
        let (signal, pid) = (format!("-{signal}"), self.pid().to_string());
        anyhow::ensure!(
            Command::new("kill").args([&signal, &pid]).status()?.success(),
            "kill {signal}"
        );
        Ok(())
    }

    /// Says whether the process has not ended.
    pub(crate) fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits until the process ends by itself.
    pub(crate) fn ended(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + Duration::from_secs(40);
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            anyhow::ensure!(Instant::now() < deadline, "the monitor does not end\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Returns the process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the highest resident memory so far, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        self.metric("process_resident_memory_max_bytes").unwrap_or_default() as u64
    }
}

impl Drop for MonitorProcess {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
