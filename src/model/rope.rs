//! Rotary frequencies of a model.

use crate::backend::{RopeTable, Sequences};
use crate::model::ModelConfig;
use crate::model::rope_scaling::RopeScaling;
use crate::model::rope_settings::Rope;

/// Cosines and sines for these positions of sequences that are not longer than [`Rope::longest`], for each of the rotary
/// embeddings of the model.
///
/// Frequencies in `f32` as transformers computes them; `llama3` scaling after Meta's Llama 3.1, `yarn` after Peng et al.
/// 2023, `longrope` after Ding et al. 2024.
pub fn rope_tables(config: &ModelConfig, positions: impl Iterator<Item = usize> + Clone) -> Vec<RopeTable> {
    config.ropes.iter().map(|rope| table(config, rope, [(0, positions.clone())].into_iter())).collect()
}

/// As [`rope_tables`] for each token of these sequences, with the frequencies that each has alone; `None` where no sequence is
/// longer than [`Rope::longest`].
pub(super) fn tables_of_tokens(config: &ModelConfig, sequences: Sequences<'_>) -> Option<Vec<RopeTable>> {
    let lengths = || sequences.ranges().map(|range| range.len());
    let most = config.ropes.iter().filter_map(|rope| rope.longest).min()?;
    lengths().any(|length| length > most).then(|| {
        let of_sequences = || lengths().map(|length| (length, 0..length));
        config.ropes.iter().map(|rope| table(config, rope, of_sequences())).collect()
    })
}

/// The rows of some sequences: the length that decides the frequencies of each, and its positions.
fn table(
    config: &ModelConfig,
    rope: &Rope,
    sequences: impl Iterator<Item = (usize, impl Iterator<Item = usize>)>,
) -> RopeTable {
    let ModelConfig { head_dim, rope_interleaved: interleaved, .. } = *config;
    let half = rope.dims / 2;
    let scale = match rope.scaling {
        RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
            attention_factor as f32
        }
        _ => 1.0,
    };
    let (mut sin, mut cos) = (Vec::new(), Vec::new());
    for (length, positions) in sequences {
        let frequencies: Vec<f32> = (0..half).map(|i| frequency(rope, i, length)).collect();
        for angle in positions.flat_map(|p| frequencies.iter().map(move |f| p as f32 * f)) {
            sin.push(angle.sin() * scale);
            cos.push(angle.cos() * scale);
        }
    }
    RopeTable { cos: cos.into(), sin: sin.into(), half, head_dim, interleaved }
}

/// Frequency `i` of a sequence of `length` tokens.
fn frequency(rope: &Rope, i: usize, length: usize) -> f32 {
    let is_longer = rope.longest.is_some_and(|longest| length > longest);
    let exponent = (2 * i) as f32 / rope.dims as f32;
    let theta = match rope.scaling {
        RopeScaling::Dynamic { factor, positions } if is_longer => {
            let (factor, dims) = (factor as f32, rope.dims as f32);
            let growth = factor * length as f32 / positions as f32 - (factor - 1.0);
            rope.theta as f32 * growth.powf(dims / (dims - 2.0))
        }
        _ => rope.theta as f32,
    };
    let power = theta.powf(exponent);
    let plain = 1.0 / power;
    match rope.scaling {
        RopeScaling::Default | RopeScaling::Dynamic { .. } => plain,
        RopeScaling::LongRope { ref short_factor, ref long_factor, .. } => {
            let factor = if is_longer { long_factor } else { short_factor };
            1.0 / (factor[i] * power)
        }
        RopeScaling::Proportional { factor, angles } => {
            if i < angles {
                plain / factor as f32
            } else {
                0.0
            }
        }
        RopeScaling::Linear { factor } => plain / factor as f32,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
            let wavelength = 2.0 * std::f64::consts::PI / f64::from(plain);
            if wavelength < original / high_freq_factor {
                return plain;
            }
            if wavelength > original / low_freq_factor {
                return (f64::from(plain) / factor) as f32;
            }
            let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
            ((1.0 - smooth) * f64::from(plain) / factor + smooth * f64::from(plain)) as f32
        }
        RopeScaling::Yarn { factor, low, high, .. } => {
            let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0) as f32;
            plain / factor as f32 * divided + plain * (1.0 - divided)
        }
    }
}
