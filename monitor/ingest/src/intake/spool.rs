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
use std::path::{Path, PathBuf};

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
    /// Of these, segments that this process has written.
    own_damaged: u64,
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
    /// Deletes what an earlier process has left in this directory; returns how many segments.
    pub fn discard(directory: &Path) -> Result<usize, Error> {
        let failed = |source| Error::Open {
            directory: directory.to_owned(),
            source,
        };
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(failed(error)),
        };
        let mut gone = 0;
        for entry in entries {
            if let Some(number) = segment::number_of(&entry.map_err(failed)?.path()) {
                segment::delete(directory, number).map_err(failed)?;
                gone += 1;
            }
        }
        Ok(gone)
    }

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
            own_damaged: 0,
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
                        self.own_damaged += u64::from(!segment.replayed);
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

    /// Returns how many of these this process has written.
    pub const fn own_damaged_segments(&self) -> u64 {
        self.own_damaged
    }

    /// Gives up the segment that is being read: its file is damaged beyond reading.
    pub fn skip_segment(&mut self) {
        self.reader = None;
        let Some(segment) = self.segments.iter_mut().find(|segment| !segment.finished) else {
            return;
        };
        self.damaged += 1;
        self.own_damaged += u64::from(!segment.replayed);
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
mod tests;
