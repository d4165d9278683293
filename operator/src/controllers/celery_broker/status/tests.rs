use std::collections::HashMap;

use kanchi_store::{Heartbeat, MonitorReport};

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn observation(status: Status, reason: Reason) -> Observation {
    Observation {
        verdict: Verdict::new(status, reason, "text"),
        rolling: false,
        image: Some("monitor:1".into()),
    }
}

fn healthy() -> Facts {
    Facts {
        accepted: Some(Verdict::yes(Reason::Valid, "valid")),
        references: Some(Verdict::yes(Reason::AllFound, "found")),
        role: Some(RoleMode::Own),
        observation: Some(observation(Status::True, Reason::RolledOut)),
        transport: Some(Transport::Redis),
        endpoint: Some("cache:6379/0".into()),
        key: Some(7),
        ..Facts::new(3)
    }
}

fn says(status: &CeleryBrokerStatus, type_: ConditionType) -> (String, String) {
    let condition = status.condition(type_).unwrap_or_else(|| panic!("no {type_}"));
    (condition.status.clone(), condition.reason.clone())
}

fn pair(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

fn world(link: LinkState, heartbeat: Option<Heartbeat>, age: u64) -> World {
    let report = MonitorReport {
        key: BrokerKey(7),
        namespace: "shop".into(),
        name: "orders".into(),
        heartbeat_age: heartbeat.as_ref().map(|_| Duration::from_secs(age)),
        heartbeat,
        top_queues: Vec::new(),
        gaps_last_day: 0,
        gaps_open: 0,
    };
    World {
        link,
        reports: [(BrokerKey(7), report)].into(),
        hours: HashMap::new(),
        purges_pending: 0,
        upkeep: None,
        taken: Instant::now(),
    }
}

fn heartbeat(connection: &str, reason: Option<&str>) -> Heartbeat {
    Heartbeat {
        connection: connection.into(),
        reason: reason.map(str::to_owned),
        message: Some("words".into()),
        broker_version: Some("Redis 7.2".into()),
        ..Heartbeat::default()
    }
}

fn seen(world: &World) -> WorldView {
    view(world, Some(BrokerKey(7)), true, world.taken)
}

#[test]
fn the_first_pass_says_seen_and_nothing_more() {
    let status = first(4, at(0));
    assert_eq!(status.observed_generation, Some(4));
    assert_eq!(says(&status, ConditionType::Ready), pair("Unknown", "Progressing"));
    assert_eq!(status.conditions.len(), 1);
}

#[test]
fn a_healthy_broker_is_ready_and_unknown_is_said_where_nothing_was_reported() {
    let status = compute(&CeleryBrokerStatus::default(), &healthy(), at(0));
    assert_eq!(says(&status, ConditionType::Ready), pair("True", "AsExpected"));
    assert_eq!(
        says(&status, ConditionType::BrokerReachable),
        pair("Unknown", "Progressing")
    );
    assert_eq!(says(&status, ConditionType::Stalled), pair("False", "NotStalled"));
    assert_eq!(
        (status.store_key, status.endpoint.as_deref()),
        (Some(7), Some("cache:6379/0"))
    );
}

#[test]
fn a_configuration_that_the_monitor_refuses_is_news_until_it_takes_one() {
    let mut facts = healthy();
    let refusing = Heartbeat {
        config_error: Some("unknown field".into()),
        ..heartbeat("Connected", None)
    };
    facts.view = Some(seen(&world(LinkState::Up, Some(refusing), 1)));
    let refused = compute(&CeleryBrokerStatus::default(), &facts, at(0));
    assert_eq!(
        says(&refused, ConditionType::MonitorAvailable),
        pair("False", "ConfigRefused")
    );
    assert_eq!(says(&refused, ConditionType::Ready), pair("False", "ConfigRefused"));
    // A new leader that has not read the reports yet has no news.
    facts.view = Some(seen(&world(LinkState::Connecting, None, 0)));
    let kept = compute(&refused, &facts, at(1));
    assert_eq!(kept.conditions, refused.conditions);
    facts.view = Some(seen(&world(LinkState::Up, Some(heartbeat("Connected", None)), 1)));
    let healed = compute(&kept, &facts, at(2));
    assert_eq!(says(&healed, ConditionType::Ready), pair("True", "AsExpected"));
}

#[test]
fn ready_follows_what_holds_it_up_and_never_the_world() {
    let mut facts = healthy();
    facts.view = Some(seen(&world(
        LinkState::Up,
        Some(heartbeat("Disconnected", Some("ConnectionRefused"))),
        1,
    )));
    let status = compute(&CeleryBrokerStatus::default(), &facts, at(0));
    assert_eq!(
        says(&status, ConditionType::BrokerReachable),
        pair("False", "ConnectionRefused")
    );
    assert_eq!(says(&status, ConditionType::Ready), pair("True", "AsExpected"));

    facts.references = Some(Verdict::no(Reason::SecretNotFound, "Secret shop/x"));
    let status = compute(&status, &facts, at(1));
    assert_eq!(says(&status, ConditionType::Ready), pair("False", "SecretNotFound"));
    assert_eq!(status.condition(ConditionType::Ready).unwrap().message, "Secret shop/x");
}

#[test]
fn transition_times_move_with_the_status_only() {
    let one = compute(&CeleryBrokerStatus::default(), &healthy(), at(0));
    let two = compute(&one, &healthy(), at(60));
    assert!(says_the_same(&one, &two), "nothing changed, nothing to write");
    let mut crashing = healthy();
    crashing.observation = Some(observation(Status::False, Reason::CrashLooping));
    let three = compute(&two, &crashing, at(120));
    let time = |status: &CeleryBrokerStatus, type_| status.condition(type_).unwrap().last_transition_time.0;
    assert_eq!(time(&three, ConditionType::Ready), at(120));
    assert_eq!(time(&three, ConditionType::Accepted), at(0));
    crashing.observation = Some(observation(Status::False, Reason::ImagePullFailed));
    let four = compute(&three, &crashing, at(180));
    assert_eq!(
        time(&four, ConditionType::Ready),
        at(120),
        "the reason changed, the status did not"
    );
}

#[test]
fn what_was_not_looked_at_keeps_its_word() {
    let mut facts = healthy();
    facts.view = Some(seen(&world(LinkState::Up, Some(heartbeat("Connected", None)), 1)));
    let before = compute(&CeleryBrokerStatus::default(), &facts, at(0));
    let mut blind = Facts::new(3);
    blind.references = Some(Verdict::no(Reason::SecretNotFound, "gone"));
    let after = compute(&before, &blind, at(10));
    assert_eq!(says(&after, ConditionType::BrokerReachable), pair("True", "Connected"));
    assert_eq!(says(&after, ConditionType::MonitorAvailable), pair("True", "RolledOut"));
    assert_eq!((after.endpoint, after.store_key), (before.endpoint, Some(7)));
    assert_eq!(after.broker_version.as_deref(), Some("Redis 7.2"));
}

#[test]
fn paused_disabled_and_deleting_are_said() {
    let mut facts = healthy();
    facts.paused = true;
    let status = compute(&CeleryBrokerStatus::default(), &facts, at(0));
    assert_eq!(says(&status, ConditionType::Ready), pair("Unknown", "PausedByUser"));
    assert_eq!(says(&status, ConditionType::Paused), pair("True", "PausedByUser"));

    let mut facts = healthy();
    facts.enabled = false;
    facts.observation = Some(observation(Status::False, Reason::ScaledToZero));
    let status = compute(&CeleryBrokerStatus::default(), &facts, at(0));
    assert_eq!(says(&status, ConditionType::Ready), pair("True", "Disabled"));
    assert_eq!(
        says(&status, ConditionType::MonitorAvailable),
        pair("False", "ScaledToZero")
    );

    facts.deleting = true;
    let status = compute(&CeleryBrokerStatus::default(), &facts, at(0));
    assert_eq!(says(&status, ConditionType::Ready), pair("False", "Deleting"));
}

#[test]
fn a_terminal_error_is_also_stalled() {
    let mut facts = Facts::new(1);
    facts.accepted = Some(Verdict::no(Reason::InvalidSpec, "change it"));
    facts.stalled = true;
    let status = compute(&CeleryBrokerStatus::default(), &facts, at(0));
    assert_eq!(says(&status, ConditionType::Ready), pair("False", "InvalidSpec"));
    assert_eq!(says(&status, ConditionType::Stalled), pair("True", "InvalidSpec"));
}

#[test]
fn reports_become_reachability() {
    let check = |world: &World| {
        let view = seen(world);
        let word = |verdict: Option<Verdict>| verdict.map(|verdict| (verdict.status, verdict.reason));
        (word(view.broker), word(view.store))
    };
    let connected = world(LinkState::Up, Some(heartbeat("Connected", None)), 5);
    assert_eq!(
        check(&connected),
        (
            Some((Status::True, Reason::Connected)),
            Some((Status::True, Reason::Writing))
        )
    );
    let stale = world(LinkState::Up, Some(heartbeat("Connected", None)), 31);
    let unknown = Some((Status::Unknown, Reason::ReportStale));
    assert_eq!(check(&stale), (unknown, unknown));
    let never = Some((Status::Unknown, Reason::NotReportedYet));
    assert_eq!(check(&world(LinkState::Up, None, 0)), (never, never));
    let down = LinkState::Down {
        kind: ErrorKind::ConnectionLimit,
        message: "full".into(),
    };
    assert_eq!(
        check(&world(down, None, 0)),
        (unknown, Some((Status::False, Reason::ConnectionLimit)))
    );
    assert_eq!(check(&world(LinkState::Connecting, None, 0)), (None, None));
    for reason in [
        "ConnectionRefused",
        "AuthenticationFailed",
        "TlsFailed",
        "DnsFailed",
        "Timeout",
        "VhostNotFound",
    ] {
        let failed = world(LinkState::Up, Some(heartbeat("Disconnected", Some(reason))), 1);
        assert_eq!(seen(&failed).broker.unwrap().reason.as_str(), reason);
    }
    let odd = world(
        LinkState::Up,
        Some(heartbeat("Disconnected", Some("NewInALaterRelease"))),
        1,
    );
    assert_eq!(seen(&odd).broker.unwrap().reason, Reason::ConnectionLost);
}

#[test]
fn words_that_differ_between_attempts_write_nothing() {
    let mut facts = healthy();
    let refused = |words: &str| {
        let mut heartbeat = heartbeat("Disconnected", Some("ConnectionRefused"));
        heartbeat.message = Some(words.into());
        seen(&world(LinkState::Up, Some(heartbeat), 1))
    };
    facts.view = Some(refused("attempt 1"));
    let one = compute(&CeleryBrokerStatus::default(), &facts, at(0));
    facts.view = Some(refused("attempt 2"));
    assert!(says_the_same(&one, &compute(&one, &facts, at(9))));
}

#[test]
fn each_change_that_matters_is_told_once_and_the_usual_is_not() {
    let healthy = compute(&CeleryBrokerStatus::default(), &healthy(), at(0));
    let told = transitions(&CeleryBrokerStatus::default(), &healthy);
    assert_eq!(
        told.iter().map(|told| told.reason.as_str()).collect::<Vec<_>>(),
        ["RolledOut"]
    );
    assert!(transitions(&healthy, &healthy).is_empty());
    let mut facts = Facts::new(3);
    facts.references = Some(Verdict::no(Reason::SecretNotFound, "Secret shop/x"));
    let missing = compute(&healthy, &facts, at(1));
    let told = transitions(&healthy, &missing);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(!told[0].good && told[0].reason == "SecretNotFound" && told[0].message == "Secret shop/x");
}
