//! The most that one file of a result holds, in bytes or in parameters.

/// The smallest limit of one file in bytes: less is a slip, such as `1B`, which means parameters for mergekit.
const LEAST_SHARD: u64 = 1_000_000;

/// A number of bytes with a unit: `500MB`, `5GB`.
pub(super) fn bytes(text: &str) -> std::result::Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KIB" => 1 << 10,
        "MIB" => 1 << 20,
        "GIB" => 1u64 << 30,
        _ => return Err("expected bytes with a unit, such as 500MB or 5GB".to_owned()),
    };
    let number = digits.trim().parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    match number {
        Some(n) if n >= LEAST_SHARD => Ok(n),
        Some(n) => Err(format!("got {n} bytes, expected 1MB or more")),
        None => Err("expected a whole number of bytes, such as 500MB or 5GB".to_owned()),
    }
}

/// A number of parameters as mergekit reads it: `5B`, `500M`, `10k` or a plain number.
pub(super) fn parameters(text: &str) -> std::result::Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => Some(1u64),
        "k" => Some(1000),
        "m" => Some(1_000_000),
        "b" => Some(1_000_000_000),
        _ => None,
    };
    let number = digits.parse::<u64>().ok().zip(unit).and_then(|(n, unit)| n.checked_mul(unit));
    number.filter(|n| *n > 0).ok_or_else(|| "expected a number of parameters, such as 5B or 500M".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(bytes("5GB"), Ok(5_000_000_000));
        assert_eq!(bytes("2MiB"), Ok(2_097_152));
        assert_eq!(bytes("1B"), Err("got 1 bytes, expected 1MB or more".to_owned()));
        let unit = "expected bytes with a unit, such as 500MB or 5GB";
        assert_eq!(bytes("5 parsecs"), Err(unit.to_owned()));
        let number = "expected a whole number of bytes, such as 500MB or 5GB";
        for text in ["99999999999GB", "GB"] {
            assert_eq!(bytes(text), Err(number.to_owned()), "{text}");
        }
    }

    #[test]
    fn shard_sizes_count_parameters() {
        assert_eq!(
            [parameters("5B"), parameters("10k"), parameters("7")],
            [Ok(5_000_000_000), Ok(10_000), Ok(7)]
        );
        for text in ["", "0", "5GB", "1.5B", "B"] {
            assert!(parameters(text).unwrap_err().starts_with("expected a number of parameters"), "{text}");
        }
    }
}
