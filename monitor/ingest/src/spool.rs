//! The bounded disk spool for Redis, whose subscribers must never stop reading.
//!
//! Records are appended to segment files and read back in order. A segment is deleted once everything in it is committed
//! in the store, so that a restart of the process in the same pod replays what was not; the replayed records carry a mark
//! because some of them may be in the store already. When the bound is reached the newest record is refused: the caller
//! counts it and opens a gap. Nothing is synced to disk: the spool protects against a restart of the process, and the
//! volume does not outlive the pod anyway.

mod segment;

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;

use bytes::Bytes;

use self::segment::{Reader, Writer};

/// Where the spool lives and how large it may become.
#[derive(Clone, Debug)]
pub struct SpoolOptions {
    /// Directory that belongs to this monitor alone.
    pub directory: PathBuf,
    /// Bytes of all segments together.
    pub max_bytes: u64,
    /// Bytes after which a new segment is begun.
    pub segment_bytes: u64,
}

/// Why the spool cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be made or listed.
    #[error("failed to open the spool directory {directory}")]
    Open {
        /// Where.
        directory: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A record could not be written.
    #[error("failed to write to the spool")]
    Write(#[source] io::Error),
    /// A segment could not be read.
    #[error("failed to read from the spool")]
    Read(#[source] io::Error),
}

/// Where a record lies; orders as the records do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    segment: u64,
    offset: u64,
}

/// A record read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When the message arrived, in microseconds since the epoch.
    pub arrived: i64,
    /// The message.
    pub body: Bytes,
    /// Where it lies.
    pub position: Position,
    /// It was written by an earlier process and may be committed already.
    pub replayed: bool,
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It will be read back.
    Stored,
    /// The bound is reached; it was not written.
    Full,
}

/// The spool.
#[derive(Debug)]
pub struct Spool {
    options: SpoolOptions,
    /// Oldest first; the last one is written to while `writer` is there.
    segments: VecDeque<Segment>,
    writer: Option<Writer>,
    reader: Option<Reader>,
    next_segment: u64,
    bytes: u64,
    unread: u64,
    damaged: u64,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    bytes: u64,
    /// Offset behind the last record handed out; `None` before the first.
    read: Option<u64>,
    /// Nothing is left to read and nothing more will be written.
    finished: bool,
    replayed: bool,
}

impl Segment {
    /// Notes that the record before this offset leaves the spool.
    fn hand_out(&mut self, arrived: i64, body: Bytes, offset: u64) -> Record {
        self.read = Some(offset);
        Record {
            arrived,
            body,
            position: Position {
                segment: self.number,
                offset,
            },
            replayed: self.replayed,
        }
    }
}

impl Spool {
    /// Opens the directory; segments of an earlier process are read first.
    pub fn open(options: SpoolOptions) -> Result<Self, Error> {
        let failed = |source| Error::Open {
            directory: options.directory.clone(),
            source,
        };
        std::fs::create_dir_all(&options.directory).map_err(failed)?;
        let mut segments: Vec<Segment> = Vec::new();
        for entry in std::fs::read_dir(&options.directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Some(number) = segment::number_of(&entry.path()) else {
                continue;
            };
            let bytes = entry.metadata().map_err(failed)?.len();
            segments.push(Segment {
                number,
                bytes,
                read: None,
                finished: false,
                replayed: true,
            });
        }
        segments.sort_by_key(|segment| segment.number);
        let next_segment = segments.last().map_or(1, |segment| segment.number + 1);
        let bytes = segments.iter().map(|segment| segment.bytes).sum();
        let unread = bytes;
        Ok(Self {
            options,
            segments: segments.into(),
            writer: None,
            reader: None,
            next_segment,
            bytes,
            unread,
            damaged: 0,
        })
    }

    /// Appends a record, unless the bound is reached.
    pub fn append(&mut self, arrived: i64, body: &[u8]) -> Result<Appended, Error> {
        let size = segment::record_size(body);
        if self.bytes + size > self.options.max_bytes {
            return Ok(Appended::Full);
        }
        if self
            .writer
            .as_ref()
            .is_none_or(|writer| writer.bytes() + size > self.options.segment_bytes)
        {
            self.begin_segment()?;
        }
        let Some(writer) = self.writer.as_mut() else {
            return Ok(Appended::Full);
        };
        writer.append(arrived, body).map_err(Error::Write)?;
        self.bytes += size;
        self.unread += size;
        if let Some(segment) = self.segments.back_mut() {
            segment.bytes += size;
        }
        Ok(Appended::Stored)
    }

