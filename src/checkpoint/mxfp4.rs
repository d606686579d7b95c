//! MXFP4: blocks of 32 numbers, each a code of 4 bits times a power of two that the block shares. OCP Microscaling Formats
//! 1.0, sections 5.3.3 and 6.3.

/// The values of E2M1, the sign in the highest bit.
const VALUES: [f64; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Codes of a block.
pub(crate) const BLOCK: usize = 32;

/// Decodes blocks: `out[32 b + i] = code · 2^(exponents[b] − 127)`, where a byte of `codes` holds two codes, the low half
/// first. Exact, but for numbers beyond those of `f32`.
///
/// # Panics
/// When the lengths disagree.
pub(crate) fn decode(codes: &[u8], exponents: &[u8], out: &mut [f32]) {
    assert!(
        codes.len() * 2 == out.len() && exponents.len() * BLOCK == out.len(),
        "a slice holds whole blocks"
    );
    let blocks = codes.chunks_exact(BLOCK / 2).zip(exponents).zip(out.chunks_exact_mut(BLOCK));
    for ((codes, exponent), out) in blocks {
        // The largest exponent and the smallest codes give numbers that f32 holds, though it does not hold the power.
        let power = 2f64.powi(i32::from(*exponent) - 127);
        let values = VALUES.map(|value| (value * power) as f32);
        for (out, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
            *out = [values[usize::from(byte & 15)], values[usize::from(byte >> 4)]];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_decoded_with_the_exponent_of_their_block() {
        let mut codes = [0u8; 32];
        codes[0] = 0x7f;
        codes[16] = 0x19;
        let mut out = [1.0; 64];
        decode(&codes, &[128, 255], &mut out);
        assert_eq!(out[..3], [-12.0, 12.0, 0.0]);
        assert_eq!(out[32..35], [-2f32.powi(127), 2f32.powi(127), 0.0]);
        decode(&codes, &[0, 0], &mut out);
        let subnormal = 2f64.powi(-128) as f32;
        assert_eq!(out[32..34], [-subnormal, subnormal]);
    }
}
