use std::time::Duration;

use super::*;
use crate::intake::spool::SpoolOptions;

fn spool(directory: &tempfile::TempDir, max_bytes: u64) -> Spool {
    let directory = directory.path().to_owned();
    Spool::open(SpoolOptions {
        directory,
        max_bytes,
        segment_bytes: 4096,
    })
    .unwrap()
}

fn push(buffer: &Buffer, from: i64, to: i64) {
    for number in from..to {
        buffer.push(UnixMicros(number), Bytes::from(vec![7; 200]));
    }
}

async fn take_all(buffer: &Buffer) -> Vec<Waiting> {
    let mut all = Vec::new();
    // Where nothing is left to be taken it would wait.
    while buffer.fill().waiting_bytes > 0
        && tokio::time::timeout(Duration::ZERO, buffer.take(&mut all, 1000)).await == Ok(true)
    {}
    all
}

#[tokio::test]
async fn keeps_order_from_ring_through_spool_and_back_to_the_ring() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = Buffer::new(2_000, Some(spool(&directory, 1 << 20)));
    push(&buffer, 0, 50);
    let fill = buffer.fill();
    assert!(fill.ring_bytes <= 2_000 && fill.spool_bytes > 0, "{fill:?}");
    let mut taken = Vec::new();
    assert!(buffer.take(&mut taken, 5_000).await);
    // The ring has room again, but older messages lie in the spool: newer ones must queue behind them.
    push(&buffer, 50, 60);
    taken.extend(take_all(&buffer).await);
    let arrived: Vec<_> = taken.iter().map(|message| message.arrived.0).collect();
    assert_eq!(arrived, (0..60).collect::<Vec<_>>());
    assert!(taken.windows(2).all(|pair| pair[0].tag < pair[1].tag));
    buffer.release_through(taken.last().unwrap().tag);
    assert_eq!(buffer.fill().spool_bytes, 0);
    push(&buffer, 60, 61);
    assert_eq!(buffer.fill().spool_bytes, 0, "back to memory");
}

#[tokio::test]
async fn drops_the_newest_when_all_is_full_and_tells_the_gap() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = Buffer::new(1_000, Some(spool(&directory, 10_000)));
    push(&buffer, 0, 100);
    let dropped = buffer.fill().dropped;
    assert!(dropped > 0);
    assert!(buffer.take_gaps(UnixMicros(100), false).is_empty(), "still open");
    let taken = take_all(&buffer).await;
    assert_eq!(taken.len() as u64 + dropped, 100);
    assert_eq!(
        taken.last().unwrap().arrived.0,
        taken.len() as i64 - 1,
        "the oldest are kept"
    );
    buffer.release_through(taken.last().unwrap().tag);
    push(&buffer, 100, 101);
    let gaps = buffer.take_gaps(UnixMicros(101), false);
    assert_eq!(gaps.len(), 1);
    assert_eq!(gaps[0].from.0, taken.len() as i64);
    assert_eq!(
        (gaps[0].to, gaps[0].estimated_events),
        (Some(UnixMicros(100)), Some(dropped))
    );
    assert_eq!(gaps[0].cause, GapCause::SpoolFull);
}

#[tokio::test]
async fn tells_the_gap_once_there_is_room_although_nothing_more_comes() {
    let buffer = Buffer::new(1_000, None);
    push(&buffer, 0, 100);
    assert!(buffer.take_gaps(UnixMicros(100), false).is_empty());
    let taken = take_all(&buffer).await.len() as i64;
    let gaps: Vec<_> = buffer
        .take_gaps(UnixMicros(200), false)
        .iter()
        .map(|gap| (gap.from.0, gap.to))
        .collect();
    assert_eq!(gaps, [(taken, Some(UnixMicros(200)))]);
    assert!(buffer.take_gaps(UnixMicros(300), true).is_empty(), "told once");
}

#[tokio::test]
async fn replays_the_old_spool_before_anything_new() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = Buffer::new(500, Some(spool(&directory, 1 << 20)));
    push(&buffer, 0, 20);
    buffer.close();
    drop(buffer);
    let buffer = Buffer::new(1 << 20, Some(spool(&directory, 1 << 20)));
    push(&buffer, 20, 25);
    let taken = take_all(&buffer).await;
    let arrived: Vec<_> = taken.iter().map(|message| message.arrived.0).collect();
    // 0 and 1 were in the ring of the process that ended: a restart is a gap on Redis.
    assert_eq!(arrived.last(), Some(&24));
    assert!(arrived.windows(2).all(|pair| pair[0] < pair[1]), "{arrived:?}");
    assert!(
        taken
            .iter()
            .filter(|message| message.arrived.0 < 20)
            .all(|message| message.maybe_stored)
    );
    assert!(
        taken
            .iter()
            .filter(|message| message.arrived.0 >= 20)
            .all(|message| !message.maybe_stored)
    );
}