    /// Returns the next record in order, or `None` when all that was appended has been read.
    pub fn read_next(&mut self) -> Result<Option<Record>, Error> {
        loop {
            let newest = self.segments.back().map(|segment| segment.number);
            let Some(segment) = self.segments.iter_mut().find(|segment| !segment.finished) else {
                return Ok(None);
            };
            let offset = segment.read.unwrap_or(0);
            let writer = self.writer.as_mut().filter(|_| Some(segment.number) == newest);
            if let Some(writer) = writer {
                if offset == writer.bytes() {
                    return Ok(None);
                }
                // A disk that is full takes nothing; what it was to take is read from memory.
                if offset >= writer.written() && writer.flush().is_err() {
                    let pending = writer.read_pending(offset).map_err(Error::Read)?;
                    return Ok(pending.map(|(arrived, body, next)| {
                        self.unread = self.unread.saturating_sub(next - offset);
                        segment.hand_out(arrived, body, next)
                    }));
                }
            }
            if self
                .reader
                .as_ref()
                .is_none_or(|reader| reader.segment() != segment.number || reader.offset() != offset)
            {
                let reader = Reader::open(&self.options.directory, segment.number, offset);
                self.reader = Some(reader.map_err(Error::Read)?);
            }
            let Some(reader) = self.reader.as_mut() else {
                return Ok(None);
            };
            match reader.next().map_err(Error::Read)? {
                segment::Read::Record { arrived, body } => {
                    let next = reader.offset();
                    self.unread = self.unread.saturating_sub(next - offset);
                    return Ok(Some(segment.hand_out(arrived, body, next)));
                }
                segment::Read::End { clean } => {
                    // Of the newest segment only what is written was asked for: an end here is that of a closed one.
                    if !clean {
                        self.damaged += 1;
                    }
                    self.unread = self.unread.saturating_sub(segment.bytes - offset);
                    segment.finished = true;
                    self.reader = None;
                    self.drop_if_empty();
                }
            }
        }
    }

    /// Everything up to `position` is committed in the store: its segments are deleted.
    pub fn release_through(&mut self, position: Position) {
        let newest = self.segments.back().map(|segment| segment.number);
        while let Some(segment) = self.segments.front() {
            let committed = segment.number < position.segment
                || (segment.number == position.segment && segment.read == Some(position.offset));
            let writing = self.writer.is_some() && Some(segment.number) == newest;
            let all_read = segment.finished || segment.read == Some(segment.bytes);
            if !(committed && all_read) {
                return;
            }
            if writing {
                self.writer = None;
            }
            self.delete_oldest();
        }
    }

    /// Writes what is buffered, so that a reader or the next process sees it.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.writer.as_mut().map_or(Ok(()), Writer::flush).map_err(Error::Write)
    }

    /// Returns the bytes on disk.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the bytes that nobody has read yet.
    pub const fn unread_bytes(&self) -> u64 {
        self.unread
    }

    /// Returns how many segments ended in a record that was cut off or damaged.
    pub const fn damaged_segments(&self) -> u64 {
        self.damaged
    }

    /// Gives up the segment that is being read: its file is damaged beyond reading.
    pub fn skip_segment(&mut self) {
        self.reader = None;
        let Some(segment) = self.segments.iter_mut().find(|segment| !segment.finished) else {
            return;
        };
        self.damaged += 1;
        self.unread = self.unread.saturating_sub(segment.bytes - segment.read.unwrap_or(0));
        segment.finished = true;
        let number = segment.number;
        if self.writer.is_some() && self.segments.back().is_some_and(|newest| newest.number == number) {
            self.writer = None;
        }
        self.drop_if_empty();
    }

    fn begin_segment(&mut self) -> Result<(), Error> {
        // The one before ends with all its records on disk, or goes on.
        self.flush()?;
        let number = self.next_segment;
        let writer = Writer::create(&self.options.directory, number).map_err(Error::Write)?;
        self.next_segment += 1;
        self.writer = Some(writer);
        self.segments.push_back(Segment {
            number,
            bytes: 0,
            read: None,
            finished: false,
            replayed: false,
        });
        Ok(())
    }

    /// A finished segment from which nothing was ever handed out has no commit that would release it.
    fn drop_if_empty(&mut self) {
        while self
            .segments
            .front()
            .is_some_and(|segment| segment.finished && segment.read.is_none())
        {
            self.delete_oldest();
        }
    }

    fn delete_oldest(&mut self) {
        let Some(segment) = self.segments.pop_front() else {
            return;
        };
        self.bytes = self.bytes.saturating_sub(segment.bytes);
        if self
            .reader
            .as_ref()
            .is_some_and(|reader| reader.segment() == segment.number)
        {
            self.reader = None;
        }
        if let Err(error) = segment::delete(&self.options.directory, segment.number) {
            tracing::warn!(%error, "failed to delete a committed spool segment");
        }
    }
}

#[cfg(test)]
mod tests {
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
}
