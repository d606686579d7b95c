//! Weights in FP8 and MXFP4 turned into plain ones, as transformers does when it loads a checkpoint with
//! `dequantize=True`.
//!
//! FP8: `out[i, j] = code[i, j] · scale[i / (N / n), j / (K / k)]` in f32, rounded once, for codes `[…, N, K]` and scales
//! `[…, n, k]`: one of the whole tensor, of each row, or of each block.
//!
//! MXFP4: blocks `[E, N, G, 16]` hold two codes in each byte, the low half first, with one exponent in `[E, N, G]` for 32
//! codes; `out[e, 32 g + i, n] = code · 2^(exponent − 127)`, so that experts are stored with their inputs first.

use std::collections::HashMap;

use rayon::prelude::*;
use serde_json::json;

use super::convert::{decode_f32, encode_f32};
use super::dtype::{Dtype, Known};
use super::header_json::TensorInfo;
use super::header_writer::HeaderWriter;
use super::mxfp4;
use super::shard::Shard;
use super::sharded::{Checkpoint, Tensor};
use crate::error::Escaped;
use crate::{Error, Result};

/// What follows the name of a module in the name of the scales of its weight.
const SCALES: [&str; 6] =
    [".weight_scale_inv", ".weight_scale", ".qscale_weight", ".scale", "_scale_inv", "_scale"];
/// What belongs to computing with the codes, and to no weight.
const ACTIVATIONS: [&str; 3] = [".input_scale", ".activation_scale", ".input_scale_ub"];

/// What becomes of a tensor; the others stay as they are.
#[derive(Debug, Clone, Copy)]
enum Change<'a> {
    /// Codes are multiplied by these scales, one for each block.
    Scaled(Tensor<'a>, Block),
    /// Blocks of MXFP4 with these exponents.
    Mxfp4(Tensor<'a>),
    /// It has no place among plain weights.
    Dropped,
}

impl Checkpoint {
    /// This checkpoint with plain weights in memory in place of quantized ones, in the type that `config.json` names, or
    /// bf16. Itself where no weight is quantized.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for weights that are quantized otherwise than in FP8 or MXFP4; [`Error::Io`].
    pub fn dequantized(self) -> Result<Self> {
        if self.quantization().is_none() {
            return Ok(self);
        }
        let changes = changes(&self)?;
        let dtype = Dtype::Known(self.config().map_or(Known::BF16, |config| config.dtype()));
        let shards = self.shards().iter().map(|shard| plain_shard(&self, shard, &changes, &dtype));
        let shards = shards.collect::<Result<Vec<_>>>()?;
        let replace = |own: Vec<Shard>| {
            Ok(own.into_iter().zip(shards).map(|(own, plain)| plain.unwrap_or(own)).collect())
        };
        self.with_shards(replace).map(Self::with_plain_weights)
    }
}

/// What becomes of the tensors of quantized weights, by name.
fn changes(checkpoint: &Checkpoint) -> Result<HashMap<&str, Change<'_>>> {
    let Some(quantization) = checkpoint.quantization() else { return Ok(HashMap::new()) };
    let fault = |what: &str, fault: &str| Error::Checkpoint {
        path: checkpoint.path().to_owned(),
        fault: format!("the weights are quantized ({quantization}), and `{}` {fault}", Escaped(what)),
        hint: Some(
            "take the checkpoint that it was quantized from, or dequantize it with its own program"
                .to_owned(),
        ),
    };
    let mut changes = HashMap::new();
    for tensor in checkpoint.tensors() {
        let name = tensor.info.name.as_str();
        let Some(module) = quantization.module_of(name) else {
            if is_code(&tensor.info.dtype) {
                return Err(fault(name, "has codes without scales"));
            }
            continue;
        };
        let part = &name[module.len()..];
        let sibling = |part: &str| checkpoint.find(&format!("{module}{part}"));
        let scales = || SCALES.iter().find_map(|part| sibling(part));
        if part == "_blocks" {
            let exponents = sibling("_scales").filter(|found| mxfp4_shape(tensor.info, found.info).is_some());
            let exponents = exponents.ok_or_else(|| fault(name, "has no blocks and exponents of MXFP4"))?;
            changes.insert(name, Change::Mxfp4(exponents));
        } else if part == "_scales" && sibling("_blocks").is_some() {
            changes.insert(name, Change::Dropped);
        } else if part.is_empty() || part == ".weight" {
            let scales = scales().filter(|_| is_code(&tensor.info.dtype));
            let scales = scales.ok_or_else(|| fault(name, "has no codes in FP8 with scales"))?;
            let Some(block) = block(tensor.info, scales.info) else {
                let (codes, scales) = (&tensor.info.shape, scales.info);
                let what =
                    format!("has codes {codes:?}, which {} {:?} do not divide", scales.dtype, scales.shape);
                return Err(fault(name, &what));
            };
            changes.insert(name, Change::Scaled(scales, block));
        } else if ACTIVATIONS.contains(&part) || scales().is_some_and(|scales| scales.info.name == name) {
            changes.insert(name, Change::Dropped);
        } else if ![".bias", "_bias"].contains(&part) {
            return Err(fault(name, "is no part of a weight in FP8 or MXFP4"));
        }
    }
    if changes.is_empty() {
        return Err(fault(&checkpoint.path().to_string_lossy(), "has no codes in FP8 or MXFP4"));
    }
    Ok(changes)
}

