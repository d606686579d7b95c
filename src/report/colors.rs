//! The colours of heat maps: a sequential scale on a logarithmic or linear axis that one outlier does not flatten.

/// Stops of mako (seaborn, Waskom 2021), which is even in lightness from dark to light and safe for colour-blind eyes.
pub(super) const STOPS: [[u8; 3]; 8] = [
    [11, 4, 5],
    [46, 30, 59],
    [65, 61, 123],
    [55, 101, 158],
    [52, 143, 167],
    [64, 183, 173],
    [139, 218, 178],
    [222, 245, 229],
];

/// What lies behind a heat map. The smallest value has the colour nearest to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ground {
    Light,
    Dark,
}

/// The values, or their logarithms, at both ends of the scale.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    linear: bool,
}

impl Scale {
    /// The scale over the values that are greater than zero, from their 2nd to their 98th percentile, at most six decades
    /// long.
    pub(super) fn over(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut logs: Vec<f64> = values.filter(|v| *v > 0.0 && v.is_finite()).map(f64::log10).collect();
        logs.sort_by(f64::total_cmp);
        let last = logs.len().checked_sub(1)?;
        let percentile = |share: f64| logs[(share * last as f64).round() as usize];
        let (low, high) = (percentile(0.02), percentile(0.98));
        Some(Self { low: low.max(high - 6.0), high, linear: false })
    }

    /// The linear scale over the finite values, from their 2nd to their 98th percentile.
    pub(super) fn linear(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.filter(|v| v.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        let percentile = |share: f64| values[(share * last as f64).round() as usize];
        Some(Self { low: percentile(0.02), high: percentile(0.98), linear: true })
    }

    /// The values at both ends.
    pub(super) fn ends(&self) -> [f64; 2] {
        [self.low, self.high].map(|end| if self.linear { end } else { 10f64.powf(end) })
    }

    /// A value at an end as a label.
    pub(super) fn label(&self, end: f64) -> String {
        if self.linear { format!("{end:.3}") } else { format!("{end:.1e}") }
    }

    /// The position of a value on the scale, from 0 to 1; of values that are all alike, a little above the middle.
    pub(super) fn position(&self, value: f64) -> f64 {
        let length = self.high - self.low;
        let (value, alike) = if self.linear { (value, 1e-9) } else { (value.log10(), 0.02) };
        if length < alike { 0.6 } else { ((value - self.low) / length).clamp(0.0, 1.0) }
    }
}

/// The colour at a position from 0 to 1: the linear interpolation between the two nearest stops.
pub(super) fn color_at(position: f64, ground: Ground) -> [u8; 3] {
    let position = position.clamp(0.0, 1.0);
    let position = match ground {
        Ground::Light => 1.0 - 0.92 * position,
        Ground::Dark => 0.2 + 0.8 * position,
    };
    let at = position * (STOPS.len() - 1) as f64;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_outlier_does_not_flatten_the_rest() {
        let values = (0..99).map(|i| 1e-3 * f64::from(i + 1)).chain([1e6]);
        let scale = Scale::over(values).unwrap_or(Scale { low: 0.0, high: 0.0, linear: false });
        assert!(scale.position(2e-2) > 0.5 && scale.position(1e6) == 1.0, "{scale:?}");
        assert_eq!(Scale::over([0.0, f64::NAN].into_iter()), None);
        assert_eq!(Scale::over([0.5; 3].into_iter()).map(|alike| alike.position(0.5)), Some(0.6));
        let linear = Scale::linear([0.0, 0.25, f64::NAN, 1.0].into_iter());
        assert_eq!(linear.map(|scale| (scale.position(0.25), scale.ends())), Some((0.25, [0.0, 1.0])));
    }

    #[test]
    fn the_low_end_is_nearest_to_the_ground() {
        let luminance = |ground, at| color_at(at, ground).map(u32::from).iter().sum::<u32>();
        let at = |i: u32| f64::from(i) / 20.0;
        assert!((0..20).all(|i| luminance(Ground::Light, at(i)) > luminance(Ground::Light, at(i + 1))));
        assert!((0..20).all(|i| luminance(Ground::Dark, at(i)) < luminance(Ground::Dark, at(i + 1))));
    }
}
