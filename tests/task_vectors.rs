//! `diff --advise`, `diff --spectrum` and `diff --plot-blocks` against PyTorch, and their laws.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::{Path, PathBuf};

use common::{fails, fixture, ok, path, run, tensor, write_checkpoint};
use serde_json::Value;

fn side(name: &str) -> PathBuf {
    fixture("task_vectors").join(name)
}

fn golden() -> Value {
    serde_json::from_slice(&std::fs::read(side("expected.json")).unwrap()).unwrap()
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&ok(&[args, &["--json"]].concat())).unwrap()
}

/// Whether the numbers differ by at most `relative` of the expected one, or are both null.
fn near(got: &Value, expected: &Value, relative: f64) -> bool {
    match (got.as_f64(), expected.as_f64()) {
        (Some(got), Some(expected)) => (got - expected).abs() <= relative * expected.abs(),
        _ => got.is_null() && expected.is_null(),
    }
}

fn advice(extra: &[&str]) -> Value {
    let (base, a, b, c) = (side("base"), side("a"), side("b"), side("c"));
    let args = ["diff", "--base", path(&base), path(&a), path(&b), path(&c), "--advise"];
    json(&[&args[..], extra].concat())
}

#[test]
fn overlaps_agree_with_pytorch() {
    let golden = golden();
    for extra in [&[][..], &["--no-mmap"]] {
        let found = advice(extra);
        assert_eq!(found["pairs"].as_array().unwrap().len(), 3);
        assert_eq!(found["pairs"][0]["summary"]["nonfinite"], 2);
        for (pair, names) in found["pairs"].as_array().unwrap().iter().zip(["a b", "a c", "b c"]) {
            let expected = golden["pairs"][names].as_object().unwrap();
            let rows = pair["tensors"].as_array().unwrap();
            assert_eq!(rows.len(), expected.len());
            for row in rows {
                let name = row["name"].as_str().unwrap();
                let expected = &expected[name];
                let counts = [
                    "elements",
                    "changed_1",
                    "changed_2",
                    "changed_both",
                    "top_1",
                    "top_2",
                    "top_both",
                    "top_opposite",
                ];
                for count in counts {
                    assert_eq!(row[count], expected[count], "{names} {name} {count}");
                }
                let opposite = expected["opposite"].as_f64().unwrap();
                let both = expected["changed_both"].as_f64().unwrap();
                let conflict = row["sign_conflict"].as_f64().unwrap_or(0.0);
                assert!((conflict * both - opposite).abs() < 1e-9, "{names} {name}");
                for norm in ["l2_1", "l2_2", "l2_base"] {
                    assert!(near(&row[norm], &expected[norm], 1e-12), "{names} {name} {norm}: {row}");
                }
                let cosine = (row["cosine"].as_f64(), expected["cosine"].as_f64());
                let same = match cosine {
                    (Some(got), Some(expected)) => (got - expected).abs() < 1e-12,
                    (got, expected) => got == expected,
                };
                assert!(same, "{names} {name}: {cosine:?}");
            }
        }
    }
}

/// Totals, blocks and kinds are sums over tensors.
#[test]
fn groups_add_up() {
    let found = advice(&[]);
    let pair = &found["pairs"][0];
    let total = |rows: &Value, key: &str| {
        rows.as_array().unwrap().iter().map(|row| row[key].as_u64().unwrap()).sum::<u64>()
    };
    for key in ["elements", "changed_both", "top_both", "top_opposite"] {
        let all = pair["summary"][key].as_u64().unwrap();
        assert_eq!(total(&pair["tensors"], key), all);
        assert_eq!(total(&pair["summary"]["blocks"], key), all);
        assert_eq!(total(&pair["summary"]["kinds"], key), all);
        let kinds: u64 =
            pair["categories"].as_object().unwrap().values().map(|c| c[key].as_u64().unwrap()).sum();
        assert_eq!(kinds, all);
    }
}

#[test]
fn the_recipe_is_one_that_merge_runs() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (recipe, out) = (at("recipe.yml"), at("out"));
    let [base, a, b] = ["base", "a", "b"].map(|name| fixture("merge").join(name));
    let args =
        ["diff", "--base", path(&base), path(&a), path(&b), "--advise", "--write-recipe", path(&recipe)];
    let found = json(&args);
    let text = std::fs::read_to_string(&recipe).unwrap();
    assert_eq!(found["recipe"].as_str(), Some(text.as_str()));
    ok(&["merge", path(&recipe), "--out", path(&out)]);
    // The share of its own change that the merge keeps of each fine-tune is the one foretold.
    for (i, tuned) in [&a, &b].into_iter().enumerate() {
        let both = json(&["diff", "--base", path(&base), path(tuned), path(&out)]);
        let summary = &both["summary"];
        let kept = summary["cosine"].as_f64().unwrap() * summary["l2_2"].as_f64().unwrap()
            / summary["l2_1"].as_f64().unwrap();
        let foretold = found["models"][i]["kept_by_recipe"].as_f64().unwrap();
        assert!((kept - foretold).abs() < 1e-6, "{kept} {foretold}");
    }
    // A recipe of ours is replaced, another file is not.
    ok(&args);
    std::fs::write(&recipe, "mine: true\n").unwrap();
    assert!(fails(&args).contains("recipe.yml"));
    assert_eq!(std::fs::read_to_string(&recipe).unwrap(), "mine: true\n");
}

