//! The leader's connection to the store: claim, migrations, upkeep, reports.
//!
//! One task keeps it; everything else asks [`StoreLink::admin`], which answers at once, and reads the last reports from
//! [`StoreLink::world`]. The store being away is a normal state: it is shown in conditions, and retried with back-off.

mod chores;

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use kanchi_runtime::clock::now_micros;
use kanchi_store::{
    BrokerKey, ErrorKind, Hints, HourCounts, MonitorReport, SharedRole, StoreAdmin, StoreUrl, UnixMicros, Upkeep,
};
use tokio::sync::watch;

use crate::backoff;
use crate::lease::chain;

/// Reports are read this often; notifications only make it sooner.
const POLL: Duration = Duration::from_secs(10);

/// Two polls are never closer than this, however many notifications arrive.
const POLL_GAP: Duration = Duration::from_millis(500);

/// How often the last hour is counted.
const HOUR_COUNTS: Duration = Duration::from_mins(1);

/// No retry of a connection waits longer: `BrokerReachable` must follow soon after the store is back.
const RETRY_CAP: Duration = Duration::from_secs(15);

/// How long one small request to the store may take.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(15);

/// How often brokers that are gone are looked for.
const FAREWELLS: Duration = Duration::from_secs(2);

/// Migrations may rewrite much; upkeep may wait for locks.
const LONG_LIMIT: Duration = Duration::from_mins(30);

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file with the URL, the certificate authorities or a password cannot be read.
    #[error("failed to read {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The store refused or is away.
    #[error("{0}")]
    Store(#[source] kanchi_store::Error),
    /// No answer in time.
    #[error("failed to {what} within {limit:?}")]
    Timeout {
        /// What was tried.
        what: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// The address for monitors is no address.
    #[error("failed to write the monitors' store URL: {0}")]
    Address(String),
    /// Not connected now.
    #[error("failed to use the store: {0}")]
    Down(String),
}

impl Error {
    /// Returns a fixed word for metrics and logs.
    pub fn category(&self) -> &'static str {
        match self {
            Self::File { .. } => "StoreFile",
            Self::Store(error) => error.kind().as_str(),
            Self::Timeout { .. } => "StoreTimeout",
            Self::Address(_) => "StoreAddress",
            Self::Down(_) => "StoreDown",
        }
    }

    /// Returns what kind of failure conditions show.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::File { .. } | Self::Address(_) => ErrorKind::Invalid,
            Self::Timeout { .. } | Self::Down(_) => ErrorKind::Unreachable,
        }
    }
}

/// Bounds a request to the store.
pub async fn bounded<T>(
    what: &'static str,
    limit: Duration,
    request: impl Future<Output = kanchi_store::Result<T>>,
) -> Result<T, Error> {
    match tokio::time::timeout(limit, request).await {
        Ok(answer) => answer.map_err(Error::Store),
        Err(_elapsed) => Err(Error::Timeout { what, limit }),
    }
}

/// Where Postgres is: files, read again at each connection and when they change.
#[derive(Clone, Debug)]
pub struct StoreSource {
    /// File with the owner's URL.
    pub url_file: PathBuf,
    /// File with certificate authorities.
    pub ca_file: Option<PathBuf>,
    /// Name of the role that monitors share where the owner may not create roles.
    pub shared_role: String,
    /// File with its password; without it no role is shared.
    pub shared_password_file: Option<PathBuf>,
    /// `host[:port]` for monitors.
    pub monitor_address: Option<String>,
}

/// How the store is entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The owner's URL.
    pub owner: StoreUrl,
    /// The role that monitors share, if they have to.
    pub shared: Option<SharedRole>,
}

