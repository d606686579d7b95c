//! The header of a safetensors file that is to be written.

use std::ops::Range;

use serde_json::{Map, Value, json};

use super::dtype::Dtype;

/// Collects the tensors of a file in the order of their bytes.
#[derive(Debug)]
pub(crate) struct HeaderWriter {
    entries: Map<String, Value>,
    data_len: u64,
}

impl HeaderWriter {
    /// A header with this `__metadata__`, a JSON object of strings, and no tensors.
    pub(crate) fn new(metadata: Value) -> Self {
        let entries = Map::from_iter([("__metadata__".to_owned(), metadata)]);
        Self { entries, data_len: 0 }
    }

    /// Appends a tensor of `len` bytes. Returns where its bytes lie, counted from the end of the header.
    pub(crate) fn push(&mut self, name: String, dtype: &Dtype, shape: &[u64], len: u64) -> Range<u64> {
        let bytes = self.data_len..self.data_len + len;
        let offsets = [bytes.start, bytes.end];
        let entry = json!({"dtype": dtype.to_string(), "shape": shape, "data_offsets": offsets});
        self.entries.insert(name, entry);
        self.data_len = bytes.end;
        bytes
    }

    /// Bytes of all tensors.
    pub(crate) fn data_len(&self) -> u64 {
        self.data_len
    }

    /// The bytes before the first tensor: the length of the JSON as u64 (little-endian) and the JSON, padded with
    /// spaces to a multiple of 8 bytes.
    pub(crate) fn finish(self) -> Vec<u8> {
        let mut json = Value::Object(self.entries).to_string().into_bytes();
        json.resize(json.len().next_multiple_of(8), b' ');
        [&(json.len() as u64).to_le_bytes()[..], &json].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Known;

    /// Against the reader of the `safetensors` crate.
    #[test]
    fn the_reference_reader_accepts_the_header() {
        let mut header = HeaderWriter::new(json!({"format": "pt"}));
        assert_eq!(header.push("b".to_owned(), &Dtype::Known(Known::BF16), &[2, 3], 12), 0..12);
        assert_eq!(header.push("a".to_owned(), &Dtype::Known(Known::F32), &[1], 4), 12..16);
        assert_eq!(header.data_len(), 16);
        let mut file = header.finish();
        assert_eq!(file.len() % 8, 0);
        file.extend(0u8..16);
        let read = safetensors::SafeTensors::deserialize(&file).unwrap();
        let (a, b) = (read.tensor("a").unwrap(), read.tensor("b").unwrap());
        assert_eq!((a.dtype(), a.shape(), a.data()), (Known::F32, &[1][..], &[12u8, 13, 14, 15][..]));
        assert_eq!((b.dtype(), b.shape(), b.data().len()), (Known::BF16, &[2, 3][..], 12));
    }
}