#[test]
fn the_base_itself_is_no_fine_tune() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = dir.path().join("recipe.yml");
    let (base, a) = (side("base"), side("a"));
    let args = ["diff", "--base", path(&base), path(&a), path(&base), "--advise"];
    let found = json(&args);
    let rules: Vec<&str> =
        found["advice"].as_array().unwrap().iter().filter_map(|r| r["rule"].as_str()).collect();
    assert_eq!(rules, ["base_itself", "nothing_to_merge"]);
    assert_eq!(found["recipe"], Value::Null);
    assert!(fails(&[&args[..], &["--write-recipe", path(&recipe)]].concat()).contains("nothing to merge"));
    assert!(!recipe.exists());
    let copy = json(&["diff", "--base", path(&base), path(&a), path(&a), "--advise"]);
    assert_eq!(copy["advice"][0]["rule"], "copy");
}

/// Sums over many pieces, by closed forms, and the same bits for every number of threads.
#[test]
fn large_tensors_are_summed_piece_by_piece() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let n = 700_003usize;
    let write = |name: &str, value: &dyn Fn(usize) -> f32| {
        let bytes = (0..n).flat_map(|i| value(i).to_le_bytes()).collect();
        write_checkpoint(&at(name), &[tensor("w", "F32", &[n as u64], bytes)], 1, "{}");
    };
    write("base", &|_| 0.0);
    // A tenth is 4 and a tenth 3: the top ends in the second value, with all that equal it.
    let size = |i: usize| match i % 10 {
        0 => 4.0,
        1 | 2 => 3.0,
        _ => 1.0,
    };
    write("a", &size);
    write("b", &|i| if i % 2 == 0 { size(i) } else { -size(i) });
    let [base, a, b] = ["base", "a", "b"].map(at);
    let args = ["diff", "--base", path(&base), path(&a), path(&b), "--advise"];
    let found = json(&args);
    let row = &found["pairs"][0]["tensors"][0];
    let count = |rest: &[usize]| (0..n).filter(|i| rest.contains(&(i % 10))).count() as u64;
    assert_eq!(row["top_1"].as_u64(), Some(count(&[0, 1, 2])));
    assert_eq!(row["top_both"], row["top_1"]);
    assert_eq!(row["top_opposite"].as_u64(), Some(count(&[1])));
    assert_eq!(row["changed_both"].as_u64(), Some(n as u64));
    let with = |threads: &str| ok(&[&args[..], &["--json", "--threads", threads]].concat());
    assert_eq!(with("1"), with("3"));
}

#[test]
fn what_has_no_comparison_is_refused() {
    let [base, a, b, c] = ["base", "a", "b", "c"].map(side);
    let (base, a, b, c) = (path(&base), path(&a), path(&b), path(&c));
    assert!(fails(&["diff", base, a, b]).contains("got 3 checkpoints, expected two"));
    assert!(fails(&["diff", "--base", base, a, b, c]).contains("got 3 checkpoints"));
    assert!(fails(&["diff", "--base", base, a, b, "--csv"]).contains("has no --csv"));
    assert!(fails(&["diff", "--base", base, a, b, c, "--spectrum"]).contains("got 3 checkpoints"));
    assert!(fails(&["diff", a, b, "--advise"]).contains("--base"));
    assert!(fails(&["diff", a, b, "--spectrum", "--ranks", "0"]).contains("at least 1"));
    assert!(fails(&["diff", base, a, "--spectrum", "--only", "model.norm.*"]).contains("no matrix"));
    assert!(fails(&["diff", base, a, "--plot-blocks", base]).contains("--plot-blocks"));
}