impl StoreSource {
    /// Reads the files.
    pub async fn read(&self) -> Result<Credentials, Error> {
        let text = read(&self.url_file).await?;
        let url = StoreUrl::parse(&String::from_utf8_lossy(&text)).map_err(Error::Store)?;
        let owner = match &self.ca_file {
            Some(path) => url.with_ca(read(path).await?),
            None => url,
        };
        let shared = match &self.shared_password_file {
            Some(path) => {
                let password = read(path).await?;
                let role = SharedRole::new(&self.shared_role, &String::from_utf8_lossy(&password));
                Some(role.map_err(Error::Store)?)
            }
            None => None,
        };
        Ok(Credentials { owner, shared })
    }

    /// Returns a monitor's URL as monitors must write it: their own address, no paths of the operator's files.
    pub fn for_monitors(&self, url: &StoreUrl) -> Result<String, Error> {
        let invalid = |why: &str| Error::Address(why.to_owned());
        let mut url = url::Url::parse(url.expose()).map_err(|error| Error::Address(error.to_string()))?;
        if let Some(address) = &self.monitor_address {
            let (host, port) = match address.rsplit_once(':') {
                Some((host, port)) if !host.is_empty() && !port.contains(']') => (
                    host,
                    Some(port.parse::<u16>().map_err(|error| Error::Address(error.to_string()))?),
                ),
                _ => (address.as_str(), None),
            };
            url.set_host(Some(host))
                .map_err(|error| Error::Address(error.to_string()))?;
            url.set_port(port.or_else(|| url.port()))
                .map_err(|()| invalid("the URL takes no port"))?;
        }
        let kept: Vec<(String, String)> = url
            .query_pairs()
            .filter(|(key, _)| !matches!(key.as_ref(), "sslrootcert" | "sslcert" | "sslkey" | "sslpassword"))
            .map(|(key, value)| (key.into_owned(), value.into_owned()))
            .collect();
        kanchi_store::url::set_query(&mut url, &kept);
        Ok(url.into())
    }
}

async fn read(path: &PathBuf) -> Result<Vec<u8>, Error> {
    tokio::fs::read(path).await.map_err(|source| Error::File {
        path: path.clone(),
        source,
    })
}

/// Whether the store can be used now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Not tried yet, or under way.
    Connecting,
    /// Claimed, migrated, answering.
    Up,
    /// Not usable, and why; the text holds no credentials.
    Down {
        /// Kind of failure.
        kind: ErrorKind,
        /// For people.
        message: String,
    },
}

/// What the store last said of all brokers.
#[derive(Clone, Debug)]
pub struct World {
    /// The link itself.
    pub link: LinkState,
    /// Monitors' reports by broker.
    pub reports: HashMap<BrokerKey, MonitorReport>,
    /// Tasks that ended within the last hour.
    pub hours: HashMap<BrokerKey, HourCounts>,
    /// Brokers whose history is still to be deleted.
    pub purges_pending: u64,
    /// How long ago the last upkeep ended when the reports were read, and what it did.
    pub upkeep: Option<(Duration, Upkeep)>,
    /// When the reports were read.
    pub taken: Instant,
}

impl World {
    fn unknown() -> Self {
        Self {
            link: LinkState::Connecting,
            reports: HashMap::new(),
            hours: HashMap::new(),
            purges_pending: 0,
            upkeep: None,
            taken: Instant::now(),
        }
    }

    /// Returns what a broker's monitor said, and the age of its heartbeat now.
    pub fn report(&self, key: BrokerKey, now: Instant) -> Option<(&MonitorReport, Option<Duration>)> {
        let report = self.reports.get(&key)?;
        let since_poll = now.saturating_duration_since(self.taken);
        Some((report, report.heartbeat_age.map(|age| age + since_poll)))
    }
}

/// What becomes of a broker whose resource is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Farewell {
    /// Its role loses the right to log in; the history stays.
    Retire,
    /// The history goes, too.
    Purge,
}

