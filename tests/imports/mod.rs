//! Which module names which, read from the text of the sources.
#![allow(unreachable_pub, reason = "a module of a test program")]

use std::collections::BTreeSet;

/// A source file.
pub struct Source {
    /// Below `src/`.
    pub path: String,
    /// Module path: `["plan", "quota"]`.
    pub module: Vec<String>,
    /// The whole text.
    text: String,
    /// The text without comments and without the tests at its end.
    pub code: String,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let stem = path.strip_suffix(".rs").unwrap();
        let mut module: Vec<String> = stem.split('/').map(str::to_owned).collect();
        if module.last().is_some_and(|last| last == "mod" || stem == "lib") {
            module.pop();
        }
        let lines: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap_or("")).collect();
        let code = lines.join("\n");
        let tests = code.find("#[cfg(test)]\nmod tests {").unwrap_or(code.len());
        Self { path: path.to_owned(), module, text: text.to_owned(), code: code[..tests].to_owned() }
    }

    /// The first folder or file below `src/`.
    pub fn room(&self) -> &str {
        self.module.first().map_or("lib", String::as_str)
    }

    fn is_room(&self) -> bool {
        self.path.ends_with("mod.rs") || self.path == "lib.rs"
    }

    /// The modules that this file names, re-exports followed to where the name is defined.
    pub fn targets(&self, sources: &[Self]) -> BTreeSet<Vec<String>> {
        let tests = test_modules(sources);
        if tests.contains(&self.module) {
            return BTreeSet::new();
        }
        let found = paths(&self.code).into_iter().filter_map(|path| self.absolute(&path));
        let resolved = found.filter_map(|path| resolve(&path, sources, 0));
        resolved.filter(|module| *module != self.module && !tests.contains(module)).collect()
    }

    /// A path from the root of the crate; `None` for a path of another crate.
    fn absolute(&self, path: &[String]) -> Option<Vec<String>> {
        let mut at = match path[0].as_str() {
            "crate" => Vec::new(),
            "self" => self.module.clone(),
            "super" => self.module[..self.module.len().checked_sub(1)?].to_vec(),
            _ => return None,
        };
        let mut rest = &path[1..];
        while let Some(("super", more)) = rest.split_first().map(|(first, more)| (first.as_str(), more)) {
            at.pop()?;
            rest = more;
        }
        at.extend(rest.iter().cloned());
        Some(at)
    }
}

/// Modules that exist in tests only.
fn test_modules(sources: &[Source]) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    for source in sources {
        // `#[cfg(test)] mod name;`, in the room itself or with a path in the file that it tests.
        for declared in source.text.split("#[cfg(test)]\n").skip(1) {
            let file = declared.strip_prefix("#[path = \"").and_then(|rest| rest.split_once(".rs\"]"));
            let name = file
                .map(|(stem, _)| stem)
                .or_else(|| declared.strip_prefix("mod ")?.split([';', ' ']).next());
            let room =
                if source.is_room() { &source.module[..] } else { &source.module[..source.module.len() - 1] };
            found.extend(name.map(|name| [room, &[name.to_owned()]].concat()));
        }
    }
    found
}

/// The module that defines what `path` names.
fn resolve(path: &[String], sources: &[Source], depth: usize) -> Option<Vec<String>> {
    assert!(depth < 20, "{path:?} is re-exported in a circle");
    let holds = |len: &usize| sources.iter().any(|s| s.module == path[..*len]);
    let len = (0..=path.len()).rev().find(holds)?;
    let holder = sources.iter().find(|s| s.module == path[..len])?;
    let Some(name) = path.get(len).filter(|_| holder.is_room()) else {
        return (len > 0).then(|| holder.module.clone());
    };
    for (exported, inner) in re_exports(holder) {
        if exported == *name {
            return resolve(&inner, sources, depth + 1);
        }
    }
    (len > 0).then(|| holder.module.clone())
}

/// The names that a `mod.rs` re-exports from its parts, with the absolute path of each.
fn re_exports(room: &Source) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    for (tree, exported) in use_trees(&room.code) {
        if !exported {
            continue;
        }
        for (mut path, name) in leaves(&tree) {
            if path[0] == "self" {
                path.remove(0);
            }
            let inner =
                if path[0] == "crate" { path[1..].to_vec() } else { [room.module.clone(), path].concat() };
            found.push((name, inner));
        }
    }
    found
}

/// The text of each `use` statement, and whether it is public.
fn use_trees(code: &str) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    let mut rest = code;
    let mut at_start = true;
    while let Some(at) = rest.find("use ") {
        let before = &rest[..at];
        let line = before.rsplit('\n').next().unwrap_or("").trim();
        let starts = line.is_empty() && (at_start || before.contains('\n')) || line.starts_with("pub");
        let after = &rest[at + 4..];
        at_start = false;
        match after.split_once(';') {
            Some((tree, more)) if starts => {
                found.push((tree.to_owned(), line.starts_with("pub")));
                rest = more;
            }
            _ => rest = after,
        }
    }
    found
}

