//! Names under which tensors of a checkpoint pair with those of others, where they are not their own.

use std::collections::{HashMap, HashSet};

use crate::error::Escaped;
use crate::{Error, Result};

/// The other names of tensors, both ways.
#[derive(Debug, Default)]
pub(super) struct Aliases {
    by_name: HashMap<String, String>,
    by_alias: HashMap<String, String>,
}

impl Aliases {
    /// Checks that each name, of all `names` of a checkpoint, is that of one tensor.
    pub(super) fn new<'n>(
        by_name: HashMap<String, String>,
        names: impl Iterator<Item = &'n str>,
    ) -> Result<Self> {
        let mut by_alias: HashMap<String, String> = HashMap::new();
        let mut kept = HashSet::new();
        for name in names {
            let Some(alias) = by_name.get(name) else {
                kept.insert(name);
                continue;
            };
            if let Some(other) = by_alias.insert(alias.clone(), name.to_owned()) {
                return Err(twice(&other, name, alias));
            }
        }
        match by_alias.iter().find(|(alias, _)| kept.contains(alias.as_str())) {
            Some((alias, name)) => Err(twice(alias, name, alias)),
            None => Ok(Self { by_name, by_alias }),
        }
    }

    /// The name under which the tensor `name` pairs.
    pub(super) fn of<'n>(&'n self, name: &'n str) -> &'n str {
        self.by_name.get(name).map_or(name, String::as_str)
    }

    /// The tensor that another name stands for.
    pub(super) fn stored(&self, alias: &str) -> Option<&str> {
        self.by_alias.get(alias).map(String::as_str)
    }
}

fn twice(a: &str, b: &str, alias: &str) -> Error {
    let (first, second) = if a < b { (a, b) } else { (b, a) };
    Error::Pairing {
        tensor: Some(alias.to_owned()),
        fault: format!("two tensors would have this name: `{}` and `{}`", Escaped(first), Escaped(second)),
        hint: Some("map them to different names with --map FROM=TO".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways_and_no_name_stands_for_two() {
        let map =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let aliases = Aliases::new(map(&[("a", "x.a")]), ["a", "b"].into_iter()).unwrap();
        assert_eq!((aliases.of("a"), aliases.of("b")), ("x.a", "b"));
        assert_eq!((aliases.stored("x.a"), aliases.stored("a")), (Some("a"), None));
        // Two names may be exchanged.
        assert!(Aliases::new(map(&[("a", "b"), ("b", "a")]), ["a", "b"].into_iter()).is_ok());
        for pairs in [&[("a", "b")][..], &[("a", "c"), ("b", "c")]] {
            let fault = Aliases::new(map(pairs), ["a", "b"].into_iter()).unwrap_err().to_string();
            assert!(fault.contains("`a` and `b`"), "{fault}");
        }
    }
}
