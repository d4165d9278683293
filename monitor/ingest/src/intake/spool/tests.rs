//! Order, bounds, restarts, damage and full disks.

use super::*;
use kanchi_test_servers::disk::SmallDisk;

fn options(directory: &tempfile::TempDir) -> SpoolOptions {
    SpoolOptions {
        directory: directory.path().join("spool"),
        max_bytes: 10_000,
        segment_bytes: 1_000,
    }
}

fn body(number: usize) -> Vec<u8> {
    format!("message {number} {}", "x".repeat(number * 37 % 300)).into_bytes()
}

fn read_all(spool: &mut Spool) -> Vec<Record> {
    std::iter::from_fn(|| spool.read_next().unwrap()).collect()
}

fn files(directory: &tempfile::TempDir) -> usize {
    std::fs::read_dir(directory.path().join("spool")).unwrap().count()
}

#[test]
fn reads_back_in_order_across_segments_and_deletes_what_is_committed() {
    let directory = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(options(&directory)).unwrap();
    for number in 0..30 {
        assert_eq!(spool.append(number, &body(number as usize)).unwrap(), Appended::Stored);
    }
    assert!(files(&directory) > 3);
    let records = read_all(&mut spool);
    assert_eq!(records.len(), 30);
    for (number, record) in records.iter().enumerate() {
        assert_eq!((record.arrived, record.body.to_vec()), (number as i64, body(number)));
        assert!(!record.replayed);
    }
    assert_eq!(spool.unread_bytes(), 0);
    spool.release_through(records[10].position);
    assert!(spool.bytes() > 0);
    spool.release_through(records[29].position);
    assert_eq!((spool.bytes(), files(&directory)), (0, 0));
    // And it goes on.
    spool.append(1, b"again").unwrap();
    assert_eq!(read_all(&mut spool).len(), 1);
}

#[test]
fn reads_while_it_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(options(&directory)).unwrap();
    for number in 0..100 {
        spool.append(number, &body(number as usize)).unwrap();
        let record = spool.read_next().unwrap().unwrap();
        assert_eq!(record.arrived, number);
        assert!(spool.read_next().unwrap().is_none());
        spool.release_through(record.position);
    }
    assert!(spool.bytes() < 1_000, "{}", spool.bytes());
}

#[test]
fn what_a_full_disk_did_not_take_is_read_from_memory_and_nothing_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(directory.path(), 1).unwrap();
    let large = SpoolOptions {
        max_bytes: 1 << 30,
        segment_bytes: 1 << 30,
        ..options(&directory)
    };
    let mut spool = Spool::open(large).unwrap();
    let mut taken = 0;
    let mut append = |spool: &mut Spool| {
        let stored = spool.append(taken, &body(taken as usize));
        taken += i64::from(matches!(stored, Ok(Appended::Stored)));
        stored
    };
    append(&mut spool).unwrap();
    let mut records = vec![spool.read_next().unwrap().unwrap()];
    disk.fill().unwrap();
    while append(&mut spool).is_ok() {}
    records.push(spool.read_next().unwrap().unwrap());
    disk.free().unwrap();
    append(&mut spool).unwrap();
    records.extend(read_all(&mut spool));
    let arrived: Vec<i64> = records.iter().map(|record| record.arrived).collect();
    assert_eq!(arrived, (0..taken).collect::<Vec<_>>());
    assert!(
        records
            .iter()
            .all(|record| record.body == body(record.arrived as usize))
    );
    assert_eq!((spool.unread_bytes(), spool.damaged_segments()), (0, 0));
    spool.release_through(records.last().unwrap().position);
    assert_eq!(spool.bytes(), 0);
}

#[test]
fn refuses_the_newest_when_it_is_full_and_takes_more_once_committed() {
    let directory = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(options(&directory)).unwrap();
    let mut stored = 0;
    while spool.append(stored, &[7; 400]).unwrap() == Appended::Stored {
        stored += 1;
    }
    assert!(spool.bytes() <= 10_000 && stored > 20, "{stored}");
    let records = read_all(&mut spool);
    assert_eq!(records.len() as i64, stored);
    spool.release_through(records[5].position);
    assert_eq!(spool.append(99, &[7; 400]).unwrap(), Appended::Stored);
}

#[test]
fn replays_what_was_not_committed_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(options(&directory)).unwrap();
    for number in 0..20 {
        spool.append(number, &body(number as usize)).unwrap();
    }
    let half: Vec<_> = (0..10).map(|_| spool.read_next().unwrap().unwrap()).collect();
    spool.release_through(half[9].position);
    spool.flush().unwrap();
    drop(spool);

    let mut spool = Spool::open(options(&directory)).unwrap();
    let replayed = read_all(&mut spool);
    // Whole segments only are deleted, so the replay may begin a little earlier, never later.
    assert!(replayed.first().unwrap().arrived <= 10);
    assert_eq!(replayed.last().unwrap().arrived, 19);
    assert!(replayed.iter().all(|record| record.replayed));
    spool.release_through(replayed.last().unwrap().position);
    assert_eq!(files(&directory), 0);
}

#[test]
fn stops_at_a_record_that_was_cut_off_and_goes_on_with_the_next_segment() {
    let directory = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(options(&directory)).unwrap();
    for number in 0..10 {
        spool.append(number, &[1; 200]).unwrap();
    }
    spool.flush().unwrap();
    drop(spool);
    let first = directory.path().join("spool").join(segment::file_name(1));
    let length = std::fs::metadata(&first).unwrap().len();
    std::fs::OpenOptions::new()
        .write(true)
        .open(&first)
        .unwrap()
        .set_len(length - 50)
        .unwrap();

    let mut spool = Spool::open(options(&directory)).unwrap();
    let arrived: Vec<_> = read_all(&mut spool).into_iter().map(|record| record.arrived).collect();
    assert_eq!(arrived, [0, 1, 2, 4, 5, 6, 7, 8, 9]);
    assert_eq!(spool.damaged_segments(), 1);
}

#[test]
fn stops_at_a_record_whose_bytes_changed() {
    let directory = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(options(&directory)).unwrap();
    spool.append(1, &[1; 200]).unwrap();
    spool.append(2, &[2; 200]).unwrap();
    spool.flush().unwrap();
    drop(spool);
    let first = directory.path().join("spool").join(segment::file_name(1));
    let mut bytes = std::fs::read(&first).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&first, bytes).unwrap();

    let mut spool = Spool::open(options(&directory)).unwrap();
    assert_eq!(read_all(&mut spool).len(), 1);
    assert_eq!(spool.damaged_segments(), 1);
}
