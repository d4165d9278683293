//! Step 5: what is said of a CeleryBroker. The computation is pure; the writing sends nothing that is there already.

use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kanchi_crds::{CeleryBrokerStatus, ConditionType, Reason, Transport};
use kanchi_store::{BrokerKey, ErrorKind, RoleMode};

use super::observe::Observation;
use crate::store_link::{LinkState, World};

/// A monitor that has not reported for longer is not believed any more.
pub const STALE: Duration = Duration::from_secs(30);

/// A condition's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// It is so.
    True,
    /// It is not so.
    False,
    /// It is not known.
    Unknown,
}

impl Status {
    /// Returns the text of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// What a condition says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it is so.
    pub status: Status,
    /// Why, for programs.
    pub reason: Reason,
    /// Why, for people.
    pub message: String,
}

impl Verdict {
    /// Returns a verdict.
    pub fn new(status: Status, reason: Reason, message: impl Into<String>) -> Self {
        Self {
            status,
            reason,
            message: message.into(),
        }
    }

    fn yes(reason: Reason, message: &str) -> Self {
        Self::new(Status::True, reason, message)
    }

    fn no(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(Status::False, reason, message)
    }

    fn unknown(reason: Reason, message: &str) -> Self {
        Self::new(Status::Unknown, reason, message)
    }
}

/// What the store's reports say of one broker. `None`: no news, what was said before stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorldView {
    /// `BrokerReachable`.
    pub broker: Option<Verdict>,
    /// `StoreReachable`.
    pub store: Option<Verdict>,
    /// The broker's version.
    pub version: Option<String>,
    /// Why the monitor goes on with an older configuration.
    pub config_refused: Option<String>,
}

impl WorldView {
    /// Whether the conditions would be the same: words alone are no news.
    pub fn is_same_news(&self, other: &Self) -> bool {
        let news = |verdict: &Option<Verdict>| verdict.as_ref().map(|verdict| (verdict.status, verdict.reason));
        news(&self.broker) == news(&other.broker)
            && news(&self.store) == news(&other.store)
            && self.version == other.version
            && self.config_refused == other.config_refused
    }

    /// Nothing was read in the store.
    const NO_NEWS: Self = Self {
        broker: None,
        store: None,
        version: None,
        config_refused: None,
    };
}

/// Judges what the store last said of one broker.
pub fn view(world: &World, key: Option<BrokerKey>, enabled: bool, now: Instant) -> WorldView {
    let both = |verdict: Verdict| WorldView {
        broker: Some(verdict.clone()),
        store: Some(verdict),
        ..WorldView::NO_NEWS
    };
    if !enabled {
        return both(Verdict::unknown(
            Reason::ScaledToZero,
            "enabled is false: no monitor reports",
        ));
    }
    match &world.link {
        LinkState::Connecting => return WorldView::NO_NEWS,
        LinkState::Down { kind, message } => {
            let text = "the operator cannot read the monitor's reports in the store";
            let broker = Verdict::unknown(Reason::ReportStale, text);
            let store = Verdict::no(store_reason(*kind), format!("the store cannot be used: {message}"));
            return WorldView {
                broker: Some(broker),
                store: Some(store),
                ..WorldView::NO_NEWS
            };
        }
        LinkState::Up => {}
    }
    let report = key.and_then(|key| world.report(key, now));
    let Some((report, Some(age))) = report else {
        return both(Verdict::unknown(
            Reason::NotReportedYet,
            "the monitor has not reported yet",
        ));
    };
    let Some(heartbeat) = report.heartbeat.as_ref().filter(|_| age <= STALE) else {
        return both(Verdict::unknown(
            Reason::ReportStale,
            "the monitor has not reported for 30 s",
        ));
    };
    let reason = heartbeat.reason.as_deref().and_then(|reason| reason.parse().ok());
    let message = heartbeat.message.clone().unwrap_or_default();
    let broker = match (heartbeat.connection.as_str(), reason) {
        (_, _) if heartbeat.reason.as_deref() == Some(kanchi_contract::MONITOR_STOPPED) => Some(Verdict::unknown(
            Reason::NotReportedYet,
            "the monitor was stopped; its successor has not reported yet",
        )),
        ("Connected", _) => Some(Verdict::yes(Reason::Connected, "the monitor is connected")),
        // Between two attempts the last failure stands.
        ("Connecting", None) => None,
        (_, reason) => Some(Verdict::no(reason.unwrap_or(Reason::ConnectionLost), message)),
    };
    let store = match heartbeat.store_error.as_deref() {
        None => Verdict::yes(Reason::Writing, "the monitor writes to the store"),
        Some(kind) => Verdict::no(
            store_reason(ErrorKind::from_name(kind)),
            format!("the monitor's batches are not stored: {kind}; its log says more"),
        ),
    };
    WorldView {
        broker,
        store: Some(store),
        version: heartbeat.broker_version.clone(),
        config_refused: heartbeat.config_error.clone(),
    }
}

