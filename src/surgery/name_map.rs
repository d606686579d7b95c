//! Names of one model's tensors in another: given by hand, or found by suffix and shape.

use std::collections::HashMap;

use crate::checkpoint::{Checkpoint, Tensor};
use crate::error::Escaped;
use crate::plan::TensorName;
use crate::{Error, Faults, Result};

/// `FROM=TO`: the beginning of a name, up to a dot, is replaced; where `FROM` has `*`, it is the whole name, and each `*` of
/// `TO` takes what that of `FROM` stood for. An empty `FROM` is before every name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameMap {
    from: String,
    to: String,
}

impl std::str::FromStr for NameMap {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let Some((from, to)) = text.split_once('=') else {
            return Err("expected FROM=TO, such as model=model.language_model".to_owned());
        };
        let stars = |text: &str| text.matches('*').count();
        if stars(from) != stars(to) {
            return Err(format!("FROM has {} `*`, TO has {}", stars(from), stars(to)));
        }
        // A dot at the end of a prefix is the one that would follow it.
        let plain = |text: &str| if stars(text) == 0 { text.trim_end_matches('.') } else { text }.to_owned();
        Ok(Self { from: plain(from), to: plain(to) })
    }
}

impl std::fmt::Display for NameMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.from, self.to)
    }
}

impl NameMap {
    /// The new name; `None` where this map says nothing of it.
    fn apply(&self, name: &str) -> Option<String> {
        if self.from.contains('*') {
            let found = captured(&self.from, name)?;
            let mut parts = self.to.split('*');
            let mut new = parts.next().unwrap_or_default().to_owned();
            parts.zip(found).for_each(|(part, text)| new.extend([text, part]));
            return Some(new);
        }
        let rest = match self.from.is_empty() {
            true => name,
            false => match name.strip_prefix(&self.from)? {
                "" => return Some(self.to.clone()),
                rest => rest.strip_prefix('.')?,
            },
        };
        Some(if self.to.is_empty() { rest.to_owned() } else { format!("{}.{rest}", self.to) })
    }
}

/// What each `*` of a pattern stands for in `name`: each but the last as little as it can.
fn captured<'n>(pattern: &str, name: &'n str) -> Option<Vec<&'n str>> {
    let parts: Vec<&str> = pattern.split('*').collect();
    let (first, last) = (parts.first()?, parts.last()?);
    let mut rest = name.strip_prefix(first)?;
    let mut found = Vec::new();
    for part in &parts[1..parts.len() - 1] {
        let at = rest.find(part).filter(|_| !part.is_empty())?;
        found.push(&rest[..at]);
        rest = &rest[at + part.len()..];
    }
    found.push(rest.strip_suffix(last)?);
    Some(found)
}

/// Gives `others` names under which their tensors pair with those of `reference`: those that `maps` say, and else, for a
/// language model beside a composite one, those found by suffix and shape.
///
/// # Errors
/// A map that fits no tensor; two tensors of one name; two parts of one model that fit the other as well.
pub fn align_names<'c>(
    others: impl IntoIterator<Item = &'c mut Checkpoint>,
    reference: &Checkpoint,
    maps: &[NameMap],
) -> Result<()> {
    let mut faults = Faults::default();
    let mut used = vec![false; maps.len()];
    for other in others {
        let aliases = aliases(other, maps, &mut used);
        if aliases.is_empty() {
            align(other, reference)?;
        } else {
            other.set_aliases(aliases)?;
        }
    }
    for (map, _) in maps.iter().zip(used).filter(|(_, used)| !used) {
        let fault = format!("--map {}: no tensor has such a name", Escaped(&map.to_string()));
        faults
            .push(Error::usage(fault, "FROM is the beginning of a name, up to a dot, or a pattern with `*`"));
    }
    faults.into_result()
}

/// The names that `maps` give the tensors of a checkpoint; of several that fit a name, the first counts.
fn aliases(checkpoint: &Checkpoint, maps: &[NameMap], used: &mut [bool]) -> HashMap<String, String> {
    let mut aliases = HashMap::new();
    for tensor in checkpoint.tensors() {
        let name = &tensor.info.name;
        let found = maps.iter().enumerate().find_map(|(i, map)| Some((i, map.apply(name)?)));
        if let Some((i, alias)) = found {
            used[i] = true;
            aliases.insert(name.clone(), alias);
        }
    }
    aliases
}

/// Gives a checkpoint none of whose layers pairs with one of `reference` the names of the only part of it that has the same
/// layers, or whose layers it has.
fn align(checkpoint: &mut Checkpoint, reference: &Checkpoint) -> Result<()> {
    let in_layer = |tensor: &Tensor<'_>| TensorName::of(&tensor.info.name).layer.is_some();
    let paired = |tensor: Tensor<'_>| reference.twin(&tensor.info.name, checkpoint).is_some();
    if !checkpoint.tensors().any(|tensor| in_layer(&tensor)) || checkpoint.tensors().any(paired) {
        return Ok(());
    }
    if let Some(names) = names_in(checkpoint, reference)? {
        return checkpoint.set_aliases(names);
    }
    match names_in(reference, checkpoint)? {
        Some(names) => checkpoint.set_aliases(names.into_iter().map(|(theirs, own)| (own, theirs)).collect()),
        None => Ok(()),
    }
}

