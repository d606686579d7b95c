//! An input that another process truncates while a command reads it ends the command with an error that names it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod common;

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{large_pair, ok, path, wait, wait_until};

const SHARD: &str = "model-00003-of-00004.safetensors";

fn is_open(files: &Path, path: &Path) -> bool {
    let files = std::fs::read_dir(files).into_iter().flatten().flatten();
    files.map(|file| std::fs::read_link(file.path())).any(|file| file.is_ok_and(|file| file == path))
}

/// Truncates the shard of `side` when the command has opened it; a run that ends before, or opens the truncated file, is
/// tried again. Gives the message.
fn disturb(dir: &Path, line: &str, side: &str) -> String {
    const TRIES: usize = 30;
    let shard = dir.join(side).join(SHARD);
    let bytes = std::fs::read(&shard).unwrap();
    for _ in 0..TRIES {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin("hft-surgery"));
        command.args(line.split(' ')).current_dir(dir);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let files = format!("/proc/{}/fd", child.id());
        wait_until(&mut child, || is_open(Path::new(&files), &shard));
        File::options().write(true).open(&shard).unwrap().set_len(1 << 14).unwrap();
        let output = wait(child);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        std::fs::write(&shard, &bytes).unwrap();
        assert!(output.status.code().is_some(), "{line}: {:?}: {message}", output.status);
        let _ = std::fs::remove_dir_all(dir.join("out"));
        if output.status.code() == Some(2) && !message.contains("(truncated?)") {
            return message;
        }
    }
    panic!("{line}: ended {TRIES} times before its input was truncated");
}

#[test]
fn an_input_that_is_truncated_meanwhile_is_named() {
    let dir = tempfile::tempdir().unwrap();
    large_pair(dir.path());
    let at = |name: &str| dir.path().join(name);
    ok(&["patch", "create", path(&at("base")), path(&at("tuned")), "--out", path(&at("patch"))]);
    let before = std::fs::read_dir(dir.path()).unwrap().count();
    for (line, side) in [
        ("diff base tuned", "tuned"),
        ("verify tuned", "tuned"),
        ("reset --base base --tuned tuned --out out", "base"),
        ("reset --base base --tuned tuned --granularity element --out out", "tuned"),
        ("merge --method linear --model base:weight=0.5 --model tuned:weight=0.5 --out out", "tuned"),
        ("patch create base tuned --out out", "tuned"),
        ("patch apply base patch --out out", "base"),
    ] {
        for options in ["--threads 2", "--threads 1 --no-mmap"] {
            let message = disturb(dir.path(), &format!("{line} {options}"), side);
            let expected = format!("{side}/{SHARD}: the file changed while it was being read\n");
            assert!(message.contains(&expected), "{line}: {message}");
            assert_eq!(message.matches("error: ").count(), 1, "{line}: {message}");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), before, "{line}: nothing is left");
        }
    }
}
