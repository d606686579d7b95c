//! Rotary frequencies of a model.

use crate::backend::RopeTable;
use crate::model::ModelConfig;
use crate::model::rope_scaling::RopeScaling;

/// Cosines and sines for these positions.
///
/// Frequencies in `f32` as transformers computes them; `llama3` scaling after Meta's Llama 3.1.
pub fn rope_table(config: &ModelConfig, positions: impl IntoIterator<Item = usize>) -> RopeTable {
    let half = config.head_dim / 2;
    let frequencies: Vec<f32> = (0..half).map(|i| frequency(config, i)).collect();
    let angles = positions.into_iter().flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
    let (sin, cos): (Vec<f32>, Vec<f32>) = angles.map(f32::sin_cos).unzip();
    RopeTable { cos: cos.into(), sin: sin.into(), half }
}

fn frequency(config: &ModelConfig, i: usize) -> f32 {
    let exponent = (2 * i) as f32 / config.head_dim as f32;
    let plain = 1.0 / (config.rope_theta as f32).powf(exponent);
    match config.rope_scaling {
        RopeScaling::Default => plain,
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
    }
}