#[test]
fn spectra_agree_with_pytorch() {
    let golden = golden();
    let base = side("base");
    for (name, of_weights) in [("a", false), ("b", false), ("c", false), ("a", true)] {
        let tuned = side(name);
        let mut args = vec!["diff", path(&base), path(&tuned), "--spectrum", "--ranks", "1,2,4"];
        args.extend(of_weights.then_some("--weights"));
        let found = json(&args);
        let expected = if of_weights { &golden["weights"] } else { &golden["spectra"][name] };
        let matrices = expected.as_object().unwrap();
        let rows = found["tensors"].as_array().unwrap();
        assert_eq!(rows.len(), matrices.len());
        let mut with = 0;
        for row in rows {
            let of = row["name"].as_str().unwrap();
            let expected = &matrices[of];
            if expected.is_null() {
                assert!(row["effective_rank"].is_null() && row["norm"].is_null(), "{name} {of}");
                continue;
            }
            with += 1;
            for measure in ["effective_rank", "stable_rank", "norm", "largest", "rounding_share"] {
                assert!(
                    near(&row[measure], &expected[measure], 1e-6),
                    "{name} {of} {measure}: {row} {expected}"
                );
            }
            for rank in ["rank_90", "rank_99", "rank_above_rounding"] {
                assert_eq!(row[rank], expected[rank], "{name} {of} {rank}");
            }
            for k in ["1", "2", "4"] {
                assert!(near(&row["energy"][k], &expected["energy"][k], 1e-9), "{name} {of}");
                let (got, expected) = (&row["decay"][k], &expected["decay"][k]);
                let apart = (got.as_f64().unwrap() - expected.as_f64().unwrap()).abs();
                assert!(apart < 1e-7, "{name} {of} {got} {expected}");
            }
            assert!(row["error"].as_f64().unwrap() < 1e-6, "{name} {of}: {row}");
        }
        assert!(with > 6);
    }
}

/// With as many values as there are, subspace iteration finds what the decomposition does.
#[test]
fn the_largest_singular_values_by_random_projection() {
    let golden = golden();
    let (base, a) = (side("base"), side("a"));
    let found = json(&["diff", path(&base), path(&a), "--spectrum", "--ranks", "1,2,4", "--randomized", "4"]);
    for row in found["tensors"].as_array().unwrap() {
        let expected = &golden["spectra"]["a"][row["name"].as_str().unwrap()];
        if expected.is_null() {
            continue;
        }
        assert_eq!((&row["method"], &row["effective_rank"]), (&Value::from("randomized"), &Value::Null));
        for measure in ["stable_rank", "largest", "norm"] {
            assert!(near(&row[measure], &expected[measure], 1e-3), "{row} {expected}");
        }
        assert!(near(&row["energy"]["4"], &expected["energy"]["4"], 1e-2), "{row} {expected}");
    }
}

#[test]
fn subspaces_agree_with_pytorch() {
    let golden = golden();
    let [base, a, b] = ["base", "a", "b"].map(side);
    let args = ["diff", "--base", path(&base), path(&a), path(&b), "--spectrum", "--ranks", "1,2,4"];
    let found = json(&args);
    let expected = golden["subspaces"].as_object().unwrap();
    let rows = found["subspaces"].as_array().unwrap();
    assert_eq!(rows.len(), expected.values().filter(|row| !row.is_null()).count());
    for row in rows {
        let expected = &expected[row["name"].as_str().unwrap()];
        for overlap in row["overlaps"].as_array().unwrap() {
            let expected = &expected[overlap["k"].to_string()];
            for side in ["left", "right"] {
                let (got, expected) = (overlap[side].as_f64(), expected[side].as_f64());
                let same = got
                    .zip(expected)
                    .map_or(got == expected, |(got, expected)| (got - expected).abs() < 1e-6);
                assert!(same, "{row} {side}: {got:?} {expected:?}");
            }
        }
    }
    assert!(ok(&args).contains("LEFT OVERLAP"));
    assert!(ok(&[&args[..], &["--csv"]].concat()).starts_with("name,rows,columns,k,left,right\n"));
}

fn replaced_by(dir: &Path, name: &str, values: &[f32], shape: &[u64]) -> PathBuf {
    let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let out = dir.join(name);
    write_checkpoint(&out, &[tensor("model.layers.0.mlp.up_proj.weight", "F32", shape, bytes)], 1, "{}");
    out
}

