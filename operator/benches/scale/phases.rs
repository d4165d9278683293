//! What is measured, one after the other.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::calls::AuditLog;
use crate::census::Census;
use crate::cluster::Cluster;
use crate::figures::{Figures, Span, say};
use crate::monitors::{self, Monitors};
use crate::process::{Operator, Settings};
use crate::statements::{self, Statements};
use crate::{Sizes, fleet, kubelet};

/// The store's database, and the role that owns it.
const DATABASE: &str = "kanchi_scale";

/// Nothing is waited for longer.
const PATIENCE: Duration = Duration::from_mins(15);

/// CeleryBrokers that are changed, one after the other.
const CHANGES: usize = 9;

/// Everything that runs.
pub(crate) struct Bench {
    cluster: Arc<Cluster>,
    sizes: Sizes,
    client: Client,
    user: String,
    settings: Settings,
    census: Census,
    monitors: Arc<Monitors>,
    /// Kubelet and monitors.
    others: JoinSet<()>,
    _folder: TempDir,
}

impl Bench {
    /// Makes everything but the CeleryBrokers and the operator.
    pub(crate) async fn prepare(cluster: Arc<Cluster>, sizes: Sizes) -> Result<Self> {
        let client = cluster.admin();
        let (_, user) = cluster.new_user();
        let token = user.replace("op-", "token-");
        fleet::prepare(&client, &user, sizes.namespaces).await?;
        fleet::create_secrets(&client, sizes.brokers, sizes.namespaces).await?;
        statements::begin(&cluster)?;
        let folder = tempfile::tempdir()?;
        let store_url_file = folder.path().join("url");
        std::fs::write(&store_url_file, cluster.postgres.create_installation(DATABASE)?)?;
        let settings = Settings {
            kubeconfig: cluster.kubeconfig(&token),
            store_url_file,
            folder: folder.path().to_owned(),
        };
        let census = Census::begin(client.clone(), sizes.pods);
        let mut others = JoinSet::new();
        others.spawn(kubelet::run(client.clone(), sizes.pods));
        Ok(Self {
            cluster,
            sizes,
            client,
            user,
            settings,
            census,
            monitors: Arc::default(),
            others,
            _folder: folder,
        })
    }

    /// Measures everything.
    pub(crate) async fn measure(mut self) -> Result<Figures> {
        let mut figures = Figures {
            brokers: self.sizes.brokers as u64,
            ..Figures::default()
        };
        let operator = Operator::start(&self.settings, "operator-1")?;
        self.start_monitors().await?;
        figures.empty = operator.usage()?;
        self.creation(&operator, &mut figures).await?;
        say("quiet: only heartbeats come");
        figures.quiet = self.span(&operator, self.sizes.quiet).await?;
        say(&figures.quiet.line());
        say("busy: every count changes with each heartbeat");
        self.monitors.change.store(true, Ordering::Relaxed);
        figures.busy = self
            .span(&operator, self.sizes.quiet.min(Duration::from_mins(2)))
            .await?;
        self.monitors.change.store(false, Ordering::Relaxed);
        say(&figures.busy.line());
        figures.first = operator.usage()?;
        let operator = self.restart(operator, &mut figures).await?;
        self.changes(&mut figures).await?;
        figures.second = operator.usage()?;
        operator.stop()?;
        Ok(figures)
    }

    fn log(&self) -> Result<AuditLog> {
        AuditLog::begin(self.cluster.audit_path(), &self.user)
    }

