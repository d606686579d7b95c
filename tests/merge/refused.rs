//! What is wrong with a recipe is said at once, before anything is written.

use super::{at_root, path};
use crate::common::{tensor, write_checkpoint};

fn refused(recipe: &str) -> String {
    refused_with(recipe, &[])
}

fn refused_with(recipe: &str, flags: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (file, out) = (dir.path().join("r.yml"), dir.path().join("out"));
    std::fs::write(&file, recipe).unwrap();
    let output = at_root(&[&["merge", path(&file), "--out", path(&out)], flags].concat()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(!out.exists() && !stderr.contains("panicked"), "{stderr}");
    stderr
}

#[test]
fn every_fault_of_a_recipe_is_listed_with_the_nearest_spelling() {
    let stderr = refused(
        "merge_method: tise\nbase_modl: x\nmodels:\n  - model: a\n    modle: 1\ndtype: bfloat\nseed: -1\n",
    );
    for part in
        ["`tise`", "did you mean `ties`?", "`base_modl`", "`base_model`", "`modle`", "`bfloat`", "`seed`"]
    {
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
}

/// What a flag replaces must be right in the file, too.
#[test]
fn faults_that_flags_would_replace_are_listed() {
    let model = "models:\n  - model: fixtures/merge/a\n    parameters: {weight: 1}\n";
    let stderr = refused_with(
        &format!("merge_method: linear\nseed: -1\nout_dtype: bfloat\n{model}"),
        &["--seed", "5", "--dtype", "float32"],
    );
    assert!(stderr.contains("`seed` must be a whole number from 0"), "{stderr}");
    assert!(stderr.contains("unknown out_dtype `bfloat`"), "{stderr}");
    let stderr = refused_with(&format!("merge_method: linear\n{model}"), &["--dtype", "floot32"]);
    assert!(stderr.contains("unknown out_dtype `floot32`"), "{stderr}");
    assert!(stderr.contains("did you mean `float32`?"), "{stderr}");
}

#[test]
fn unknown_parameters_and_values_out_of_range_are_refused() {
    let stderr = refused(
        "merge_method: ties\nbase_model: fixtures/merge/base\nmodels:\n  - model: fixtures/merge/a\n    parameters: {wieght: 1, density: 1.5, lambda: 2}\nparameters: {rescale: l3}\n",
    );
    for part in ["did you mean `weight`?", "got 1.5, expected 0 to 1", "`lambda` is one value", "l3"] {
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
}

#[test]
fn missing_bases_and_wrong_counts_are_refused() {
    let stderr = refused(
        "merge_method: slerp\nmodels:\n  - model: fixtures/merge/a\n  - model: fixtures/merge/b\nparameters: {t: 0.5}\n",
    );
    assert!(stderr.contains("needs a base_model") && !stderr.contains("takes"), "{stderr}");
    let stderr = refused(
        "merge_method: slerp\nbase_model: fixtures/merge/base\nmodels:\n  - model: fixtures/merge/a\n  - model: fixtures/merge/b\nparameters: {t: 0.5}\n",
    );
    assert!(stderr.contains("slerp takes 1 model besides the base, got 2"), "{stderr}");
    assert!(stderr.contains("hint: take from the models of the recipe"), "{stderr}");
    let stderr =
        refused("merge_method: linear\nmodels:\n  - model: fixtures/merge/a\n  - model: fixtures/merge/b\n");
    assert!(stderr.contains("linear needs `weight` for every model"), "{stderr}");
    let stderr = refused(
        "merge_method: della\nbase_model: fixtures/merge/base\nmodels:\n  - model: fixtures/merge/a\n    parameters: {weight: 1, density: 0.9, epsilon: 0.2}\n",
    );
    assert!(stderr.contains("density ± epsilon"), "{stderr}");
    let stderr = refused(
        "merge_method: linear\nslices:\n  - sources:\n      - model: fixtures/merge/a\n        layer_range: [1, 4]\n        parameters: {weight: 1}\n",
    );
    assert!(stderr.contains("has no layer 3"), "{stderr}");
}

#[test]
fn what_is_no_yaml_is_refused() {
    for text in ["", "a: [", "- 1\n- 2\n", "merge_method: {a: 1}\n", "models: 3\n"] {
        refused(text);
    }
}

#[test]
fn an_existing_target_and_an_input_are_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let recipe = "fixtures/merge/recipes/linear.yml";
    for target in [path(&out), "fixtures/merge/a", "fixtures/merge"] {
        let output = at_root(&["merge", recipe, "--out", target]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{target}");
    }
}

#[test]
fn weights_that_cancel_and_numbers_beyond_f32_are_refused() {
    let recipe = |method: &str, weights: [&str; 2], set: &str| {
        let model = |name: &str, weight: &str| {
            format!("  - model: fixtures/merge/{name}\n    parameters: {{weight: {weight}}}\n")
        };
        let models = model("a", weights[0]) + &model("b", weights[1]);
        format!("merge_method: {method}\nmodels:\n{models}parameters: {{{set}}}\n")
    };
    for (method, set) in [("linear", ""), ("multislerp", "")] {
        let stderr = refused(&recipe(method, ["1", "-1"], set));
        assert!(stderr.contains("the weights add up to 0e0"), "{method}: {stderr}");
    }
    assert!(refused(&recipe("linear", ["0.3", "-0.3"], "")).contains("divided by their sum"));
    for weight in ["1e39", "-1e300"] {
        let stderr = refused(&recipe("linear", [weight, "1"], ""));
        assert!(stderr.contains("`weight`") && stderr.contains("beyond the range of f32"), "{stderr}");
    }
}

/// Finite inputs, infinite results: said with their number and the first tensor.
#[test]
fn results_that_are_not_finite_are_said() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let half = |x: f32| half::f16::from_f32(x).to_le_bytes();
    for (name, values) in [("a", [40_000f32, 1.0, f32::INFINITY]), ("b", [50_000f32, 2.0, 1.0])] {
        let bytes: Vec<u8> = values.iter().flat_map(|x| half(*x)).collect();
        let tensors = [tensor("model.norm.weight", "F16", &[3], bytes)];
        write_checkpoint(&at(name), &tensors, 1, r#"{"architectures":["X"]}"#);
    }
    let models = ["a", "b"].map(|name| format!("{}:weight=1", path(&at(name))));
    let out = at("out");
    let run = |set: &str| {
        let args = ["merge", "--method", "linear", "--model", &models[0], "--model", &models[1]];
        let output =
            at_root(&[&args[..], &["--set", set, "--force", "--out", path(&out)]].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let stderr = run("normalize=false");
    // 90,000 is beyond f16; the infinity of `a` is no news.
    assert!(
        stderr.contains("where the inputs have none: 1, the first in")
            && stderr.contains("`model.norm.weight`"),
        "{stderr}"
    );
    assert!(!run("normalize=true").contains("infinite"));
}

/// Paths are bytes; only a recipe is text.
#[test]
fn paths_of_flags_need_not_be_utf8() {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &[u8]| dir.path().join(std::ffi::OsStr::from_bytes(name));
    for (name, value) in [(&b"b\xff"[..], 1f32), (&b"m\xfe"[..], 3.0)] {
        let tensors = [tensor("model.norm.weight", "F32", &[1], value.to_le_bytes().to_vec())];
        write_checkpoint(&dir.path().join("made"), &tensors, 1, r#"{"architectures":["X"]}"#);
        std::fs::rename(dir.path().join("made"), at(name)).unwrap();
    }
    let out = dir.path().join("out");
    let mut model = at(b"m\xfe").into_os_string().into_vec();
    model.extend(b":weight=0.5");
    let mut command = at_root(&["merge", "--method", "task_arithmetic", "--out", path(&out), "--base"]);
    command.arg(at(b"b\xff")).arg("--model").arg(std::ffi::OsString::from_vec(model));
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(super::values(&out)["model.norm.weight"], [2.0]);
    let provenance = std::fs::read_to_string(out.join("hft_surgery.json")).unwrap();
    assert!(provenance.contains(r"m\\xfe") && provenance.contains(r"b\\xff"), "{provenance}");
}
