//! The known name nearest to a mistyped one, for hints.

/// Characters of a name that are compared: names from files may be of any length.
const COMPARED: usize = 200;

/// The edit distance of two names over their first 200 characters: insertions, deletions, substitutions and
/// transpositions of neighbours, each counted once (optimal string alignment).
fn edit_distance(a: &str, b: &str) -> usize {
    let [a, b] = [a, b].map(|name| name.chars().take(COMPARED).collect::<String>());
    strsim::osa_distance(&a, &b)
}

/// The word of `known` with the smallest edit distance to `word`, where at most a third of its characters differ.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let nearest = known.into_iter().map(|k| (edit_distance(word, k), k)).min();
    nearest.filter(|(distance, k)| *distance <= (k.len() / 3).max(1)).map(|(_, k)| k)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_word_and_nonsense_finds_none() {
        let known = ["linear", "ties", "dare_ties", "weight", "density"];
        for (word, expected) in
            [("lineer", Some("linear")), ("tie", Some("ties")), ("wieght", Some("weight")), ("zzzzzz", None)]
        {
            assert_eq!(nearest(word, known), expected, "{word}");
        }
    }

    #[test]
    fn a_long_name_is_compared_up_to_a_limit() {
        assert_eq!(edit_distance(&"é".repeat(1 << 20), "ties"), COMPARED);
        assert_eq!(edit_distance("wieght", "weight"), 1);
    }
}
