//! Pages of a Parquet file, bounded before they are decoded: a page says how large it becomes, and its
//! repetition levels say how many values each row has.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use parquet::basic::{Encoding, Type as Physical};
use parquet::bloom_filter::Sbbf;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{ChunkReader, Length, RowGroupReader};
use parquet::record::reader::RowIter;
use parquet::schema::types::Type;

use crate::data::raw_row::MOST_ROW_TREE_BYTES;
use crate::error::Escaped;

/// Bytes of the pages that are decoded at the same time, one of each column and its dictionary.
const MOST_PAGE_BYTES: u64 = 128 << 20;
/// Values of a row, over all columns: as many as JSON lines may have.
const MOST_VALUES: u64 = MOST_ROW_TREE_BYTES / 32;
/// Values of a column in a row that are not worth counting.
const FEW_VALUES: u64 = 1 << 12;
/// Bytes of the texts of one column in a row, if each were the longest of its dictionary.
const MOST_TEXT_BYTES: u64 = 128 << 20;

/// A file that remembers where it was read last: where the header of the next page begins.
#[derive(Clone)]
pub(crate) struct Input {
    file: Arc<File>,
    last: Arc<AtomicU64>,
}

impl Input {
    pub(crate) fn new(file: File) -> Self {
        Self { file: Arc::new(file), last: Arc::default() }
    }

    /// Bytes that the page whose header was read last becomes: the second field of that header, which all
    /// writers put behind the first, both of them `i32` of the compact protocol of Thrift.
    fn declared(&self) -> Result<u64> {
        let mut header = [0; 16];
        let n = self.file.read_at(&mut header, self.last.load(Ordering::Relaxed))?;
        let second = || -> Option<u64> {
            let kind = header[..n].strip_prefix(&[0x15])?;
            let (_, rest) = varint(kind)?;
            let (zigzag, _) = varint(rest.strip_prefix(&[0x15])?)?;
            Some(zigzag >> 1)
        };
        second().ok_or_else(|| ParquetError::General("a page header has no size".to_owned()))
    }
}

impl Length for Input {
    fn len(&self) -> u64 {
        Length::len(&*self.file)
    }
}

impl ChunkReader for Input {
    type T = BufReader<File>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        self.last.store(start, Ordering::Relaxed);
        self.file.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        self.file.get_bytes(start, length)
    }
}

/// The bytes in memory, shared by the columns, and the reason why more were refused.
#[derive(Default)]
pub(crate) struct Budget(Mutex<Spent>);

#[derive(Default)]
struct Spent {
    /// By column, and whether it is its dictionary.
    pages: BTreeMap<(usize, bool), u64>,
    /// Values by row and column, where they are many.
    values: BTreeMap<(u64, usize), u64>,
    refused: Option<(Option<u64>, String)>,
}

impl Budget {
    /// The row and the reason of a refusal.
    pub(crate) fn refused(&self) -> Option<(Option<u64>, String)> {
        self.spent().refused.take()
    }

    fn spent(&self) -> std::sync::MutexGuard<'_, Spent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuse(&self, row: Option<u64>, fault: String) -> Result<()> {
        let error = ParquetError::General(fault.clone());
        self.spent().refused = Some((row, fault));
        Err(error)
    }

    fn page(&self, column: usize, dictionary: bool, bytes: u64) -> Result<()> {
        let sum = {
            let mut spent = self.spent();
            spent.pages.insert((column, dictionary), bytes);
            spent.pages.values().fold(0u64, |sum, bytes| sum.saturating_add(*bytes))
        };
        if sum <= MOST_PAGE_BYTES {
            return Ok(());
        }
        let fault = format!("pages too large: got {sum} bytes at once, expected at most {MOST_PAGE_BYTES}");
        self.refuse(None, fault)
    }

    fn values(&self, row: u64, column: &Column) -> Result<()> {
        let sum: u64 = {
            let mut spent = self.spent();
            spent.values.insert((row, column.index), column.values);
            spent.values.range((row, 0)..=(row, usize::MAX)).map(|(_, values)| values).sum()
        };
        if sum > MOST_VALUES {
            let fault = format!("the row has too many values: expected at most {MOST_VALUES}");
            return self.refuse(Some(row), fault);
        }
        let text = column.values.saturating_mul(column.longest);
        if text > MOST_TEXT_BYTES {
            let (name, values, longest) = (Escaped(&column.name), column.values, column.longest);
            let fault = format!(
                "the row is too long: {values} texts of up to {longest} bytes in `{name}`, expected at most {MOST_TEXT_BYTES}"
            );
            return self.refuse(Some(row), fault);
        }
        Ok(())
    }
}