fn is_code(dtype: &Dtype) -> bool {
    use Known::{F8_E4M3, F8_E4M3FNUZ, F8_E5M2, F8_E5M2FNUZ};
    matches!(dtype, Dtype::Known(F8_E4M3 | F8_E5M2 | F8_E4M3FNUZ | F8_E5M2FNUZ))
}

/// Rows and columns of codes that share one scale.
#[derive(Debug, Clone, Copy)]
struct Block {
    rows: usize,
    cols: usize,
}

/// The blocks of codes that have one scale each; `None` where scales of this shape and type do not fit.
fn block(codes: &TensorInfo, scales: &TensorInfo) -> Option<Block> {
    use Known::{BF16, F8_E8M0, F16, F32, U8};
    if !matches!(scales.dtype, Dtype::Known(F32 | BF16 | F16 | F8_E8M0 | U8)) {
        return None;
    }
    let [matrices @ .., rows, cols] = &codes.shape[..] else { return None };
    let (n, k) = match &scales.shape[..] {
        [] | [1] if matrices.iter().all(|count| *count == 1) => (1, 1),
        [stacked @ .., n, k] if stacked == matrices => (*n, *k),
        _ => return None,
    };
    let side = |codes: u64, scales: u64| {
        let size = codes.checked_div(scales).filter(|size| *size > 0 && codes.is_multiple_of(scales))?;
        usize::try_from(size).ok()
    };
    Some(Block { rows: side(*rows, n)?, cols: side(*cols, k)? })
}

/// The shape of the weight `[E, 32 G, N]` of blocks `[E, N, G, 16]` with exponents `[E, N, G]`, both bytes.
fn mxfp4_shape(blocks: &TensorInfo, exponents: &TensorInfo) -> Option<[u64; 3]> {
    let bytes = [blocks, exponents].iter().all(|info| info.dtype == Dtype::Known(Known::U8));
    match (&blocks.shape[..], &exponents.shape[..]) {
        ([e, n, g, 16], scales) if bytes && *scales == [*e, *n, *g] => Some([*e, g.checked_mul(32)?, *n]),
        _ => None,
    }
}

/// A tensor of a plain shard.
struct Plain {
    name: String,
    dtype: Dtype,
    shape: Vec<u64>,
    bytes: Vec<u8>,
}

