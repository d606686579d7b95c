//! Modules name only the modules they may: data flows one way.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};

/// Each module with the modules it may name. What is not listed here does not exist yet.
const MAY_NAME: [(&str, &[&str]); 12] = [
    ("error", &[]),
    ("faults", &["error"]),
    ("simd", &[]),
    ("checkpoint", &["error"]),
    ("plan", &["error", "simd", "checkpoint"]),
    ("surgery", &["error", "simd", "checkpoint", "plan"]),
    ("backend", &["simd", "checkpoint"]),
    ("llama", &["error", "checkpoint", "backend"]),
    ("train", &["error", "checkpoint", "plan", "surgery", "backend", "llama"]),
    ("report", &["error", "checkpoint", "plan", "surgery", "backend", "train"]),
    ("cli", &["error", "checkpoint", "plan", "surgery", "backend", "llama", "train", "report"]),
    ("lib", &["error", "checkpoint", "plan", "surgery", "train", "report", "cli"]),
];

/// Crates that belong to one module.
const OWNED: [(&str, &str); 14] = [
    ("faer", "surgery"),
    ("clap", "cli"),
    ("indicatif", "cli"),
    ("comfy_table", "report"),
    ("memmap2", "checkpoint"),
    ("rustix", "checkpoint"),
    ("globset", "plan"),
    ("tokenizers", "train"),
    ("minijinja", "train"),
    ("parquet", "train"),
    ("gemm", "backend"),
    ("cudarc", "backend"),
    ("libloading", "backend"),
    ("ctrlc", "cli"),
];

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// (module, path below src, code without comments) of every source file.
fn modules() -> Vec<(String, String, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let file = |path: PathBuf| {
        let below = path.strip_prefix(&src).unwrap().to_string_lossy().into_owned();
        let module = below.split(['/', '.']).next().unwrap().to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let code: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap_or("")).collect();
        (module, below, code.join("\n"))
    };
    sources(&src).into_iter().map(file).filter(|(module, ..)| module != "main").collect()
}

/// The first names after `crate::`, braces expanded.
fn named(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let list = rest
            .strip_prefix('{')
            .map_or(rest, |list| list.split_once('}').map_or(list, |(inside, _)| inside));
        let parts: Vec<&str> = if rest.starts_with('{') { list.split(',').collect() } else { vec![list] };
        for part in parts {
            let name: String = part.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            names.push(name);
        }
    }
    names
}

#[test]
fn modules_name_only_what_they_may() {
    let mut checked = 0;
    for (module, path, code) in modules() {
        let (_, allowed) = MAY_NAME
            .iter()
            .find(|(m, _)| *m == module)
            .unwrap_or_else(|| panic!("{path}: add `{module}` to the table"));
        for name in named(&code) {
            let is_module = MAY_NAME.iter().any(|(m, _)| *m == name);
            checked += usize::from(is_module);
            assert!(
                !is_module || name == module || allowed.contains(&name.as_str()),
                "{path} names `{name}`"
            );
        }
    }
    assert!(checked > 30, "the search found only {checked} names");
}

#[test]
fn crates_are_named_in_their_module_only() {
    for (module, path, code) in modules() {
        for (name, owner) in OWNED {
            let used = code.contains(&format!("{name}::")) || code.contains(&format!("use {name}"));
            assert!(!used || module == owner, "{path} names `{name}`, which belongs to `{owner}`");
        }
    }
}

#[test]
fn unsafe_code_stays_in_four_places() {
    for (_, path, code) in modules() {
        assert!(
            !code.contains("unsafe {")
                || ["checkpoint/shard.rs", "backend/cpu/matmul.rs"].contains(&path.as_str())
                || path.starts_with("simd/")
                || path.starts_with("backend/cuda/"),
            "{path} is unsafe"
        );
    }
}

#[test]
fn files_stay_readable() {
    for (_, path, code) in modules() {
        let lines = code.lines().count();
        assert!(lines <= 400, "{path} has {lines} lines; would two ideas in two files read better?");
    }
}