fn store_reason(kind: ErrorKind) -> Reason {
    match kind {
        ErrorKind::ConnectionLimit => Reason::ConnectionLimit,
        ErrorKind::AuthenticationFailed => Reason::StoreAuthenticationFailed,
        ErrorKind::MigrationPending => Reason::MigrationPending,
        ErrorKind::TlsFailed => Reason::StoreTlsFailed,
        ErrorKind::SchemaTooNew => Reason::StoreTooNew,
        ErrorKind::DiskFull => Reason::StoreFull,
        ErrorKind::ReadOnly => Reason::StoreReadOnly,
        ErrorKind::ForeignInstallation => Reason::ForeignInstallation,
        ErrorKind::Unreachable
        | ErrorKind::StaleEpoch
        | ErrorKind::Data
        | ErrorKind::Timeout
        | ErrorKind::Forbidden
        | ErrorKind::Invalid
        | ErrorKind::Other => Reason::Unreachable,
    }
}

/// What one pass found. `None`: not looked at, what was said before stands.
#[derive(Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "four facts that hold independently of each other"
)]
pub struct Facts {
    /// Generation the pass looked at.
    pub generation: i64,
    /// `enabled` of the spec.
    pub enabled: bool,
    /// The pause annotation.
    pub paused: bool,
    /// A deletion is under way.
    pub deleting: bool,
    /// `Accepted`.
    pub accepted: Option<Verdict>,
    /// `ReferencesResolved`.
    pub references: Option<Verdict>,
    /// How the monitor logs in to the store.
    pub role: Option<RoleMode>,
    /// What became of the monitor.
    pub observation: Option<Observation>,
    /// What keeps the operator from its own work.
    pub blocked: Option<Verdict>,
    /// The user has to change something.
    pub stalled: bool,
    /// What the store's reports say.
    pub view: Option<WorldView>,
    /// Kind of broker.
    pub transport: Option<Transport>,
    /// Where it is.
    pub endpoint: Option<String>,
    /// Key in the store.
    pub key: Option<i32>,
}

impl Facts {
    /// Returns facts of a pass that has looked at nothing yet.
    pub fn new(generation: i64) -> Self {
        Self {
            generation,
            enabled: true,
            paused: false,
            deleting: false,
            accepted: None,
            references: None,
            role: None,
            observation: None,
            blocked: None,
            stalled: false,
            view: None,
            transport: None,
            endpoint: None,
            key: None,
        }
    }

    /// Returns what became of the monitor, and of the configuration that it was given.
    fn monitor(&self, previous: &CeleryBrokerStatus) -> Option<Verdict> {
        let seen = self.observation.as_ref()?.verdict.clone();
        if seen.status != Status::True {
            return Some(seen);
        }
        let told = self.view.as_ref().filter(|view| view.store.is_some());
        let refused = match told {
            Some(view) => view.config_refused.clone(),
            // No news: what was said before stands.
            None => previous
                .condition(ConditionType::MonitorAvailable)
                .filter(|before| before.reason == Reason::ConfigRefused.as_str())
                .map(|before| before.message.clone()),
        };
        Some(match refused {
            Some(why) => Verdict::no(Reason::ConfigRefused, why),
            None => seen,
        })
    }

