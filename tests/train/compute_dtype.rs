//! `--compute-dtype bfloat16` on the CPU, on processors with instructions for it and without.

use hft_surgery::backend::CpuPrecision;

use crate::run_dir::{killed, with};
use crate::{Lab, common::fails, common::ok};

const BF16: [&str; 2] = ["--compute-dtype", "bfloat16"];

#[test]
fn a_processor_without_the_instructions_is_refused_before_anything_is_written() {
    let lab = Lab::new();
    if CpuPrecision::bf16().is_some() {
        eprintln!("not run: this processor has the instructions");
        return;
    }
    let refused = lab.refused("llama2", "out", &BF16);
    assert!(refused.contains("no instructions for products in bfloat16 (AVX512-BF16)"), "{refused}");
    assert!(!lab.path("out").exists());
}

#[test]
fn training_in_bfloat16_has_the_same_bits_on_any_number_of_threads() {
    if CpuPrecision::bf16().is_none() {
        eprintln!("not run: no instructions for products in bfloat16");
        return;
    }
    let lab = Lab::new();
    for (out, threads) in [("one", "1"), ("three", "3")] {
        lab.train("qwen3", out, &[&BF16[..], &["--max-steps", "3", "--threads", threads]].concat());
    }
    assert_eq!(lab.weights("one"), lab.weights("three"));
    lab.train("qwen3", "float32", &["--max-steps", "3"]);
    assert_ne!(lab.weights("one"), lab.weights("float32"));
    let record = std::fs::read_to_string(lab.path("one/hft_surgery.json")).unwrap();
    assert!(record.contains("\"compute_dtype\": \"bfloat16\""), "{record}");
    let eval = |more: &[&str]| {
        let (model, rows) = (lab.text("one"), lab.text("rows.jsonl"));
        ok(&[&["eval", "--device", "cpu", "--json", "--model", &model, "--data", &rows], more].concat())
    };
    let loss =
        |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap()["loss"].as_f64().unwrap();
    let (bf16, f32) = (loss(eval(&BF16)), loss(eval(&[])));
    assert!(bf16 != f32 && (bf16 - f32).abs() < 1e-2 * f32, "{bf16} {f32}");
}

#[test]
fn a_run_in_bfloat16_goes_on_in_bfloat16_only() {
    if CpuPrecision::bf16().is_none() {
        eprintln!("not run: no instructions for products in bfloat16");
        return;
    }
    let lab = Lab::new();
    let args = killed(&lab, "out", &BF16);
    let bf16 = BF16.map(str::to_owned);
    let error = fails(&with(&args, &["--resume"]));
    assert!(error.contains("compute_dtype"), "{error}");
    ok(&with(&[&args[..], &bf16].concat(), &["--resume"]));
}
