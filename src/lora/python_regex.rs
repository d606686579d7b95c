//! Names of modules as PEFT matches them: by Python's `re`.

use fancy_regex::Regex;

/// Compiles `pattern` after the words `before` and before the words `after`.
///
/// # Errors
/// Why the pattern is none, or one of Python's that is not supported here.
fn compile(before: &str, pattern: &str, after: &str) -> Result<Regex, String> {
    let whole = format!("{before}(?:{pattern}){after}");
    Regex::new(pattern).and_then(|_| Regex::new(&whole)).map_err(|e| format!("no supported regex: {e}"))
}

/// `re.fullmatch(pattern, name)`.
pub(super) fn full(pattern: &str) -> Result<Regex, String> {
    compile(r"\A", pattern, r"\z")
}

/// `re.match(rf"(.*\.)?({pattern})$", name)`, as PEFT matches the keys of `rank_pattern` and `alpha_pattern`.
pub(super) fn suffix(pattern: &str) -> Result<Regex, String> {
    compile(r"\A(?:.*\.)?", pattern, r"\z")
}

/// `re.match(rf"(^|.*\.){pattern}($|\..*)", name)`, as PEFT matches `modules_to_save`.
pub(super) fn component(pattern: &str) -> Result<Regex, String> {
    compile(r"\A(?:.*\.)?", pattern, r"(?:\z|\..*)")
}

/// `re.match(rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.", name)`, as PEFT matches `layers_pattern`: the first group is
/// the number of the layer.
pub(super) fn layer(pattern: &str) -> Result<Regex, String> {
    compile(r"\A(?:.*?\.)??", pattern, r"\.(?<idx>\d+)\.")
}

/// `re.match(r".*?\.[^.]*\.(?P<idx>\d+)\.", name)`: [`layer`] without a `layers_pattern`.
pub(super) fn any_layer() -> Result<Regex, String> {
    compile("", r"\A.*?\.[^.]*\.(?<idx>\d+)\.", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The right column is what Python's `re` says.
    #[test]
    fn patterns_match_as_in_python() {
        let name = "model.layers.10.self_attn.q_proj";
        let cases = [
            ("q_proj", true),
            ("_proj", false),
            (r"layers\.\d+\.self_attn\.(q|k)_proj", true),
            (r"^model\..*q_proj", true),
            (r"^layers\..*q_proj", false),
            (r".*(?<!k)_proj", true),
            (r".*(?<!q)_proj", false),
            ("k_proj|q_proj", true),
        ];
        for (pattern, expected) in cases {
            assert_eq!(suffix(pattern).unwrap().is_match(name).unwrap(), expected, "{pattern}");
        }
        let found = layer("layers").unwrap().captures(name).unwrap().unwrap();
        assert_eq!(found.name("idx").unwrap().as_str(), "10");
        assert!(full("q_proj").is_ok_and(|regex| !regex.is_match(name).unwrap()));
        for pattern in ["norm", "model.norm"] {
            assert!(component(pattern).unwrap().is_match("model.norm").unwrap());
        }
        assert!(!component("norm").unwrap().is_match("model.input_layernorm").unwrap());
        assert!(suffix("(").unwrap_err().contains("no supported regex"));
    }
}
