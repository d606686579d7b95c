//! Natural order of names: `layers.2` before `layers.10`.

use std::cmp::Ordering;

/// Compares two names, runs of digits by their value, everything else by its bytes.
///
/// Total and consistent: names that differ only in leading zeros are ordered by their bytes.
pub fn natural_order(a: &str, b: &str) -> Ordering {
    let (mut x, mut y) = (a.as_bytes(), b.as_bytes());
    while let (Some(&p), Some(&q)) = (x.first(), y.first()) {
        let order = if p.is_ascii_digit() && q.is_ascii_digit() {
            let (left, right) = (split_digits(&mut x), split_digits(&mut y));
            left.len().cmp(&right.len()).then_with(|| left.cmp(right))
        } else {
            (x, y) = (&x[1..], &y[1..]);
            p.cmp(&q)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    x.len().cmp(&y.len()).then_with(|| a.cmp(b))
}

/// Takes the leading digits off `text`, without their leading zeros.
fn split_digits<'a>(text: &mut &'a [u8]) -> &'a [u8] {
    let end = text.iter().take_while(|c| c.is_ascii_digit()).count();
    let (digits, rest) = text.split_at(end);
    *text = rest;
    let zeros = digits.iter().take_while(|c| **c == b'0').count();
    &digits[zeros..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_compared_by_value() {
        let mut names = ["l.10.w", "l.2.w", "l.2.a", "l.02.w", "embed", "l.2"];
        names.sort_by(|a, b| natural_order(a, b));
        assert_eq!(names, ["embed", "l.2", "l.2.a", "l.02.w", "l.2.w", "l.10.w"]);
    }

    proptest! {
        #[test]
        fn is_a_total_order(a in "[a-c.0-2]{0,6}", b in "[a-c.0-2]{0,6}", c in "[a-c.0-2]{0,6}") {
            prop_assert_eq!(natural_order(&a, &b), natural_order(&b, &a).reverse());
            prop_assert_eq!(natural_order(&a, &b) == Ordering::Equal, a == b);
            if natural_order(&a, &b).is_le() && natural_order(&b, &c).is_le() {
                prop_assert!(natural_order(&a, &c).is_le());
            }
        }
    }
}