/// The names of the tensors of `part` in the only part of `whole` that has all of its layers under one prefix, each with the
/// same shape; `None` where there is no such part.
///
/// # Errors
/// [`Error::Pairing`] where there are several.
fn names_in(part: &Checkpoint, whole: &Checkpoint) -> Result<Option<HashMap<String, String>>> {
    let layers: Vec<(Tensor<'_>, TensorName)> = part
        .tensors()
        .map(|tensor| (tensor, TensorName::of(&tensor.info.name)))
        .filter(|(_, name)| name.layer.is_some())
        .collect();
    let Some(stack) = layers.first().map(|(_, name)| name.stack.clone()) else { return Ok(None) };
    if layers.iter().any(|(_, name)| name.stack != stack) {
        // More than a language model.
        return Ok(None);
    }
    let front = stack.rsplit_once('.').map_or("", |(front, _)| front);
    let tail = |name: &str| name.strip_prefix(front).unwrap_or(name).trim_start_matches('.').to_owned();
    let fits = |prefix: &str| {
        layers.iter().all(|(tensor, _)| {
            let found = whole.find(&joined(prefix, &tail(&tensor.info.name)));
            found.is_some_and(|found| found.info.shape == tensor.info.shape)
        })
    };
    let first = tail(&layers[0].0.info.name);
    let ends = whole.tensors().filter_map(|tensor| {
        let prefix = tensor.info.name.strip_suffix(&first)?;
        prefix.strip_suffix('.').or_else(|| prefix.is_empty().then_some("")).map(str::to_owned)
    });
    let prefixes: Vec<String> = ends.filter(|prefix| fits(prefix)).collect();
    match prefixes.as_slice() {
        [] => Ok(None),
        [prefix] => Ok(Some(names_under(prefix, part, whole, &tail))),
        several => Err(ambiguous(&stack, several, part, whole)),
    }
}

/// Names in layers are those under `prefix`; all others stand there too, or under the nearest of its own prefixes.
fn names_under(
    prefix: &str,
    part: &Checkpoint,
    whole: &Checkpoint,
    tail: &dyn Fn(&str) -> String,
) -> HashMap<String, String> {
    let mut names = HashMap::new();
    for tensor in part.tensors() {
        let rest = tail(&tensor.info.name);
        let mut above = prefix;
        loop {
            let name = joined(above, &rest);
            if whole.find(&name).is_some() {
                names.insert(tensor.info.name.clone(), name);
                break;
            }
            if above.is_empty() {
                break;
            }
            above = above.rsplit_once('.').map_or("", |(outer, _)| outer);
        }
    }
    names
}

fn joined(prefix: &str, rest: &str) -> String {
    if prefix.is_empty() { rest.to_owned() } else { format!("{prefix}.{rest}") }
}

fn ambiguous(stack: &str, prefixes: &[String], part: &Checkpoint, whole: &Checkpoint) -> Error {
    let parts: Vec<String> = prefixes.iter().map(|prefix| format!("`{}`", Escaped(prefix))).collect();
    let front = stack.rsplit_once('.').map_or("", |(front, _)| front);
    Error::Pairing {
        tensor: None,
        fault: format!(
            "the layers of {} fit several parts of {}: {}",
            Escaped(part.path()),
            Escaped(whole.path()),
            parts.join(", ")
        ),
        hint: Some(format!("say which with --map {}={}", Escaped(front), Escaped(&prefixes[0]))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(map: &str, name: &str) -> Option<String> {
        map.parse::<NameMap>().unwrap().apply(name)
    }

    #[test]
    fn a_map_replaces_a_prefix_or_a_pattern() {
        for (map, name, expected) in [
            ("model=model.language_model", "model.norm.weight", Some("model.language_model.norm.weight")),
            ("model.=llm.model.", "model.norm.weight", Some("llm.model.norm.weight")),
            ("model=x", "models.norm.weight", None),
            ("=language_model", "lm_head.weight", Some("language_model.lm_head.weight")),
            ("language_model=", "language_model.lm_head.weight", Some("lm_head.weight")),
            ("lm_head.weight=head.weight", "lm_head.weight", Some("head.weight")),
            ("h.*.mlp.*=layers.*.ffn.*", "h.3.mlp.up.weight", Some("layers.3.ffn.up.weight")),
            ("*.gamma=*.weight", "a.b.gamma", Some("a.b.weight")),
            ("*.gamma=*.weight", "a.b.beta", None),
        ] {
            assert_eq!(mapped(map, name).as_deref(), expected, "{map} {name}");
        }
        for bad in ["model", "a.*=b", "a=b.*"] {
            assert!(bad.parse::<NameMap>().is_err(), "{bad}");
        }
    }
}