/// Rows of vocabulary that only one side has, an identity, and a matrix of rank one: closed forms.
#[test]
fn spectra_of_known_matrices() {
    let dir = tempfile::tempdir().unwrap();
    let n = 6;
    let zero = replaced_by(dir.path(), "zero", &vec![0.0; n * n], &[6, 6]);
    let identity: Vec<f32> = (0..n * n).map(|i| if i % (n + 1) == 0 { 0.5 } else { 0.0 }).collect();
    let eye = replaced_by(dir.path(), "eye", &identity, &[6, 6]);
    let more: Vec<f32> = identity.iter().copied().chain([9.0; 6]).collect();
    let longer = replaced_by(dir.path(), "longer", &more, &[7, 6]);
    let ones = replaced_by(dir.path(), "ones", &vec![1.0; n * n], &[6, 6]);
    let of = |tuned: &Path| json(&["diff", path(&zero), path(tuned), "--spectrum"])["tensors"][0].clone();
    for tuned in [&eye, &longer] {
        let row = of(tuned);
        assert!(near(&row["effective_rank"], &Value::from(6.0), 1e-12), "{row}");
        assert_eq!((row["rows"].as_u64(), row["rank_90"].as_u64()), (Some(6), Some(6)));
        assert!(row["rounding_share"].is_null() && row["energy"]["8"] == 1.0, "{row}");
    }
    let row = of(&ones);
    assert!(near(&row["effective_rank"], &Value::from(1.0), 1e-6), "{row}");
    assert!(near(&row["largest"], &Value::from(6.0), 1e-12) && row["rank_99"] == 1, "{row}");
    let same = of(&zero);
    assert!(same["effective_rank"].is_null(), "{same}");
    assert!(
        ok(&["diff", path(&zero), path(&zero), "--spectrum"]).starts_with("0 of 1 matrices have a spectrum")
    );
    let other = replaced_by(dir.path(), "other", &[0.0; 8], &[2, 4]);
    let output = run(&["diff", path(&zero), path(&other), "--spectrum"]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("1 tensors have no spectrum") && message.contains("up_proj"), "{message}");
}

#[test]
fn other_views_say_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let [base, a, b, c] = ["base", "a", "b", "c"].map(side);
    let (html, svg) = (at("d.html"), at("d.svg"));
    let views = ["--html", path(&html), "--svg", path(&svg)];
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    let advise = ["diff", "--base", path(&base), path(&a), path(&b), path(&c), "--advise"];
    let table = ok(&[&advise[..], &views].concat());
    assert!(table.contains("TOP CONFLICT") && table.contains("merge_method: task_arithmetic"), "{table}");
    assert_eq!(ok(&[&advise[..], &["--csv"]].concat()).lines().count(), 1 + 3 * 12);
    assert!(read(&html).contains("\"documents\"") && read(&svg).contains("1, 2: attention"));
    let spectrum = ["diff", path(&base), path(&a), "--spectrum"];
    let table = ok(&[&spectrum[..], &views].concat());
    assert!(table.contains("EFFECTIVE RANK") && table.contains("ENERGY 8"), "{table}");
    assert!(read(&html).contains("\"spectrum\"") && read(&svg).contains("Effective rank"));
    let csv = ok(&[&spectrum[..], &["--csv"]].concat());
    assert!(csv.lines().next().unwrap().ends_with("energy_64,decay_64"), "{csv}");
    assert_eq!(csv.lines().count(), 1 + 10);
}

/// ‖τ‖ / ‖base‖ of each block and kind, with --base and without.
#[test]
fn blocks_are_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let svg = dir.path().join("blocks.svg");
    let [base, a, b] = ["base", "a", "b"].map(|name| fixture("merge").join(name));
    let found = json(&["diff", path(&base), path(&a), path(&b), "--plot-blocks", path(&svg)]);
    let with_base = json(&["diff", "--base", path(&base), path(&a), path(&b), "--plot-blocks", path(&svg)]);
    assert_eq!(found, with_base);
    assert_eq!(found["blocks"].as_array().unwrap().len(), 3);
    let output = run(&["diff", path(&base), path(&b), "--json"]);
    let diff: Value = serde_json::from_slice(&output.stdout).unwrap();
    let cells = diff["summary"]["layers"].as_array().unwrap();
    let of_block = cells
        .iter()
        .filter(|cell| cell["layer"] == 1 && cell["projection"].as_str().unwrap().ends_with("_proj"));
    let (mut squares, mut of_base) = (0.0, 0.0);
    for cell in of_block.filter(|cell| {
        ["q_proj", "k_proj", "v_proj", "o_proj"].contains(&cell["projection"].as_str().unwrap())
    }) {
        let (l2, rel) = (cell["l2"].as_f64().unwrap(), cell["rel_l2"].as_f64().unwrap());
        squares += l2 * l2;
        of_base += (l2 / rel).powi(2);
    }
    let expected = Value::from(f64::sqrt(squares / of_base));
    assert!(near(&found["blocks"][1]["attention"][1], &expected, 1e-9), "{found}");
    let drawn = std::fs::read_to_string(&svg).unwrap();
    assert_eq!(drawn.matches("<circle").count(), 3 * 2 * 2);
    let message = fails(&["diff", path(&base), path(&a), "--plot-blocks", path(&svg), "--category", "norm"]);
    assert!(message.contains("no tensor of attention or MLP"), "{message}");
}
