//! Byte planes: the first bytes of all elements, then the second bytes, and so on; the `BYTE_STREAM_SPLIT` encoding of
//! Parquet and the shuffle filter of HDF5.
//!
//! The sign and exponent bytes of two close floating-point numbers are mostly equal, so their XOR is a
//! plane of zeros, apart from the noise of the low mantissa bytes.

/// `out[i] = a[i] ^ b[i]`.
///
/// # Panics
/// When the lengths disagree.
pub(crate) fn xor(a: &[u8], b: &[u8], out: &mut [u8]) {
    assert!(a.len() == b.len() && a.len() == out.len(), "both sides of a difference have one length");
    for ((o, x), y) in out.iter_mut().zip(a).zip(b) {
        *o = x ^ y;
    }
}

/// `out[i] ^= a[i]`.
///
/// # Panics
/// When the lengths disagree.
pub(crate) fn xor_into(a: &[u8], out: &mut [u8]) {
    assert_eq!(a.len(), out.len(), "both sides of a difference have one length");
    for (o, x) in out.iter_mut().zip(a) {
        *o ^= x;
    }
}

/// `planes[p·n + i] = bytes[w·i + p]`, for n elements of w = `width` bytes.
///
/// # Panics
/// When the lengths disagree or are not whole elements.
pub(crate) fn split(width: usize, bytes: &[u8], planes: &mut [u8]) {
    assert!(bytes.len() == planes.len() && bytes.len().is_multiple_of(width), "planes of whole elements");
    match width {
        2 => split_pairs(bytes, planes),
        4 => split_quads(bytes, planes),
        8 => split_each::<8>(bytes, planes),
        _ => planes.copy_from_slice(bytes),
    }
}

/// The inverse of [`split`].
///
/// # Panics
/// As [`split`].
pub(crate) fn join(width: usize, planes: &[u8], bytes: &mut [u8]) {
    assert!(bytes.len() == planes.len() && bytes.len().is_multiple_of(width), "planes of whole elements");
    match width {
        2 => join_pairs(planes, bytes),
        4 => join_quads(planes, bytes),
        8 => join_each::<8>(planes, bytes),
        _ => bytes.copy_from_slice(planes),
    }
}

// By integers, as compilers vectorise the truncation of integers.
fn split_pairs(bytes: &[u8], planes: &mut [u8]) {
    let (low, high) = planes.split_at_mut(bytes.len() / 2);
    for ((l, h), pair) in low.iter_mut().zip(high).zip(bytes.as_chunks::<2>().0) {
        let element = u16::from_le_bytes(*pair);
        *l = element as u8;
        *h = (element >> 8) as u8;
    }
}

fn split_quads(bytes: &[u8], planes: &mut [u8]) {
    for (p, plane) in planes.chunks_exact_mut((bytes.len() / 4).max(1)).enumerate() {
        for (o, quad) in plane.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *o = (u32::from_le_bytes(*quad) >> (8 * p)) as u8;
        }
    }
}

fn join_pairs(planes: &[u8], bytes: &mut [u8]) {
    let (low, high) = planes.split_at(bytes.len() / 2);
    for ((pair, l), h) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(low).zip(high) {
        *pair = [*l, *h];
    }
}

fn join_quads(planes: &[u8], bytes: &mut [u8]) {
    let n = bytes.len() / 4;
    let ((a, b), (c, d)) = (planes[..2 * n].split_at(n), planes[2 * n..].split_at(n));
    for ((((quad, a), b), c), d) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(a).zip(b).zip(c).zip(d) {
        *quad = [*a, *b, *c, *d];
    }
}

fn split_each<const W: usize>(bytes: &[u8], planes: &mut [u8]) {
    let n = bytes.len() / W;
    for p in 0..W {
        for (o, element) in planes[p * n..(p + 1) * n].iter_mut().zip(bytes.as_chunks::<W>().0) {
            *o = element[p];
        }
    }
}

fn join_each<const W: usize>(planes: &[u8], bytes: &mut [u8]) {
    let n = bytes.len() / W;
    for p in 0..W {
        for (element, x) in bytes.as_chunks_mut::<W>().0.iter_mut().zip(&planes[p * n..(p + 1) * n]) {
            element[p] = *x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The formula of the contract, read literally.
    fn by_formula(width: usize, bytes: &[u8]) -> Vec<u8> {
        let n = bytes.len() / width;
        (0..width * n).map(|at| bytes[width * (at % n) + at / n]).collect()
    }

    proptest! {
        #[test]
        fn planes_follow_the_formula_and_join_again(
            log in 0u32..4,
            mut a in prop::collection::vec(any::<u8>(), 0..600),
            seed in any::<u8>(),
        ) {
            let width = 1usize << log;
            a.truncate(a.len() / width * width);
            let b: Vec<u8> = a.iter().enumerate().map(|(i, x)| x ^ (seed.wrapping_mul(i as u8) >> 5)).collect();
            let (mut delta, mut planes, mut back) = (vec![0; a.len()], vec![0; a.len()], vec![0; a.len()]);
            xor(&a, &b, &mut delta);
            split(width, &delta, &mut planes);
            prop_assert_eq!(&planes, &by_formula(width, &delta));
            join(width, &planes, &mut back);
            xor_into(&a, &mut back);
            prop_assert_eq!(back, b);
        }
    }
}
