//! Leader election by a `coordination.k8s.io` Lease.
//!
//! A candidate measures the age of another's claim with its own clock, from the moment it first saw that claim, so that
//! clock skew between nodes does no harm. The holder stops believing in its claim at the renewal deadline, which is
//! well before any candidate may take the Lease; the process then ends. On SIGTERM the claim is given back, so that a
//! rollout hands over within the candidates' retry interval.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Why the lease task ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The holder could not renew in time, or someone else took the Lease.
    #[error("failed to keep the lease {name}: {reason}")]
    Lost {
        /// The Lease's name.
        name: String,
        /// What happened.
        reason: String,
    },
}

/// How the Lease is named and timed.
#[derive(Clone, Debug)]
pub struct LeaseSettings {
    /// Namespace of the Lease: the operator's own.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// Who we are; differs between two runs of the same pod.
    pub identity: String,
    /// How long a claim lasts that nobody renews.
    pub duration: Duration,
    /// How often the holder renews.
    pub renew_every: Duration,
    /// After this long without a renewal the holder stops writing.
    pub renew_deadline: Duration,
    /// How often a candidate looks, and how soon a failed renewal is tried again.
    pub retry_every: Duration,
}

impl LeaseSettings {
    /// Returns the settings with the ratios of duration, deadline and intervals that keep two holders apart.
    pub fn new(namespace: String, name: String, identity: String, duration: Duration) -> Self {
        Self {
            namespace,
            name,
            identity,
            duration,
            renew_every: duration / 3,
            renew_deadline: duration * 2 / 3,
            retry_every: (duration / 8).min(Duration::from_secs(2)),
        }
    }
}

/// Whether this process holds the Lease right now; cheap to ask before every write.
#[derive(Clone, Debug)]
pub struct Leadership {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    base: Instant,
    /// Milliseconds after `base` until which the claim may be believed; 0: not the holder.
    valid_until_ms: AtomicU64,
    holding: watch::Sender<bool>,
}

impl Leadership {
    /// Returns the state of a candidate.
    pub fn candidate() -> Self {
        let (holding, _) = watch::channel(false);
        Self {
            inner: Arc::new(Inner {
                base: Instant::now(),
                valid_until_ms: AtomicU64::new(0),
                holding,
            }),
        }
    }

    /// Tells whether the claim is still to be believed at this instant.
    pub fn is_leader(&self) -> bool {
        let now = millis(self.inner.base.elapsed());
        now < self.inner.valid_until_ms.load(Ordering::Acquire)
    }

    /// Returns a receiver that changes when leadership begins or ends.
    pub fn changes(&self) -> watch::Receiver<bool> {
        self.inner.holding.subscribe()
    }

    fn believe_until(&self, instant: Instant) {
        let until = millis(instant.saturating_duration_since(self.inner.base));
        self.inner.valid_until_ms.store(until, Ordering::Release);
        self.inner
            .holding
            .send_if_modified(|holding| !std::mem::replace(holding, true));
    }

    fn resign(&self) {
        self.inner.valid_until_ms.store(0, Ordering::Release);
        self.inner
            .holding
            .send_if_modified(|holding| std::mem::replace(holding, false));
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What was last seen of somebody else's claim, and when by our clock.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Observed {
    holder: Option<String>,
    renewed: Option<Timestamp>,
    since: Instant,
}

/// What a candidate does after a look at the Lease.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Create,
    Take,
    Wait,
}

/// Decides from the Lease as it is now and from what was seen of it before.
fn decide(lease: Option<&Lease>, observed: &mut Option<Observed>, settings: &LeaseSettings, now: Instant) -> Decision {
    let Some(lease) = lease else { return Decision::Create };
    let spec = lease.spec.clone().unwrap_or_default();
    let holder = spec.holder_identity.filter(|holder| !holder.is_empty());
    match holder.as_deref() {
        None => return Decision::Take,
        Some(holder) if holder == settings.identity => return Decision::Take,
        Some(_) => {}
    }
    let renewed = spec.renew_time.map(|time| time.0);
    let seconds = spec
        .lease_duration_seconds
        .and_then(|seconds| u64::try_from(seconds).ok());
    let lasts = seconds.map_or(settings.duration, Duration::from_secs);
    match observed {
        Some(seen) if seen.holder == holder && seen.renewed == renewed => {
            if now.saturating_duration_since(seen.since) > lasts {
                Decision::Take
            } else {
                Decision::Wait
            }
        }
        _ => {
            *observed = Some(Observed {
                holder,
                renewed,
                since: now,
            });
            Decision::Wait
        }
    }
}

/// The task that acquires, renews and releases.
#[derive(Debug)]
pub struct LeaseTask {
    api: Api<Lease>,
    settings: LeaseSettings,
    leadership: Leadership,
}

impl LeaseTask {
    /// Returns the task; the client must be one that may write without the Lease.
    pub fn new(client: Client, settings: LeaseSettings, leadership: Leadership) -> Self {
        Self {
            api: Api::namespaced(client, &settings.namespace),
            settings,
            leadership,
        }
    }

