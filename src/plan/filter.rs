//! A filter of tensors by name and category.

use globset::{Glob, GlobSet, GlobSetBuilder};

use super::tensor_name::{Category, TensorName};
use crate::error::Escaped;
use crate::{Error, Result};

/// Tensors that match one of some globs and stand in one of some categories; an empty list lets all pass.
#[derive(Debug, Clone)]
pub struct Filter {
    globs: Option<GlobSet>,
    categories: Vec<Category>,
}

impl Filter {
    /// # Errors
    /// [`Error::Usage`] for a glob that cannot be read; `option` is the option that gave it.
    pub fn new(option: &str, globs: &[String], categories: Vec<Category>) -> Result<Self> {
        let fault = |glob: &str, e: &globset::Error| {
            Error::usage(format!("{option} `{}`: {}", Escaped(glob), e.kind()), "")
        };
        let mut set = GlobSetBuilder::new();
        for glob in globs {
            set.add(Glob::new(glob).map_err(|e| fault(glob, &e))?);
        }
        let set = set.build().map_err(|e| fault("", &e))?;
        Ok(Self { globs: (!globs.is_empty()).then_some(set), categories })
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
        assert!(filter(&["[a"], &[]).unwrap_err().to_string().contains("--only `[a`"));
    }
}
