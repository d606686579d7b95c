//! `train --frozen-dtype float8` as a command.

use serde_json::{Value, json};

use super::Lab;
use crate::common::{
    aligned_model, fails, fixture, ok, plan_of, read_tensors, run, tensor, write_checkpoint,
};

/// A model whose matrices have sides of multiples of 16, and a plan that trains half of it.
fn lab() -> Lab {
    let lab = Lab::new();
    aligned_model(&lab.path("model"));
    ok(&["plan", &lab.text("model"), "--ratio", "0.5", "--seed", "3", "--out", &lab.text("plan.json")]);
    lab
}

fn args(lab: &Lab, model: &str, out: &str, more: &[&str]) -> Vec<String> {
    let mut args = vec!["--quiet".into(), "train".into(), "--model".into(), lab.text(model), "--data".into()];
    args.extend([
        lab.text("rows.jsonl"),
        "--out".into(),
        lab.text(out),
        "--plan".into(),
        lab.text("plan.json"),
    ]);
    args.extend(["--batch-size", "4", "--learning-rate", "1e-3", "--device", "cpu"].map(str::to_owned));
    args.extend(["--max-steps", "4"].iter().chain(more).map(|s| (*s).to_owned()));
    args
}

fn train(lab: &Lab, model: &str, out: &str, more: &[&str]) -> String {
    let args = args(lab, model, out, more);
    ok(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

fn losses(lab: &Lab, out: &str) -> Vec<f64> {
    lab.log(out).iter().map(|line| line["loss"].as_f64().unwrap()).collect()
}

const FLOAT8: [&str; 2] = ["--frozen-dtype", "float8"];

/// The numbers of e4m3 that are nearest to `values` once they are scaled, scaled back; by search in what PyTorch says.
fn rounded(values: &[f32]) -> Vec<f32> {
    let golden = std::fs::read(fixture("float8/float8.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let codes: Vec<f32> = golden["values"]["e4m3"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|value| Some(value.as_f64()? as f32))
        .collect();
    let scale = values.iter().fold(0.0f32, |most, x| most.max(x.abs())) / 448.0;
    let nearest = |x: &f32| {
        let scaled = x * (1.0 / scale);
        let apart = |code: &f32| (f64::from(*code) - f64::from(scaled)).abs();
        codes.iter().copied().min_by(|a, b| apart(a).total_cmp(&apart(b))).unwrap() * scale
    };
    values.iter().map(nearest).collect()
}

/// A run computes as if the frozen matrices had the values of their codes, to the bit; the checkpoint keeps theirs.
#[test]
fn a_run_computes_with_the_codes_and_writes_what_was_stored() {
    let lab = lab();
    train(&lab, "model", "stored", &[]);
    train(&lab, "model", "float8", &FLOAT8);
    let proof = run(&[
        "diff",
        &lab.text("model"),
        &lab.text("float8"),
        "--plan",
        &lab.text("float8/hft_surgery.json"),
    ]);
    assert_eq!(proof.status.code(), Some(0), "{}", String::from_utf8_lossy(&proof.stdout));

    let plan: Value = serde_json::from_slice(&std::fs::read(lab.path("plan.json")).unwrap()).unwrap();
    let frozen: Vec<&str> = plan["frozen"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let bytes = std::fs::read(lab.path("model/model.safetensors")).unwrap();
    let (mut tensors, mut matrices, mut bytes_of_codes) = (Vec::new(), 0, 0);
    for (name, view) in safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors() {
        let shape: Vec<u64> = view.shape().iter().map(|d| *d as u64).collect();
        let mut data = view.data().to_vec();
        if name.contains("_proj.") && frozen.contains(&name.as_str()) {
            let values: Vec<f32> =
                data.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            data = rounded(&values).into_iter().flat_map(f32::to_le_bytes).collect();
            (matrices, bytes_of_codes) = (matrices + 1, bytes_of_codes + values.len() as u64);
        }
        tensors.push(tensor(&name, "F32", &shape, data));
    }
    assert!(matrices >= 4, "{matrices}");
    let config = std::fs::read_to_string(lab.path("model/config.json")).unwrap();
    write_checkpoint(&lab.path("codes"), &tensors, 1, &config);
    train(&lab, "codes", "of-codes", &[]);
    assert_eq!(losses(&lab, "float8"), losses(&lab, "of-codes"));
    let (float8, of_codes) = (read_tensors(&lab.path("float8")), read_tensors(&lab.path("of-codes")));
    let (start, mut trained) = (read_tensors(&lab.path("model")), 0);
    for (name, bytes) in &float8 {
        if frozen.contains(&name.as_str()) {
            assert_eq!(bytes, &start[name], "{name}");
        } else {
            assert_eq!(bytes, &of_codes[name], "{name}");
            trained += 1;
        }
    }
    assert!(trained >= 4);
    // The option shows, in the losses and in the record.
    for (stored, float8) in losses(&lab, "stored").iter().zip(losses(&lab, "float8")) {
        assert!(stored != &float8 && (stored - float8).abs() < 0.05 * stored, "{stored} and {float8}");
    }
    let record: Value =
        serde_json::from_slice(&std::fs::read(lab.path("float8/hft_surgery.json")).unwrap()).unwrap();
    assert_eq!(record["options"]["frozen_dtype"], json!("float8"));
    assert_eq!(plan_of(&lab.path("float8")), plan_of(&lab.path("stored")));
    let found = train(&lab, "model", "memory", &[&FLOAT8[..], &["--json"]].concat());
    let found: Value = serde_json::from_str(&found).unwrap();
    assert_eq!(found["rounds"][0]["memory"]["frozen"].as_u64(), Some(bytes_of_codes));
}

#[test]
fn what_it_cannot_do_is_refused_by_name() {
    let lab = lab();
    let refused = |args: &[String]| {
        let said = fails(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(!lab.path("refused").exists());
        said
    };
    // Of other sides than multiples of 16.
    let said = refused(&lab.args("llama2", "refused", &FLOAT8));
    assert!(said.contains("mlp") && said.contains("28") && said.contains("multiples of 16"), "{said}");
    // Nothing that is frozen as a whole.
    ok(&["plan", &lab.text("model"), "--granularity", "element", "--out", &lab.text("plan.json"), "--force"]);
    let said = refused(&args(&lab, "model", "refused", &FLOAT8));
    assert!(said.contains("the plan freezes none as a whole"), "{said}");
    // A reference model has the matrices as they are stored; without one there is nothing to differ from.
    ok(&["plan", &lab.text("model"), "--ratio", "0.5", "--out", &lab.text("plan.json"), "--force"]);
    let pair =
        json!({ "prompt_input_ids": [1, 2], "chosen_input_ids": [3, 4], "rejected_input_ids": [5, 6, 7] });
    std::fs::write(lab.path("rows.jsonl"), format!("{pair}\n{pair}\n")).unwrap();
    let said = refused(&args(&lab, "model", "refused", &[&FLOAT8[..], &["--objective", "dpo"]].concat()));
    assert!(said.contains("other weights than the reference model has"), "{said}");
    let simpo = ["--objective", "simpo", "--max-steps", "1"];
    let args: Vec<String> = args(&lab, "model", "simpo", &[]);
    let at = args.iter().position(|arg| arg == "--max-steps").unwrap();
    let args: Vec<&str> = args[..at].iter().map(String::as_str).collect();
    ok(&[&args[..], &FLOAT8, &simpo].concat());
}

/// A run is not gone on with in another type.
#[test]
fn another_frozen_dtype_is_another_run() {
    let lab = lab();
    let args = args(&lab, "model", "out", &["--save-steps", "1"]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let at = args.iter().position(|arg| *arg == "--max-steps").unwrap();
    let long = [&args[..at], &["--max-steps", "100000"], &args[at + 2..]].concat();
    let mut child = crate::common::hft(&[&long[..], &FLOAT8].concat())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    assert!(crate::common::wait_until(&mut child, || lab.log("out").len() >= 2));
    child.kill().unwrap();
    child.wait().unwrap();
    let said = fails(&[&long[..], &["--resume"]].concat());
    assert!(said.contains("frozen_dtype"), "{said}");
}
