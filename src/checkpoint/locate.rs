//! From what a user typed to the files of a checkpoint.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::index::Index;
use super::natural_order::natural_order;
use crate::error::Escaped;
use crate::{Error, Faults, Result};

/// What the user named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory in Hugging Face layout.
    Directory,
    /// A single `.safetensors` file.
    File,
    /// An index file and the shards beside it.
    Index,
}

/// The files of a checkpoint, found but not opened.
pub(super) struct Located {
    pub(super) kind: Kind,
    /// The directory that holds the shards.
    pub(super) root: PathBuf,
    /// Shard paths in natural order.
    pub(super) shards: Vec<PathBuf>,
    pub(super) index: Option<(PathBuf, Index)>,
    /// Safetensors files of the directory that do not belong to the checkpoint.
    pub(super) unindexed: Vec<String>,
}

/// Finds the checkpoint at `path`: a directory, a `.safetensors` file, an `.index.json` file, or
/// `org/name[@revision]` in the local Hugging Face cache.
pub(super) fn locate(path: &Path) -> Result<Located> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => directory(path),
        Ok(_) => file(path),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => match in_cache(path) {
            Some(snapshot) => directory(&snapshot),
            None => Err(not_found(path)),
        },
        Err(e) => Err(Error::io("open", path)(e)),
    }
}

fn not_found(path: &Path) -> Error {
    let what = "no such file or directory";
    let Some((org, name, revision)) = repository(path) else {
        return fault(path, what, None);
    };
    let revisions = revisions(org, name);
    if revisions.is_empty() {
        let hint = format!(
            "`{org}/{name}` is not in the local Hugging Face cache either; download it first with `hf download {org}/{name}`"
        );
        return fault(path, what, Some(hint));
    }
    let what = format!("the local Hugging Face cache has `{org}/{name}`, but not its revision `{revision}`");
    let has = list(&revisions.iter().collect::<Vec<_>>());
    let hint =
        format!("download it with `hf download {org}/{name} --revision {revision}`, or take one of: {has}");
    fault(path, what, Some(hint))
}

fn fault(path: &Path, fault: impl Into<String>, hint: Option<String>) -> Error {
    Error::Checkpoint { path: path.to_owned(), fault: fault.into(), hint }
}

fn file(path: &Path) -> Result<Located> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let root = path.parent().map_or_else(PathBuf::new, Path::to_owned);
    if name.ends_with(".safetensors") {
        return Ok(Located {
            kind: Kind::File,
            root,
            shards: vec![path.to_owned()],
            index: None,
            unindexed: Vec::new(),
        });
    }
    if name.ends_with(".json") {
        return indexed(Kind::Index, root, path.to_owned(), &[]);
    }
    Err(fault(
        path,
        "not a checkpoint: expected a directory, a .safetensors file or an .index.json file",
        None,
    ))
}

fn directory(root: &Path) -> Result<Located> {
    let names = file_names(root)?;
    let ending = |end: &str| -> Vec<&String> { names.iter().filter(|n| n.ends_with(end)).collect() };
    let indexes = ending(".safetensors.index.json");
    let weights = ending(".safetensors");
    let usual = "model.safetensors.index.json";
    let index = match indexes.as_slice() {
        [] => return unindexed(root, &weights),
        [one] => one.as_str(),
        many if many.iter().any(|n| *n == usual) => usual,
        many => {
            let hint = format!("name one of them instead of the directory: {}", list(many));
            return Err(fault(root, "more than one index", Some(hint)));
        }
    };
    let located = indexed(Kind::Directory, root.to_owned(), root.join(index), &weights)?;
    let single = index.trim_end_matches(".index.json");
    if located.unindexed.iter().any(|name| name == single) {
        let what = format!(
            "`{}` stands beside `{}`, which does not list it: one of them is stale",
            Escaped(single),
            Escaped(index)
        );
        let (single, index) = (root.join(single), root.join(index));
        let hint = format!("give {} or {} itself", Escaped(&single), Escaped(&index));
        return Err(fault(root, what, Some(hint)));
    }
    Ok(located)
}

