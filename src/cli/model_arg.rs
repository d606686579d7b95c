//! A model on the command line or in a recipe: a checkpoint, or a base with adapters, `BASE+ADAPTER*WEIGHT+…`, whose tensors
//! are merged when they are read.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::reading_args::{ReadingArgs, dequantized};
use super::terminal::Terminal;
use crate::checkpoint::{Checkpoint, ReadOptions};
use crate::error::Escaped;
use crate::lora::{Adapter, adapted};
use crate::model::computes_with_codes;
use crate::{Error, Faults, Result};

/// Files of a tokenizer, which are read from the base.
const TOKENIZER: [&str; 2] = ["tokenizer.json", "chat_template.jinja"];

/// Opens the model at `path`. The tensors of a base with adapters are merged each time they are read; quantized weights of it
/// are dequantized in memory before.
///
/// # Errors
/// As [`Checkpoint::open`]; everything that does not fit between base and adapters.
pub(super) fn open_model(
    path: &Path,
    options: impl Into<ReadOptions>,
    terminal: &Terminal,
) -> Result<Checkpoint> {
    let options = options.into();
    let (base, adapters) = parts(path);
    if adapters.is_empty() {
        return Checkpoint::open(path, options);
    }
    let base = dequantized(Checkpoint::open(&base, options)?, terminal)?;
    apply(base, &adapters, path, options, terminal)
}

/// As [`open_model`], for a command that computes with the weights: plain numbers, or codes that are decoded when they are
/// used, all in memory or mapped.
///
/// # Errors
/// As there; [`Error::Io`] where memory does not hold the merged weights.
pub(super) fn open_model_whole(
    path: &Path,
    reading: &ReadingArgs,
    terminal: &Terminal,
) -> Result<Checkpoint> {
    let model = open_model(path, reading.whole(), terminal)?.computed_in_memory()?;
    if computes_with_codes(&model) { Ok(model) } else { dequantized(model, terminal) }
}

/// As [`open_model`], for a result that gets the files beside the weights as copies: `config.json` must fit the weights.
///
/// # Errors
/// [`Error::Usage`] for adapters that make two weights of one that embedding and head share; [`Error::Checkpoint`] for a
/// quantized base; as [`open_model`].
pub(super) fn open_model_to_copy(
    path: &Path,
    options: impl Into<ReadOptions>,
    terminal: &Terminal,
) -> Result<Checkpoint> {
    let options = options.into();
    let (base, adapters) = parts(path);
    if !adapters.is_empty() {
        Checkpoint::open(&base, options)?.check_not_quantized("its merge with an adapter")?;
    }
    let model = open_model(path, options, terminal)?;
    if model.is_untied() {
        let fault = format!("{}: embedding and head are no longer one weight", Escaped(path));
        return Err(Error::usage(fault, WRITE_FIRST));
    }
    Ok(model)
}

/// Checks that the model at `path` is no base with adapters, which `what` does not take.
///
/// # Errors
/// [`Error::Usage`] that says what to do.
pub(super) fn check_one_checkpoint(path: &Path, what: &str) -> Result<()> {
    if parts(path).1.is_empty() {
        return Ok(());
    }
    Err(Error::usage(format!("{}: {what} takes no base with adapters", Escaped(path)), WRITE_FIRST))
}

const WRITE_FIRST: &str = "write the merged model first: merge --base <CKPT> --lora <ADAPTER> --out <DIR>";

/// `base` with the adapters at these paths, each with its weight, under the name `name`.
///
/// # Errors
/// Everything that is wrong with any of the adapters, or does not fit.
pub(super) fn apply(
    base: Checkpoint,
    adapters: &[(PathBuf, f64)],
    name: &Path,
    options: ReadOptions,
    terminal: &Terminal,
) -> Result<Checkpoint> {
    let opened = open_adapters(adapters, options)?;
    adapters.iter().for_each(|(adapter, _)| warn_of_tokenizer(adapter, base.root(), terminal));
    let (merged, notes) = adapted(base, opened, name.to_owned())?;
    notes.iter().for_each(|note| terminal.warn(&format!("{}: {note}", Escaped(name))));
    Ok(merged)
}

/// Opens the adapters at these paths.
///
/// # Errors
/// As [`Adapter::open`], all at once.
pub(super) fn open_adapters(paths: &[(PathBuf, f64)], options: ReadOptions) -> Result<Vec<(Adapter, f64)>> {
    let mut faults = Faults::default();
    let open = |(path, weight): &(PathBuf, f64)| Some((faults.keep(Adapter::open(path, options))?, *weight));
    let opened = paths.iter().filter_map(open).collect();
    faults.into_result().map(|()| opened)
}

/// The parts of a path; the path alone where it is one checkpoint.
fn parts(path: &Path) -> (PathBuf, Vec<(PathBuf, f64)>) {
    match ModelParts::of(path, &BTreeMap::new()) {
        Some(ModelParts { base, adapters, ignored_revision: None, .. }) => (base, adapters),
        _ => (path.to_owned(), Vec::new()),
    }
}

/// Says where an adapter brings a tokenizer that is not the one of its base.
fn warn_of_tokenizer(adapter: &Path, base: &Path, terminal: &Terminal) {
    for file in TOKENIZER {
        let own = std::fs::read(adapter.join(file)).ok();
        if own.is_some() && own != std::fs::read(base.join(file)).ok() {
            let adapter = Escaped(adapter);
            terminal.warn(&format!("{adapter}: its {file} is not that of the base, which is used"));
        }
    }
}

