//! Patterns that match a set of tensor names exactly: names that differ in the number of their block share one.

use std::collections::HashMap;

use crate::{Error, Faults, Result};

/// Names that are equal but for one number: `model.layers.` + one of `numbers` + `.mlp.up_proj.weight`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NamePattern<'a> {
    before: &'a str,
    numbers: Vec<&'a str>,
    after: &'a str,
}

impl NamePattern<'_> {
    /// A regular expression for the whole name, without anchors. A point is written as `point`.
    pub(super) fn regex(&self, point: &str) -> String {
        let numbers = match self.numbers.as_slice() {
            [] => String::new(),
            [one] => (*one).to_owned(),
            many => format!("({})", many.join("|")),
        };
        let literal = |text: &str| text.replace('.', point);
        format!("{}{numbers}{}", literal(self.before), literal(self.after))
    }
}

/// The patterns of `names`, in the order of their first names.
///
/// # Errors
/// [`Error::Plan`] for names with characters that mean something in a regular expression.
pub(super) fn name_patterns(names: &[String]) -> Result<Vec<NamePattern<'_>>> {
    let plain = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
    let mut faults = Faults::default();
    faults.extend(names.iter().filter(|name| !plain(name)).map(|name| Error::Plan {
        path: None,
        tensor: Some(name.clone()),
        fault: "characters beside letters, digits, `_`, `-` and `.` cannot be exported".to_owned(),
        hint: None,
    }));
    faults.into_result()?;
    let mut at: HashMap<(&str, Option<&str>), usize> = HashMap::new();
    let mut patterns: Vec<NamePattern<'_>> = Vec::new();
    for name in names {
        let (before, number, after) = match block_number(name) {
            Some((start, end)) => (&name[..start], Some(&name[start..end]), &name[end..]),
            None => (name.as_str(), None, ""),
        };
        let found = *at.entry((before, number.map(|_| after))).or_insert(patterns.len());
        if found == patterns.len() {
            patterns.push(NamePattern { before, numbers: Vec::new(), after });
        }
        patterns[found].numbers.extend(number);
    }
    Ok(patterns)
}

/// Where the first part of a name that is a number stands, if another part follows it.
pub(super) fn block_number(name: &str) -> Option<(usize, usize)> {
    let mut start = 0;
    for part in name.split('.') {
        let end = start + part.len();
        if start > 0 && end < name.len() && !part.is_empty() && part.bytes().all(|c| c.is_ascii_digit()) {
            return Some((start, end));
        }
        start = end + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_share_a_pattern_and_nothing_else_does() {
        let names = ["a.0.w", "a.0.v", "a.12.w", "b.weight", "a.3", "a-b.0.w"].map(String::from);
        let patterns = name_patterns(&names).unwrap();
        let regexes: Vec<String> = patterns.iter().map(|pattern| pattern.regex(r"\.")).collect();
        assert_eq!(regexes, [r"a\.(0|12)\.w", r"a\.0\.v", r"b\.weight", r"a\.3", r"a-b\.0\.w"]);
    }

    #[test]
    fn a_name_that_is_no_literal_is_refused() {
        let message = name_patterns(&["a.(b)".to_owned()]).unwrap_err().to_string();
        assert!(message.contains("tensor `a.(b)`"), "{message}");
    }
}