    fn ready(&self, previous: &CeleryBrokerStatus) -> Verdict {
        if self.deleting {
            return Verdict::no(Reason::Deleting, "the end of the history is being ordered");
        }
        if self.paused {
            let text = "the annotation kanchi.io/paused keeps the operator from changing anything";
            return Verdict::unknown(Reason::PausedByUser, text);
        }
        let held_up = [&self.accepted, &self.references, &self.blocked].into_iter().flatten();
        if let Some(verdict) = held_up.into_iter().find(|verdict| verdict.status != Status::True) {
            return verdict.clone();
        }
        match self.monitor(previous) {
            None => Verdict::unknown(Reason::Progressing, "the monitor has not been looked at yet"),
            Some(seen) if !self.enabled && seen.reason == Reason::ScaledToZero => {
                Verdict::yes(Reason::Disabled, "enabled is false: no monitor runs, as asked")
            }
            // One of two monitors works, which is less than the spec asks.
            Some(seen) if matches!(seen.reason, Reason::StandbyNotReady | Reason::RollingOut) => {
                Verdict::no(seen.reason, seen.message)
            }
            Some(seen) if seen.status == Status::True => {
                Verdict::yes(Reason::AsExpected, "everything is as the spec asks")
            }
            Some(seen) => seen,
        }
    }
}

/// Returns the status of the very first pass: seen, nothing known.
pub fn first(generation: i64, now: Timestamp) -> CeleryBrokerStatus {
    let seen = Verdict::unknown(Reason::Progressing, "seen, not looked at yet");
    CeleryBrokerStatus {
        observed_generation: Some(generation),
        conditions: vec![condition(None, ConditionType::Ready, seen, generation, now)],
        ..CeleryBrokerStatus::default()
    }
}

/// Computes the part of the status that conditions and facts make up; counts are another writer's.
pub fn compute(previous: &CeleryBrokerStatus, facts: &Facts, now: Timestamp) -> CeleryBrokerStatus {
    let view = facts.view.clone();
    let (broker, store, version) = match view {
        Some(view) => (view.broker, view.store, view.version),
        None => (None, None, None),
    };
    let role = facts.role.map(|mode| match mode {
        RoleMode::Own => Verdict::yes(
            Reason::OwnRole,
            "the monitor's database role reads this broker's rows only",
        ),
        RoleMode::Shared => Verdict::no(
            Reason::SharedRole,
            "the store's user may not create roles: all monitors share one, and so do tenants; see docs/security.md",
        ),
    });
    let paused = if facts.paused {
        Verdict::yes(Reason::PausedByUser, "the annotation kanchi.io/paused is set")
    } else {
        Verdict::no(Reason::NotPaused, "the annotation kanchi.io/paused is not set")
    };
    let ready = facts.ready(previous);
    let stalled = if facts.stalled {
        Verdict::yes(ready.reason, &ready.message)
    } else {
        Verdict::no(Reason::NotStalled, "nothing waits for the user")
    };
    let found = [
        (ConditionType::Ready, Some(ready)),
        (ConditionType::Accepted, facts.accepted.clone()),
        (ConditionType::ReferencesResolved, facts.references.clone()),
        (ConditionType::MonitorAvailable, facts.monitor(previous)),
        (
            ConditionType::BrokerReachable,
            keep_words(previous, ConditionType::BrokerReachable, broker),
        ),
        (
            ConditionType::StoreReachable,
            keep_words(previous, ConditionType::StoreReachable, store),
        ),
        (ConditionType::StoreIsolated, role),
        (ConditionType::Paused, Some(paused)),
        (ConditionType::Stalled, Some(stalled)),
    ];
    let conditions = found.into_iter().filter_map(|(type_, verdict)| {
        let before = previous.condition(type_);
        match verdict {
            Some(verdict) => Some(condition(before, type_, verdict, facts.generation, now)),
            None if before.is_some() => before.cloned(),
            None if type_ == ConditionType::StoreIsolated => None,
            None => {
                let unknown = Verdict::unknown(Reason::Progressing, "not looked at yet");
                Some(condition(None, type_, unknown, facts.generation, now))
            }
        }
    });
    CeleryBrokerStatus {
        observed_generation: Some(facts.generation),
        conditions: conditions.collect(),
        transport: facts.transport.or(previous.transport),
        endpoint: facts.endpoint.clone().or_else(|| previous.endpoint.clone()),
        broker_version: version.or_else(|| previous.broker_version.clone()),
        monitor_image: facts
            .observation
            .as_ref()
            .and_then(|seen| seen.image.clone())
            .or_else(|| previous.monitor_image.clone()),
        store_key: facts.key.or(previous.store_key),
        ..CeleryBrokerStatus::default()
    }
}

