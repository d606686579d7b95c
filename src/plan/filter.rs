//! A filter of tensors by name and category.

use globset::{Glob, GlobSet, GlobSetBuilder};

use super::suggestion::suggestion;
use super::tensor_name::{Category, TensorName};
use crate::error::Escaped;
use crate::{Error, Faults, Result};

/// The glob that matches `name` alone.
pub fn literal_glob(name: &str) -> String {
    globset::escape(name)
}

/// Tensors that match one of some globs and stand in one of some categories; an empty list lets all pass.
#[derive(Debug, Clone)]
pub struct Filter {
    option: &'static str,
    texts: Vec<String>,
    globs: Option<GlobSet>,
    categories: Vec<Category>,
}

impl Filter {
    /// # Errors
    /// [`Error::Usage`] for a glob that cannot be read; `option` is the option that gave it.
    pub fn new(option: &'static str, globs: &[String], categories: Vec<Category>) -> Result<Self> {
        let fault = |glob: &str, e: &globset::Error| {
            Error::usage(format!("{option} `{}`: {}", Escaped(glob), e.kind()), "")
        };
        let mut set = GlobSetBuilder::new();
        for glob in globs {
            set.add(Glob::new(glob).map_err(|e| fault(glob, &e))?);
        }
        let set = set.build().map_err(|e| fault("", &e))?;
        let texts = globs.to_vec();
        Ok(Self { option, texts, globs: (!globs.is_empty()).then_some(set), categories })
    }

    /// # Errors
    /// Every glob that matches none of `names`.
    pub fn check(&self, names: &[&str]) -> Result<()> {
        let mut faults = Faults::default();
        for (i, glob) in self.texts.iter().enumerate() {
            let matches = |name: &&str| self.globs.as_ref().is_some_and(|set| set.matches(name).contains(&i));
            if !names.iter().any(matches) {
                let hint = suggestion(glob, names).unwrap_or_default();
                let fault = format!("{} `{}` matches no tensor", self.option, Escaped(glob));
                faults.push(Error::usage(fault, hint));
            }
        }
        faults.into_result()
    }

    /// Whether the tensor of this name passes.
    pub fn passes(&self, name: &str) -> bool {
        let by_name = self.globs.as_ref().is_none_or(|globs| globs.is_match(name));
        by_name && (self.categories.is_empty() || self.categories.contains(&TensorName::of(name).category))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_categories_must_both_match() {
        let filter = |globs: &[&str], categories: &[Category]| {
            let globs: Vec<String> = globs.iter().map(|g| (*g).to_owned()).collect();
            Filter::new("--only", &globs, categories.to_vec())
        };
        let name = "model.layers.3.mlp.up_proj.weight";
        for (globs, categories, passes) in [
            (&[][..], &[][..], true),
            (&["*.up_proj.*", "x"][..], &[][..], true),
            (&["*.q_proj.*"][..], &[][..], false),
            (&[][..], &[Category::Mlp][..], true),
            (&["*.up_proj.*"][..], &[Category::Norm][..], false),
        ] {
            assert_eq!(filter(globs, categories).unwrap().passes(name), passes, "{globs:?} {categories:?}");
        }
        let names = [name, "model.norm.weight"];
        assert!(filter(&["*.up_proj.*", "*norm*"], &[]).unwrap().check(&names).is_ok());
        let missed = filter(&["*.up_proj.*", "*up_porj*"], &[]).unwrap().check(&names).unwrap_err();
        assert_eq!(missed.to_string(), "--only `*up_porj*` matches no tensor");
        let hint = "`*up_proj*` matches 1 tensor: `model.layers.3.mlp.up_proj.weight`";
        assert_eq!(missed.hint().as_deref(), Some(hint));
        assert!(filter(&["[a"], &[]).unwrap_err().to_string().contains("--only `[a`"));
    }
}