/// What helps where a directory has other files than safetensors weights.
fn hint_without_weights(root: &Path) -> Option<String> {
    let has = |name: &str| root.join(name).is_file();
    if has("adapter_config.json") {
        return Some(
            "it is the directory of an adapter: save it as safetensors, and apply it with merge --lora"
                .to_owned(),
        );
    }
    let pickled = has("pytorch_model.bin") || has("pytorch_model.bin.index.json");
    pickled.then(|| "it has PyTorch weights: save the model as safetensors first".to_owned())
}

/// A directory without an index: one file, or a full set of `name-00001-of-0000N` shards.
fn unindexed(root: &Path, weights: &[&String]) -> Result<Located> {
    let chosen: Vec<&String> = match weights {
        [] => {
            let what = "no safetensors weights: expected model.safetensors or model.safetensors.index.json";
            return Err(fault(root, what, hint_without_weights(root)));
        }
        many if many.iter().any(|n| *n == "model.safetensors") => {
            many.iter().copied().filter(|n| *n == "model.safetensors").collect()
        }
        [one] => vec![one],
        many => {
            let all_numbered = many.iter().all(|n| shard_number(n).is_some());
            if !all_numbered {
                let hint = format!("name one of them instead of the directory: {}", list(many));
                return Err(fault(root, "more than one checkpoint and no index", Some(hint)));
            }
            check_numbers(root, many)?;
            many.to_vec()
        }
    };
    Ok(Located {
        kind: Kind::Directory,
        root: root.to_owned(),
        shards: chosen.iter().map(|name| root.join(name)).collect(),
        index: None,
        unindexed: weights.iter().filter(|n| !chosen.contains(n)).map(|n| (*n).clone()).collect(),
    })
}

/// An index whose shards are not there, with a whole file beside it.
fn stale_index(root: &Path, path: &Path, names: &[String], weights: &[&String]) -> Option<Error> {
    let missing: Vec<&String> = names.iter().filter(|name| !root.join(name).is_file()).collect();
    let single = path.to_string_lossy();
    let single = Path::new(single.strip_suffix(".index.json")?).file_name()?.to_string_lossy().into_owned();
    let beside = weights.iter().any(|name| **name == single) && !names.contains(&single);
    let first = missing.first().filter(|_| beside)?;
    let (first, n, file) = (Escaped(*first), missing.len(), Escaped(&single));
    let what =
        format!("stale: {n} of its shards are missing, such as `{first}`, and `{file}` stands beside it");
    let hint = format!("give {} itself, or remove the index", Escaped(&root.join(&single)));
    Some(fault(path, what, Some(hint)))
}

/// The shards that an index lists. Their numbers are not judged: the index says which there are.
fn indexed(kind: Kind, root: PathBuf, path: PathBuf, weights: &[&String]) -> Result<Located> {
    let index = Index::read(&path)?;
    let mut names: Vec<String> = index.shards().iter().map(|s| (*s).to_owned()).collect();
    names.sort_by(|a, b| natural_order(a, b));
    if let Some(fault) = stale_index(&root, &path, &names, weights) {
        return Err(fault);
    }
    let missing = |name: &&String| !root.join(name.as_str()).is_file();
    let faults = names.iter().filter(missing).map(|name| Error::Index {
        path: path.clone(),
        tensor: None,
        fault: format!("shard `{}` is listed but missing beside the index", Escaped(name)),
    });
    Faults::from_iter(faults).into_result()?;
    let listed: HashSet<&String> = names.iter().collect();
    let left = weights.iter().filter(|n| !listed.contains(*n));
    let unindexed = left.map(|n| (*n).clone()).collect();
    let shards = names.iter().map(|name| root.join(name)).collect();
    Ok(Located { kind, root, shards, index: Some((path, index)), unindexed })
}

/// The i and N of `stem-0000i-of-0000N.safetensors`, with the stem.
fn shard_number(name: &str) -> Option<(&str, u64, u64)> {
    let stem = name.strip_suffix(".safetensors")?;
    let (head, of) = stem.rsplit_once("-of-")?;
    let (head, number) = head.rsplit_once('-')?;
    Some((head, number.parse().ok()?, of.parse().ok()?))
}