/// `shard` with plain weights; it keeps its bytes where it has no part of a quantized weight.
fn plain_shard(
    checkpoint: &Checkpoint,
    shard: &Shard,
    changes: &HashMap<&str, Change<'_>>,
    dtype: &Dtype,
) -> Result<Option<Shard>> {
    let tensors = shard.header().tensors();
    if !tensors.iter().any(|info| changes.contains_key(info.name.as_str())) {
        return Ok(None);
    }
    let plain = |info: &TensorInfo| {
        let mut plain = Plain {
            name: info.name.clone(),
            dtype: dtype.clone(),
            shape: info.shape.clone(),
            bytes: Vec::new(),
        };
        let mut scratch = Vec::new();
        let stored = shard.bytes(info.bytes.clone(), &mut scratch)?;
        match changes.get(info.name.as_str()) {
            Some(Change::Dropped) => return Ok(None),
            Some(Change::Scaled(scales, block)) => {
                let scales = scale_values(checkpoint, *scales)?;
                plain.bytes = plain_weight(info, stored, &scales, *block, dtype);
            }
            Some(Change::Mxfp4(exponents)) => {
                let shape = mxfp4_shape(info, exponents.info).unwrap_or_default();
                let (shard, mut scratch) = (&checkpoint.shards()[exponents.shard], Vec::new());
                let exponents = shard.bytes(exponents.info.bytes.clone(), &mut scratch)?;
                plain.name = info.name.trim_end_matches("_blocks").to_owned();
                plain.bytes = mxfp4_weight(stored, exponents, shape, dtype);
                plain.shape = shape.to_vec();
            }
            None => (plain.dtype, plain.bytes) = (info.dtype.clone(), stored.to_vec()),
        }
        Ok(Some(plain))
    };
    let weights = tensors.par_iter().map(plain).collect::<Result<Vec<_>>>()?;
    let metadata: serde_json::Map<_, _> =
        shard.header().metadata().iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    let mut header = HeaderWriter::new(metadata.into());
    for weight in weights.iter().flatten() {
        header.push(weight.name.clone(), &weight.dtype, &weight.shape, weight.bytes.len() as u64);
    }
    let mut file = header.finish();
    weights.into_iter().flatten().for_each(|weight| file.extend(weight.bytes));
    shard.with_contents(file).map(Some)
}

/// The little-endian values of the weight with these codes.
fn plain_weight(codes: &TensorInfo, bytes: &[u8], scales: &[f32], block: Block, dtype: &Dtype) -> Vec<u8> {
    let every: Vec<u8> = (0..=255).collect();
    let mut value_of = [0f32; 256];
    decode_f32(&codes.dtype, &every, &mut value_of);
    let cols = codes.shape.last().map_or(0, |cols| *cols as usize);
    let per_row = cols / block.cols;
    let (mut values, mut encoded, mut out) = (vec![0f32; cols], Vec::new(), Vec::new());
    for (row, codes) in bytes.chunks_exact(cols).enumerate() {
        let scales = &scales[row / block.rows * per_row..][..per_row];
        for (i, (value, code)) in values.iter_mut().zip(codes).enumerate() {
            *value = value_of[usize::from(*code)] * scales[i / block.cols];
        }
        encode_f32(dtype, &values, &mut encoded);
        out.extend_from_slice(&encoded);
    }
    out
}

/// The little-endian values of a weight `[E, 32 G, N]` in MXFP4.
fn mxfp4_weight(blocks: &[u8], exponents: &[u8], [experts, rows, cols]: [u64; 3], dtype: &Dtype) -> Vec<u8> {
    let (rows, cols) = (rows as usize, cols as usize);
    let mut values = vec![0f32; experts as usize * rows * cols];
    let mut column = vec![0f32; rows];
    let columns =
        blocks.chunks_exact((rows / 2).max(1)).zip(exponents.chunks_exact((rows / mxfp4::BLOCK).max(1)));
    for (at, (codes, exponents)) in columns.enumerate() {
        mxfp4::decode(codes, exponents, &mut column);
        let (expert, col) = (at / cols, at % cols);
        let expert = &mut values[expert * rows * cols..(expert + 1) * rows * cols];
        expert.iter_mut().skip(col).step_by(cols).zip(&column).for_each(|(out, value)| *out = *value);
    }
    let mut out = Vec::new();
    encode_f32(dtype, &values, &mut out);
    out
}

/// The scales; bytes are exponents of two with a bias of 127.
fn scale_values(checkpoint: &Checkpoint, scales: Tensor<'_>) -> Result<Vec<f32>> {
    let (shard, info) = (&checkpoint.shards()[scales.shard], scales.info);
    let mut scratch = Vec::new();
    let bytes = shard.bytes(info.bytes.clone(), &mut scratch)?;
    if info.dtype == Dtype::Known(Known::U8) {
        return Ok(bytes.iter().map(|byte| 2f64.powi(i32::from(*byte) - 127) as f32).collect());
    }
    let mut values = vec![0.0; info.elements() as usize];
    decode_f32(&info.dtype, bytes, &mut values);
    Ok(values)
}
