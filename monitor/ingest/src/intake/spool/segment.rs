//! One file of the spool: records of length, checksum, arrival and body.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

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

/// Appends to one segment. What the disk does not take stays in memory, and can be read from there.
#[derive(Debug)]
pub(super) struct Writer {
    file: File,
    /// Bytes of the file: whole records.
    written: u64,
    /// Whole records that follow.
    pending: Vec<u8>,
}

impl Writer {
    pub(super) fn create(directory: &Path, number: u64) -> io::Result<Self> {
        let path = directory.join(file_name(number));
        Ok(Self {
            file: OpenOptions::new().create_new(true).write(true).open(path)?,
            written: 0,
            pending: Vec::new(),
        })
    }

    /// Returns the bytes of all records.
    pub(super) const fn bytes(&self) -> u64 {
        self.written + self.pending.len() as u64
    }

    /// Returns the bytes that a reader of the file finds.
    pub(super) const fn written(&self) -> u64 {
        self.written
    }

    /// Takes a record, unless the disk does not take those before it.
    pub(super) fn append(&mut self, arrived: i64, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(body.len())
            .ok()
            .filter(|length| *length <= MAX_RECORD_BYTES);
        let Some(length) = length else {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        };
        if self.pending.len() >= BUFFER_BYTES {
            self.flush()?;
        }
        self.pending.extend_from_slice(&length.to_le_bytes());
        self.pending.extend_from_slice(&checksum(arrived, body).to_le_bytes());
        self.pending.extend_from_slice(&arrived.to_le_bytes());
        self.pending.extend_from_slice(body);
        Ok(())
    }

    /// Writes what is pending to the file: all of it or nothing, so that a reader never meets half a record.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.file.write_all_at(&self.pending, self.written) {
            self.file.set_len(self.written)?;
            return Err(error);
        }
        self.written += self.pending.len() as u64;
        self.pending.clear();
        // One long message must not keep its memory.
        self.pending.shrink_to(2 * BUFFER_BYTES);
        Ok(())
    }

    /// Returns the record at an offset that the file does not have yet, and the offset behind it.
    pub(super) fn read_pending(&self, offset: u64) -> io::Result<Option<(i64, Bytes, u64)>> {
        let begin = usize::try_from(offset.saturating_sub(self.written)).unwrap_or(usize::MAX);
        let mut rest = self.pending.get(begin..).unwrap_or_default();
        Ok(match read_record(&mut rest)? {
            Read::Record { arrived, body } => {
                let next = offset + record_size(&body);
                Some((arrived, body, next))
            }
            Read::End { .. } => None,
        })
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

/// Reads one segment.
#[derive(Debug)]
pub(super) struct Reader {
    file: BufReader<File>,
    segment: u64,
    offset: u64,
}

impl Reader {
    /// Opens a segment at the beginning of a record.
    pub(super) fn open(directory: &Path, segment: u64, offset: u64) -> io::Result<Self> {
        let mut file = File::open(directory.join(file_name(segment)))?;
        file.seek(SeekFrom::Start(offset))?;
        Ok(Self {
            file: BufReader::with_capacity(BUFFER_BYTES, file),
            segment,
            offset,
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
        let read = read_record(&mut self.file)?;
        if let Read::Record { body, .. } = &read {
            self.offset += record_size(body);
        }
        Ok(read)
    }
}

fn read_record(file: &mut impl io::Read) -> io::Result<Read> {
    let mut length = [0; 4];
    let mut sum = [0; 4];
    let mut arrived = [0; 8];
    match fill(file, &mut length)? {
        Filled::Whole => {}
        Filled::Nothing => return Ok(Read::End { clean: true }),
        Filled::Part => return Ok(Read::End { clean: false }),
    }
    let whole = fill(file, &mut sum)? == Filled::Whole && fill(file, &mut arrived)? == Filled::Whole;
    let length = u32::from_le_bytes(length);
    if !whole || length > MAX_RECORD_BYTES {
        return Ok(Read::End { clean: false });
    }
    let mut body = vec![0; length as usize];
    if !body.is_empty() && fill(file, &mut body)? != Filled::Whole {
        return Ok(Read::End { clean: false });
    }
    let arrived = i64::from_le_bytes(arrived);
    if checksum(arrived, &body) != u32::from_le_bytes(sum) {
        return Ok(Read::End { clean: false });
    }
    Ok(Read::Record {
        arrived,
        body: Bytes::from(body),
    })
}

#[derive(PartialEq, Eq)]
enum Filled {
    Whole,
    Part,
    Nothing,
}

fn fill(file: &mut impl io::Read, buffer: &mut [u8]) -> io::Result<Filled> {
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
