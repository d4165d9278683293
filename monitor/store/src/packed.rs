//! Events as they are stored: a task's JSON array, as an LZ4 block whose dictionary is what most events look like and the task's id.
//!
//! A chunk of a short task is some 800 bytes of JSON, of which the keys, the node name and the id are said again and again; some 190
//! are left. That is what Postgres has to take, to log, to keep and to read (docs/adr/0001). A general compressor with a trained
//! dictionary made it no smaller, and took four times as long.

use lz4_flex::block;

/// The first byte of a chunk says how to read it. JSON begins with a bracket; chunks were stored so once, and may be.
const JSON: u8 = b'[';

/// An LZ4 block with [`DICTIONARY`] and the task's id; in front of it the length of the JSON, four bytes, least first.
const LZ4_1: u8 = 1;

/// What most events look like. Never changed: what is stored is read with it. A better one gets a number of its own.
const DICTIONARY: &[u8] = include_bytes!("packed/dictionary-1");

const HEAD: usize = 5;

/// What a chunk may claim to hold, bytes; the largest message that is read has 64 MiB.
const MAX_BYTES: usize = 128 * 1024 * 1024;

/// What a byte of a block can stand for at most: 255 more bytes of a match (lz4_Block_format.md, "Match copy operation").
const MOST_OF_A_BYTE: usize = 255;

/// Bytes of a task's id that the dictionary takes: no more, so that a dictionary is no larger than a page.
const MAX_ID: usize = 255;

/// The events of one task, packed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedEvents(Vec<u8>);

/// Why events cannot be unpacked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnpackError {
    /// The first byte is none that this version knows: a newer one has stored it, or it is damaged.
    #[error("events are stored in a form that this version does not know: {0:?}")]
    Form(Option<u8>),
    /// It claims to hold more than anything does.
    #[error("stored events claim to hold {0} bytes")]
    Size(usize),
    /// The block cannot be read.
    #[error("stored events are damaged: {0}")]
    Damaged(String),
}

/// Packs events. Keep one: it has buffers.
#[derive(Debug)]
pub struct Packer {
    /// [`DICTIONARY`], and the id of the task that was packed last.
    dictionary: Vec<u8>,
    packed: Vec<u8>,
}

impl Default for Packer {
    fn default() -> Self {
        Self {
            dictionary: DICTIONARY.to_vec(),
            packed: Vec::new(),
        }
    }
}

impl Packer {
    /// Packs a JSON array of the events of a task, or of those of none.
    pub fn pack(&mut self, json: &str, task_id: Option<&str>) -> PackedEvents {
        let Ok(length) = u32::try_from(json.len()) else {
            return PackedEvents(json.as_bytes().to_vec());
        };
        end_with(&mut self.dictionary, task_id);
        self.packed.clear();
        self.packed.push(LZ4_1);
        self.packed.extend_from_slice(&length.to_le_bytes());
        self.packed.resize(HEAD + block::get_maximum_output_size(json.len()), 0);
        let room = self.packed.get_mut(HEAD..).unwrap_or_default();
        match block::compress_into_with_dict(json.as_bytes(), room, &self.dictionary) {
            // Exactly as large as needed: a batch holds thousands of them.
            Ok(bytes) => PackedEvents(self.packed.get(..HEAD + bytes).unwrap_or_default().to_vec()),
            Err(_too_small) => PackedEvents(json.as_bytes().to_vec()),
        }
    }
}

impl PackedEvents {
    /// Packs events alone; for many there is [`Packer`].
    pub fn pack(json: &str, task_id: Option<&str>) -> Self {
        Packer::default().pack(json, task_id)
    }

