//! Rotary frequencies of a model.

use crate::backend::RopeTable;
use crate::model::ModelConfig;
use crate::model::rope_scaling::RopeScaling;
use crate::model::rope_settings::Rope;

/// Cosines and sines for these positions, for each of the rotary embeddings of the model.
///
/// Frequencies in `f32` as transformers computes them; `llama3` scaling after Meta's Llama 3.1, `yarn` after Peng et al.
/// 2023, `longrope` after Ding et al. 2024.
pub fn rope_tables(config: &ModelConfig, positions: impl Iterator<Item = usize> + Clone) -> Vec<RopeTable> {
    config.ropes.iter().map(|rope| table(config, rope, positions.clone())).collect()
}

fn table(config: &ModelConfig, rope: &Rope, positions: impl Iterator<Item = usize>) -> RopeTable {
    let ModelConfig { head_dim, rope_interleaved: interleaved, .. } = *config;
    let half = rope.dims / 2;
    let frequencies: Vec<f32> = (0..half).map(|i| frequency(rope, i)).collect();
    let scale = match rope.scaling {
        RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
            attention_factor as f32
        }
        _ => 1.0,
    };
    let angles = positions.flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
    let sine_and_cosine = |angle: f32| (angle.sin() * scale, angle.cos() * scale);
    let (sin, cos): (Vec<f32>, Vec<f32>) = angles.map(sine_and_cosine).unzip();
    RopeTable { cos: cos.into(), sin: sin.into(), half, head_dim, interleaved }
}

fn frequency(rope: &Rope, i: usize) -> f32 {
    let exponent = (2 * i) as f32 / rope.dims as f32;
    let power = (rope.theta as f32).powf(exponent);
    let plain = 1.0 / power;
    match rope.scaling {
        RopeScaling::Default | RopeScaling::Dynamic => plain,
        RopeScaling::LongRope { ref short_factor, .. } => 1.0 / (short_factor[i] * power),
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