/// The shared end of the link.
#[derive(Clone, Debug)]
pub struct StoreLink {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    source: StoreSource,
    /// Set while the link is up.
    admin: RwLock<Option<(StoreAdmin, Credentials)>>,
    world: watch::Sender<Arc<World>>,
    /// Brokers whose resource is gone. Bounded by the number of brokers.
    gone: Mutex<BTreeMap<BrokerKey, (Farewell, String)>>,
}

impl Inner {
    fn gone(&self) -> MutexGuard<'_, BTreeMap<BrokerKey, (Farewell, String)>> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoreLink {
    /// Returns a link that is not connected; [`Self::run`] keeps it.
    pub fn new(source: StoreSource) -> Self {
        let (world, _) = watch::channel(Arc::new(World::unknown()));
        Self {
            inner: Arc::new(Inner {
                source,
                admin: RwLock::new(None),
                world,
                gone: Mutex::default(),
            }),
        }
    }

    /// Returns the store when it can be used now.
    pub fn admin(&self) -> Result<(StoreAdmin, Credentials), Error> {
        let admin = self.inner.admin.read().unwrap_or_else(PoisonError::into_inner);
        admin.clone().ok_or_else(|| Error::Down(self.why_down()))
    }

    fn why_down(&self) -> String {
        match &self.inner.world.borrow().link {
            LinkState::Down { message, .. } => message.clone(),
            LinkState::Connecting | LinkState::Up => "not connected yet".to_owned(),
        }
    }

    /// Returns where Postgres is.
    pub fn source(&self) -> &StoreSource {
        &self.inner.source
    }

    /// Returns what the store last said.
    pub fn world(&self) -> Arc<World> {
        Arc::clone(&self.inner.world.borrow())
    }

    /// Returns a receiver that changes at each poll and at each change of the link.
    pub fn changes(&self) -> watch::Receiver<Arc<World>> {
        self.inner.world.subscribe()
    }

    /// Says farewell to a broker whose resource is gone, as soon as the store can be reached.
    pub fn dismiss(&self, key: BrokerKey, farewell: Farewell, uid: String) {
        self.inner.gone().insert(key, (farewell, uid));
    }

    /// The same for one whose resource nobody here has ever seen; what was said of it before stands.
    pub fn retire_stranger(&self, key: BrokerKey) {
        self.inner
            .gone()
            .entry(key)
            .or_insert((Farewell::Retire, String::new()));
    }

    /// A broker's resource is there again. A pass that was under way over the one that is gone changes nothing.
    pub fn keep(&self, key: BrokerKey, uid: &str) {
        let mut gone = self.inner.gone();
        if gone.get(&key).is_some_and(|(_, of)| of != uid) {
            gone.remove(&key);
        }
    }

    /// Keeps the link for as long as it is polled: only the leader polls it.
    pub async fn run(&self, installation: &str) {
        let mut failures = 0;
        loop {
            let failed = match self.connect(installation).await {
                Ok((admin, credentials)) => {
                    failures = 0;
                    match self.serve(&admin, &credentials).await {
                        Ended::CredentialsChanged => {
                            tracing::info!("the store's credentials changed, connecting again");
                            continue;
                        }
                        Ended::Failed(error) => error,
                    }
                }
                Err(error) => error,
            };
            self.down(&failed);
            failures += 1;
            tokio::time::sleep(backoff::after_failures(failures).min(RETRY_CAP)).await;
        }
    }

    async fn connect(&self, installation: &str) -> Result<(StoreAdmin, Credentials), Error> {
        let credentials = self.inner.source.read().await?;
        let url = &credentials.owner;
        let admin = bounded("connect to the store", REQUEST_LIMIT, StoreAdmin::connect(url)).await?;
        let admin = admin.with_shared_role(credentials.shared.clone());
        bounded("migrate the store", LONG_LIMIT, admin.migrate()).await?;
        bounded("claim the store", REQUEST_LIMIT, admin.claim_installation(installation)).await?;
        chores::upkeep(&admin).await?;
        tracing::info!(store.endpoint = %url.endpoint(), "store claimed and migrated");
        Ok((admin, credentials))
    }

