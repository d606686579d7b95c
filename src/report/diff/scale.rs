//! The colours of the heat map: relative L2 on a logarithmic scale.

/// Stops of viridis (van der Walt and Smith 2015), which is even in lightness and safe for colour-blind eyes.
pub(super) const STOPS: [[u8; 3]; 6] =
    [[68, 1, 84], [65, 68, 135], [42, 120, 142], [34, 168, 132], [122, 209, 81], [253, 231, 37]];

/// Logarithms of the smallest and the largest value shown.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    /// The scale over the values that are greater than zero, at most six decades long.
    pub(super) fn over(values: impl Iterator<Item = f64>) -> Option<Self> {
        let logs: Vec<f64> = values.filter(|v| *v > 0.0 && v.is_finite()).map(f64::log10).collect();
        let high = logs.iter().copied().reduce(f64::max)?;
        let low = logs.iter().copied().fold(high, f64::min);
        Some(Self { low: low.max(high - 6.0).min(high - 0.1), high })
    }

    /// The values at both ends.
    pub(super) fn ends(&self) -> [f64; 2] {
        [self.low, self.high].map(|log| 10f64.powf(log))
    }

    /// The position of a value on the scale, from 0 to 1.
    fn position(&self, value: f64) -> f64 {
        ((value.log10() - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    /// The colour of a value greater than zero.
    pub(super) fn color(&self, value: f64) -> [u8; 3] {
        color_at(self.position(value))
    }
}

/// The colour at a position from 0 to 1: the linear interpolation between the two nearest stops.
pub(super) fn color_at(position: f64) -> [u8; 3] {
    let at = position.clamp(0.0, 1.0) * (STOPS.len() - 1) as f64;
    let first = (at.floor() as usize).min(STOPS.len() - 2);
    let share = at - first as f64;
    std::array::from_fn(|i| {
        let (from, to) = (f64::from(STOPS[first][i]), f64::from(STOPS[first + 1][i]));
        (from + (to - from) * share).round() as u8
    })
}

/// Whether dark text reads better on a colour (relative luminance, ITU-R BT.709).
pub(super) fn wants_dark_text([r, g, b]: [u8; 3]) -> bool {
    0.2126 * f64::from(r) + 0.7152 * f64::from(g) + 0.0722 * f64::from(b) > 120.0
}
