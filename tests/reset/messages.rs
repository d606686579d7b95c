//! What `reset`, `plan` and `diff` say of a share, of two kinds of model and of a glob that matches nothing.

use crate::common::{counted, fails, fixture, hft, output, path, run, write_checkpoint};

/// `--ratio` of `reset` and `--ratio` of `plan` count opposite sides of one draw.
#[test]
fn both_meanings_of_a_share_are_said() {
    let (base, tuned) = (fixture("base"), fixture("tuned"));
    let said = |args: &[&str]| String::from_utf8(run(args).stderr).unwrap();
    let reset = |ratio: &str| {
        said(&["reset", "--base", path(&base), "--tuned", path(&tuned), "--dry-run", "--ratio", ratio])
    };
    assert!(
        reset("0.9").contains("--ratio 0.9 of reset is the share that returns to base;"),
        "{}",
        reset("0.9")
    );
    assert!(reset("0.9").contains("it is 0.1\n") && !reset("0.5").contains("--ratio"));
    let plan = said(&["plan", path(&base), "--ratio", "0.3"]);
    assert!(plan.contains("--ratio 0.3 of plan is the share that is trainable, as in train;"), "{plan}");
    assert!(plan.contains("it is 0.7\n"), "{plan}");
}

/// Another size of one architecture is one fault, and not one for each tensor.
#[test]
fn another_size_of_model_is_said_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (name, size) in [("base", 4u64), ("tuned", 6)] {
        let tensors: Vec<_> =
            (0..5).map(|i| counted(&format!("model.layers.{i}.mlp.up_proj.weight"), &[2, size], 7)).collect();
        let config = format!(r#"{{"architectures":["LlamaForCausalLM"],"hidden_size":{size}}}"#);
        write_checkpoint(&at(name), &tensors, 1, &config);
    }
    let (base, tuned, out) = (at("base"), at("tuned"), at("out"));
    let error = fails(&["reset", "--base", path(&base), "--tuned", path(&tuned), "--out", path(&out)]);
    assert!(
        error.starts_with(
            "error: not a base and its fine-tune: different sizes of LlamaForCausalLM: hidden_size 4 and 6\nhint: give the checkpoint that "
        ),
        "{error}"
    );
    assert_eq!(error.lines().count(), 2, "{error}");
    let diff = run(&["diff", path(&at("base")), path(&at("tuned"))]);
    let shown = String::from_utf8(diff.stdout).unwrap();
    assert!(shown.starts_with("different sizes of LlamaForCausalLM: hidden_size 4 and 6\n"), "{shown}");
    assert!(
        shown.contains(
            "5 tensors: shapes differ: [2, 4] in a, [2, 6] in b, not compared: `model.layers.0.mlp.up_proj.weight`, "
        ),
        "{shown}"
    );
    let missed = fails(&["diff", path(&at("base")), path(&at("base")), "--only", "*up_porj*"]);
    assert!(
        missed.contains("--only `*up_porj*` matches no tensor\nhint: `*up_proj*` matches 5 tensors"),
        "{missed}"
    );
}

/// Paths in `hft_surgery.json` are as they were typed: the checkpoints are still known from another directory.
#[test]
fn swapped_sides_are_warned_of_from_any_directory() {
    let dir = tempfile::tempdir().unwrap();
    for (name, first) in [("base", 7), ("tuned", 900)] {
        let tensors = [counted("model.layers.0.mlp.up_proj.weight", &[2, 4], first)];
        write_checkpoint(&dir.path().join(name), &tensors, 1, "{}");
    }
    let made = ["reset", "--base", "base", "--tuned", "tuned", "--out", "half"];
    assert!(output(hft(&made).current_dir(dir.path())).status.success());
    let (half, tuned) = (dir.path().join("half"), dir.path().join("tuned"));
    let swapped = run(&["reset", "--base", path(&half), "--tuned", path(&tuned), "--dry-run"]);
    let said = String::from_utf8(swapped.stderr).unwrap();
    assert!(said.contains("by `reset`: are base and tuned swapped?"), "{said}");
}
