//! README and guides hold: every console block is run against the output that it shows, and every path exists.
//!
//! In a ```` ```console ```` block a line after `$ ` is a command for `sh`, a line after `> ` that follows it goes on
//! with the command, and all other lines are what a terminal shows: stdout and stderr in the order of printing. `…`
//! stands for any text within a line, a line `...` for any number of lines. The commands of one file run in order in
//! one directory that holds a copy of `fixtures`. A command that fails is followed by `$ echo $?`, which shows its
//! exit code. With `UPDATE_GUIDES=1` the outputs are written into the files instead of compared.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use assert_cmd::cargo::cargo_bin;

const GUIDES: &[&str] = &[
    "reset",
    "plans",
    "diff",
    "before-you-merge",
    "patch",
    "merge",
    "coming-from-mergekit",
    "lora",
    "train",
    "continual",
    "evaluate",
    "experiment",
    "generate",
    "python",
    "formats",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README and the guides, below the root.
fn guides() -> Vec<String> {
    let mut files = vec!["README.md".to_owned()];
    files.extend(GUIDES.iter().map(|name| format!("docs/guide/{name}.md")));
    files
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// A command of a console block.
#[derive(Debug, PartialEq)]
struct Step {
    /// The line of the file that shows it, from 0.
    line: usize,
    command: String,
    /// The lines of the file that show its output.
    shown: std::ops::Range<usize>,
}

/// The commands of `lines`, and the number of console blocks.
fn steps(file: &str, lines: &[&str]) -> (Vec<Step>, usize) {
    let (mut steps, mut blocks, mut at) = (Vec::new(), 0, 0);
    while at < lines.len() {
        at += 1;
        if lines[at - 1] != "```console" {
            continue;
        }
        blocks += 1;
        let end = at + lines[at..].iter().position(|l| *l == "```").expect("a block ends");
        assert!(lines[at].starts_with("$ "), "{file}:{}: a console block begins with a command", at + 1);
        while at < end {
            let line = at;
            let mut command = lines[at]["$ ".len()..].to_owned();
            at += 1;
            while let Some(more) = lines[at..end].first().and_then(|l| l.strip_prefix("> ")) {
                command = command + "\n" + more;
                at += 1;
            }
            let length = lines[at..end].iter().position(|l| l.starts_with("$ ")).unwrap_or(end - at);
            steps.push(Step { line, command, shown: at..at + length });
            at += length;
        }
    }
    (steps, blocks)
}

/// Is `line` what `pattern` shows, in which `…` stands for any text?
fn line_matches(pattern: &str, line: &str) -> bool {
    let mut parts = pattern.split('…');
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Are `lines` what `pattern` shows, in which a line `...` stands for any number of lines?
fn matches(pattern: &[&str], lines: &[&str]) -> bool {
    match pattern {
        [] => lines.is_empty(),
        ["...", rest @ ..] => (0..=lines.len()).any(|n| matches(rest, &lines[n..])),
        [first, rest @ ..] => {
            lines.split_first().is_some_and(|(line, more)| line_matches(first, line) && matches(rest, more))
        }
    }
}

/// The line with `…` for durations, speeds and measured memory, which no two runs share.
fn without_measurements(line: &str) -> String {
    const UNITS: [&str; 7] = ["s", "s:", "s,", "seconds", "tokens/s", "tokens/s,", "GB/s"];
    let words: Vec<&str> = line.split(' ').collect();
    let measured = line.contains("tokens/s") || line.starts_with("peak memory");
    let word = |at: usize| {
        let unit = words.get(at + 1).copied().unwrap_or_default();
        let number = words[at].starts_with(|c: char| c.is_ascii_digit());
        if number && (UNITS.contains(&unit) || measured && unit == "MB") { "…" } else { words[at] }
    };
    (0..words.len()).map(word).collect::<Vec<_>>().join(" ")
}

/// What the file shall show for `lines` where it shows `old` now: lines that match stay, and so does one `...`.
fn updated(old: &[&str], lines: &[&str]) -> Vec<String> {
    let keep = |old: &[&str], new: &[&str]| -> Vec<String> {
        let line = |(at, new): (usize, &&str)| match old.get(at) {
            Some(old) if line_matches(old, new) => (*old).to_owned(),
            _ => without_measurements(new),
        };
        new.iter().enumerate().map(line).collect()
    };
    let Some(dots) = old.iter().position(|l| *l == "...") else { return keep(old, lines) };
    let (head, tail) = (&old[..dots], &old[dots + 1..]);
    if lines.len() < head.len() + tail.len() {
        return keep(&[], lines);
    }
    let mut all = keep(head, &lines[..dots]);
    all.push("...".to_owned());
    all.extend(keep(tail, &lines[lines.len() - tail.len()..]));
    all
}

/// Where the commands of one file run.
struct Sandbox {
    dir: tempfile::TempDir,
    path: std::ffi::OsString,
    exit_code: i32,
}

impl Sandbox {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy(&root().join("fixtures"), &dir.path().join("work/fixtures"));
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        std::os::unix::fs::symlink(cargo_bin("hft-surgery"), bin.join("hft-surgery")).unwrap();
        let paths = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(std::iter::once(bin).chain(std::env::split_paths(&paths))).unwrap();
        Self { dir, path, exit_code: 0 }
    }

    /// What a terminal shows of the command.
    fn run(&mut self, command: &str) -> String {
        let script = format!("exec 2>&1\n(exit {})\n{command}", self.exit_code);
        let mut sh = Command::new("sh");
        sh.args(["-c", &script]).current_dir(self.dir.path().join("work")).env("PATH", &self.path);
        // The outputs are those of a machine without a GPU, without colours, with nothing in the cache.
        sh.env("CUDA_VISIBLE_DEVICES", "").env("HF_HOME", self.dir.path()).env_remove("HF_HUB_CACHE");
        sh.env_remove("CLICOLOR_FORCE").env_remove("COLUMNS").env("LC_ALL", "C");
        let output = sh.output().unwrap();
        self.exit_code = output.status.code().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// The lines without spaces at their ends and without empty lines at the end of all.
fn trimmed<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut lines: Vec<&str> = lines.map(str::trim_end).collect();
    while lines.last() == Some(&"") {
        lines.pop();
    }
    lines
}

/// The lines of both, `-` what the file shows, `+` what was printed.
fn difference(shown: &[&str], printed: &[&str]) -> String {
    let same = shown.iter().zip(printed).take_while(|(a, b)| line_matches(a, b)).count();
    let mut text = String::new();
    for line in &shown[..same] {
        let _ = writeln!(text, "  {line}");
    }
    for line in &shown[same..] {
        let _ = writeln!(text, "- {line}");
    }
    for line in &printed[same..] {
        let _ = writeln!(text, "+ {line}");
    }
    text
}

/// Runs the blocks of a file; the faults found, and the number of blocks.
fn check(file: &str, update: bool) -> (Vec<String>, usize) {
    let text = read(file);
    let lines: Vec<&str> = text.lines().collect();
    let (steps, blocks) = steps(file, &lines);
    let (mut faults, mut written, mut at) = (Vec::new(), Vec::<String>::new(), 0);
    let mut sandbox = Sandbox::new();
    for (number, step) in steps.iter().enumerate() {
        let output = sandbox.run(&step.command);
        let shown = trimmed(lines[step.shown.clone()].iter().copied());
        let printed = trimmed(output.lines());
        let place = format!("{file}:{}: $ {}", step.line + 1, step.command);
        if sandbox.exit_code != 0 && steps.get(number + 1).is_none_or(|next| next.command != "echo $?") {
            let code = sandbox.exit_code;
            faults.push(format!("{place}\nexit code {code}, and no `$ echo $?` after it\n{output}"));
        }
        let same = matches(&shown, &printed);
        written.extend(lines[at..step.shown.start].iter().map(|l| (*l).to_owned()));
        at = step.shown.end;
        if update && !same {
            written.extend(updated(&shown, &printed));
        } else {
            written.extend(lines[step.shown.clone()].iter().map(|l| (*l).to_owned()));
        }
        if !update && !same {
            faults.push(format!("{place}\n{}", difference(&shown, &printed)));
        }
    }
    written.extend(lines[at..].iter().map(|l| (*l).to_owned()));
    if update {
        fs::write(root().join(file), written.join("\n") + "\n").unwrap();
    }
    (faults, blocks)
}

#[test]
fn console_blocks_show_what_the_commands_print() {
    let update = std::env::var_os("UPDATE_GUIDES").is_some();
    let files = guides();
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = files.iter().map(|file| scope.spawn(move || check(file, update))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (file, (_, blocks)) in files.iter().zip(&results) {
        assert!(*blocks > 0, "{file} has no console block");
    }
    let blocks: usize = results.iter().map(|(_, blocks)| blocks).sum();
    assert!(blocks > 25, "{blocks} console blocks");
    let faults: Vec<_> = results.into_iter().flat_map(|(faults, _)| faults).collect();
    assert!(
        faults.is_empty(),
        "{}\nwhere the new output is right: UPDATE_GUIDES=1 cargo test --locked --test guides",
        faults.join("\n")
    );
}

#[test]
fn readme_is_short() {
    let lines = read("README.md").lines().count();
    assert!(lines <= 150, "{lines} lines");
}

/// The paths in code spans of `text`, without their templates (`src/cli/NAME.rs`).
fn paths(text: &str) -> Vec<&str> {
    const TREES: [&str; 6] = ["src/", "kernels/", "tests/", "fixtures/", "benches/", "docs/"];
    let spans = text.split('`').flat_map(str::split_whitespace);
    let path = |word: &&str| TREES.iter().any(|tree| word.starts_with(tree));
    let template = |word: &&str| word.contains("NAME") || word.contains(['*', '<', '{', '…', '|', ']']);
    spans
        .filter(path)
        .filter(|word| !template(word))
        .filter_map(|word| word.split([',', ';', ':']).next())
        .collect()
}

/// The targets of links in `text` that lead to files.
fn links(text: &str) -> Vec<&str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', '#']).next())
        .filter(|to| !to.contains(':'))
        .collect()
}

#[test]
fn paths_named_in_documents_exist() {
    let mut files = vec!["ARCHITECTURE.md".to_owned(), "CONTRIBUTING.md".to_owned()];
    files.extend(guides());
    let (mut checked, mut missing) = (0, Vec::new());
    for file in &files {
        let text = read(file);
        let beside = root().join(file).parent().map(Path::to_path_buf).unwrap();
        let named = paths(&text).into_iter().map(|path| (path, root().join(path)));
        let linked = links(&text).into_iter().filter(|to| !to.is_empty()).map(|to| (to, beside.join(to)));
        for (name, path) in named.chain(linked).collect::<Vec<(&str, PathBuf)>>() {
            checked += 1;
            if !path.exists() {
                missing.push(format!("{file}: {name}"));
            }
        }
    }
    assert!(missing.is_empty(), "no such file:\n{}", missing.join("\n"));
    assert!(checked > 50, "{checked} paths");
}

#[test]
fn patterns_match_lines_and_blocks() {
    assert!(line_matches("wrote … in … s", "wrote a in 0.1 s"));
    assert!(line_matches("ab", "ab") && !line_matches("ab", "abc") && !line_matches("ab…", "ba"));
    assert!(!line_matches("a…aa", "aa"));
    assert!(matches(&["a", "...", "c"], &["a", "b", "b", "c"]) && matches(&["...", "a"], &["a"]));
    assert!(
        !matches(&["a", "..."], &["b"]) && !matches(&["a"], &["a", "b"]) && !matches(&["a", "b"], &["a"])
    );
}

#[test]
fn blocks_are_read_and_updated() {
    let lines = ["```console", "$ cat >x <<E", "> 1", "> E", "$ f", "old …", "...", "end", "```", "$ no"];
    let (steps, blocks) = steps("x.md", &lines);
    assert_eq!(blocks, 1);
    let f = Step { line: 4, command: "f".into(), shown: 5..8 };
    assert_eq!(steps, [Step { line: 1, command: "cat >x <<E\n1\nE".into(), shown: 4..4 }, f]);
    assert_eq!(
        updated(&["old …", "...", "end"], &["old 1", "a", "b", "new 2 s"]),
        ["old …", "...", "new … s"]
    );
    assert_eq!(
        without_measurements("in 0.02 s: 3 tokens/s at 5.1 MB, 4 kB"),
        "in … s: … tokens/s at 5.1 MB, 4 kB"
    );
}
