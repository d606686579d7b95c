//! `inspect`, `verify`, `plan`, `completions`, `man`: one snapshot or law per outcome.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{fails, fixture, ok, path, run};
use serde_json::Value;

#[test]
fn inspect_shows_what_is_inside() {
    let root = fixture("base");
    insta::assert_snapshot!("inspect_fixture", ok(&["inspect", path(&root)]));
    let json: Value = serde_json::from_str(&ok(&["inspect", path(&root), "--json", "--tensors"])).unwrap();
    // 264·32·2 + 6·(2·32 + 3·88·32 + 2·16·32 + 2·32·32) + 32
    assert_eq!(json["parameters"], 86432);
    assert_eq!(json["tensor_list"].as_array().map(Vec::len), Some(57));
    assert_eq!(json["categories"]["mlp"]["parameters"], 6 * 3 * 88 * 32);
    let index = ok(&["inspect", path(&root.join("model.safetensors.index.json")), "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&index).unwrap()["parameters"], 86432);
    let shard = ok(&["inspect", path(&root.join("model-00001-of-00003.safetensors")), "--json"]);
    assert!(serde_json::from_str::<Value>(&shard).unwrap()["tensors"].as_u64().is_some_and(|n| n < 57));
}

#[test]
fn a_repository_name_is_looked_up_in_the_local_cache() {
    let dir = tempfile::tempdir().unwrap();
    let repo = dir.path().join("models--acme--tiny");
    for below in ["snapshots/0123abc", "refs", "blobs"] {
        std::fs::create_dir_all(repo.join(below)).unwrap();
    }
    std::fs::write(repo.join("refs/main"), "0123abc").unwrap();
    for (i, (name, bytes)) in common::files(&fixture("base")).into_iter().enumerate() {
        let blob = repo.join(format!("blobs/{i}"));
        std::fs::write(&blob, bytes).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{i}"), repo.join("snapshots/0123abc").join(name))
            .unwrap();
    }
    let (fixture_base, tuned) = (fixture("base"), fixture("tuned"));
    let base = |name: &str, more: &[&str]| {
        let args = [&["reset", "--base", name, "--tuned", path(&tuned)], more].concat();
        common::output(common::hft(&args).env("HF_HUB_CACHE", dir.path()))
    };
    let out = dir.path().join("out");
    for name in ["acme/tiny", "acme/tiny@main", "acme/tiny@0123abc"] {
        assert_eq!(base(name, &["--out", path(&out), "--force"]).status.code(), Some(0), "{name}");
    }
    let other = base("acme/tiny@other", &["--dry-run"]);
    let stderr = String::from_utf8_lossy(&other.stderr);
    assert_eq!(other.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("has `acme/tiny`, but not its revision `other`"), "{stderr}");
    // Sidecars that are links into the cache's own blobs are carried over.
    let args =
        ["reset", "--tuned", "acme/tiny", "--base", path(&fixture_base), "--out", path(&out), "--force"];
    assert_eq!(common::output(common::hft(&args).env("HF_HUB_CACHE", dir.path())).status.code(), Some(0));
    assert!(out.join("tokenizer.json").is_file());
}

#[test]
fn verify_writes_and_checks_manifests() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = dir.path().join("base.sha256.json");
    let base = fixture("base");
    ok(&["verify", path(&base), "--write-manifest", path(&manifest)]);
    let json: Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    // Of an independent program.
    let shard = "model-00001-of-00003.safetensors";
    let sum = common::output(std::process::Command::new("sha256sum").arg(base.join(shard)));
    let sum = String::from_utf8(sum.stdout).unwrap();
    assert_eq!(json["files"][shard]["sha256"].as_str(), sum.split(' ').next());
    ok(&["verify", path(&base), "--manifest", path(&manifest)]);
    let output = run(&["verify", path(&fixture("tuned")), "--manifest", path(&manifest)]);
    assert_eq!(output.status.code(), Some(1));
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("differs: tensor `lm_head.weight`: content differs"), "{stdout}");
    // The same tensors in other files: files differ, tensors do not.
    let all: Vec<_> = common::read_tensors(&base).into_iter().collect();
    let shape = |name: &str| -> Vec<u64> {
        let list: Value =
            serde_json::from_str(&ok(&["inspect", path(&base), "--json", "--tensors"])).unwrap();
        let row = list["tensor_list"].as_array().unwrap().iter().find(|t| t["name"] == name).unwrap().clone();
        serde_json::from_value(row["shape"].clone()).unwrap()
    };
    let tensors: Vec<_> =
        all.into_iter().map(|(n, b)| common::tensor(&n.clone(), "BF16", &shape(&n), b)).collect();
    common::write_checkpoint(&dir.path().join("one"), &tensors, 1, "{}");
    let output = run(&["verify", path(&dir.path().join("one")), "--manifest", path(&manifest), "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["digest"], json["digest"]);
    assert!(found["mismatches"].as_array().unwrap().iter().all(|m| m["kind"] == "file"));
    std::fs::write(&manifest, "{}").unwrap();
    assert!(fails(&["verify", path(&base), "--manifest", path(&manifest)]).contains("not a manifest"));
}

#[test]
fn plans_are_made_shown_and_combined() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let base = fixture("base");
    let table = ok(&["plan", path(&base), "--ratio", "0.5", "--seed", "1", "--out", path(&at("a.json"))]);
    insta::assert_snapshot!("plan_fixture", table);
    ok(&["plan", path(&base), "--seed", "2", "--out", path(&at("b.json"))]);
    ok(&["plan", "complement", path(&at("a.json")), "--out", path(&at("c.json"))]);
    ok(&["plan", path(&base), "--complement-of", path(&at("a.json")), "--out", path(&at("d.json"))]);
    let plan = |name: &str| -> Value { serde_json::from_slice(&std::fs::read(at(name)).unwrap()).unwrap() };
    assert_eq!(plan("c.json"), plan("d.json"));
    assert_eq!(plan("c.json")["frozen"], plan("a.json")["trainable"]);
    let keys: Vec<String> = plan("a.json").as_object().unwrap().keys().cloned().collect();
    assert_eq!(
        keys,
        ["format", "version", "strategy", "ratio", "seed", "round", "model", "shares", "trainable", "frozen"]
    );
    for operation in ["union", "intersect", "difference"] {
        ok(&["plan", operation, path(&at("a.json")), path(&at("b.json")), "--out", path(&at("x.json"))]);
        ok(&["plan", "show", path(&at("x.json")), "--checkpoint", path(&base)]);
    }
    let all = ok(&["plan", "union", path(&at("a.json")), path(&at("c.json")), "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&all).unwrap()["frozen"], Value::Array(vec![]));
    ok(&["plan", "show", path(&at("a.json"))]);
}

#[test]
fn plans_of_any_strategy_can_be_carried_out() {
    let dir = tempfile::tempdir().unwrap();
    let plan = dir.path().join("p.json");
    let (base, tuned) = (fixture("base"), fixture("tuned"));
    for strategy in ["category", "layer", "model", "random-tensor"] {
        for balance in ["count", "params"] {
            let args =
                ["plan", path(&tuned), "--strategy", strategy, "--balance", balance, "--out", path(&plan)];
            if (strategy, balance) == ("random-tensor", "params") {
                assert!(fails(&args).contains("needs a quota"));
                continue;
            }
            ok(&args);
            ok(&[
                "reset",
                "--base",
                path(&base),
                "--tuned",
                path(&tuned),
                "--plan",
                path(&plan),
                "--dry-run",
            ]);
        }
    }
}

#[test]
fn completions_and_the_manual_name_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(ok(&["completions", shell]).contains("inspect"));
    }
    assert!(ok(&["man"]).contains("hft\\-surgery"));
    for (page, words) in [
        (&["reset"][..], ["hft\\-surgery\\-reset", "dry\\-run", "\\-\\-threads", "EXAMPLES"]),
        (&["plan", "complement"], ["hft\\-surgery plan complement", "PLAN", "\\-\\-threads", "EXAMPLES"]),
        (&["patch", "create"], ["hft\\-surgery patch create", "\\-\\-level", "\\-\\-threads", "EXAMPLES"]),
        (&["lora", "extract"], ["hft\\-surgery lora extract", "\\-\\-rank", "\\-\\-threads", "EXAMPLES"]),
    ] {
        let text = ok(&[&["man"], page].concat());
        words.iter().for_each(|word| assert!(text.contains(word), "{page:?}: {word}: {text}"));
    }
    assert!(fails(&["man", "nothing"]).contains("no subcommand `nothing`"));
    assert!(fails(&["man", "plan", "nothing"]).contains("no subcommand `plan nothing`"));
}

/// What is required stands in the usage line; the global options stand last, under their own heading.
#[test]
fn help_shows_what_is_required_and_global_options_last() {
    for (command, usage) in [
        (&["reset"][..], "reset [OPTIONS] --base <CKPT> --tuned <CKPT> --out <DIR>"),
        (&["merge"], "merge [OPTIONS] --out <DIR> <RECIPE.yml>"),
        (&["train"], "train [OPTIONS] --model <CKPT> --data <FILE> --out <DIR>"),
        (&["eval"], "eval [OPTIONS] --model <CKPT> --data <FILE>"),
        (&["patch", "create"], "patch create [OPTIONS] --out <FILE> <BASE> <TUNED>"),
        (&["patch", "apply"], "patch apply [OPTIONS] --out <DIR> <BASE> <PATCH>"),
        (
            &["lora", "extract"],
            "lora extract [OPTIONS] --out <DIR> <--rank <R>|--energy <SHARE>|--threshold <S>> <BASE> <TUNED>",
        ),
        (&["lora", "combine"], "lora combine [OPTIONS] --weights <W>... --out <DIR> <ADAPTER>..."),
        (&["plan", "complement"], "plan complement [OPTIONS] <PLAN>"),
    ] {
        let (short, long) = (ok(&[command, &["-h"]].concat()), ok(&[command, &["--help"]].concat()));
        for text in [&short, &long] {
            assert!(text.contains(&format!("Usage: hft-surgery {usage}\n")), "{text}");
            let (own, global) = text.split_once("Global options:\n").unwrap();
            let options = ["--threads", "--quiet", "--verbose", "--color"];
            assert!(options.iter().all(|o| global.contains(o) && !own.contains(o)), "{text}");
        }
        assert!(long.contains("\nExamples:\n") && !short.contains("Examples:"), "{long}");
    }
}

/// More shards than a process may open are one error before any is opened; a soft limit is raised to the hard one.
#[test]
fn files_are_counted_before_they_are_opened() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        let tensors: Vec<_> = (0..60).map(|i| common::counted(&format!("t{i}"), &[2, 2], i)).collect();
        common::write_checkpoint(&dir.path().join(name), &tensors, 60, "{}");
    }
    let bin = assert_cmd::cargo::cargo_bin("hft-surgery");
    let limited = |ulimit: &str, line: &str| {
        let script = format!("ulimit {ulimit} && exec {} {line}", path(&bin));
        let mut command = std::process::Command::new("sh");
        common::output(command.args(["-c", &script]).current_dir(dir.path()))
    };
    let merge = "merge --method linear --model a:weight=1 --model b:weight=1 --out out";
    for (limit, line, fault) in [
        ("-n 64", "inspect a", "error: a: 60 files to be open at once, but this process may open 64"),
        (
            "-n 128",
            merge,
            "error: 2 checkpoints: 120 files to be open at once, but this process may open 128",
        ),
    ] {
        let output = limited(limit, line);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.starts_with(fault) && message.matches("error: ").count() == 1, "{message}");
        assert!(message.contains("hint: raise the limit, such as with `ulimit -n "), "{message}");
    }
    for line in ["inspect a", merge] {
        let output = limited("-S -n 64", line);
        assert_eq!(output.status.code(), Some(0), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_closed_pipe_is_no_error() {
    let bin = assert_cmd::cargo::cargo_bin("hft-surgery");
    let script = format!("{} inspect --tensors {} | head -n 1", path(&bin), path(&fixture("base")));
    let output = common::output(std::process::Command::new("bash").args(["-o", "pipefail", "-c", &script]));
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
}

/// Names of files that could act on a terminal reach it escaped: in messages, in JSON and in CSV.
#[test]
fn names_cannot_paint_the_terminal() {
    let hidden = "\u{1b}[31m\u{7f}\u{9b}\u{202e}\u{61c}";
    let is_hidden = |c: char| (c.is_control() && c != '\n') || "\u{202e}\u{61c}".contains(c);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let t = |name: &str| common::counted(name, &[2, 2], 1);
    let two = |root: &str, names: [String; 2]| {
        std::fs::create_dir(at(root)).unwrap();
        for (i, name) in names.iter().enumerate() {
            common::write_file(&at(root).join(name), &[t(&format!("t{i}"))], "{}");
        }
    };
    two("indexes", ["a", "b"].map(|n| format!("{n}{hidden}.safetensors.index.json")));
    two("files", ["a", "b"].map(|n| format!("{n}{hidden}.safetensors")));
    two("numbers", ["1", "2"].map(|n| format!("{hidden}-0000{n}-of-00003.safetensors")));
    for (root, word) in [
        ("indexes", "more than one index"),
        ("files", "more than one checkpoint"),
        ("numbers", "shard numbers disagree"),
    ] {
        let stderr = fails(&["inspect", path(&at(root))]);
        assert!(stderr.contains(word) && stderr.contains("\\u{1b}[31m\\u{7f}\\u{9b}"), "{stderr}");
        assert!(!stderr.contains(is_hidden), "{stderr:?}");
    }
    // JSON strings may hold all of these but the control characters below U+0020.
    let name = "=a\u{7f}\u{9b}\u{202e}\u{61c}.weight";
    for (root, first) in [("x", 1), ("y", 2)] {
        let tensors = [common::counted(name, &[2, 2], first)];
        common::write_checkpoint(&at(root), &tensors, 1, r#"{"architectures":["X"]}"#);
    }
    let (x, y) = (at("x"), at("y"));
    let commands: [&[&str]; 5] = [
        &["diff", path(&x), path(&y), "--json"],
        &["diff", path(&x), path(&y), "--csv"],
        &["inspect", path(&x), "--json", "--tensors"],
        &["verify", path(&x), "--json"],
        &["plan", path(&x), "--json"],
    ];
    for args in commands {
        let output = run(args);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!text.contains(is_hidden) && text.contains(".weight"), "{args:?}: {text:?}");
        if args.contains(&"--json") {
            assert!(text.contains("=a\\u007f\\u009b\\u202e\\u061c"), "{args:?}: {text}");
            serde_json::from_str::<Value>(&text).unwrap();
        } else {
            assert!(text.contains("\n'=a\\u{7f}\\u{9b}\\u{202e}\\u{61c}.weight,changed,"), "{text}");
        }
    }
}

/// A full stdout is not a full disk: the checkpoint is there.
#[test]
fn a_full_stdout_does_not_blame_the_output() {
    let dir = tempfile::tempdir().unwrap();
    let (base, tuned, out) = (fixture("base"), fixture("tuned"), dir.path().join("out"));
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let args = ["reset", "--base", path(&base), "--tuned", path(&tuned), "--out", path(&out)];
    let mut command = common::hft(&args);
    let output = common::wait(command.stdout(full).stderr(std::process::Stdio::piped()).spawn().unwrap());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("write stdout") && !stderr.contains("--out"), "{stderr}");
    ok(&["inspect", path(&out)]);
}

/// A complex number has no order and no place among weights: it is never taken for its magnitude.
#[test]
fn complex_numbers_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let side = |name: &str, byte: u8| {
        let t = common::tensor("model.layers.0.mlp.up_proj.weight", "C64", &[2, 2], vec![byte; 32]);
        common::write_checkpoint(&dir.path().join(name), &[t], 1, r#"{"architectures":["X"]}"#);
        dir.path().join(name)
    };
    let (base, tuned, out) = (side("base", 1), side("tuned", 2), dir.path().join("out"));
    let inputs = ["reset", "--base", path(&base), "--tuned", path(&tuned), "--out", path(&out)];
    let masked = ["--granularity", "element", "--selector", "top-magnitude"];
    let stderr = fails(&[&inputs[..], &masked].concat());
    assert!(stderr.contains("no magnitude in a tensor of type C64") && !out.exists(), "{stderr}");
}