    /// Waits for the store to be migrated; monitors write to it from then on.
    async fn start_monitors(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_mins(1);
        // The upkeep is the last that the operator does before it uses the store.
        while !self.is_migrated()? {
            ensure!(
                Instant::now() < deadline,
                "the operator has not migrated the store in a minute"
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let beats = monitors::run(Arc::clone(&self.cluster), DATABASE, Arc::clone(&self.monitors));
        self.others.spawn(async {
            if let Err(error) = beats.await {
                say(&format!("no heartbeats any more: {error:#}"));
            }
        });
        Ok(())
    }

    fn is_migrated(&self) -> Result<bool> {
        let sql = "select to_regclass('kanchi.heartbeat') is not null and to_regclass('kanchi.queue') is not null";
        Ok(self.cluster.postgres.sql(DATABASE, sql)? == "t")
    }

    /// All CeleryBrokers are created at once.
    async fn creation(&self, operator: &Operator, figures: &mut Figures) -> Result<()> {
        let Sizes {
            brokers, namespaces, ..
        } = self.sizes;
        say(&format!("creating {brokers} CeleryBrokers"));
        let mut log = self.log()?;
        let began = Instant::now();
        fleet::create_brokers(&self.client, brokers, namespaces).await?;
        figures.created = began.elapsed();
        let settled = self.census.until("all are settled", PATIENCE, |all| {
            all.len() == brokers && all.values().all(|one| one.settled)
        });
        figures.settled = settled.await?.duration_since(began);
        say(&format!("settled after {:.1} s", figures.settled.as_secs_f64()));
        let counted = self
            .census
            .until("all have counts", PATIENCE, |all| all.values().all(|one| one.counted));
        counted.await?;
        figures.creation = log.read()?.clone();
        figures.creation_passes = operator.passes()?;
        let mut took: Vec<_> = self.census.settled_at();
        took.sort_unstable();
        figures.settled_half = took
            .get(took.len() / 2)
            .map_or(Duration::ZERO, |at| at.duration_since(began));
        Ok(())
    }

    /// Waits until the operator has looked at all CeleryBrokers; returns when it came to the last one.
    ///
    /// It is never silent for long: with so many the ordinary second looks follow each other all the time.
    async fn looked_at_all(&self, log: &mut AuditLog) -> Result<Timestamp> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let calls = log.read()?;
            if let Some(last) = calls.passed_at
                && calls.passed.len() >= self.sizes.brokers
            {
                return Ok(last);
            }
            ensure!(
                Instant::now() < deadline,
                "the operator has looked at {} CeleryBrokers within {PATIENCE:?}",
                calls.passed.len()
            );
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Looks on for a while.
    async fn span(&self, operator: &Operator, length: Duration) -> Result<Span> {
        let mut log = self.log()?;
        let (usage, statements, passes) = (operator.usage()?, self.statements()?, operator.passes()?);
        let began = Instant::now();
        tokio::time::sleep(length).await;
        let seconds = began.elapsed().as_secs_f64();
        let after = operator.usage()?;
        Ok(Span {
            seconds,
            processor: (after.processor - usage.processor) / seconds,
            resident: after.resident,
            statements: self.statements()?.since(statements),
            passes: operator.passes()? - passes,
            calls: log.read()?.clone(),
        })
    }

    fn statements(&self) -> Result<Statements> {
        Statements::of(&self.cluster, DATABASE)
    }

    /// A rolling update: the old one gives the Lease back, the new one looks at everything once.
    async fn restart(&self, operator: Operator, figures: &mut Figures) -> Result<Operator> {
        say("restart");
        let before = self.statements()?;
        let began = Timestamp::now();
        operator.stop()?;
        let mut log = self.log()?;
        let operator = Operator::start(&self.settings, "operator-2")?;
        let last = self.looked_at_all(&mut log).await?;
        figures.restarted = last.duration_since(began).unsigned_abs();
        figures.restart = log.read()?.clone();
        figures.restart_passes = operator.passes()?;
        figures.restart_statements = self.statements()?.since(before);
        self.census
            .until("all are settled", PATIENCE, |all| all.values().all(|one| one.settled))
            .await?;
        say(&format!("all looked at after {:.1} s", figures.restarted.as_secs_f64()));
        Ok(operator)
    }

    /// One after the other is changed, and its status says so.
    async fn changes(&self, figures: &mut Figures) -> Result<()> {
        say("changing one at a time");
        let Sizes {
            brokers, namespaces, ..
        } = self.sizes;
        let mut log = self.log()?;
        for round in 0..CHANGES {
            let key = fleet::name_of(round * brokers / CHANGES, namespaces);
            let began = Instant::now();
            let generation = fleet::change(&self.client, &key, 90 + round as u32).await?;
            let told = self.census.until("the change is in the status", PATIENCE, |all| {
                all.get(&key)
                    .is_some_and(|one| one.generation == generation && one.settled)
            });
            figures.changes.push(told.await?.duration_since(began));
        }
        figures.changes.sort_unstable();
        figures.change = log.read()?.clone();
        figures.changes.first().context("nothing was changed").map(drop)
    }
}