/// A row group whose pages are bounded.
pub(crate) struct BoundedGroup<'a> {
    inner: Box<dyn RowGroupReader + 'a>,
    input: Input,
    budget: Arc<Budget>,
    /// Rows of the groups before.
    before: u64,
}

impl<'a> BoundedGroup<'a> {
    pub(crate) fn new(
        inner: Box<dyn RowGroupReader + 'a>,
        input: &Input,
        budget: &Arc<Budget>,
        before: u64,
    ) -> Self {
        let mut spent = budget.spent();
        spent.pages.clear();
        spent.values.clear();
        drop(spent);
        Self { inner, input: input.clone(), budget: budget.clone(), before }
    }
}

impl RowGroupReader for BoundedGroup<'_> {
    fn metadata(&self) -> &RowGroupMetaData {
        self.inner.metadata()
    }

    fn num_columns(&self) -> usize {
        self.inner.num_columns()
    }

    fn get_column_page_reader(&self, i: usize) -> Result<Box<dyn PageReader>> {
        let description = self.metadata().column(i).column_descr_ptr();
        let repeated = description.max_rep_level().unsigned_abs();
        let kind = description.physical_type();
        Ok(Box::new(Pages {
            inner: self.inner.get_column_page_reader(i)?,
            input: self.input.clone(),
            budget: self.budget.clone(),
            checked: false,
            column: Column {
                index: i,
                name: description.path().string(),
                width: u16::BITS - repeated.leading_zeros(),
                texts: kind == Physical::BYTE_ARRAY,
                longest: description.type_length().try_into().unwrap_or(0),
                row: self.before,
                values: 0,
            },
        }))
    }

    fn get_column_bloom_filter(&self, i: usize) -> Option<&Sbbf> {
        self.inner.get_column_bloom_filter(i)
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>> {
        RowIter::from_row_group(projection, self)
    }
}

/// The state of a column.
struct Column {
    index: usize,
    name: String,
    /// Bits of a repetition level; 0 where each row has one value.
    width: u32,
    /// Whether the values are texts of any length.
    texts: bool,
    /// Bytes of the longest value of the dictionary, or of each value where all have one length.
    longest: u64,
    /// The row that was begun last, from 1.
    row: u64,
    /// Values of that row.
    values: u64,
}

/// The pages of a column, each checked before it is decompressed and before its values are decoded.
struct Pages {
    inner: Box<dyn PageReader>,
    input: Input,
    budget: Arc<Budget>,
    /// Whether the size of the next page was checked.
    checked: bool,
    column: Column,
}

impl Pages {
    fn check_next(&mut self) -> Result<Option<PageMetadata>> {
        let next = self.inner.peek_next_page()?;
        if let Some(page) = next.as_ref().filter(|_| !self.checked) {
            self.budget.page(self.column.index, page.is_dict, self.input.declared()?)?;
            self.checked = true;
        }
        Ok(next)
    }

