//! One file of the spool: records of length, checksum, arrival and body.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

/// Length (4), checksum (4), arrival (8).
const HEADER_BYTES: usize = 16;

/// Small enough that a killed process loses little, large enough that an event is not a system call.
const BUFFER_BYTES: usize = 64 * 1024;

/// No message is longer; a length beyond it is a damaged record.
const MAX_RECORD_BYTES: u32 = 256 * 1024 * 1024;

const EXTENSION: &str = "seg";

/// Returns the bytes that a body takes on disk.
pub(super) const fn record_size(body: &[u8]) -> u64 {
    (HEADER_BYTES + body.len()) as u64
}

/// Returns the name of a segment's file.
pub(super) fn file_name(number: u64) -> String {
    format!("{number:016}.{EXTENSION}")
}

/// Returns the number of the segment that a file holds; `None` for a file of another kind.
pub(super) fn number_of(path: &Path) -> Option<u64> {
    if path.extension()? != EXTENSION {
        return None;
    }
    path.file_stem()?.to_str()?.parse().ok()
}

/// Deletes a segment's file.
pub(super) fn delete(directory: &Path, number: u64) -> io::Result<()> {
    std::fs::remove_file(directory.join(file_name(number)))
}

/// Appends to one segment.
#[derive(Debug)]
pub(super) struct Writer {
    file: BufWriter<File>,
    path: PathBuf,
    /// Bytes of whole records.
    bytes: u64,
    dirty: bool,
}

impl Writer {
    pub(super) fn create(directory: &Path, number: u64) -> io::Result<Self> {
        let path = directory.join(file_name(number));
        let file = OpenOptions::new().create_new(true).write(true).open(&path)?;
        Ok(Self {
            file: BufWriter::with_capacity(BUFFER_BYTES, file),
            path,
            bytes: 0,
            dirty: false,
        })
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn append(&mut self, arrived: i64, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(body.len())
            .ok()
            .filter(|length| *length <= MAX_RECORD_BYTES);
        let Some(length) = length else {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        };
        self.dirty = true;
        self.file.write_all(&length.to_le_bytes())?;
        self.file.write_all(&checksum(arrived, body).to_le_bytes())?;
        self.file.write_all(&arrived.to_le_bytes())?;
        self.file.write_all(body)?;
        self.bytes += record_size(body);
        Ok(())
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.dirty {
            self.file.flush()?;
            self.dirty = false;
        }
        Ok(())
    }

    /// Flushes and cuts off a record that was written in part.
    pub(super) fn close(&mut self) -> io::Result<()> {
        let flushed = self.flush();
        let length = std::fs::metadata(&self.path)?.len();
        if length > self.bytes {
            self.file.get_ref().set_len(self.bytes)?;
        }
        flushed
    }
}

/// What a reader found.
pub(super) enum Read {
    Record {
        arrived: i64,
        body: Bytes,
    },
    /// The end of the file; not clean when a record is cut off or damaged.
    End {
        clean: bool,
    },
}

/// Reads one segment from its beginning.
#[derive(Debug)]
pub(super) struct Reader {
    file: BufReader<File>,
    segment: u64,
    offset: u64,
}

impl Reader {
    pub(super) fn open(directory: &Path, segment: u64) -> io::Result<Self> {
        let file = File::open(directory.join(file_name(segment)))?;
        Ok(Self {
            file: BufReader::with_capacity(BUFFER_BYTES, file),
            segment,
            offset: 0,
        })
    }

    pub(super) const fn segment(&self) -> u64 {
        self.segment
    }

    /// Returns the offset behind the last whole record.
    pub(super) const fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn next(&mut self) -> io::Result<Read> {
        let mut length = [0; 4];
        let mut sum = [0; 4];
        let mut arrived = [0; 8];
        match fill(&mut self.file, &mut length)? {
            Filled::Whole => {}
            Filled::Nothing => return Ok(Read::End { clean: true }),
            Filled::Part => return Ok(Read::End { clean: false }),
        }
        let whole =
            fill(&mut self.file, &mut sum)? == Filled::Whole && fill(&mut self.file, &mut arrived)? == Filled::Whole;
        let length = u32::from_le_bytes(length);
        if !whole || length > MAX_RECORD_BYTES {
            return Ok(Read::End { clean: false });
        }
        let mut body = vec![0; length as usize];
        if !body.is_empty() && fill(&mut self.file, &mut body)? != Filled::Whole {
            return Ok(Read::End { clean: false });
        }
        let arrived = i64::from_le_bytes(arrived);
        if checksum(arrived, &body) != u32::from_le_bytes(sum) {
            return Ok(Read::End { clean: false });
        }
        self.offset += record_size(&body);
        Ok(Read::Record {
            arrived,
            body: Bytes::from(body),
        })
    }
}

#[derive(PartialEq, Eq)]
enum Filled {
    Whole,
    Part,
    Nothing,
}

fn fill(file: &mut BufReader<File>, buffer: &mut [u8]) -> io::Result<Filled> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => return Ok(if filled == 0 { Filled::Nothing } else { Filled::Part }),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Filled::Whole)
}

fn checksum(arrived: i64, body: &[u8]) -> u32 {
    let mut hasher = Xxh3::new();
    hasher.update(&arrived.to_le_bytes());
    hasher.update(body);
    hasher.digest() as u32
}
