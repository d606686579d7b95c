//! Weights in FP8 turned into plain ones, as transformers does when it loads a checkpoint with `dequantize=True`.
//!
//! `out[i, j] = code[i, j] · scale[i / (N / n), j / (K / k)]` in f32, rounded once, for codes `[…, N, K]` and scales
//! `[…, n, k]`: one of the whole tensor, of each row, or of each block.

use std::collections::HashMap;

use rayon::prelude::*;
use serde_json::json;

use super::convert::{decode_f32, encode_f32};
use super::dtype::{Dtype, Known};
use super::header_json::TensorInfo;
use super::header_writer::HeaderWriter;
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
    /// It has no place among plain weights.
    Dropped,
}

impl Checkpoint {
    /// This checkpoint with plain weights in memory in place of quantized ones, in the type that `config.json` names, or
    /// bf16. Itself where no weight is quantized.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for weights that are quantized otherwise than in FP8; [`Error::Io`].
    pub fn dequantized(self) -> Result<Self> {
        if self.quantization().is_none() {
            return Ok(self);
        }
        let changes = changes(&self)?;
        let dtype = Dtype::Known(self.config().map_or(Known::BF16, |config| config.dtype()));
        let shards = self.shards().iter().map(|shard| plain_shard(&self, shard, &changes, &dtype));
        let shards = shards.collect::<Result<Vec<_>>>()?;
        self.with_plain_weights(shards)
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
        let scales = || SCALES.iter().find_map(|part| checkpoint.find(&format!("{module}{part}")));
        if part.is_empty() || part == ".weight" {
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
            return Err(fault(name, "is no part of a weight in FP8"));
        }
    }
    if changes.is_empty() {
        return Err(fault(&checkpoint.path().to_string_lossy(), "has no codes in FP8"));
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
    let plain = |info: &TensorInfo| match changes.get(info.name.as_str()) {
        Some(Change::Dropped) => Ok(None),
        Some(Change::Scaled(scales, block)) => {
            let scales = scale_values(checkpoint, *scales)?;
            Ok(Some((dtype.clone(), plain_weight(shard, info, &scales, *block, dtype)?)))
        }
        None => {
            let mut scratch = Vec::new();
            Ok(Some((info.dtype.clone(), shard.bytes(info.bytes.clone(), &mut scratch)?.to_vec())))
        }
    };
    let weights = tensors.par_iter().map(plain).collect::<Result<Vec<_>>>()?;
    let metadata: serde_json::Map<_, _> =
        shard.header().metadata().iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    let mut header = HeaderWriter::new(metadata.into());
    for (info, weight) in tensors.iter().zip(&weights) {
        if let Some((dtype, bytes)) = weight {
            header.push(info.name.clone(), dtype, &info.shape, bytes.len() as u64);
        }
    }
    let mut file = header.finish();
    weights.into_iter().flatten().for_each(|(_, bytes)| file.extend(bytes));
    shard.with_contents(file).map(Some)
}

/// The little-endian values of the weight with these codes.
fn plain_weight(
    shard: &Shard,
    codes: &TensorInfo,
    scales: &[f32],
    block: Block,
    dtype: &Dtype,
) -> Result<Vec<u8>> {
    let every: Vec<u8> = (0..=255).collect();
    let mut value_of = [0f32; 256];
    decode_f32(&codes.dtype, &every, &mut value_of);
    let mut scratch = Vec::new();
    let bytes = shard.bytes(codes.bytes.clone(), &mut scratch)?;
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
    Ok(out)
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