    /// Runs until the Lease is lost (an error: the process must end) or `release` is cancelled (it is given back).
    pub async fn run(self, release: CancellationToken) -> Result<(), Error> {
        let Some(lease) = self.acquire(&release).await else {
            return Ok(());
        };
        tracing::info!(lease.name = %self.settings.name, lease.identity = %self.settings.identity, "holding the lease");
        let kept = self.keep(lease, &release).await;
        self.leadership.resign();
        kept
    }

    /// Waits for the Lease; `None` when the process ends first.
    async fn acquire(&self, release: &CancellationToken) -> Option<Lease> {
        let mut observed = None;
        loop {
            match self.look(&mut observed).await {
                Ok(Some(lease)) => return Some(lease),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(lease.name = %self.settings.name, error = %chain(&error), "lease not read");
                }
            }
            tokio::select! {
                () = release.cancelled() => return None,
                () = tokio::time::sleep(crate::backoff::jittered(self.settings.retry_every)) => {}
            }
        }
    }

    async fn look(&self, observed: &mut Option<Observed>) -> Result<Option<Lease>, Attempt> {
        let started = Instant::now();
        let current = self.bounded(self.api.get_opt(&self.settings.name)).await?;
        let claim = match decide(current.as_ref(), observed, &self.settings, started) {
            Decision::Wait => return Ok(None),
            Decision::Create => {
                let lease = self.claim(Lease::default(), None);
                self.bounded(self.api.create(&PostParams::default(), &lease)).await
            }
            Decision::Take => {
                let current = current.unwrap_or_default();
                let previous = current.spec.clone();
                let lease = self.claim(current, previous);
                self.bounded(self.api.replace(&self.settings.name, &PostParams::default(), &lease))
                    .await
            }
        };
        match claim {
            Ok(lease) => {
                self.leadership.believe_until(started + self.settings.renew_deadline);
                Ok(Some(lease))
            }
            Err(Attempt::Api(kube::Error::Api(status))) if status.code == 409 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Renews until told to release or until the deadline has passed.
    async fn keep(&self, mut lease: Lease, release: &CancellationToken) -> Result<(), Error> {
        let mut deadline = Instant::now() + self.settings.renew_deadline;
        let mut pause = self.settings.renew_every;
        loop {
            tokio::select! {
                () = release.cancelled() => {
                    self.give_back(lease).await;
                    return Ok(());
                }
                () = tokio::time::sleep(pause) => {}
            }
            let started = Instant::now();
            match self.renew(&lease).await {
                Ok(renewed) => {
                    deadline = started + self.settings.renew_deadline;
                    self.leadership.believe_until(deadline);
                    lease = renewed;
                    pause = self.settings.renew_every;
                }
                Err(Renewal::Taken(holder)) => return Err(self.lost(format!("taken by {holder}"))),
                Err(Renewal::Failed(error)) => {
                    tracing::warn!(lease.name = %self.settings.name, error = %chain(&error), "lease not renewed");
                    pause = self.settings.retry_every;
                }
            }
            if Instant::now() + pause >= deadline {
                pause = deadline.saturating_duration_since(Instant::now());
                if pause.is_zero() {
                    return Err(self.lost(format!("not renewed for {:?}", self.settings.renew_deadline)));
                }
            }
        }
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, Renewal> {
        let mut next = lease.clone();
        if let Some(spec) = next.spec.as_mut() {
            spec.renew_time = Some(MicroTime(Timestamp::now()));
        }
        let replaced = self
            .bounded(self.api.replace(&self.settings.name, &PostParams::default(), &next))
            .await;
        match replaced {
            Err(Attempt::Api(kube::Error::Api(status))) if status.code == 409 || status.code == 404 => {
                self.renew_after_conflict(next).await
            }
            other => other.map_err(Renewal::Failed),
        }
    }

    /// Somebody wrote the Lease or removed it: keep it only if it still names us, or nobody.
    async fn renew_after_conflict(&self, mut next: Lease) -> Result<Lease, Renewal> {
        let current = self
            .bounded(self.api.get_opt(&self.settings.name))
            .await
            .map_err(Renewal::Failed)?;
        let Some(current) = current else {
            next.metadata.resource_version = None;
            next.metadata.uid = None;
            return self
                .bounded(self.api.create(&PostParams::default(), &next))
                .await
                .map_err(Renewal::Failed);
        };
        let holder = current
            .spec
            .as_ref()
            .and_then(|spec| spec.holder_identity.clone())
            .unwrap_or_default();
        if holder != self.settings.identity {
            return Err(Renewal::Taken(if holder.is_empty() {
                "nobody".to_owned()
            } else {
                holder
            }));
        }
        next.metadata.resource_version = current.resource_version();
        self.bounded(self.api.replace(&self.settings.name, &PostParams::default(), &next))
            .await
            .map_err(Renewal::Failed)
    }

    async fn give_back(&self, mut lease: Lease) {
        self.leadership.resign();
        if let Some(spec) = lease.spec.as_mut() {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            spec.renew_time = Some(MicroTime(Timestamp::now()));
        }
        match self
            .bounded(self.api.replace(&self.settings.name, &PostParams::default(), &lease))
            .await
        {
            Ok(_) => tracing::info!(lease.name = %self.settings.name, "lease given back"),
            Err(error) => {
                tracing::warn!(lease.name = %self.settings.name, error = %chain(&error), "lease not given back");
            }
        }
    }

    fn claim(&self, mut lease: Lease, previous: Option<LeaseSpec>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let transitions = previous
            .and_then(|spec| spec.lease_transitions)
            .map_or(0, |count| count.saturating_add(1));
        lease.metadata = ObjectMeta {
            name: Some(self.settings.name.clone()),
            namespace: Some(self.settings.namespace.clone()),
            managed_fields: None,
            ..lease.metadata
        };
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.settings.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(self.settings.duration.as_secs().max(1)).unwrap_or(i32::MAX)),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        });
        lease
    }

    /// One call may take no longer than leaves room for another try before the deadline.
    async fn bounded<T>(&self, call: impl Future<Output = kube::Result<T>>) -> Result<T, Attempt> {
        let limit = self.settings.renew_deadline / 3;
        match tokio::time::timeout(limit, call).await {
            Ok(result) => result.map_err(Attempt::Api),
            Err(_elapsed) => Err(Attempt::Timeout(limit)),
        }
    }

    fn lost(&self, reason: String) -> Error {
        Error::Lost {
            name: self.settings.name.clone(),
            reason,
        }
    }
}