#[tokio::test]
async fn takes_even_a_message_that_is_larger_than_the_ring() {
    let directory = tempfile::tempdir().unwrap();
    for buffer in [
        Buffer::new(100, Some(spool(&directory, 1 << 20))),
        Buffer::new(100, None),
    ] {
        buffer.push(UnixMicros(1), Bytes::from(vec![1; 10_000]));
        let mut taken = Vec::new();
        assert!(buffer.take(&mut taken, 10).await);
        assert_eq!(taken.len(), 1);
        buffer.release_through(taken[0].tag);
    }
}

#[tokio::test]
async fn standing_by_it_keeps_the_newest_and_knows_since_when_it_is_whole() {
    let buffer = Buffer::standing_by(2_000);
    assert_eq!(buffer.connected(UnixMicros(0)), None);
    push(&buffer, 1, 4);
    assert_eq!(buffer.whole_since(), Some(UnixMicros(0)));
    push(&buffer, 4, 100);
    let fill = buffer.fill();
    assert!(fill.ring_bytes <= 2_000 && fill.dropped == 0, "{fill:?}");
    assert!(
        buffer.take_gaps(UnixMicros(100), true).is_empty(),
        "that one stored them"
    );
    let since = buffer.whole_since().unwrap();
    let gap = |from, to| Gap {
        from: UnixMicros(from),
        to: Some(UnixMicros(to)),
        cause: GapCause::SubscriberCut,
        estimated_events: None,
    };
    assert!(buffer.hides(&gap(10, 20)));
    assert_eq!(buffer.whole_since(), Some(since), "before what it holds");
    buffer.keep_digests();
    assert_eq!(buffer.begin_writing(2_000, None, UnixMicros(105)), Some(since));
    assert!(!buffer.hides(&gap(101, 102)), "a gap is one now");
    push(&buffer, 100, 101);
    let taken = take_all(&buffer).await;
    assert_eq!(taken[0].arrived.0, since.0 + 1);
    assert!(taken.iter().all(|message| message.maybe_stored && message.may_repeat));
    push(&buffer, 105, 107);
    let taken = take_all(&buffer).await;
    assert!(
        taken[0].maybe_stored && !taken[1].maybe_stored,
        "later than the writer before"
    );
}

#[test]
fn a_gap_before_the_first_connection_ends_with_it() {
    let buffer = Buffer::standing_by(2_000);
    assert_eq!(buffer.begin_writing(2_000, None, UnixMicros(0)), None);
    assert_eq!(buffer.gap_from(UnixMicros(5)), None);
    let gap = buffer.connected(UnixMicros(9)).unwrap();
    assert_eq!((gap.from, gap.to), (UnixMicros(5), Some(UnixMicros(9))));
    assert_eq!(buffer.connected(UnixMicros(20)), None, "once");
    // The pods' clocks differ: the writer before was ahead.
    let gap = buffer.gap_from(UnixMicros(50)).unwrap();
    assert_eq!((gap.from, gap.to), (UnixMicros(9), Some(UnixMicros(9))));
}

#[tokio::test]
async fn what_an_earlier_process_spooled_comes_before_what_was_heard_while_standing_by() {
    let directory = tempfile::tempdir().unwrap();
    let before = Buffer::new(500, Some(spool(&directory, 1 << 20)));
    push(&before, 0, 20);
    before.close();
    drop(before);
    let buffer = Buffer::standing_by(1 << 20);
    buffer.connected(UnixMicros(20));
    push(&buffer, 20, 30);
    buffer.begin_writing(1 << 20, Some(spool(&directory, 1 << 20)), UnixMicros(i64::MIN));
    push(&buffer, 30, 31);
    let arrived: Vec<_> = take_all(&buffer)
        .await
        .iter()
        .map(|message| message.arrived.0)
        .collect();
    assert_eq!(arrived.last(), Some(&30));
    assert!(arrived.windows(2).all(|pair| pair[0] < pair[1]), "{arrived:?}");
}

#[test]
fn what_was_heard_before_a_cut_proves_nothing_about_what_came_after() {
    let buffer = Buffer::standing_by(2_000);
    buffer.connected(UnixMicros(0));
    buffer.push(UnixMicros(1), Bytes::from_static(b"before"));
    let digests = HashSet::from([digest_of(b"before")]);
    assert!(buffer.holds_any(&digests));
    assert!(buffer.hides(&restart_gap(UnixMicros(2), UnixMicros(5))));
    assert!(!buffer.holds_any(&digests), "what was cut may be missing");
    buffer.push(UnixMicros(6), Bytes::from_static(b"after"));
    assert!(buffer.holds_any(&HashSet::from([digest_of(b"after")])));
}

