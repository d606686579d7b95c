//! A safetensors file that is nowhere on disk: the bytes of its tensors are computed when they are read.

use std::fmt;
use std::ops::Range;

use rayon::prelude::*;

use crate::Result;

/// Bytes that are computed at a time where all are wanted.
const PIECE: usize = 1 << 20;

/// Appends bytes of a tensor, a range counted from its first byte, to a buffer.
pub(crate) type ReadTensor = Box<dyn Fn(Range<u64>, &mut Vec<u8>) -> Result<()> + Send + Sync>;

/// The file: a header, and a function for the bytes of each tensor.
pub(crate) struct ComputedFile {
    header: Vec<u8>,
    /// In the order of the file, each with its bytes there; no byte lies between two.
    tensors: Vec<(Range<u64>, ReadTensor)>,
}

impl ComputedFile {
    /// A file that begins with `header`, behind which tensors of these numbers of bytes follow.
    pub(crate) fn new(header: Vec<u8>, tensors: impl IntoIterator<Item = (u64, ReadTensor)>) -> Self {
        let mut at = header.len() as u64;
        let place = |(len, read): (u64, ReadTensor)| {
            at += len;
            (at - len..at, read)
        };
        let tensors = tensors.into_iter().map(place).collect();
        Self { header, tensors }
    }

    /// The bytes before the first tensor.
    pub(super) fn header(&self) -> &[u8] {
        &self.header
    }

    /// Bytes of the whole file.
    pub(super) fn len(&self) -> u64 {
        self.tensors.last().map_or(self.header.len() as u64, |(bytes, _)| bytes.end)
    }

    /// Puts the bytes `range` of the file into `out`.
    ///
    /// # Errors
    /// As the functions of the tensors.
    pub(super) fn read(&self, range: Range<u64>, out: &mut Vec<u8>) -> Result<()> {
        let header = self.header.len() as u64;
        out.clear();
        out.extend_from_slice(&self.header[range.start.min(header) as usize..range.end.min(header) as usize]);
        let first = self.tensors.partition_point(|(bytes, _)| bytes.end <= range.start);
        for (bytes, read) in &self.tensors[first..] {
            if bytes.start >= range.end {
                break;
            }
            let part = range.start.max(bytes.start)..range.end.min(bytes.end);
            read(part.start - bytes.start..part.end - bytes.start, out)?;
        }
        let (got, expected) = (out.len() as u64, range.end - range.start);
        assert!(got == expected, "the function of a tensor gives the bytes that it is asked for");
        Ok(())
    }

    /// All bytes of the file, computed on every thread.
    ///
    /// # Errors
    /// As [`ComputedFile::read`]; [`std::io::ErrorKind::OutOfMemory`] as the reason of an inner `Err`.
    pub(super) fn all(&self) -> Result<std::io::Result<Vec<u8>>> {
        let mut bytes = Vec::new();
        let len = usize::try_from(self.len()).unwrap_or(usize::MAX);
        if bytes.try_reserve_exact(len).is_err() {
            return Ok(Err(std::io::ErrorKind::OutOfMemory.into()));
        }
        bytes.resize(len, 0u8);
        bytes.par_chunks_mut(PIECE).enumerate().try_for_each_init(Vec::new, |piece, (i, out)| {
            let at = (i * PIECE) as u64;
            self.read(at..at + out.len() as u64, piece)?;
            out.copy_from_slice(piece);
            Ok::<_, crate::Error>(())
        })?;
        Ok(Ok(bytes))
    }
}

impl fmt::Debug for ComputedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ComputedFile({} bytes, {} tensors)", self.len(), self.tensors.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every range, over a header, tensors and one without bytes, is that of the whole.
    #[test]
    fn a_range_is_that_of_the_whole() {
        let of = |values: Vec<u8>| -> (u64, ReadTensor) {
            let len = values.len() as u64;
            let read = move |range: Range<u64>, out: &mut Vec<u8>| {
                out.extend(&values[range.start as usize..range.end as usize]);
                Ok(())
            };
            (len, Box::new(read))
        };
        let file = ComputedFile::new(vec![0, 1, 2], [of(vec![3, 4]), of(Vec::new()), of(vec![5, 6, 7])]);
        let whole: Vec<u8> = (0..8).collect();
        assert_eq!((file.len(), file.all().unwrap().unwrap()), (8, whole.clone()));
        for start in 0..8 {
            for end in start..=8 {
                let mut out = vec![9];
                file.read(start..end, &mut out).unwrap();
                assert_eq!(out, whole[start as usize..end as usize], "{start}..{end}");
            }
        }
    }
}