    /// Takes what the store has.
    pub const fn from_stored(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Returns what the store gets.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the JSON array, UTF-8 unless it is damaged. `task_id`: that of the chunk.
    pub fn unpack(&self, task_id: Option<&str>) -> Result<Vec<u8>, UnpackError> {
        match *self.0.as_slice() {
            [JSON, ..] => Ok(self.0.clone()),
            [LZ4_1, a, b, c, d, ref packed @ ..] => {
                let bytes = u32::from_le_bytes([a, b, c, d]) as usize;
                // A damaged length must not cost memory that no block of this size fills.
                if bytes > MAX_BYTES.min(packed.len().saturating_mul(MOST_OF_A_BYTE)) {
                    return Err(UnpackError::Size(bytes));
                }
                let mut dictionary = DICTIONARY.to_vec();
                end_with(&mut dictionary, task_id);
                block::decompress_with_dict(packed, bytes, &dictionary)
                    .map_err(|error| UnpackError::Damaged(error.to_string()))
            }
            ref other => Err(UnpackError::Form(other.first().copied())),
        }
    }
}

/// Puts a task's id behind the dictionary.
fn end_with(dictionary: &mut Vec<u8>, task_id: Option<&str>) {
    dictionary.truncate(DICTIONARY.len());
    let id = task_id.unwrap_or_default().as_bytes();
    dictionary.extend_from_slice(id.get(..MAX_ID).unwrap_or(id));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "0f9c7b3e-6a1d-4c55-9b7a-2f6f3d0f8e21";

    /// A short task as Celery tells it.
    fn short_task() -> String {
        let call = format!(
            r#""hostname":"celery@worker-03","pid":1003,"clock":512,"name":"billing.charge","args":"(7, 'customer-7')","kwargs":"{{'priority': 3}}","retries":0,"root_id":"{ID}""#
        );
        format!(
            r#"[{{"type":"task-sent","timestamp":1796025600.104233,{call},"queue":"celery","exchange":"","routing_key":"celery"}},{{"type":"task-received","timestamp":1796025600.105467,{call}}},{{"type":"task-started","timestamp":1796025600.106578,"hostname":"celery@worker-03","pid":1003,"clock":515}},{{"type":"task-succeeded","timestamp":1796025600.113578,"hostname":"celery@worker-03","pid":1003,"clock":521,"result":"{{'order': 7}}","runtime":0.007}}]"#
        )
    }

    #[test]
    fn a_short_task_takes_a_quarter() {
        let json = short_task();
        let packed = PackedEvents::pack(&json, Some(ID));
        assert!(
            packed.as_bytes().len() * 4 < json.len(),
            "{} of {}",
            packed.as_bytes().len(),
            json.len()
        );
        assert_eq!(packed.unpack(Some(ID)).unwrap(), json.as_bytes());
    }

    #[test]
    fn what_was_stored_as_json_is_read_as_it_is() {
        let stored = PackedEvents::from_stored(b"[{\"type\":\"task-sent\"}]".to_vec());
        assert_eq!(stored.unpack(Some(ID)).unwrap(), b"[{\"type\":\"task-sent\"}]");
    }

    #[test]
    fn the_dictionary_stays_as_it_is() {
        // Whoever changes it can read nothing any more that was stored: a new one gets a new number.
        assert_eq!(DICTIONARY.len(), 886);
        let sum = DICTIONARY
            .iter()
            .fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
        assert_eq!(sum, 2_159_685_863_919_977_227);
    }

    #[test]
    fn what_is_damaged_or_of_a_newer_version_says_so() {
        let form = |bytes: &[u8]| PackedEvents::from_stored(bytes.to_vec()).unpack(None);
        assert_eq!(form(b""), Err(UnpackError::Form(None)));
        assert_eq!(form(&[2, 0, 0, 0, 0]), Err(UnpackError::Form(Some(2))));
        assert_eq!(form(&[1, 0, 0]), Err(UnpackError::Form(Some(1))));
        assert_eq!(
            form(&[1, 255, 255, 255, 255, 0]),
            Err(UnpackError::Size(u32::MAX as usize))
        );
        assert_eq!(form(&[1, 0, 1, 0, 0, 0]), Err(UnpackError::Size(256)));
        assert!(matches!(
            form(&[1, 9, 0, 0, 0, 0x0f, 0xff, 0xff]),
            Err(UnpackError::Damaged(_))
        ));
    }

    proptest! {
        #[test]
        fn whatever_is_packed_is_unpacked(texts in prop::collection::vec(".{0,80}", 0..40), id in prop::option::of(".{1,80}")) {
            let json = format!("[{}]", texts.join(","));
            let mut packer = Packer::default();
            // The buffers hold something else before.
            packer.pack(&short_task(), Some(ID));
            let packed = packer.pack(&json, id.as_deref());
            prop_assert_eq!(packed.unpack(id.as_deref()).unwrap(), json.into_bytes());
        }

        #[test]
        fn whatever_is_stored_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let mut stored = vec![LZ4_1, 200, 0, 0, 0];
            stored.extend(bytes);
            let _read_or_refused = PackedEvents::from_stored(stored).unpack(Some(ID));
        }
    }
}