#[test]
fn what_a_writer_without_digests_may_have_stored_is_forgotten() {
    let buffer = Buffer::standing_by(2_000);
    buffer.forget(UnixMicros(3));
    assert_eq!(buffer.whole_since(), None, "not connected yet");
    buffer.connected(UnixMicros(5));
    push(&buffer, 6, 8);
    buffer.forget(UnixMicros(9));
    assert_eq!(
        (buffer.fill().ring_bytes, buffer.whole_since()),
        (0, Some(UnixMicros(9)))
    );
    buffer.begin_writing(2_000, None, UnixMicros(0));
    push(&buffer, 10, 11);
    buffer.forget(UnixMicros(12));
    assert!(buffer.fill().ring_bytes > 0, "a writer forgets nothing");
}

#[test]
fn a_ring_that_holds_what_is_stored_is_told_by_digests() {
    let buffer = Buffer::standing_by(10_000);
    buffer.connected(UnixMicros(0));
    buffer.push(UnixMicros(1), Bytes::from_static(b"one"));
    buffer.push(UnixMicros(2), Bytes::from_static(b"two"));
    assert!(buffer.holds_any(&[digest_of(b"two"), 7].into()));
    assert!(!buffer.holds_any(&[digest_of(b"three")].into()));
}

#[tokio::test]
async fn ends_when_closed_and_empty() {
    let buffer = Buffer::new(1_000, None);
    push(&buffer, 0, 2);
    buffer.close();
    let mut taken = Vec::new();
    assert!(buffer.take(&mut taken, 1).await);
    assert!(buffer.take(&mut taken, 1).await);
    assert!(!buffer.take(&mut taken, 1).await);
    assert_eq!(taken.len(), 2);
}

/// Returns the spool's files, oldest first.
fn segments(directory: &tempfile::TempDir) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory.path()).unwrap();
    let mut segments: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    segments.sort();
    segments
}

fn cut(segment: &std::path::Path) {
    let file = std::fs::OpenOptions::new().write(true).open(segment).unwrap();
    file.set_len(1_000).unwrap();
}

#[tokio::test]
async fn what_the_disk_lost_is_a_gap() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = Buffer::new(500, Some(spool(&directory, 1 << 20)));
    push(&buffer, 0, 200);
    buffer.flush();
    let segments = segments(&directory);
    assert!(segments.len() > 3, "{segments:?}");
    // The first one ends early; the third one is gone altogether, and the last one.
    cut(&segments[0]);
    std::fs::remove_file(&segments[2]).unwrap();
    std::fs::remove_file(segments.last().unwrap()).unwrap();
    let mut taken = take_all(&buffer).await;
    assert!(buffer.fill().hides_gap);
    push(&buffer, 200, 202);
    taken.extend(take_all(&buffer).await);
    let gaps = buffer.take_gaps(UnixMicros(300), false);
    assert!(!buffer.fill().hides_gap);
    let lost: Vec<i64> = (0..200)
        .filter(|at| taken.iter().all(|message| message.arrived.0 != *at))
        .collect();
    assert!(lost.len() > 20, "{lost:?}");
    for at in lost {
        let within = |gap: &Gap| gap.from.0 <= at && gap.to.is_some_and(|to| at <= to.0);
        assert!(gaps.iter().any(within), "{at} is in none of {gaps:?}");
    }
    assert!(gaps.iter().all(|gap| gap.cause == GapCause::SpoolDamaged));
    assert_eq!(gaps.len(), 3, "{gaps:?}");
    assert_eq!(gaps[2].to, Some(UnixMicros(200)), "the next message ends it");
    assert!(buffer.take_gaps(UnixMicros(400), true).is_empty(), "told once");
}

#[tokio::test]
async fn what_an_earlier_process_could_not_finish_is_no_gap_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = Buffer::new(500, Some(spool(&directory, 1 << 20)));
    push(&buffer, 0, 100);
    buffer.close();
    drop(buffer);
    cut(&segments(&directory)[1]);
    let buffer = Buffer::new(500, Some(spool(&directory, 1 << 20)));
    assert!(take_all(&buffer).await.len() < 99);
    assert_eq!(buffer.fill().damaged_segments, 1);
    assert!(buffer.take_gaps(UnixMicros(300), true).is_empty());
}
