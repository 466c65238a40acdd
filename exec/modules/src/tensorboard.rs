//! A TensorBoard event file: the figures of `training_log.jsonl` once more, for what reads such files (TensorBoard, and the
//! importers of W&B and MLflow).
//!
//! A record is its length, a checksum of that, its bytes, a checksum of them; the bytes are an `Event` of TensorFlow's
//! `event.proto`, of which a time, a step and plain scalars are used here.
//! (<https://www.tensorflow.org/tutorials/load_data/tfrecord>, `tensorflow/core/util/event.proto`.)

use std::{fs::File, io::Write, path::Path};

use mloc_exec::ModuleError;

/// The file among the artifacts, and in each checkpoint: readers look for `tfevents` in a name.
pub const FILE: &str = "events.out.tfevents.0.mloc";

/// Begins a file.
///
/// # Errors
/// Those of the disk.
pub fn begin(path: &Path, unix_seconds: f64) -> Result<(), ModuleError> {
    let mut event = Message::default();
    event.double(1, unix_seconds);
    event.bytes(3, b"brain.Event:2");
    let written = File::create(path).and_then(|mut file| file.write_all(&record(&event.0)));
    written.map_err(|e| ModuleError::disk("write", path, &e))
}

/// Adds the figures of a step, by their names in the log: under `eval` where they are of held-out data, else under `train`,
/// as the reference's callback has them.
///
/// # Errors
/// Those of the disk.
pub fn add<'a>(
    path: &Path,
    unix_seconds: f64,
    step: u64,
    figures: impl IntoIterator<Item = (&'a str, f64)>,
) -> Result<(), ModuleError> {
    let mut summary = Message::default();
    for (name, value) in figures {
        let mut scalar = Message::default();
        let tag = name.strip_prefix("eval_").map_or_else(|| format!("train/{name}"), |name| format!("eval/{name}"));
        scalar.bytes(1, tag.as_bytes());
        #[allow(clippy::cast_possible_truncation, reason = "the format has 32 bits for it")]
        scalar.float(2, value as f32);
        summary.bytes(1, &scalar.0);
    }
    let mut event = Message::default();
    event.double(1, unix_seconds);
    event.integer(2, step);
    event.bytes(5, &summary.0);
    let written = File::options().append(true).open(path).and_then(|mut file| file.write_all(&record(&event.0)));
    written.map_err(|e| ModuleError::disk("write", path, &e))
}

/// Fields in protobuf's encoding.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn double(&mut self, field: u8, value: f64) {
        self.0.push(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
    }

    fn float(&mut self, field: u8, value: f32) {
        self.0.push(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
    }

    fn integer(&mut self, field: u8, value: u64) {
        self.0.push(field << 3);
        self.varint(value);
    }

    fn bytes(&mut self, field: u8, bytes: &[u8]) {
        self.0.push(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    /// Seven bits a byte, the lowest first, the highest bit set in all but the last.
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

fn record(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), bytes, &masked(bytes)].concat()
}

/// The checksum of a record, turned and shifted so that a checksum of checksums stays one.
fn masked(bytes: &[u8]) -> [u8; 4] {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// The cyclic redundancy check of Castagnoli's polynomial, a bit at a time: records are small.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        // The check value of CRC-32C, and RFC 3720's for 32 bytes of zero and of ones.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    /// The bytes that TensorBoard's own `RecordWriter` (2.21.0) writes for the same two events.
    #[test]
    fn records_are_those_that_tensorboard_writes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        begin(&path, 1.5).unwrap();
        add(&path, 2.5, 300, [("loss", 0.25), ("grad_norm", 1.0)]).unwrap();
        let hex = hex::encode(std::fs::read(&path).unwrap());
        assert_eq!(hex, EXPECTED);
    }

    const EXPECTED: &str = "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c39000000000000008b07\
        37f109000000000000044010ac022a2b0a110a0a747261696e2f6c6f7373150000803e0a160a0f747261696e2f677261645f6e6f726d150000803fcd762f54";
}