/// Every path of a `use` tree with the name that it gets.
fn leaves(tree: &str) -> Vec<(Vec<String>, String)> {
    let tree = tree.trim();
    if let Some((prefix, inner)) = tree.split_once('{') {
        let inner = inner.strip_suffix('}').unwrap_or(inner);
        let head: Vec<String> =
            prefix.split("::").map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect();
        let mut found = Vec::new();
        for part in split_at_commas(inner) {
            for (path, name) in leaves(&part) {
                let path = if path == ["self"] { Vec::new() } else { path };
                found.push(([head.clone(), path].concat(), name));
            }
        }
        return found;
    }
    let (path, name) = tree.split_once(" as ").unwrap_or((tree, tree.rsplit("::").next().unwrap_or(tree)));
    let path = path.split("::").map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect();
    vec![(path, name.trim().to_owned())]
}

/// The parts of a list, nested braces kept whole.
fn split_at_commas(list: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 0;
    for c in list.chars() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if c == ',' && depth == 0 {
            parts.push(String::new());
        } else {
            parts.last_mut().unwrap().push(c);
        }
    }
    parts.retain(|part| !part.trim().is_empty());
    parts
}

/// Every path that the code names from `crate`, `self` or `super`, in `use` statements and elsewhere.
fn paths(code: &str) -> Vec<Vec<String>> {
    let trees = use_trees(code);
    let mut found: Vec<Vec<String>> =
        trees.iter().flat_map(|(tree, _)| leaves(tree)).map(|(path, _)| path).collect();
    for root in ["crate::", "super::"] {
        for (at, _) in code.match_indices(root) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let path: String =
                code[at..].chars().take_while(|c| c.is_alphanumeric() || "_:".contains(*c)).collect();
            let parts: Vec<String> = path.split("::").filter(|s| !s.is_empty()).map(str::to_owned).collect();
            // A brace follows: the tree was read above.
            if !path.ends_with("::") {
                found.push(parts);
            }
        }
    }
    found.retain(|path| !path.is_empty());
    found
}

/// The parts that a `mod.rs` lists after `Parts, lowest first:`.
pub fn parts_of(text: &str) -> Vec<String> {
    let Some((_, list)) = text.split_once("//! Parts, lowest first:") else {
        return Vec::new();
    };
    let docs = list
        .lines()
        .enumerate()
        .take_while(|(i, line)| *i == 0 || line.trim() != "//!" && line.starts_with("//!"));
    let text: Vec<&str> = docs.map(|(_, line)| line).collect();
    text.join(" ").split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Parts that name a part above them or their own room, and rooms that do not declare an order.
pub fn upward_imports(sources: &[Source]) -> Vec<String> {
    let tests = test_modules(sources);
    let mut faults = Vec::new();
    for room in sources.iter().filter(|s| s.path.ends_with("mod.rs")) {
        let inside =
            |s: &&Source| s.module.len() == room.module.len() + 1 && s.module.starts_with(&room.module);
        let parts: BTreeSet<&str> = sources
            .iter()
            .filter(inside)
            .filter(|s| !tests.contains(&s.module))
            .filter_map(|s| s.module.last().map(String::as_str))
            .collect();
        let listed = parts_of(&room.text);
        if listed.iter().map(String::as_str).collect::<BTreeSet<_>>() != parts {
            let expected: Vec<&str> = parts.into_iter().collect();
            let got = if listed.is_empty() { "nothing".to_owned() } else { listed.join(", ") };
            faults.push(format!(
                "{}: expected the line `Parts, lowest first:` with {}, got {got}",
                room.path,
                expected.join(", ")
            ));
        }
    }
    for source in sources {
        for target in source.targets(sources) {
            faults.extend(upward(source, &target, sources));
        }
    }
    faults.sort();
    faults
}

/// What is wrong with an import of `target` by `source` inside one room.
fn upward(source: &Source, target: &[String], sources: &[Source]) -> Option<String> {
    let common = source.module.iter().zip(target).take_while(|(a, b)| a == b).count();
    if common == 0 || common == source.module.len() {
        return None;
    }
    let room = &source.module[..common];
    let Some(part) = target.get(common) else {
        return Some(format!("{} names `{}`, the room that it is a part of", source.path, room.join("::")));
    };
    let listed = parts_of(&sources.iter().find(|s| s.module == room)?.text);
    let at = |name: &str| listed.iter().position(|p| p == name);
    let own = &source.module[common];
    (at(part)? >= at(own)?).then(|| {
        format!(
            "{} names `{}`, which stands above `{own}` in `{}`",
            source.path,
            target.join("::"),
            room.join("::")
        )
    })
}
