//! TensorBoard event files: length-prefixed records with masked CRC-32C, each a protobuf `Event`.
//!
//! Source: tensorflow/core/lib/io/record_writer.h and tensorflow/core/util/event.proto.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::{Error, Result};

/// An event file that is being written.
#[derive(Debug)]
pub(super) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Creates a new event file in `dir`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn create(dir: &Path) -> Result<Self> {
        let now = seconds();
        let name = format!("events.out.tfevents.{}.hft-surgery.{}", now as u64, std::process::id());
        let path = dir.join(name);
        let file =
            File::options().append(true).create(true).open(&path).map_err(Error::io("create", &path))?;
        let mut events = Self { path, file };
        let mut first = Vec::new();
        put_double(&mut first, 1, now);
        put_bytes(&mut first, 3, b"brain.Event:2");
        events.write(&first)?;
        Ok(events)
    }

    /// Writes the values of a step.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut entry = Vec::new();
            put_bytes(&mut entry, 1, tag.as_bytes());
            // simple_value: field 2, 32 bits.
            entry.push(2 << 3 | 5);
            entry.extend((*value as f32).to_le_bytes());
            put_bytes(&mut summary, 1, &entry);
        }
        let mut event = Vec::new();
        put_double(&mut event, 1, seconds());
        event.push(2 << 3);
        put_varint(&mut event, step);
        put_bytes(&mut event, 5, &summary);
        self.write(&event)
    }

    fn write(&mut self, event: &[u8]) -> Result<()> {
        self.file.write_all(&record(event)).map_err(Error::io("write", &self.path))
    }
}

fn seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// Length, its checksum, the data, its checksum.
fn record(data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend(len);
    out.extend(masked_crc(&len).to_le_bytes());
    out.extend(data);
    out.extend(masked_crc(data).to_le_bytes());
    out
}

fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_double(out: &mut Vec<u8>, field: u8, value: f64) {
    out.push(field << 3 | 1);
    out.extend(value.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, B.4: the CRC-32C of 32 zero bytes is 8a9136aa; rotated by 15 bits that is 6d551522, to which the
    /// mask a282ead8 is added.
    #[test]
    fn checksums_are_masked_crc_32c() {
        assert_eq!(masked_crc(&[0; 32]), 0x6d55_1522_u32.wrapping_add(0xa282_ead8));
    }

    #[test]
    fn a_record_holds_its_length_and_data() {
        let bytes = record(b"abc");
        assert_eq!(bytes.len(), 8 + 4 + 3 + 4);
        assert_eq!((&bytes[..8], &bytes[12..15]), (&3u64.to_le_bytes()[..], &b"abc"[..]));
    }
}
