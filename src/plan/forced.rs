//! Tensors that globs make trainable or frozen, whatever is drawn.

use std::collections::BTreeMap;

use globset::Glob;

use super::inventory::Inventory;
use super::selection::Selection;
use super::suggestion::suggestion;
use super::tensor_name::{Category, TensorName};
use crate::error::Escaped;
use crate::{Error, Faults, Result};

/// Tensor → trainable.
pub(super) type Forced = BTreeMap<String, bool>;

/// Matches the globs of `selection`. A glob that matches one tensor of a tied pair or of a
/// quantized weight holds for all of it.
///
/// # Errors
/// All faults at once: a glob that is malformed or matches nothing, a tensor that is both trained and frozen.
pub(super) fn forced(inventory: &Inventory, selection: &Selection) -> Result<Forced> {
    let names = inventory.tensor_names();
    let mut forced = Forced::new();
    let mut faults = Faults::default();
    let globs = selection.train.iter().map(|glob| (glob, true, "--train"));
    let globs = globs.chain(selection.freeze.iter().map(|glob| (glob, false, "--freeze")));
    for (glob, trainable, option) in globs {
        match matches(glob, option, &names) {
            Ok(found) => {
                for name in found.iter().flat_map(|name| with_twin(inventory, name)) {
                    if forced.insert(name.to_owned(), trainable) == Some(!trainable) {
                        faults.push(contradiction(name));
                    }
                }
            }
            Err(fault) => faults.push(fault),
        }
    }
    faults.into_result()?;
    Ok(forced)
}

/// Whether `glob` is well-formed and matches the tensor of that name.
pub(crate) fn glob_matches(glob: &str, tensor: &str) -> bool {
    Glob::new(glob).is_ok_and(|glob| glob.compile_matcher().is_match(tensor))
}

fn contradiction(name: &str) -> Error {
    Error::Plan {
        path: None,
        tensor: Some(name.to_owned()),
        fault: "matched by --train and by --freeze".to_owned(),
        hint: Some("make one of the globs narrower".to_owned()),
    }
}

fn matches<'a>(glob: &str, option: &str, names: &[&'a str]) -> Result<Vec<&'a str>> {
    let matcher = Glob::new(glob)
        .map_err(|e| Error::usage(format!("{option} `{}`: {}", Escaped(glob), e.kind()), ""))?;
    let matcher = matcher.compile_matcher();
    let found: Vec<&str> = names.iter().copied().filter(|name| matcher.is_match(name)).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let hint = suggestion(glob, names).unwrap_or_default();
    Err(Error::usage(format!("{option} `{}` matches no tensor", Escaped(glob)), hint))
}

/// The tensor and, where it is half of a tied pair or part of a quantized weight, the others of its unit.
fn with_twin<'a>(inventory: &'a Inventory, name: &'a str) -> Vec<&'a str> {
    let parsed = TensorName::of(name);
    let pairs = parsed.category == Category::LmHead || parsed.is_token_embedding();
    match inventory.unit_of(name) {
        Some(unit) if unit.quantized || pairs && inventory.tied() => {
            unit.tensors.iter().map(String::as_str).collect()
        }
        _ => vec![name],
    }
}
