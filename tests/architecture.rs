//! Data flows one way: rooms name only the rooms they may, and inside a room each part names only the parts below it.
//!
//! A room is a folder of `src/`. The line `Parts, lowest first:` in its `mod.rs` declares the order of its parts.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod imports;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use imports::{Source, parts_of, upward_imports};

/// Each room with the rooms it may name. What is not listed here does not exist yet.
const MAY_NAME: [(&str, &[&str]); 21] = [
    ("error", &[]),
    ("simd", &[]),
    ("checkpoint", &["error", "simd"]),
    ("plan", &["error", "simd", "checkpoint"]),
    ("surgery", &["error", "simd", "checkpoint", "plan"]),
    ("reset", &["error", "checkpoint", "plan", "surgery"]),
    ("diff", &["error", "simd", "checkpoint", "plan", "surgery"]),
    ("patch", &["error", "checkpoint", "surgery"]),
    ("merge", &["error", "simd", "checkpoint", "plan", "surgery"]),
    ("lora", &["error", "simd", "checkpoint", "plan", "surgery", "merge"]),
    ("data", &["error", "checkpoint", "plan"]),
    ("optimizer", &["checkpoint", "plan"]),
    ("backend", &["error", "simd", "checkpoint", "plan", "optimizer"]),
    ("model", &["error", "checkpoint", "optimizer", "backend"]),
    ("generate", &["error", "checkpoint", "plan", "data", "backend", "model"]),
    ("eval", &["error", "checkpoint", "plan", "data", "backend", "model", "generate"]),
    (
        "train",
        &[
            "error",
            "checkpoint",
            "plan",
            "surgery",
            "diff",
            "patch",
            "data",
            "optimizer",
            "backend",
            "model",
            "eval",
        ],
    ),
    ("experiment", &["error", "checkpoint"]),
    (
        "report",
        &[
            "error",
            "checkpoint",
            "plan",
            "surgery",
            "diff",
            "patch",
            "lora",
            "data",
            "backend",
            "train",
            "eval",
            "experiment",
        ],
    ),
    (
        "cli",
        &[
            "error",
            "checkpoint",
            "plan",
            "surgery",
            "reset",
            "diff",
            "patch",
            "merge",
            "lora",
            "data",
            "optimizer",
            "backend",
            "model",
            "eval",
            "generate",
            "train",
            "experiment",
            "report",
        ],
    ),
    ("main", &["cli"]),
];

/// Crates that belong to one room, or to those named.
const OWNED: [(&str, &str); 16] = [
    ("faer", "lora diff"),
    ("fancy_regex", "lora"),
    ("clap", "cli"),
    ("indicatif", "cli"),
    ("comfy_table", "report"),
    ("libc", "checkpoint"),
    ("memmap2", "checkpoint"),
    ("rustix", "checkpoint"),
    ("globset", "plan"),
    ("tokenizers", "data"),
    ("minijinja", "data"),
    ("parquet", "data"),
    ("gemm", "backend"),
    ("cudarc", "backend"),
    ("libloading", "backend"),
    ("signal_hook", "cli"),
];

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn sources() -> Vec<Source> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let read = |path: PathBuf| {
        let below = path.strip_prefix(&src).unwrap().to_string_lossy().into_owned();
        Source::new(&below, &std::fs::read_to_string(&path).unwrap())
    };
    files_below(&src).into_iter().map(read).collect()
}

/// What is wrong with the rooms that `source` names.
fn rooms_above(sources: &[Source]) -> Vec<String> {
    let mut faults = Vec::new();
    for source in sources.iter().filter(|s| s.path != "lib.rs") {
        let Some((_, allowed)) = MAY_NAME.iter().find(|(room, _)| *room == source.room()) else {
            faults.push(format!("{}: add `{}` to the table of rooms", source.path, source.room()));
            continue;
        };
        for target in source.targets(sources) {
            let room = target[0].as_str();
            if room != source.room() && !allowed.contains(&room) {
                faults.push(format!("{} names `{}`", source.path, target.join("::")));
            }
        }
    }
    faults.sort();
    faults.dedup();
    faults
}