/// Numbered shards of one stem must be 1..=N, each saying the same N. Files without numbers are let be.
fn check_numbers(path: &Path, names: &[&String]) -> Result<()> {
    let mut stems: std::collections::BTreeMap<&str, Vec<(u64, u64, &str)>> =
        std::collections::BTreeMap::new();
    for name in names {
        if let Some((stem, number, of)) = shard_number(name) {
            stems.entry(stem).or_default().push((number, of, name));
        }
    }
    let mut faults = Faults::default();
    for shards in stems.values() {
        let count = shards.len() as u64;
        for (number, of, name) in shards {
            if *of != count || *number == 0 || number > of {
                faults.push(fault(
                    path,
                    format!(
                        "shard numbers disagree: `{}` is {number} of {of}, but there are {count} shards",
                        Escaped(*name)
                    ),
                    None,
                ));
            }
        }
    }
    faults.into_result()
}

fn file_names(root: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root).map_err(Error::io("list", root))? {
        let entry = entry.map_err(Error::io("list", root))?;
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort_by(|a, b| natural_order(a, b));
    Ok(names)
}

fn list(names: &[&String]) -> String {
    const MOST: usize = 10;
    let shown: Vec<String> = names.iter().take(MOST).map(|name| Escaped(*name).to_string()).collect();
    let rest = names.len().saturating_sub(MOST);
    if rest == 0 { shown.join(", ") } else { format!("{}, … and {rest} more", shown.join(", ")) }
}

/// `org/name[@revision]`, if `path` could be one.
fn repository(path: &Path) -> Option<(&str, &str, &str)> {
    let (repo, revision) = {
        let text = path.to_str()?;
        text.split_once('@').unwrap_or((text, "main"))
    };
    let (org, name) = repo.split_once('/')?;
    let plain = |s: &str| {
        !s.is_empty()
            && !s.starts_with('.')
            && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let revision_plain = !revision.split('/').any(|part| !plain(part));
    (plain(org) && plain(name) && revision_plain).then_some((org, name, revision))
}

/// The branches, tags and commits of a repository that the local Hugging Face cache has.
fn revisions(org: &str, name: &str) -> Vec<String> {
    let Some(dir) = repository_dir(org, name) else { return Vec::new() };
    let names = |below: &str| file_names(&dir.join(below)).unwrap_or_default();
    names("refs").into_iter().chain(names("snapshots")).collect()
}

/// Where the local Hugging Face cache keeps a repository.
fn repository_dir(org: &str, name: &str) -> Option<PathBuf> {
    Some(cache_dir()?.join(format!("models--{org}--{name}")))
}

/// The snapshot of a repository in the local Hugging Face cache.
fn in_cache(path: &Path) -> Option<PathBuf> {
    let (org, name, revision) = repository(path)?;
    let dir = repository_dir(org, name)?;
    let commit = super::small_file::read_small(&dir.join("refs").join(revision));
    let commit = commit.ok().and_then(|text| String::from_utf8(text).ok());
    let commit = commit.unwrap_or_else(|| revision.to_owned());
    let commit = commit.trim();
    let safe = !commit.is_empty() && commit.chars().all(|c| c.is_ascii_alphanumeric());
    let snapshot = dir.join("snapshots").join(commit);
    (safe && snapshot.is_dir()).then_some(snapshot)
}

/// Where `huggingface_hub` keeps its cache: `HF_HUB_CACHE`, `HF_HOME/hub`, `XDG_CACHE_HOME/huggingface/hub`
/// or `~/.cache/huggingface/hub`.
fn cache_dir() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    var("HF_HUB_CACHE")
        .or_else(|| var("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| var("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| var("HOME").map(|home| home.join(".cache/huggingface/hub")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_numbers_are_read_from_names() {
        assert_eq!(shard_number("model-00002-of-00003.safetensors"), Some(("model", 2, 3)));
        assert_eq!(shard_number("a-b-1-of-2.safetensors"), Some(("a-b", 1, 2)));
        assert_eq!(shard_number("model.safetensors"), None);
    }

    #[test]
    fn repository_names_are_told_from_paths() {
        assert_eq!(repository(Path::new("org/name@v1")), Some(("org", "name", "v1")));
        for path in ["./dir", "../x", "/a/b", "a/b/c", "a", "org/na me", "org/x@../y"] {
            assert_eq!(repository(Path::new(path)), None, "{path}");
        }
    }
}
