//! TensorBoard event files: scalars as TFRecords of `Event` protocol buffers. The crates that write
//! them bring a protocol buffer compiler's output and a dozen dependencies for the four fields that
//! are needed here; benches/peers/read_events.py reads the result with tensorboard itself.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{Error, Result};

/// Writes one event file.
pub struct Events {
    file: BufWriter<File>,
}

impl Events {
    /// A new event file in `dir`, for steps after `step`. TensorBoard discards what earlier files in the
    /// folder say about later steps, so a resumed run continues its curves.
    ///
    /// # Errors
    /// `Error::Data` when it cannot be written.
    pub fn create(dir: &Path, step: u64) -> Result<Self> {
        let seconds = now();
        let name = format!("events.out.tfevents.{:010}.{}.ctune-dist", seconds as u64, std::process::id());
        let path = dir.join(name);
        let file = File::create(&path).map_err(|e| Error::io("written", &path, e))?;
        let mut events = Self { file: BufWriter::new(file) };
        events.write(&[bytes_field(3, b"brain.Event:2")].concat(), 0)?;
        let start = varint_field(1, 1); // SessionLog.status = START
        events.write(&bytes_field(7, &start), step + 1)?;
        Ok(events)
    }

    /// One event with all `scalars` of a step.
    pub fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in scalars {
            let mut entry = bytes_field(1, tag.as_bytes());
            entry.push(2 << 3 | 5); // simple_value, 32 bits
            entry.extend((*value as f32).to_le_bytes());
            summary.extend(bytes_field(1, &entry));
        }
        self.write(&bytes_field(5, &summary), step)
    }

    /// Frames an event: length, its checksum, wall time + step + `body`, their checksum.
    fn write(&mut self, body: &[u8], step: u64) -> Result<()> {
        let mut event = vec![1 << 3 | 1]; // wall_time, 64 bits
        event.extend(now().to_le_bytes());
        event.extend(varint_field(2, step));
        event.extend(body);
        let length = (event.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked_crc32c(&length).to_le_bytes());
        record.extend(&event);
        record.extend(masked_crc32c(&event).to_le_bytes());
        self.file
            .write_all(&record)
            .and_then(|()| self.file.flush())
            .map_err(|e| Error::data(format!("the TensorBoard file cannot be written: {e}")))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn varint_field(number: u8, value: u64) -> Vec<u8> {
    [vec![number << 3], varint(value)].concat()
}

fn bytes_field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [vec![number << 3 | 2], varint(bytes.len() as u64), bytes.to_vec()].concat()
}

/// CRC-32C (Castagnoli), rotated and shifted as TFRecord files store it.
fn masked_crc32c(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xA282_EAD8)
}

fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
    !bytes.iter().fold(!0u32, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| step(crc)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_framed_as_tensorboard_reads_them() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283); // the check value of CRC-32C
        assert_eq!(varint(300), [0xAC, 0x02]);
        let dir = tempfile::tempdir().unwrap();
        let mut events = Events::create(dir.path(), 4).unwrap();
        events.scalars(5, &[("loss", 0.5)]).unwrap();
        let path = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let bytes = std::fs::read(path).unwrap();
        let (mut rest, mut records) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let len = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let stored = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
            assert_eq!(stored(8), masked_crc32c(&rest[..8]));
            assert_eq!(stored(12 + len), masked_crc32c(&rest[12..12 + len]));
            records.push(&rest[12..12 + len]);
            rest = &rest[16 + len..];
        }
        assert_eq!(records.len(), 3);
        assert!(records[0].ends_with(b"brain.Event:2"));
        // step 5; summary { value { tag: "loss" simple_value: 0.5 } }
        let body = b"\x10\x05\x2a\x0d\x0a\x0b\x0a\x04loss\x15\x00\x00\x00\x3f";
        assert_eq!(&records[2][9..], body);
    }
}
