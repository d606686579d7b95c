//! The header of a safetensors file, parsed and validated.
//!
//! Layout: `u64` little-endian N, N bytes of a JSON object, data. The rules enforced are those of
//! the format's README; leading white space in the JSON is tolerated, as the reference crate does.

use std::ops::Range;
use std::path::Path;

use serde::de::Deserializer as _;

use super::header_json::{HeaderVisitor, TensorInfo};
use crate::error::Escaped;
use crate::{Error, Result};

/// The cap of the reference implementation on the JSON part, in bytes.
const MOST_HEADER_BYTES: u64 = 100_000_000;
/// A header that obeys every rule of the format.
#[derive(Debug, Clone)]
pub struct Header {
    tensors: Vec<TensorInfo>,
    by_name: Vec<u32>,
    metadata: Vec<(String, String)>,
    data_start: u64,
}

impl Header {
    /// Reads N, the length of the JSON part, from the first eight bytes of a file of `file_len` bytes.
    ///
    /// # Errors
    /// When the file is shorter than eight bytes, or N exceeds the file or the format's cap.
    pub fn json_len(path: &Path, first: &[u8], file_len: u64) -> Result<u64> {
        let fault = |fault: String| fault_in(path, None, fault);
        let Some(first) = first.first_chunk::<8>() else {
            return Err(fault(format!(
                "file too short: got {file_len} bytes, expected at least 8 for the header length"
            )));
        };
        let n = u64::from_le_bytes(*first);
        if n > MOST_HEADER_BYTES {
            return Err(fault(format!(
                "header length too large: got {n} bytes, expected at most {MOST_HEADER_BYTES}"
            )));
        }
        if n + 8 > file_len {
            return Err(fault(format!(
                "header length exceeds the file: got {n} + 8 bytes, file has {file_len} (truncated?)"
            )));
        }
        Ok(n)
    }

    /// Parses and validates the JSON part of the file at `path`, which has `file_len` bytes.
    ///
    /// # Errors
    /// [`Error::Header`] naming the file, the tensor, what was got and what was expected.
    pub fn parse(path: &Path, json: &[u8], file_len: u64) -> Result<Self> {
        let data_start = 8 + json.len() as u64;
        let text = std::str::from_utf8(json)
            .map_err(|e| fault_in(path, None, format!("header is not UTF-8: {e}")))?;
        if super::json_bounds::too_deep(json) {
            return Err(fault_in(path, None, "header is nested too deeply".to_owned()));
        }
        let mut at = None;
        let mut reader = serde_json::Deserializer::from_str(text);
        let raw = (&mut reader)
            .deserialize_map(HeaderVisitor { at: &mut at })
            .and_then(|raw| reader.end().map(|()| raw))
            .map_err(|e| fault_in(path, at.take(), format!("header is not valid: {}", Escaped(&e))))?;
        let mut tensors = raw.tensors;
        for tensor in &mut tensors {
            check_tensor(path, tensor)?;
        }
        tensors.sort_by(|a, b| {
            (a.bytes.start, a.bytes.end, &a.name).cmp(&(b.bytes.start, b.bytes.end, &b.name))
        });
        let by_name = index_names(path, &tensors)?;
        check_layout(path, &tensors, file_len - data_start)?;
        for tensor in &mut tensors {
            tensor.bytes = tensor.bytes.start + data_start..tensor.bytes.end + data_start;
        }
        Ok(Self { tensors, by_name, metadata: raw.metadata.unwrap_or_default(), data_start })
    }

    /// The tensors in the order of their data.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn find(&self, name: &str) -> Option<&TensorInfo> {
        let order = |&i: &u32| self.tensors[i as usize].name.as_str().cmp(name);
        let found = self.by_name.binary_search_by(order).ok()?;
        self.tensors.get(self.by_name[found] as usize)
    }

    /// `__metadata__`, in file order.
    pub fn metadata(&self) -> &[(String, String)] {
        &self.metadata
    }

    /// Where the data begins, counted from the start of the file.
    pub fn data_start(&self) -> u64 {
        self.data_start
    }
}

fn fault_in(path: &Path, tensor: Option<String>, fault: String) -> Error {
    Error::Header { path: path.to_owned(), tensor, fault }
}

/// Name, shape, size and offsets of one tensor, each by itself.
fn check_tensor(path: &Path, tensor: &TensorInfo) -> Result<()> {
    let fault = |fault: String| Err(fault_in(path, Some(tensor.name.clone()), fault));
    if tensor.name.is_empty() {
        return fault("empty tensor name".to_owned());
    }
    let Range { start, end } = tensor.bytes;
    if start > end {
        return fault(format!("data offsets reversed: begin {start} is after end {end}"));
    }
    let elements = tensor.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
    let Some(elements) = elements else {
        return fault(format!("shape {:?} overflows 64 bits", tensor.shape));
    };
    let Some(bits) = tensor.dtype.bits() else {
        // Whatever the type, an element takes a bit; this also bounds all sums over shapes.
        if elements.div_ceil(8) > end - start {
            return fault(format!(
                "shape {:?} has more elements than its {} bytes have bits",
                tensor.shape,
                end - start
            ));
        }
        return Ok(());
    };
    let Some(total) = elements.checked_mul(bits) else {
        return fault(format!("shape {:?} of {} overflows 64 bits", tensor.shape, tensor.dtype));
    };
    if total % 8 != 0 {
        return fault(format!("{elements} elements of {} are not a whole number of bytes", tensor.dtype));
    }
    if end - start != total / 8 {
        return fault(format!(
            "size does not match: shape {:?} of {} needs {} bytes, data offsets [{start}, {end}] give {}",
            tensor.shape,
            tensor.dtype,
            total / 8,
            end - start
        ));
    }
    Ok(())
}

/// Positions sorted by name; a name given twice is an error, even where its bytes are the same.
fn index_names(path: &Path, tensors: &[TensorInfo]) -> Result<Vec<u32>> {
    let mut by_name: Vec<u32> = (0..tensors.len() as u32).collect();
    let name = |i: u32| tensors[i as usize].name.as_str();
    by_name.sort_unstable_by(|a, b| name(*a).cmp(name(*b)));
    for pair in by_name.windows(2) {
        if name(pair[0]) == name(pair[1]) {
            let twice = name(pair[0]).to_owned();
            return Err(fault_in(path, Some(twice), "duplicate name".to_owned()));
        }
    }
    Ok(by_name)
}

/// The data must be covered exactly: no overlap, no hole, nothing after the last tensor.
fn check_layout(path: &Path, tensors: &[TensorInfo], data_len: u64) -> Result<()> {
    let mut at = 0;
    for tensor in tensors {
        let Range { start, end } = tensor.bytes;
        let what = match start.cmp(&at) {
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Less => Some("overlap"),
            std::cmp::Ordering::Greater => Some("hole"),
        };
        if let Some(what) = what {
            let fault =
                format!("{what} in the data: begins at {start}, expected {at} (end of the one before)");
            return Err(fault_in(path, Some(tensor.name.clone()), fault));
        }
        if end > data_len {
            let fault = format!(
                "data past the end of the file: ends at {end}, file has {data_len} data bytes (truncated?)"
            );
            return Err(fault_in(path, Some(tensor.name.clone()), fault));
        }
        at = end;
    }
    if at != data_len {
        let fault = format!("trailing bytes: tensors end at {at}, file has {data_len} data bytes");
        return Err(fault_in(path, None, fault));
    }
    Ok(())
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