/// The words of a monitor may differ from attempt to attempt; a condition changes with its reason only.
fn keep_words(previous: &CeleryBrokerStatus, type_: ConditionType, verdict: Option<Verdict>) -> Option<Verdict> {
    let mut verdict = verdict?;
    if let Some(before) = previous.condition(type_)
        && before.reason == verdict.reason.as_str()
        && before.status == verdict.status.as_str()
    {
        verdict.message.clone_from(&before.message);
    }
    Some(verdict)
}

/// A transition time moves with the status only.
fn condition(
    before: Option<&Condition>,
    type_: ConditionType,
    verdict: Verdict,
    generation: i64,
    now: Timestamp,
) -> Condition {
    let status = verdict.status.as_str();
    let same = before.filter(|before| before.status == status);
    let seconds = Timestamp::from_second(now.as_second()).unwrap_or(now);
    Condition {
        last_transition_time: same.map_or(Time(seconds), |before| before.last_transition_time.clone()),
        message: verdict.message,
        observed_generation: Some(generation),
        reason: verdict.reason.into(),
        status: status.to_owned(),
        type_: type_.into(),
    }
}

/// Tells whether a status, as the API server has it, says the same as the computed part.
pub fn says_the_same(live: &CeleryBrokerStatus, computed: &CeleryBrokerStatus) -> bool {
    let covered = computed
        .conditions
        .iter()
        .all(|condition| live.conditions.contains(condition));
    let ours = |condition: &&Condition| condition.type_.parse::<ConditionType>().is_ok();
    covered
        && live.conditions.iter().filter(ours).count() == computed.conditions.len()
        && live.observed_generation == computed.observed_generation
        && live.transport == computed.transport
        && live.endpoint == computed.endpoint
        && live.broker_version == computed.broker_version
        && live.monitor_image == computed.monitor_image
        && live.store_key == computed.store_key
}

/// A change that is worth an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Type of the condition.
    pub type_: ConditionType,
    /// Its new reason.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Whether it is good news.
    pub good: bool,
}

/// Returns the transitions between two statuses. `Ready` follows the others and has none of its own.
pub fn transitions(before: &CeleryBrokerStatus, after: &CeleryBrokerStatus) -> Vec<Transition> {
    let told = |type_: ConditionType| !matches!(type_, ConditionType::Ready | ConditionType::Stalled);
    let mut found = Vec::new();
    for type_ in ConditionType::ALL.iter().copied().filter(|type_| told(*type_)) {
        let Some(now) = after.condition(type_) else { continue };
        let was = before.condition(type_);
        let same = was.is_some_and(|was| was.reason == now.reason && was.status == now.status);
        let Ok(reason) = now.reason.parse::<Reason>() else {
            continue;
        };
        if same || is_no_news(was.is_none(), reason) {
            continue;
        }
        let good = now.status == "True" || matches!(reason, Reason::ScaledToZero | Reason::NotPaused);
        found.push(Transition {
            type_,
            reason: now.reason.clone(),
            message: now.message.clone(),
            good,
        });
    }
    found
}

fn is_no_news(first: bool, reason: Reason) -> bool {
    let on_the_way = matches!(
        reason,
        Reason::Progressing
            | Reason::NotReportedYet
            | Reason::Connecting
            | Reason::RollingOut
            | Reason::WorkloadNotReady
    );
    let as_usual = matches!(
        reason,
        Reason::Valid | Reason::AllFound | Reason::OwnRole | Reason::NotPaused
    );
    on_the_way || (first && as_usual)
}

#[cfg(test)]
mod tests;
