//! The known word nearest to a mistyped one.

/// The word of `known` with the smallest edit distance to `word`, where that is small enough to be meant.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = known.into_iter().map(|k| (distance(word, k), k)).min();
    near.filter(|(d, k)| *d <= (k.len() / 3).max(1) && word.len() < 100).map(|(_, k)| k)
}

/// Insertions, deletions, changes, and swaps of neighbours, each counted once.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(100).collect();
    let b: Vec<char> = b.chars().collect();
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    (0..=a.len()).for_each(|i| rows[i][0] = i);
    (0..=b.len()).for_each(|j| rows[0][j] = j);
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = change.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[a.len()][b.len()]
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