    /// Polls, retires and does the upkeep until something fails or a file changes.
    async fn serve(&self, admin: &StoreAdmin, credentials: &Credentials) -> Ended {
        let link = (admin.clone(), credentials.clone());
        *self.inner.admin.write().unwrap_or_else(PoisonError::into_inner) = Some(link);
        // Side by side: partitions that are in use, or a large history to delete, must not keep the reports from being read.
        tokio::select! {
            ended = Box::pin(self.read_reports(admin, credentials)) => ended,
            error = Box::pin(chores::keep_up(admin)) => Ended::Failed(error),
            never = Box::pin(self.say_farewells(admin)) => match never {},
            never = Box::pin(chores::purge(admin)) => match never {},
            never = Box::pin(chores::roll_up(admin)) => match never {},
            never = Box::pin(chores::make_room(admin)) => match never {},
        }
    }

    /// Polls until something fails or a file changes.
    async fn read_reports(&self, admin: &StoreAdmin, credentials: &Credentials) -> Ended {
        let mut hints = None;
        let mut hours_at = Instant::now();
        loop {
            if let Err(error) = self.poll(admin, &mut hours_at).await {
                return Ended::Failed(error);
            }
            // Rotated credentials are taken over; a file that is being replaced is looked at again.
            if let Ok(now) = self.inner.source.read().await
                && now != *credentials
            {
                return Ended::CredentialsChanged;
            }
            wait_for_news(admin, &mut hints).await;
        }
    }

    async fn poll(&self, admin: &StoreAdmin, hours_at: &mut Instant) -> Result<(), Error> {
        let reports = bounded("read the monitors' reports", REQUEST_LIMIT, admin.reports()).await?;
        let taken = Instant::now();
        let hours = if taken >= *hours_at {
            *hours_at = taken + HOUR_COUNTS;
            bounded("count the last hour", REQUEST_LIMIT, admin.last_hour(now())).await?
        } else {
            self.world().hours.clone()
        };
        let purges_pending = bounded("count the purges", REQUEST_LIMIT, admin.purges_pending()).await?;
        let upkeep = bounded("read the last upkeep", REQUEST_LIMIT, admin.last_upkeep()).await?;
        let reports = reports.into_iter().map(|report| (report.key, report)).collect();
        self.inner.world.send_replace(Arc::new(World {
            link: LinkState::Up,
            reports,
            hours,
            purges_pending,
            upkeep,
            taken,
        }));
        Ok(())
    }

    /// Says farewell to brokers that are gone. A broker is struck off when that is done: what a broken connection interrupts
    /// is tried again with the next one.
    async fn say_farewells(&self, admin: &StoreAdmin) -> Infallible {
        loop {
            let keys: Vec<_> = self.inner.gone().keys().copied().collect();
            for key in keys {
                // It may be back by now.
                let Some((farewell, uid)) = self.inner.gone().get(&key).cloned() else {
                    continue;
                };
                match say_farewell(admin, key, farewell).await {
                    Ok(()) => self.inner.gone().retain(|of, (_, whose)| *of != key || *whose != uid),
                    Err(error) => {
                        tracing::warn!(store.key = key.0, error = %chain(&error), "broker not dismissed, trying again");
                    }
                }
            }
            tokio::time::sleep(FAREWELLS).await;
        }
    }

    fn down(&self, error: &Error) {
        *self.inner.admin.write().unwrap_or_else(PoisonError::into_inner) = None;
        let state = LinkState::Down {
            kind: error.kind(),
            message: chain(error),
        };
        if self.inner.world.borrow().link != state {
            tracing::warn!(reason = error.category(), error = %chain(error), "store not usable, trying again");
        }
        let mut world = World::unknown();
        world.link = state;
        self.inner.world.send_replace(Arc::new(world));
    }
}

