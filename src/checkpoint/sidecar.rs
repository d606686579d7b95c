//! The files beside the weights that make a checkpoint usable: configuration, tokenizer, templates.

use std::path::{Path, PathBuf};

use super::locate::Kind;
use super::sharded::Checkpoint;
use crate::{Error, Result};

/// What stands beside the weights.
#[derive(Debug, Clone, Default)]
pub struct Sidecars {
    /// Files to carry over, relative to the root, sorted.
    pub carried: Vec<PathBuf>,
    /// Files left behind, with the reason.
    pub left: Vec<(PathBuf, &'static str)>,
}

/// Directories that belong to a checkpoint: chat templates, code of the model, sentence-transformers modules.
const DIRECTORIES: [&str; 1] = ["additional_chat_templates"];
/// Endings of files that belong to a checkpoint.
const ENDINGS: [&str; 5] = [".json", ".txt", ".model", ".jinja", ".py"];
/// Beginnings of files that belong to a checkpoint.
const BEGINNINGS: [&str; 4] = ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY"];
/// State of a training run and other weights: never part of the result of a surgery.
const STATE: [&str; 5] = ["trainer_state.json", "training_args", "optimizer", "scheduler", "rng_state"];

/// Sorts the files beside the weights of `checkpoint` into those to carry over and the others.
///
/// A checkpoint given as a single file has no sidecars: what stands beside it may belong to another.
///
/// # Errors
/// [`Error::Io`] when the directory cannot be listed.
pub fn sidecars(checkpoint: &Checkpoint) -> Result<Sidecars> {
    let mut found = Sidecars::default();
    if checkpoint.kind() == Kind::File {
        return Ok(found);
    }
    let root = checkpoint.root();
    let root = if root.as_os_str().is_empty() { Path::new(".") } else { root };
    collect(root, Path::new(""), checkpoint.index(), &mut found)?;
    found.carried.sort();
    found.left.sort();
    Ok(found)
}

fn collect(root: &Path, below: &Path, index: Option<&Path>, found: &mut Sidecars) -> Result<()> {
    let dir = root.join(below);
    for entry in std::fs::read_dir(&dir).map_err(Error::io("list", &dir))? {
        let entry = entry.map_err(Error::io("list", &dir))?;
        let name = entry.file_name();
        let relative = below.join(&name);
        let path = root.join(&relative);
        let name = name.to_string_lossy();
        if name.ends_with(".safetensors") {
            continue;
        }
        // Where a link leads nowhere, `metadata` fails and the file is left behind by name.
        let Ok(meta) = std::fs::metadata(&path) else {
            found.left.push((relative, "broken link"));
            continue;
        };
        let top = below.as_os_str().is_empty();
        if meta.is_dir() {
            if top && is_sidecar_directory(&name) {
                collect(root, &relative, index, found)?;
            } else {
                found.left.push((relative, "directory that is not part of the format"));
            }
        } else if !meta.is_file() {
            found.left.push((relative, "not a regular file"));
        } else if let Some(why) = why_left(&name, top) {
            let used = index.is_some_and(|i| i.file_name() == relative.file_name());
            if used {
                found.carried.push(relative);
            } else {
                found.left.push((relative, why));
            }
        } else if leaves(root, &path) {
            found.left.push((relative, "link out of the checkpoint"));
        } else {
            found.carried.push(relative);
        }
    }
    Ok(())
}

fn is_sidecar_directory(name: &str) -> bool {
    let sentence_transformers = || {
        let (number, kind) = name.split_once('_')?;
        let digits = !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit());
        (digits && kind.starts_with(char::is_uppercase)).then_some(())
    };
    DIRECTORIES.contains(&name) || sentence_transformers().is_some()
}

/// Why a file does not go with the checkpoint; `None` when it does.
fn why_left(name: &str, top: bool) -> Option<&'static str> {
    if name == "hft_surgery.json" {
        return Some("provenance of an earlier surgery, replaced");
    }
    if name.ends_with(".index.json") {
        return Some("index of other weights");
    }
    if STATE.iter().any(|state| name.starts_with(state)) {
        return Some("state of a training run");
    }
    let belongs = ENDINGS.iter().any(|end| name.ends_with(end))
        || (top && BEGINNINGS.iter().any(|begin| name.starts_with(begin)));
    (!belongs).then_some("not part of the format")
}

/// Why a path must not be written beside the weights, if it must not: it is not that of a file that
/// [`sidecars`] carries over. Its parts are joined by `/`.
pub fn unsafe_sidecar(path: &str) -> Option<&'static str> {
    let (directory, name) = path.rsplit_once('/').map_or((None, path), |(dir, name)| (Some(dir), name));
    if let Some(why) = directory.and_then(super::index::unsafe_name).or(super::index::unsafe_name(name)) {
        return Some(why);
    }
    if directory.is_some_and(|directory| !is_sidecar_directory(directory)) {
        return Some("in a directory that is not part of the format");
    }
    let provenance_or_index = directory.is_none() && name.ends_with(".json");
    why_left(name, directory.is_none()).filter(|_| !provenance_or_index)
}

/// Whether a link leads out of the checkpoint. The Hugging Face cache keeps its files in `blobs`
/// beside `snapshots`; links there are the checkpoint's own.
fn leaves(root: &Path, path: &Path) -> bool {
    let (Ok(root), Ok(path)) = (root.canonicalize(), path.canonicalize()) else {
        return true;
    };
    let in_snapshots = root.parent().filter(|p| p.file_name().is_some_and(|n| n == "snapshots"));
    let blobs = in_snapshots.and_then(Path::parent).map(|repo| repo.join("blobs"));
    !path.starts_with(&root) && !blobs.is_some_and(|blobs| path.starts_with(blobs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_paths_of_the_format_are_safe() {
        let safe = ["config.json", "1_Pooling/config.json", "LICENSE", "model.safetensors.index.json"];
        assert!(safe.iter().all(|path| unsafe_sidecar(path).is_none()));
        let bad = [
            "../config.json",
            "/config.json",
            "a/config.json",
            "1_Pooling/../config.json",
            "1_Pooling/a/config.json",
            "1_Pooling/../../config.json",
            ".config.json",
            "c:config.json",
            "a\\b.json",
            "x.safetensors",
            "x.sh",
            "",
            "/",
        ];
        for path in bad {
            assert!(unsafe_sidecar(path).is_some(), "{path}");
        }
    }

    #[test]
    fn the_files_of_the_format_are_carried_and_nothing_else() {
        let carried = [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.json",
            "merges.txt",
            "tokenizer.model",
            "spiece.model",
            "tekken.json",
            "chat_template.jinja",
            "modeling_x.py",
            "LICENSE",
            "LICENSE.md",
            "NOTICE",
            "preprocessor_config.json",
        ];
        for name in carried {
            assert_eq!(why_left(name, true), None, "{name}");
        }
        let left = [
            "README.md",
            "pytorch_model.bin",
            "optimizer.pt",
            "rng_state_0.pth",
            "trainer_state.json",
            "training_args.bin",
            ".git",
            "scheduler.pt",
            "hft_surgery.json",
            "other.safetensors.index.json",
        ];
        for name in left {
            assert!(why_left(name, true).is_some(), "{name}");
        }
        assert!(is_sidecar_directory("1_Pooling") && is_sidecar_directory("additional_chat_templates"));
        assert!(!is_sidecar_directory("original") && !is_sidecar_directory("_x"));
    }
}
