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
    table.set_pool("w@h", Pool::Prefork);
    table.unanswered("w@h", at(61.0));
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
    table.unanswered("w@h", at(61.0));
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
fn a_silent_solo_worker_is_unknown_for_an_hour() {
    // It tells of a task only when it is over: what it said last, that it was idle, means nothing.
    let mut table = WorkerTable::default();
    table.observe(&event("worker-heartbeat", 0.0, r#","freq":2.0,"active":0"#), true);
    table.set_pool("w@h", Pool::Solo);
    assert_eq!(table.check(at(61.0), PATIENCE), ["w@h"]);
    table.unanswered("w@h", at(62.0));
    assert_eq!(state(&table), WorkerState::Unknown);
    assert!(table.check(at(3599.0), PATIENCE).is_empty());
    assert_eq!(state(&table), WorkerState::Unknown);
    assert!(losses(&table, 3599.0).is_empty());
    table.check(at(3601.0), PATIENCE);
    assert_eq!(state(&table), WorkerState::Lost);
    table.observe(&beat(3700.0), true);
    assert_eq!(state(&table), WorkerState::Online);
}

#[test]
fn a_worker_that_never_answered_may_be_a_busy_solo_worker() {
    let mut table = WorkerTable::default();
    table.observe(&beat(0.0), true);
    assert_eq!(table.check(at(61.0), PATIENCE), ["w@h"]);
    table.unanswered("w@h", at(61.0));
    assert_eq!(state(&table), WorkerState::Unknown);
}

#[test]
fn a_worker_that_died_of_its_first_task_is_lost_though_it_never_answered() {
    let mut table = WorkerTable::default();
    table.observe(&beat(0.0), true);
    table.observe(&event("task-started", 1.0, r#","uuid":"t""#), true);
    assert_eq!(table.check(at(62.0), PATIENCE), ["w@h"]);
    table.unanswered("w@h", at(62.0));
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

/// Where a silent worker stands once it was asked and did not answer.
fn unanswered(table: &mut WorkerTable, seconds: f64) -> WorkerState {
    assert_eq!(table.check(at(seconds), PATIENCE), ["w@h"]);
    table.unanswered("w@h", at(seconds));
    state(table)
}

#[test]
fn what_an_earlier_process_knew_of_its_pool_decides_what_silence_means() {
    for (pool, expected) in [
        (Some(Pool::Solo), WorkerState::Unknown),
        (Some(Pool::Prefork), WorkerState::Lost),
        (Some(Pool::Other), WorkerState::Lost),
        // It never answered that process either: it may have been busy all the time.
        (None, WorkerState::Unknown),
    ] {
        let mut before = WorkerTable::default();
        before.observe(&beat(0.0), true);
        if let Some(pool) = pool {
            before.set_pool("w@h", pool);
        }
        let rows = before.take_dirty();
        // Nothing was heard of it since; or one heartbeat was, before the rows came.
        let mut silent = WorkerTable::default();
        silent.merge_loaded(rows.clone(), at(10.0));
        let mut heard = WorkerTable::default();
        heard.observe(&beat(10.0), true);
        heard.merge_loaded(rows.clone(), at(10.0));
        for mut after in [silent, heard] {
            assert_eq!(unanswered(&mut after, 71.0), expected, "{pool:?}");
            assert_eq!(
                after.take_dirty()[0].pool,
                rows[0].pool,
                "and the next process knows it, too"
            );
        }
    }
}

#[test]
fn a_pool_is_written_when_it_is_learned_and_not_each_time_it_is_told() {
    let mut table = WorkerTable::default();
    table.observe(&beat(0.0), true);
    assert_eq!(table.take_dirty()[0].pool, None);
    table.set_pool("w@h", Pool::Solo);
    assert_eq!(table.take_dirty()[0].pool.as_deref(), Some("solo"));
    table.set_pool("w@h", Pool::Solo);
    assert!(table.take_dirty().is_empty());
    table.set_pool("w@h", Pool::Prefork);
    assert_eq!(table.take_dirty()[0].pool.as_deref(), Some("prefork"));
}

#[test]
fn a_process_that_began_anew_may_have_another_pool() {
    let mut online = event("worker-online", 10.0, r#","freq":2.0,"active":0"#);
    online.pid = Some(8);
    for (pool, expected) in [(Pool::Solo, Some("solo")), (Pool::Prefork, None)] {
        let mut table = WorkerTable::default();
        table.observe(&beat(0.0), true);
        table.set_pool("w@h", pool);
        let rows = table.take_dirty();
        table.observe(&online, true);
        assert_eq!(table.take_dirty()[0].pool.as_deref(), expected);
        assert_eq!(unanswered(&mut table, 71.0), WorkerState::Unknown);

        let mut after = WorkerTable::default();
        after.observe(&online, true);
        after.merge_loaded(rows, at(11.0));
        assert_eq!(
            after.take_dirty()[0].pool.as_deref(),
            expected,
            "seen by the next process only"
        );
    }
}

#[test]
fn a_pool_that_a_later_release_has_written_is_known_and_not_solo() {
    let mut before = WorkerTable::default();
    before.observe(&beat(0.0), true);
    let mut rows = before.take_dirty();
    rows[0].pool = Some("interpreters".into());
    let mut after = WorkerTable::load(rows, at(10.0));
    assert_eq!(unanswered(&mut after, 71.0), WorkerState::Lost);
}

fn losses(table: &WorkerTable, seconds: f64) -> Vec<Loss> {
    table.losses(at(seconds), Duration::from_secs(30))
}

fn lost(table: &mut WorkerTable, seconds: f64) {
    assert_eq!(table.check(at(seconds), PATIENCE), ["w@h"]);
    table.set_pool("w@h", Pool::Prefork);
    table.unanswered("w@h", at(seconds));
    assert_eq!(state(table), WorkerState::Lost);
}

fn running(pid: i64, began: f64, lost: Option<f64>) -> Running {
    Running {
        hostname: "w@h".into(),
        pid: Some(pid),
        began: at(began),
        latest: at(began),
        lost: lost.map(at),
    }
}

#[test]
fn a_loss_is_told_after_the_grace_and_until_it_is_dealt_with() {
    let mut table = WorkerTable::default();
    table.observe(&beat(0.0), true);
    lost(&mut table, 61.0);
    assert!(losses(&table, 90.0).is_empty());
    let told = losses(&table, 91.0);
    assert_eq!(told.len(), 1);
    assert_eq!(
        (told[0].pid, told[0].heard, told[0].since),
        (Some(7), Some(at(0.0)), at(61.0))
    );
    assert!(told[0].took(&running(7, -5.0, None)));
    assert!(!told[0].took(&running(8, -5.0, None)), "another process");
    assert!(
        !told[0].took(&running(7, 5.0, None)),
        "a later process with the same id"
    );
    assert!(!told[0].took(&running(7, -5.0, Some(0.0))), "orphaned already");
    table.loss_done(&told[0]);
    assert!(losses(&table, 1_000.0).is_empty());
}

#[test]
fn a_worker_that_comes_back_within_the_grace_has_lost_nothing() {
    let mut table = WorkerTable::default();
    table.observe(&beat(0.0), true);
    table.take_returned();
    lost(&mut table, 61.0);
    table.observe(&beat(70.0), true);
    assert!(losses(&table, 1_000.0).is_empty());
    assert_eq!(table.take_returned(), ["w@h"]);
    assert_eq!(table.sign_of_life(&running(7, -5.0, Some(0.0))), Some(at(70.0)));
    assert_eq!(
        table.sign_of_life(&running(8, -5.0, Some(0.0))),
        None,
        "another process"
    );
}

#[test]
fn the_grace_starts_again_after_a_gap() {
    let mut table = WorkerTable::default();
    table.observe(&beat(0.0), true);
    lost(&mut table, 61.0);
    table.restart_timers(at(85.0));
    assert!(losses(&table, 114.0).is_empty());
    assert_eq!(losses(&table, 115.0).len(), 1);
}

#[test]
fn a_worker_that_began_anew_has_lost_its_process_before() {
    let anew = |pid: i64, seconds: f64, processed: i64| {
        let mut beat = event(
            "worker-heartbeat",
            seconds,
            &format!(r#","freq":2.0,"active":0,"processed":{processed}"#),
        );
        beat.pid = Some(pid);
        beat
    };
    // By its id, or, in a container, by its count of tasks.
    for pid in [8, 7] {
        let mut table = WorkerTable::default();
        table.observe(&anew(7, 0.0, 5), true);
        table.observe(&anew(pid, 10.0, 0), true);
        table.observe(&anew(pid, 129.0, 0), true);
        assert!(
            table.check(at(119.0), PATIENCE).is_empty(),
            "twice the silence: nobody can be asked"
        );
        assert!(losses(&table, 10_000.0).is_empty());
        table.check(at(121.0), PATIENCE);
        assert_eq!(state(&table), WorkerState::Online);
        let told = losses(&table, 151.0);
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].pid, told[0].heard), (Some(7), Some(at(0.0))));
        assert_eq!(
            table.sign_of_life(&running(7, -5.0, Some(0.0))),
            None,
            "that one does not live"
        );
        table.loss_done(&told[0]);
        assert!(losses(&table, 10_000.0).is_empty());
    }
}

#[test]
fn two_workers_of_one_name_lose_nothing() {
    let mut table = WorkerTable::default();
    for second in 0..300 {
        let mut beat = beat(f64::from(second));
        beat.pid = Some(7 + i64::from(second % 2));
        table.observe(&beat, true);
        assert!(table.check(at(f64::from(second)), PATIENCE).is_empty());
    }
    assert!(losses(&table, 1_000.0).is_empty());
}

#[test]
fn after_a_goodbye_nothing_is_lost() {
    let mut table = WorkerTable::default();
    table.observe(&beat(0.0), true);
    table.observe(&event("worker-offline", 10.0, ""), true);
    let mut next = event("worker-online", 12.0, r#","freq":2.0,"active":0"#);
    next.pid = Some(8);
    table.observe(&next, true);
    table.observe(&event_of(8, 400.0), true);
    table.check(at(401.0), PATIENCE);
    assert!(losses(&table, 10_000.0).is_empty());
}

fn event_of(pid: i64, seconds: f64) -> Event {
    let mut beat = beat(seconds);
    beat.pid = Some(pid);
    beat
}

#[test]
fn the_answer_to_the_heartbeat_command_is_no_heartbeat() {
    let mut table = WorkerTable::default();
    table.observe(&event("worker-heartbeat", 0.0, r#","freq":5,"sw_ver":"5.7.0""#), true);
    assert_eq!(state(&table), WorkerState::Unknown);
    for patience in [PATIENCE, READ_ONLY] {
        assert!(table.check(at(10_000.0), patience).is_empty());
        assert_eq!(state(&table), WorkerState::Unknown);
    }
}

#[test]
fn a_backlog_is_noticed_and_a_live_stream_is_not_taken_for_one() {
    let mut table = WorkerTable::default();
    for second in [0, 2, 4, 6] {
        // Sent two seconds apart, ten minutes ago, read at once.
        table.observe(
            &event_at(
                "worker-heartbeat",
                f64::from(second),
                600.0,
                r#","freq":2.0,"active":0"#,
            ),
            false,
        );
        assert_eq!(table.take_replayed(), second > 0);
    }
    let mut live = WorkerTable::default();
    for second in [0.0, 2.0, 4.4, 6.0] {
        live.observe(
            &event_at(
                "worker-heartbeat",
                second,
                second + 3_600.3,
                r#","freq":2.0,"active":0"#,
            ),
            false,
        );
        assert!(!live.take_replayed(), "a clock that is off is no backlog");
    }
}

#[test]
fn what_arrived_since_the_stream_is_live_is_no_silence_whatever_the_clock() {
    let mut table = WorkerTable::default();
    // An hour behind; not known to be live yet when it was read.
    table.observe(
        &event_at("worker-heartbeat", 0.0, 3_600.0, r#","freq":2.0,"active":0"#),
        false,
    );
    table.live_since(at(3_598.0));
    assert!(table.check(at(3_603.0), READ_ONLY).is_empty());
    assert_eq!(state(&table), WorkerState::Online);
    let mut dead = WorkerTable::default();
    dead.observe(
        &event_at("worker-heartbeat", 0.0, 3_590.0, r#","freq":2.0,"active":0"#),
        false,
    );
    dead.live_since(at(3_598.0));
    dead.check(at(3_603.0), READ_ONLY);
    assert_eq!(state(&dead), WorkerState::Lost, "out of a backlog, and silent since");
}

#[test]
fn a_clock_that_is_set_back_or_forward_loses_nobody() {
    for shift in [-3_600.0, 3_600.0] {
        let mut table = WorkerTable::default();
        for second in (0..400).step_by(2) {
            let now = f64::from(second);
            let shown = if second < 200 { now } else { now + shift };
            table.observe(
                &event_at("worker-heartbeat", shown, now, r#","freq":2.0,"active":0"#),
                true,
            );
            assert!(table.check(at(now + 1.0), READ_ONLY).is_empty());
            assert_eq!(state(&table), WorkerState::Online);
        }
        table.observe(&event_at("worker-offline", 400.0 + shift, 400.0, ""), true);
        assert_eq!(state(&table), WorkerState::Offline, "what it says now counts");
        let row = table.take_dirty().remove(0);
        assert!((at(398.0)..=at(400.0)).contains(&row.last_event_at), "by our clock");
    }
}

#[test]
fn a_clock_of_ours_that_was_set_back_hides_nobody() {
    let mut table = WorkerTable::default();
    table.observe(&beat(3_600.0), true);
    table.restart_timers(at(0.0));
    assert_eq!(table.check(at(61.0), PATIENCE), ["w@h"]);
}

#[test]
fn an_earlier_process_of_ours_may_have_seen_the_loss_or_not() {
    let mut table = WorkerTable::default();
    table.observe(&beat(0.0), true);
    lost(&mut table, 61.0);
    let mut next = WorkerTable::load(table.take_dirty(), at(100.0));
    assert!(losses(&next, 129.0).is_empty(), "its grace starts with us");
    let told = losses(&next, 130.0);
    assert_eq!((told.len(), told[0].heard), (1, None));
    assert!(told[0].took(&running(7, 500.0, None)));
    next.observe(&beat(140.0), true);
    assert!(losses(&next, 500.0).is_empty());
    assert_eq!(next.take_returned(), ["w@h"]);

    // It was restarted while none of us was there.
    let mut before = WorkerTable::default();
    before.observe(&beat(0.0), true);
    let mut now = WorkerTable::default();
    now.observe(&event_of(8, 100.0), true);
    now.merge_loaded(before.take_dirty(), at(101.0));
    now.observe(&event_of(8, 221.0), true);
    now.check(at(222.0), PATIENCE);
    let told = losses(&now, 252.0);
    assert_eq!((told.len(), told[0].pid), (1, Some(7)));
}

#[test]
fn dead_pods_leave_the_list_after_a_day() {
    const DAY: f64 = 86_400.0;
    let mut table = WorkerTable::default();
    table.observe(&beat(0.0), true);
    table.observe(&event("worker-offline", 1.0, ""), true);
    assert!(table.forget(at(DAY)).is_empty());
    assert_eq!(table.forget(at(DAY + 2.0)), ["w@h"]);
    assert!(table.state_of("w@h").is_none());

    let mut silent = WorkerTable::default();
    silent.observe(&beat(0.0), true);
    lost(&mut silent, 61.0);
    assert!(silent.forget(at(DAY + 2.0)).is_empty(), "its tasks come first");
    let told = losses(&silent, 100.0).remove(0);
    silent.loss_done(&told);
    assert_eq!(silent.forget(at(DAY + 2.0)), ["w@h"]);
}
