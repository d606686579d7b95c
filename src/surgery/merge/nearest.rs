//! The known word nearest to a mistyped one.

/// The word of `known` with the smallest Levenshtein distance to `word`, where that is small enough to be meant.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = known.into_iter().map(|k| (distance(word, k), k)).min();
    near.filter(|(d, k)| *d <= (k.len() / 3).max(1) && word.len() < 100).map(|(_, k)| k)
}

fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(100).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
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
}
