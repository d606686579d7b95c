//! The glob that was probably meant by one that matches no tensor.

use std::collections::BTreeSet;

use globset::Glob;

use crate::error::{Escaped, nearest};

/// Characters that end a word of a glob.
const SEPARATORS: [char; 9] = ['.', '*', '?', '[', ']', '{', '}', ',', '/'];

/// Advice for `glob`, which matches none of `names`: the same glob with misspelt words corrected, or with wildcards
/// around it, and the number of tensors that it matches.
pub(super) fn suggestion(glob: &str, names: &[&str]) -> Option<String> {
    let parts: BTreeSet<&str> = names.iter().flat_map(|name| name.split('.')).collect();
    let inside_a_part = corrected(glob, &parts, |word| parts.iter().any(|part| part.contains(word)));
    let whole_parts = corrected(glob, &parts, |word| parts.contains(word));
    let candidates =
        [inside_a_part, whole_parts].into_iter().flat_map(|glob| [glob.clone(), format!("*{glob}*")]);
    candidates.into_iter().filter(|candidate| candidate != glob).find_map(|candidate| {
        let matcher = Glob::new(&candidate).ok()?.compile_matcher();
        let matched: Vec<&&str> = names.iter().filter(|name| matcher.is_match(name)).collect();
        let first = Escaped(**matched.first()?);
        Some(match matched.len() {
            1 if **matched[0] == candidate => format!("the nearest name is `{first}`"),
            1 => format!("`{}` matches 1 tensor: `{first}`", Escaped(&candidate)),
            n => format!("`{}` matches {n} tensors, such as `{first}`", Escaped(&candidate)),
        })
    })
}

/// The glob with each word that is not `known` replaced by the nearest part of a name.
fn corrected(glob: &str, parts: &BTreeSet<&str>, known: impl Fn(&str) -> bool) -> String {
    let mut out = String::with_capacity(glob.len());
    for piece in glob.split_inclusive(SEPARATORS) {
        let word = piece.trim_end_matches(SEPARATORS);
        let replaced =
            if word.is_empty() || known(word) { None } else { nearest(word, parts.iter().copied()) };
        out.push_str(replaced.unwrap_or(word));
        out.push_str(&piece[word.len()..]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_glob_is_corrected_and_not_replaced_by_a_name() {
        let names = [
            "model.embed_tokens.weight",
            "model.layers.0.mlp.up_proj.weight",
            "model.layers.1.mlp.up_proj.weight",
        ];
        for (glob, expected) in [
            ("mpl", Some("`*mlp*` matches 2 tensors, such as `model.layers.0.mlp.up_proj.weight`")),
            ("*mpl*", Some("`*mlp*` matches 2 tensors, such as `model.layers.0.mlp.up_proj.weight`")),
            ("mlp", Some("`*mlp*` matches 2 tensors, such as `model.layers.0.mlp.up_proj.weight`")),
            (
                "model.layer.1.*.up_prj.weight",
                Some(
                    "`model.layers.1.*.up_proj.weight` matches 1 tensor: `model.layers.1.mlp.up_proj.weight`",
                ),
            ),
            ("embed_token", Some("`*embed_token*` matches 1 tensor: `model.embed_tokens.weight`")),
            ("*attention*", None),
        ] {
            assert_eq!(suggestion(glob, &names).as_deref(), expected, "{glob}");
        }
    }
}