/// A model as a recipe names it: `BASE`, `BASE@REVISION`, `BASE+ADAPTER`, `BASE+ADAPTER*WEIGHT+ADAPTER`.
#[derive(Debug, PartialEq)]
pub(super) struct ModelParts {
    pub(super) base: PathBuf,
    /// The stage that made the base.
    pub(super) stage: Option<String>,
    /// The revision of a base on this disk.
    pub(super) ignored_revision: Option<String>,
    pub(super) adapters: Vec<(PathBuf, f64)>,
}

impl ModelParts {
    /// The parts of a name; `None` for a path that exists, and for one without parts. Of several `+`, the first counts
    /// whose left side is there and after which adapters stand.
    pub(super) fn of(path: &Path, stages: &BTreeMap<String, PathBuf>) -> Option<Self> {
        if path.exists() {
            return None;
        }
        let bytes = path.as_os_str().as_bytes();
        let at = |i: usize| (as_path(&bytes[..i]), &bytes[i + 1..]);
        let pluses = || (0..bytes.len()).filter(|i| bytes[*i] == b'+').map(at);
        let known = |base: &Path| Self::base(base, stages).filter(|parts| parts.base.exists());
        let whole = pluses().filter_map(|(base, rest)| Some((base, adapters(rest)?))).collect::<Vec<_>>();
        let there = whole.iter().find_map(|(base, adapters)| Some((known(base)?, adapters.clone())));
        let anywhere =
            || whole.first().and_then(|(base, adapters)| Some((Self::base(base, stages)?, adapters.clone())));
        // An adapter that is not there is reported when it is opened.
        let alone = || pluses().find_map(|(base, rest)| Some((known(&base)?, vec![(as_path(rest), 1.0)])));
        match there.or_else(anywhere).or_else(alone) {
            Some((base, adapters)) => Some(Self { adapters, ..base }),
            None => known(path),
        }
    }

    /// A base without adapters.
    fn base(path: &Path, stages: &BTreeMap<String, PathBuf>) -> Option<Self> {
        let plain = |base: PathBuf| Self { base, stage: None, ignored_revision: None, adapters: Vec::new() };
        if path.exists() {
            return Some(plain(path.to_owned()));
        }
        let Some(name) = path.to_str() else { return Some(plain(path.to_owned())) };
        if let Some(result) = stages.get(name) {
            return Some(Self { stage: Some(name.to_owned()), ..plain(result.clone()) });
        }
        match name.split_once('@') {
            Some((local, revision)) if Path::new(local).exists() => {
                Some(Self { ignored_revision: Some(revision.to_owned()), ..plain(local.into()) })
            }
            _ => Some(plain(path.to_owned())),
        }
    }
}

/// `ADAPTER*WEIGHT+ADAPTER+…`, each the directory of an adapter; `None` for anything else.
fn adapters(bytes: &[u8]) -> Option<Vec<(PathBuf, f64)>> {
    let ends = (0..bytes.len()).filter(|i| bytes[*i] == b'+').chain([bytes.len()]);
    for end in ends {
        let Some(first) = adapter(&bytes[..end]) else { continue };
        if end == bytes.len() {
            return Some(vec![first]);
        }
        if let Some(others) = adapters(&bytes[end + 1..]) {
            return Some([vec![first], others].concat());
        }
    }
    None
}

/// The directory of an adapter, with its weight; `None` for anything else.
fn adapter(bytes: &[u8]) -> Option<(PathBuf, f64)> {
    let is_adapter = |path: &PathBuf| path.join("adapter_config.json").is_file();
    let whole = as_path(bytes);
    if is_adapter(&whole) {
        return Some((whole, 1.0));
    }
    let star = bytes.iter().rposition(|byte| *byte == b'*')?;
    let weight = std::str::from_utf8(&bytes[star + 1..]).ok()?.parse::<f64>().ok()?;
    let path = as_path(&bytes[..star]);
    (weight.is_finite() && is_adapter(&path)).then_some((path, weight))
}

fn as_path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plus_before_an_adapter_counts() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["c++", "lora", "l+2"] {
            std::fs::create_dir_all(at(name)).unwrap();
        }
        for name in ["lora", "l+2"] {
            std::fs::write(at(name).join("adapter_config.json"), "{}").unwrap();
        }
        let split = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| at(name).display().to_string()).collect();
            let stages = BTreeMap::from([("one".to_owned(), at("c++"))]);
            ModelParts::of(Path::new(&names.join("+")), &stages)
        };
        let parts = |base: &str, adapters: &[(&str, f64)]| {
            let adapters = adapters.iter().map(|(name, weight)| (at(name), *weight)).collect();
            Some(ModelParts { base: at(base), stage: None, ignored_revision: None, adapters })
        };
        assert_eq!(split(&["c++", "lora"]), parts("c++", &[("lora", 1.0)]));
        assert_eq!(split(&["c++", "none"]), parts("c++", &[("none", 1.0)]));
        assert_eq!(split(&["c++"]), None, "a path that exists is one model");
        assert_eq!(split(&["neither", "none"]), None);
        let several = parts("c++", &[("lora", 0.5), ("l+2", -2.0), ("lora", 1.0)]);
        assert_eq!(split(&["c++", "lora*0.5", "l+2*-2", "lora"]), several);
        let revision = ModelParts { ignored_revision: Some("v1".to_owned()), ..parts("c++", &[]).unwrap() };
        assert_eq!(split(&["c++@v1"]), Some(revision));
        let stages = BTreeMap::from([("one".to_owned(), at("c++"))]);
        let of_stage = ModelParts::of(Path::new(&format!("one+{}", at("lora").display())), &stages).unwrap();
        assert_eq!((of_stage.stage.as_deref(), of_stage.base), (Some("one"), at("c++")));
    }
}