#[test]
fn rooms_name_only_what_they_may() {
    let faults = rooms_above(&sources());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Each entry names only rooms that are listed before it, so the table itself has no circle.
#[test]
fn the_table_of_rooms_has_no_circle() {
    for (at, (room, allowed)) in MAY_NAME.iter().enumerate() {
        for name in *allowed {
            let below = MAY_NAME[..at].iter().any(|(lower, _)| lower == name);
            assert!(below, "`{room}` may name `{name}`, which is not listed before it");
        }
    }
}

#[test]
fn parts_name_only_the_parts_below_them() {
    let sources = sources();
    let faults = upward_imports(&sources);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let imports: usize = sources.iter().map(|s| s.targets(&sources).len()).sum();
    assert!(imports > 500, "only {imports} imports were found");
}

#[test]
fn a_planted_circle_is_found() {
    let planted = [
        Source::new("plan/mod.rs", "//! Parts, lowest first: `quota`, `select`.\nmod quota;\nmod select;\n"),
        Source::new("plan/quota.rs", "use super::select::Draw;\n"),
        Source::new("plan/select.rs", "use super::quota::total;\n"),
    ];
    let faults = upward_imports(&planted);
    assert_eq!(faults, ["plan/quota.rs names `plan::select`, which stands above `quota` in `plan`"]);
}

#[test]
fn a_circle_through_a_re_export_is_found() {
    let planted = [
        Source::new(
            "plan/mod.rs",
            "//! Parts, lowest first:\n//! `quota`, `select`.\nmod quota;\nmod select;\npub use select::{Draw as Drawn};\n",
        ),
        Source::new("plan/quota.rs", "fn f(d: &crate::plan::Drawn) {}\n"),
        Source::new("plan/select.rs", ""),
    ];
    let faults = upward_imports(&planted);
    assert_eq!(faults, ["plan/quota.rs names `plan::select`, which stands above `quota` in `plan`"]);
}

#[test]
fn a_room_without_an_order_is_found() {
    let planted = [
        Source::new("plan/mod.rs", "//! Plans.\nmod quota;\n"),
        Source::new("plan/quota.rs", "use super::Plan;\n"),
    ];
    let faults = upward_imports(&planted);
    assert_eq!(
        faults,
        [
            "plan/mod.rs: expected the line `Parts, lowest first:` with quota, got nothing",
            "plan/quota.rs names `plan`, the room that it is a part of",
        ]
    );
    assert_eq!(parts_of("//! Parts, lowest first: `a`,\n//! `b`.\n//!\n//! `c`"), ["a", "b"]);
}

#[test]
fn an_upward_import_between_rooms_is_found() {
    let planted = [
        Source::new("lib.rs", "pub use error::Error;\n"),
        Source::new("error.rs", ""),
        Source::new("plan/mod.rs", "mod quota;\n"),
        Source::new("plan/quota.rs", "use crate::{Error, cli::{self, Terminal}};\n"),
        Source::new("cli/mod.rs", "mod terminal;\npub use terminal::Terminal;\n"),
        Source::new("cli/terminal.rs", ""),
    ];
    assert_eq!(rooms_above(&planted), ["plan/quota.rs names `cli::terminal`", "plan/quota.rs names `cli`"]);
}

#[test]
fn crates_are_named_in_their_room_only() {
    for source in sources() {
        for (name, owner) in OWNED {
            let used =
                source.code.contains(&format!("{name}::")) || source.code.contains(&format!("use {name}"));
            assert!(
                !used || owner.split(' ').any(|room| room == source.room()),
                "{} names `{name}`, which belongs to `{owner}`",
                source.path
            );
        }
    }
}

#[test]
fn unsafe_code_stays_in_four_places() {
    for Source { path, code, .. } in sources() {
        assert!(
            !code.contains("unsafe {")
                || ["checkpoint/map.rs", "backend/cpu/matmul.rs"].contains(&path.as_str())
                || path.starts_with("simd/")
                || path.starts_with("backend/cuda/"),
            "{path} is unsafe"
        );
    }
}

#[test]
fn files_stay_readable() {
    for Source { path, code, .. } in sources() {
        let lines = code.lines().count();
        assert!(lines <= 400, "{path} has {lines} lines; would two ideas in two files read better?");
    }
}

#[test]
fn no_room_holds_more_than_a_fifth_of_the_code() {
    let mut lines: BTreeMap<String, usize> = BTreeMap::new();
    for source in sources() {
        *lines.entry(source.room().to_owned()).or_default() += source.code.lines().count();
    }
    let all: usize = lines.values().sum();
    for (room, count) in lines {
        assert!(count * 5 <= all, "`{room}` holds {count} of {all} lines");
    }
}
