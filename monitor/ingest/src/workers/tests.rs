use super::*;
use kanchi_domain::{BodyEncoding, Limits, RawMessage, decode};

const PATIENCE: Patience = Patience {
    offline_after: Duration::from_mins(1),
    read_only: false,
};
const READ_ONLY: Patience = Patience {
    offline_after: Duration::from_mins(1),
    read_only: true,
};
/// A moment that the decoder accepts.
const START: i64 = 1_700_000_000;

fn at(seconds: f64) -> UnixMicros {
    UnixMicros(((START as f64 + seconds) * 1e6) as i64)
}

fn event_at(kind: &str, timestamp: f64, arrived: f64, fields: &str) -> Event {
    let stamp = START as f64 + timestamp;
    let body = format!(r#"{{"type":"{kind}","hostname":"w@h","timestamp":{stamp},"pid":7,"clock":1{fields}}}"#);
    let message = RawMessage {
        body: body.as_bytes(),
        content_type: Some("application/json"),
        content_encoding: Some("utf-8"),
        compression: None,
        body_encoding: BodyEncoding::Raw,
    };
    let decoded = decode(&message, at(arrived), &Limits::DEFAULT);
    decoded
        .events
        .into_iter()
        .next()
        .unwrap_or_else(|| panic!("{body}: {:?}", decoded.rejects))
}

fn event(kind: &str, timestamp: f64, fields: &str) -> Event {
    event_at(kind, timestamp, timestamp, fields)
}

fn beat(timestamp: f64) -> Event {
    event("worker-heartbeat", timestamp, r#","freq":2.0,"active":1,"processed":5"#)
}

fn state(table: &WorkerTable) -> WorkerState {
    table.state_of("w@h").unwrap()
}

#[test]
fn a_silent_worker_is_asked_first_and_lost_when_it_does_not_answer() {
    let mut table = WorkerTable::default();
    table.observe(&beat(0.0), true);
    assert_eq!(table.take_newly_online(), ["w@h"]);
    assert!(table.check(at(59.0), PATIENCE).is_empty());
    assert_eq!(table.check(at(61.0), PATIENCE), ["w@h"]);
    assert_eq!(state(&table), WorkerState::Online, "being asked is not being lost");
    assert!(table.check(at(62.0), PATIENCE).is_empty(), "asked once only");
    table.unanswered("w@h");
    assert_eq!(state(&table), WorkerState::Lost);
    table.observe(&beat(70.0), true);
    assert_eq!(state(&table), WorkerState::Online, "it heals");
}

#[test]
fn an_answer_or_an_event_meanwhile_keeps_it_online() {
    let mut table = WorkerTable::default();
    table.observe(&beat(0.0), true);
    assert_eq!(table.check(at(61.0), PATIENCE), ["w@h"]);
    table.answered("w@h", at(62.0));
    assert!(table.check(at(100.0), PATIENCE).is_empty());
    assert_eq!(table.check(at(123.0), PATIENCE), ["w@h"]);
    table.observe(&beat(124.0), true);
    table.unanswered("w@h");
    assert_eq!(state(&table), WorkerState::Online);
}

#[test]
fn read_only_waits_twice_as_long_and_asks_nobody() {
    let mut table = WorkerTable::default();
    table.observe(&beat(0.0), true);
    assert!(table.check(at(119.0), READ_ONLY).is_empty());
    assert_eq!(state(&table), WorkerState::Online);
    assert!(table.check(at(121.0), READ_ONLY).is_empty());
    assert_eq!(state(&table), WorkerState::Lost);
}

#[test]
fn its_own_slow_rhythm_is_respected() {
    let mut table = WorkerTable::default();
    table.observe(&event("worker-heartbeat", 0.0, r#","freq":120.0,"active":0"#), true);
    assert!(table.check(at(239.0), PATIENCE).is_empty());
    assert_eq!(table.check(at(241.0), PATIENCE), ["w@h"]);
}

#[test]
fn the_answer_to_the_heartbeat_command_does_not_change_its_rhythm() {
    let mut table = WorkerTable::default();
    table.observe(&event("worker-heartbeat", 0.0, r#","freq":120.0,"active":0"#), true);
    table.observe(&event("worker-heartbeat", 1.0, r#","freq":5,"sw_ver":"5.7.0""#), true);
    let row = table.take_dirty().remove(0);
    assert_eq!((row.freq, row.sw_ver.as_deref()), (Some(120.0), Some("5.7.0")));
}

#[test]
fn a_busy_solo_worker_is_unknown_and_an_idle_one_lost() {
    let mut table = WorkerTable::default();
    table.observe(&beat(0.0), true);
    table.set_solo("w@h", true);
    table.check(at(61.0), PATIENCE);
    table.unanswered("w@h");
    assert_eq!(state(&table), WorkerState::Unknown);
    table.observe(&event("worker-heartbeat", 100.0, r#","freq":2.0,"active":0"#), true);
    assert_eq!(state(&table), WorkerState::Online);
    table.check(at(161.0), PATIENCE);
    table.unanswered("w@h");
    assert_eq!(state(&table), WorkerState::Lost);
}

#[test]
fn a_worker_without_heartbeats_is_unknown_and_never_lost() {
    let mut table = WorkerTable::default();
    table.observe(&event("task-started", 0.0, r#","uuid":"a""#), true);
    assert_eq!(state(&table), WorkerState::Unknown);
    assert!(table.check(at(10_000.0), PATIENCE).is_empty());
    assert_eq!(state(&table), WorkerState::Unknown);
}

#[test]
fn task_events_are_signs_of_life_but_clients_are_no_workers() {
    let mut table = WorkerTable::default();
    table.observe(&beat(0.0), true);
    table.observe(&event("task-succeeded", 50.0, r#","uuid":"a""#), true);
    assert!(table.check(at(100.0), PATIENCE).is_empty());
    let mut other = WorkerTable::default();
    other.observe(&event("task-sent", 0.0, r#","uuid":"a""#), true);
    assert_eq!(other.counts(), WorkerCounts::default());
}

#[test]
fn goodbye_is_offline_at_once_and_a_late_heartbeat_does_not_revive_it() {
    let mut table = WorkerTable::default();
    table.observe(&beat(0.0), true);
    table.observe(&event("worker-offline", 10.0, ""), true);
    table.observe(&beat(9.0), true);
    assert_eq!(state(&table), WorkerState::Offline);
    table.observe(&event("worker-online", 11.0, r#","freq":2.0,"active":0"#), true);
    assert_eq!(state(&table), WorkerState::Online);
    assert_eq!(table.take_newly_online(), ["w@h"]);
}

#[test]
fn time_is_the_events_time_so_a_backlog_does_not_revive_the_dead() {
    let mut table = WorkerTable::default();
    // Read ten minutes late, out of the queue: the worker has been silent for ten minutes.
    table.observe(
        &event_at("worker-heartbeat", 0.0, 600.0, r#","freq":2.0,"active":0"#),
        false,
    );
    assert_eq!(table.check(at(600.0), PATIENCE), ["w@h"]);
}

#[test]
fn a_clock_that_is_off_is_corrected_when_caught_up() {
    let mut table = WorkerTable::default();
    table.observe(
        &event_at("worker-heartbeat", 0.0, 600.0, r#","freq":2.0,"active":0"#),
        true,
    );
    assert!(table.check(at(630.0), PATIENCE).is_empty());
    assert_eq!(table.check(at(661.0), PATIENCE), ["w@h"]);
    let mut ahead = WorkerTable::default();
    ahead.observe(
        &event_at("worker-heartbeat", 3600.0, 0.0, r#","freq":2.0,"active":0"#),
        true,
    );
    assert_eq!(ahead.check(at(61.0), PATIENCE), ["w@h"]);
}

#[test]
fn timers_start_again_after_a_gap() {
    let mut table = WorkerTable::default();
    table.observe(&beat(0.0), true);
    table.restart_timers(at(300.0));
    assert!(table.check(at(359.0), PATIENCE).is_empty());
    assert_eq!(table.check(at(361.0), PATIENCE), ["w@h"]);
}

#[test]
fn a_restarted_process_is_seen_by_its_pid_and_a_reconnect_is_not_a_restart() {
    let mut table = WorkerTable::default();
    table.observe(&event("worker-online", 0.0, r#","freq":2.0,"active":0"#), true);
    table.observe(&event("worker-online", 5.0, r#","freq":2.0,"active":0"#), true);
    assert_eq!(table.take_dirty()[0].started_at, Some(at(0.0)));
    let mut restarted = event("worker-online", 9.0, r#","freq":2.0,"active":0"#);
    restarted.pid = Some(8);
    table.observe(&restarted, true);
    let row = table.take_dirty().remove(0);
    assert_eq!((row.pid, row.started_at), (Some(8), Some(at(9.0))));
}

#[test]
fn rows_are_written_on_change_and_else_now_and_then() {
    let mut table = WorkerTable::default();
    table.observe(&beat(0.0), true);
    assert_eq!(table.take_dirty().len(), 1);
    table.observe(&beat(2.0), true);
    assert!(table.take_dirty().is_empty());
    table.observe(&beat(6.0), true);
    let rows = table.take_dirty();
    assert_eq!(rows.len(), 1);
    table.restore_dirty(&rows);
    assert_eq!(table.take_dirty().len(), 1);
}

#[test]
fn is_bounded_whatever_the_publishers_invent() {
    let mut table = WorkerTable::default();
    for number in 0..(MAX_WORKERS + 50) {
        let mut invented = beat(number as f64);
        invented.hostname = format!("w{number}@h").into();
        table.observe(&invented, true);
    }
    assert_eq!(table.workers.len(), MAX_WORKERS);
    assert!(table.state_of("w0@h").is_none());
}

#[test]
fn knows_what_an_earlier_process_knew() {
    let mut table = WorkerTable::default();
    table.observe(&beat(0.0), true);
    let rows = table.take_dirty();
    let mut loaded = WorkerTable::load(rows, at(500.0));
    assert_eq!(state(&loaded), WorkerState::Online);
    assert!(loaded.check(at(559.0), PATIENCE).is_empty(), "its timer starts with us");
    assert_eq!(loaded.check(at(561.0), PATIENCE), ["w@h"]);
}