    fn check_values(&mut self, page: &Page) -> Result<()> {
        let (levels, count) = match page {
            Page::DictionaryPage { buf, num_values, .. } => return self.dictionary(buf, *num_values),
            _ if self.column.width == 0 => return Ok(()),
            Page::DataPage { buf, num_values, rep_level_encoding: Encoding::RLE, .. } => {
                let (len, rest) = buf.split_first_chunk().ok_or_else(damaged)?;
                let levels = rest.get(..u32::from_le_bytes(*len) as usize).ok_or_else(damaged)?;
                (levels, *num_values)
            }
            Page::DataPage { .. } => {
                let fault = "repetition levels of an encoding that has been deprecated since 2013";
                return Err(ParquetError::General(fault.to_owned()));
            }
            Page::DataPageV2 { buf, num_values, rep_levels_byte_len, .. } => {
                (buf.get(..*rep_levels_byte_len as usize).ok_or_else(damaged)?, *num_values)
            }
        };
        let (column, budget) = (&mut self.column, &self.budget);
        runs(levels, column.width, count.into(), &mut |level, times| {
            if level == 0 {
                column.row += times;
                column.values = 1;
                return Ok(());
            }
            column.values += times;
            if column.values > FEW_VALUES { budget.values(column.row, column) } else { Ok(()) }
        })
    }

    /// Each value takes a byte or more, a text four and its own.
    fn dictionary(&mut self, buf: &[u8], count: u32) -> Result<()> {
        if u64::from(count) > buf.len() as u64 {
            return Err(damaged());
        }
        let mut rest = buf;
        for _ in 0..if self.column.texts { count } else { 0 } {
            let (len, texts) = rest.split_first_chunk().ok_or_else(damaged)?;
            let len = u32::from_le_bytes(*len);
            rest = texts.get(len as usize..).ok_or_else(damaged)?;
            self.column.longest = self.column.longest.max(len.into());
        }
        Ok(())
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        self.check_next()?;
        self.checked = false;
        let page = self.inner.get_next_page()?;
        if let Some(page) = &page {
            self.check_values(page)?;
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.check_next()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.check_next()?;
        self.checked = false;
        self.inner.skip_next_page()
    }
}

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

/// Tells the runs of `count` levels of `width` bits, encoded as run lengths and packed bits.
///
/// Source: Apache Parquet format, Encodings.md, "Run Length Encoding / Bit-Packing Hybrid".
fn runs(data: &[u8], width: u32, count: u64, run: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<()> {
    let (mut data, mut left) = (data, count);
    while left > 0 {
        let (header, rest) = varint(data).ok_or_else(damaged)?;
        if header & 1 == 0 {
            let bytes = width.div_ceil(8) as usize;
            let value = rest.get(..bytes).ok_or_else(damaged)?;
            let level = value.iter().rev().fold(0, |level, byte| level << 8 | u64::from(*byte));
            let times = (header >> 1).min(left);
            if times == 0 {
                return Err(damaged());
            }
            run(level, times)?;
            (data, left) = (&rest[bytes..], left - times);
            continue;
        }
        let times = (header >> 1).saturating_mul(8).min(left);
        let bit = |at: u64| rest.get((at / 8) as usize).map(|byte| u64::from(byte >> (at % 8) & 1));
        for i in 0..times {
            let first = i * u64::from(width);
            let bits = (0..u64::from(width)).map(|b| bit(first + b).map(|bit| bit << b));
            run(bits.sum::<Option<u64>>().ok_or_else(damaged)?, 1)?;
        }
        if times == 0 {
            return Err(damaged());
        }
        let bytes = (header >> 1).saturating_mul(u64::from(width)).min(rest.len() as u64);
        (data, left) = (&rest[bytes as usize..], left - times);
    }
    Ok(())
}

/// A number in groups of seven bits, lowest first, and what follows it.
fn varint(data: &[u8]) -> Option<(u64, &[u8])> {
    let end = data.iter().take(10).position(|byte| byte & 0x80 == 0)?;
    let number = data[..=end].iter().rev().fold(0u64, |n, byte| n << 7 | u64::from(byte & 0x7f));
    Some((number, &data[end + 1..]))
}

fn damaged() -> ParquetError {
    ParquetError::General("damaged".to_owned())
}
