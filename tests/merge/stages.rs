//! Files of several recipes, against what `mergekit-multi` makes of them (`fixtures/merge/make_stages.py`).

use std::path::Path;

use super::{at_root, fixture, path, values};
use crate::common::{files, read_tensors};

/// Runs a file of recipes; gives exit code and stderr.
fn run(file: &Path, flags: &[&str]) -> (Option<i32>, String) {
    let output = at_root(&[&["merge", "--no-sync", path(file)], flags].concat()).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn written(dir: &Path, text: &str) -> std::path::PathBuf {
    let file = dir.join("stages.yml");
    std::fs::write(&file, text).unwrap();
    file
}

fn assert_near(ours: &Path, golden: &Path) {
    let (ours, theirs) = (values(ours), values(golden));
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{}", golden.display());
    for (tensor, theirs) in &theirs {
        let largest = theirs.iter().fold(0f32, |m, x| m.max(x.abs())).max(1e-30);
        let most = ours[tensor].iter().zip(theirs).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert_eq!(ours[tensor].len(), theirs.len());
        assert!(most <= 1e-6 * largest, "{} {tensor}: {most} of {largest}", golden.display());
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut all: Vec<String> = entries.collect();
    all.sort();
    all
}

#[test]
fn files_of_several_recipes_are_mergekits() {
    let dir = tempfile::tempdir().unwrap();
    for (recipes, golden) in
        [("mega", "mega"), ("legacy_out_path", "mega"), ("unnamed_first", "unnamed_first")]
    {
        let out = dir.path().join(recipes);
        let (code, stderr) = run(&fixture(&format!("merge/stages/{recipes}.yml")), &["--out", path(&out)]);
        assert_eq!(code, Some(0), "{recipes}: {stderr}");
        assert_near(&out, &fixture(&format!("merge/stages/{golden}.safetensors")));
    }
    assert_eq!(names(dir.path()), ["legacy_out_path", "mega", "unnamed_first"], "no stage is left");
    // The provenance names what was given: every document, the models, no directory of a stage.
    let record = std::fs::read_to_string(dir.path().join("unnamed_first/hft_surgery.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    let stages: Vec<_> = record["plan"].as_array().unwrap().iter().map(|doc| doc["name"].clone()).collect();
    assert_eq!(stages, [serde_json::json!("average"), serde_json::json!("stack"), serde_json::Value::Null]);
    let inputs: Vec<&str> =
        record["inputs"].as_array().unwrap().iter().map(|i| i["path"].as_str().unwrap()).collect();
    assert!(inputs.iter().all(|input| input.starts_with("fixtures/merge/")), "{inputs:?}");
    assert!(inputs.contains(&"fixtures/merge/c"), "{inputs:?}");
}

/// As by one command for each stage.
#[test]
fn stages_are_what_commands_of_their_own_make() {
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(fixture("merge/stages/mega.yml")).unwrap();
    let (first, second) = text.split_once("---\n").unwrap();
    let slerp = dir.path().join("slerp");
    let (code, stderr) = run(&written(dir.path(), first), &["--out", path(&slerp)]);
    assert_eq!(code, Some(0), "{stderr}");
    let second = second.replace("gradient-slerp\n", &format!("{}\n", path(&slerp)));
    let (by_hand, in_one) = (dir.path().join("by-hand"), dir.path().join("in-one"));
    assert_eq!(run(&written(dir.path(), &second), &["--out", path(&by_hand)]).0, Some(0));
    assert_eq!(run(&written(dir.path(), &text), &["--out", path(&in_one)]).0, Some(0));
    assert!(read_tensors(&by_hand) == read_tensors(&in_one));
}

#[test]
fn the_intermediate_directory_keeps_stages_and_knows_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(fixture("merge/stages/mega.yml")).unwrap();
    let file = written(dir.path(), &text);
    let kept = dir.path().join("kept");
    // As the command line of mergekit-multi has it; a last document with a name needs no output.
    let (code, stderr) = run(&file, &["--intermediate-dir", path(&kept), "--lazy"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(names(&kept), ["gradient-slerp", "gradient-slerp-ties"]);
    assert_near(&kept.join("gradient-slerp-ties"), &fixture("merge/stages/mega.safetensors"));

    // A name may be a path.
    let paths = dir.path().join("paths");
    let (code, stderr) = run(&fixture("merge/stages/legacy_out_path.yml"), &["-I", path(&paths)]);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(names(&paths.join("models")), ["gradient-slerp", "gradient-slerp-ties"]);

    // What is there already is taken, and the result goes to the output that is named.
    let before = files(&kept);
    let out = dir.path().join("out");
    let (code, stderr) = run(&file, &["-I", path(&kept), "--out-path", path(&out)]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("gradient-slerp is the result of this recipe already"), "{stderr}");
    assert!(read_tensors(&out) == read_tensors(&kept.join("gradient-slerp-ties")) && files(&kept) == before);

    // Another recipe, or another model in place of one, has another result: it is not taken for this one.
    let file = written(dir.path(), &text.replace("- value: 0.5 #", "- value: 0.25 #"));
    let (code, stderr) = run(&file, &["-I", path(&kept)]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("exists") && files(&kept) == before, "{stderr}");
    let (code, stderr) = run(&file, &["-I", path(&kept), "--no-lazy"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(files(&kept) != before);
}

#[test]
fn explain_and_dry_run_plan_all_stages_and_write_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let file = fixture("merge/stages/unnamed_first.yml");
    let explained = at_root(&["merge", path(&file), "--explain"]).output().unwrap();
    let text = String::from_utf8(explained.stdout).unwrap();
    assert_eq!(explained.status.code(), Some(0), "{}", String::from_utf8_lossy(&explained.stderr));
    assert!(text.starts_with("stage average\nmerge_method: linear"), "{text}");
    assert!(text.contains("stage stack\nmerge_method: passthrough"), "{text}");
    let last = text.split("merge_method: task_arithmetic").nth(1).unwrap();
    assert!(last.contains("model.layers.2.self_attn.q_proj.weight F32 [8, 8]"), "{last}");
    let (code, stderr) = run(&file, &["--dry-run", "--out", path(&out)]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("dry run: ") && names(dir.path()).is_empty(), "{stderr}");
    // A fault of a late stage is found before the first is written.
    let text = std::fs::read_to_string(&file)
        .unwrap()
        .replace("model: fixtures/merge/c", "model: fixtures/merge/none");
    let (code, stderr) = run(&written(dir.path(), &text), &["--dry-run"]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("fixtures/merge/none: no such file"), "{stderr}");
}

const ONE: &str = "merge_method: linear\nparameters: {weight: 1}\nmodels:\n  - model: ";

#[test]
fn circles_unknown_stages_and_lost_results_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let document = |name: &str, model: &str| format!("{name}{ONE}{model}\n");
    let a = "fixtures/merge/a";
    for (documents, expected) in [
        (vec![document("name: p\n", "q"), document("name: q\n", "p")], "circle: `p` takes `q` takes `p`"),
        (vec![document("name: x\n", "x")], "`x` takes `x`"),
        (vec![document("name: x\n", a), document("name: x\n", a)], "two documents have the name `x`"),
        (vec![document("", a), document("", a)], "two documents have no `name`"),
        (
            vec![document("name: stage-one\n", a), document("", "stage-one2")],
            "did you mean the stage `stage-one`?",
        ),
        (vec![document("", "nowhere")], "nowhere: no such file or directory"),
        (vec![document("name: x\n", a), document("", a)], "no other stage takes the result of: x"),
        (vec![document("name: a+b\n", a)], "no `+`"),
        (vec![document("nam: x\n", a), document("", a)], "did you mean `name`?"),
    ] {
        let (code, stderr) = run(&written(dir.path(), &documents.join("---\n")), &["--out", path(&out)]);
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains(expected), "{expected}: {stderr}");
        assert_eq!(names(dir.path()), ["stages.yml"], "{expected}");
    }
    let up = [document("name: ../x\n", a), document("", "../x")].join("---\n");
    let kept = dir.path().join("kept");
    let (code, stderr) = run(&written(dir.path(), &up), &["-I", path(&kept), "--out", path(&out)]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("`../x` has no place in --intermediate-dir"), "{stderr}");
    assert_eq!(names(dir.path()), ["stages.yml"]);
}

/// An adapter may stand on the result of a stage.
#[test]
fn a_stage_is_the_base_of_an_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let base = "fixtures/lora/base/untied";
    let adapter = "fixtures/lora/adapters/plain";
    let text = format!("name: copy\n{ONE}{base}\n---\n{ONE}copy+{adapter}\n");
    let (staged, folded) = (dir.path().join("staged"), dir.path().join("folded"));
    let (code, stderr) = run(&written(dir.path(), &text), &["--out", path(&staged)]);
    assert_eq!(code, Some(0), "{stderr}");
    let args = ["merge", "--base", base, "--lora", adapter, "--out", path(&folded)];
    assert!(at_root(&args).output().unwrap().status.success());
    assert!(read_tensors(&staged) == read_tensors(&folded));
    let record = std::fs::read_to_string(staged.join("hft_surgery.json")).unwrap();
    assert!(record.contains(&format!("\"{base}\"")) && record.contains(adapter), "{record}");
}