/// Why one call about the Lease failed.
#[derive(Debug, thiserror::Error)]
enum Attempt {
    #[error("failed to reach the lease")]
    Api(#[source] kube::Error),
    #[error("failed to reach the lease within {0:?}")]
    Timeout(Duration),
}

enum Renewal {
    Taken(String),
    Failed(Attempt),
}

/// Returns an error with its sources in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let next = cause.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> LeaseSettings {
        LeaseSettings::new("ns".into(), "kanchi".into(), "me".into(), Duration::from_secs(15))
    }

    fn lease(holder: &str, renewed: i64) -> Lease {
        Lease {
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.into()),
                lease_duration_seconds: Some(15),
                renew_time: Some(MicroTime(Timestamp::from_second(renewed).unwrap())),
                ..LeaseSpec::default()
            }),
            ..Lease::default()
        }
    }

    #[test]
    fn creates_a_missing_lease_and_takes_a_released_one() {
        let now = Instant::now();
        assert_eq!(decide(None, &mut None, &settings(), now), Decision::Create);
        assert_eq!(decide(Some(&lease("", 1)), &mut None, &settings(), now), Decision::Take);
        assert_eq!(
            decide(Some(&lease("me", 1)), &mut None, &settings(), now),
            Decision::Take
        );
    }

    #[test]
    fn waits_a_whole_duration_by_its_own_clock_before_it_takes_from_another() {
        let now = Instant::now();
        let mut observed = None;
        // The holder's clock is a century off; only our own counts.
        let stale = lease("other", -3_000_000_000);
        assert_eq!(decide(Some(&stale), &mut observed, &settings(), now), Decision::Wait);
        assert_eq!(
            decide(Some(&stale), &mut observed, &settings(), now + Duration::from_secs(15)),
            Decision::Wait
        );
        assert_eq!(
            decide(Some(&stale), &mut observed, &settings(), now + Duration::from_secs(16)),
            Decision::Take
        );
    }

    #[test]
    fn starts_to_count_again_when_the_holder_renews() {
        let now = Instant::now();
        let mut observed = None;
        assert_eq!(
            decide(Some(&lease("other", 1)), &mut observed, &settings(), now),
            Decision::Wait
        );
        let later = now + Duration::from_secs(14);
        assert_eq!(
            decide(Some(&lease("other", 2)), &mut observed, &settings(), later),
            Decision::Wait
        );
        assert_eq!(
            decide(
                Some(&lease("other", 2)),
                &mut observed,
                &settings(),
                now + Duration::from_secs(16)
            ),
            Decision::Wait
        );
        assert_eq!(
            decide(
                Some(&lease("other", 2)),
                &mut observed,
                &settings(),
                later + Duration::from_secs(16)
            ),
            Decision::Take
        );
    }

    #[test]
    fn the_holder_stops_believing_before_a_candidate_may_take() {
        let settings = settings();
        assert!(settings.renew_deadline + settings.renew_deadline / 3 < settings.duration);
        assert!(settings.renew_every * 2 <= settings.renew_deadline);
    }

    #[test]
    fn belief_ends_by_itself() {
        let leadership = Leadership::candidate();
        assert!(!leadership.is_leader());
        leadership.believe_until(Instant::now() + Duration::from_mins(1));
        assert!(leadership.is_leader() && *leadership.changes().borrow());
        leadership.believe_until(Instant::now());
        assert!(!leadership.is_leader());
        leadership.resign();
        assert!(!*leadership.changes().borrow());
    }
}
