//! Every file of `fixtures/corrupt` is refused with a message that names it and its fault.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::io::Write;
use std::path::Path;

use common::{fails, fixture, path};

fn cases() -> Vec<(String, String)> {
    let list = std::fs::read_to_string(fixture("corrupt/FAULTS.tsv")).unwrap();
    let case = |line: &str| line.split_once('\t').map(|(p, w)| (p.to_owned(), w.to_owned())).unwrap();
    list.lines().map(case).collect()
}

fn same(a: &str, b: &str) -> bool {
    a.to_lowercase().contains(&b.to_lowercase())
}

#[test]
fn every_fault_is_named() {
    let cases = cases();
    assert!(cases.len() > 70);
    for (name, word) in &cases {
        let checkpoint = fixture("corrupt").join(name);
        for access in [&["inspect"][..], &["inspect", "--no-mmap"], &["verify"]] {
            let message = fails(&[access, &[path(&checkpoint)]].concat());
            assert!(same(&message, word), "{name}: expected `{word}` in {message}");
            assert!(message.contains(name.as_str()), "{name} is not named in {message}");
            assert!(
                !message.contains('\u{1b}') && !message.contains('\u{202e}'),
                "{name}: raw control codes"
            );
        }
    }
}

#[test]
fn the_messages_are_these() {
    let messages = cases().into_iter().map(|(name, _)| {
        let message = fails(&["inspect", path(&fixture("corrupt").join(&name))]);
        let root = path(&fixture("corrupt")).to_owned();
        format!("{name}\n    {}", message.trim_end().replace(&root, "corrupt").replace('\n', "\n    "))
    });
    insta::assert_snapshot!(messages.collect::<Vec<_>>().join("\n"));
}

/// A corrupt side makes `reset` write nothing, not even its staging directory.
#[test]
fn nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    for (name, _) in cases() {
        let bad = fixture("corrupt").join(&name);
        fails(&["reset", "--base", path(&fixture("base")), "--tuned", path(&bad), "--out", path(&out)]);
        fails(&["reset", "--base", path(&bad), "--tuned", path(&fixture("tuned")), "--out", path(&out)]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{name}");
    }
}

/// The largest header allowed, all white space: found faulty in bounded memory.
#[test]
fn a_header_of_100_mb_of_blanks_takes_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("blank.safetensors");
    let mut out = std::io::BufWriter::new(std::fs::File::create(&file).unwrap());
    out.write_all(&100_000_000u64.to_le_bytes()).unwrap();
    for _ in 0..100 {
        out.write_all(&[b' '; 1_000_000]).unwrap();
    }
    drop(out);
    // 160 MiB of data segment (anonymous memory): the text of the header and little besides.
    let command = format!("ulimit -d 163840; exec {} --threads 1 inspect {}", path(&bin()), path(&file));
    let output = std::process::Command::new("sh").args(["-c", &command]).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("EOF"), "{message}");
}

fn bin() -> std::path::PathBuf {
    assert_cmd::cargo::cargo_bin("hft-surgery")
}

#[test]
fn what_is_no_checkpoint_is_said() {
    let message = fails(&["inspect", "no/such@thing"]);
    assert!(message.contains("no such file") && message.contains("hf download no/such"), "{message}");
    assert!(fails(&["inspect", path(&fixture("make_fixtures.py"))]).contains("not a checkpoint"));
    assert!(fails(&["inspect", "/dev/null"]).contains("not a checkpoint"));
    assert!(Path::new("/dev/null").exists());
}
