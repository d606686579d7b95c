//! What is wrong with a recipe is said at once, before anything is written.

use super::{at_root, path};

fn refused(recipe: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (file, out) = (dir.path().join("r.yml"), dir.path().join("out"));
    std::fs::write(&file, recipe).unwrap();
    let output = at_root(&["merge", path(&file), "--out", path(&out)]).output().unwrap();
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
    assert!(stderr.contains("needs a base_model") && stderr.contains("takes 1 to 1 models"), "{stderr}");
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