async fn say_farewell(admin: &StoreAdmin, key: BrokerKey, farewell: Farewell) -> Result<(), Error> {
    match farewell {
        Farewell::Retire => bounded("retire a broker", REQUEST_LIMIT, admin.retire_broker(key)).await,
        Farewell::Purge => bounded("order a purge", REQUEST_LIMIT, admin.order_purge(key)).await,
    }
}

/// Why a connection was given up.
enum Ended {
    CredentialsChanged,
    Failed(Error),
}

fn now() -> UnixMicros {
    UnixMicros(now_micros())
}

/// Waits for the next poll: its time, or a notification. Without notifications polling goes on alone.
async fn wait_for_news(admin: &StoreAdmin, hints: &mut Option<Hints>) {
    let next_poll = tokio::time::sleep(backoff::jittered(POLL));
    tokio::pin!(next_poll);
    tokio::time::sleep(POLL_GAP).await;
    if hints.is_none() {
        match bounded("listen to the store", REQUEST_LIMIT, admin.listen()).await {
            Ok(listening) => *hints = Some(listening),
            Err(error) => tracing::debug!(error = %chain(&error), "not listening, polling only"),
        }
    }
    let Some(listening) = hints.as_mut() else {
        next_poll.await;
        return;
    };
    tokio::select! {
        () = &mut next_poll => {}
        heard = listening.next() => if let Err(error) = heard {
            tracing::debug!(error = %chain(&error), "stopped listening");
            *hints = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(address: Option<&str>) -> StoreSource {
        StoreSource {
            url_file: "/none".into(),
            ca_file: None,
            shared_role: "kanchi_m_shared".to_owned(),
            shared_password_file: None,
            monitor_address: address.map(str::to_owned),
        }
    }

    #[test]
    fn monitors_get_their_own_address_and_no_paths_of_the_operator() {
        let url =
            StoreUrl::parse("postgres://u:p%40w@db:5433/kanchi?sslmode=verify-full&sslrootcert=/etc/ca.pem").unwrap();
        let plain = source(None).for_monitors(&url).unwrap();
        assert_eq!(plain, "postgres://u:p%40w@db:5433/kanchi?sslmode=verify-full");
        let other = source(Some("pg.db.svc")).for_monitors(&url).unwrap();
        assert_eq!(other, "postgres://u:p%40w@pg.db.svc:5433/kanchi?sslmode=verify-full");
        let port = source(Some("bouncer.db.svc:6432")).for_monitors(&url).unwrap();
        assert_eq!(
            port,
            "postgres://u:p%40w@bouncer.db.svc:6432/kanchi?sslmode=verify-full"
        );
        assert!(source(Some("host:port")).for_monitors(&url).is_err());
        let url = StoreUrl::parse("postgres://u:p@db/kanchi?sslkey=/k&options=-c%20kanchi.broker%3D42").unwrap();
        let shared = source(None).for_monitors(&url).unwrap();
        assert_eq!(shared, "postgres://u:p@db/kanchi?options=-c%20kanchi.broker%3D42");
    }

    #[test]
    fn the_age_of_a_heartbeat_grows_between_polls() {
        let mut world = World::unknown();
        let report = MonitorReport {
            key: BrokerKey(1),
            namespace: "shop".into(),
            name: "orders".into(),
            heartbeat_age: Some(Duration::from_secs(5)),
            heartbeat: None,
            top_queues: Vec::new(),
            gaps_last_day: 0,
            gaps_open: 0,
        };
        world.reports.insert(BrokerKey(1), report);
        let later = world.taken + Duration::from_secs(7);
        assert_eq!(
            world.report(BrokerKey(1), later).unwrap().1,
            Some(Duration::from_secs(12))
        );
        assert!(world.report(BrokerKey(2), later).is_none());
    }

    #[tokio::test]
    async fn a_missing_file_is_named() {
        let error = source(None).read().await.unwrap_err();
        assert_eq!(error.to_string(), "failed to read /none");
        assert_eq!(error.category(), "StoreFile");
    }
}
