//! Quantized weights are moved whole, dequantized, or refused: their codes are never taken for numbers.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{Tensor, counted, fails, fixture, ok, path, read_tensors, run, tensor, write_checkpoint};

/// The tensors of a matrix as a program saves them: what follows the name of its module, type, shape and bytes of an
/// element.
type Saved = &'static [(&'static str, &'static str, &'static [u64], usize)];

/// FP8 in blocks, bitsandbytes, GPTQ, MXFP4.
const PROGRAMS: [(&str, Saved); 4] = [
    ("fp8", &[(".weight", "F8_E4M3", &[4, 4], 1), (".weight_scale_inv", "F32", &[1, 1], 4)]),
    (
        "bitsandbytes",
        &[
            (".weight", "U8", &[8, 1], 1),
            (".weight.absmax", "F32", &[1], 4),
            (".weight.quant_map", "F32", &[16], 4),
            (".weight.quant_state.bitsandbytes__nf4", "U8", &[9], 1),
        ],
    ),
    (
        "gptq",
        &[
            (".qweight", "I32", &[1, 4], 4),
            (".qzeros", "I32", &[1, 1], 4),
            (".scales", "F16", &[1, 4], 2),
            (".g_idx", "I32", &[4], 4),
        ],
    ),
    (
        "mxfp4",
        &[("_blocks", "U8", &[4, 1, 16], 1), ("_scales", "U8", &[4, 1], 1), ("_bias", "BF16", &[4], 2)],
    ),
];
const MODULES: [&str; 4] = ["k_proj", "o_proj", "q_proj", "v_proj"];

/// Two checkpoints, every byte of `a` 1 and of `b` 2. With `named`, the configuration says the method too.
fn pair(dir: &Path, program: &str, saved: Saved, named: bool) {
    for (side, byte) in [("a", 1), ("b", 2)] {
        let mut tensors = vec![counted("model.embed_tokens.weight", &[8, 4], byte)];
        for module in MODULES {
            let module = format!("model.layers.0.self_attn.{module}");
            tensors.extend(saved.iter().map(|(part, dtype, shape, width)| {
                let len = shape.iter().product::<u64>() as usize * width;
                tensor(&format!("{module}{part}"), dtype, shape, vec![byte as u8; len])
            }));
        }
        tensors.sort_by(|x, y| x.name.cmp(&y.name));
        let method = format!(r#", "quantization_config": {{"quant_method": "{program}"}}"#);
        let said = if named { method.as_str() } else { "" };
        let config = format!(r#"{{"architectures": ["LlamaForCausalLM"]{said}}}"#);
        write_checkpoint(&dir.join(side), &tensors, 1, &config);
    }
}

fn in_each_program(check: impl Fn(&str, Saved, &Path)) {
    for (program, saved) in PROGRAMS {
        for named in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            pair(dir.path(), program, saved, named);
            check(program, saved, dir.path());
        }
    }
}

#[test]
fn what_computes_refuses() {
    in_each_program(|program, _, dir| {
        let (a, b, out) = (dir.join("a"), dir.join("b"), dir.join("out"));
        let (a, b, o) = (path(&a), path(&b), path(&out));
        std::fs::write(dir.join("rows.jsonl"), "{\"input_ids\": [1, 2]}\n").unwrap();
        let rows = dir.join("rows.jsonl");
        let rows = path(&rows);
        let computing = [
            &["merge", "--method", "linear", "--model", a, "--model", b, "--dtype", "bfloat16", "--out", o][..],
            &["merge", "--method", "passthrough", "--model", a, "--out", o],
            &["train", "--model", a, "--data", rows, "--out", o],
            &["lora", "extract", a, b, "--rank", "2", "--out", o],
            &["diff", a, b, "--base", a],
            &["eval", "--model", a, "--data", rows],
        ];
        // The last three dequantize FP8, and MXFP4 of stacked experts.
        let refusing = if program == "fp8" { &computing[..3] } else { &computing };
        for args in refusing {
            let message = fails(args);
            assert!(message.contains("the weights are quantized ("), "{program} {args:?}: {message}");
            assert!(!out.exists(), "{program} {args:?}");
        }
    });
}

/// Every form of scales, bit for bit what transformers makes of it; NaN stays NaN, whatever its bits.
#[test]
fn codes_are_dequantized_as_transformers_does() {
    for (codes, plain) in [("grids", "grids-plain"), ("model", "model-plain")] {
        let (codes, plain) = (fixture(&format!("quantized/{codes}")), fixture(&format!("quantized/{plain}")));
        let output = run(&["diff", path(&codes), path(&plain), "--json", "--dequantize"]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("are dequantized in memory"), "{stderr}");
        // Without the option, stored types differ.
        let stored = run(&["diff", path(&codes), path(&plain), "--fail-on", "dtype"]);
        assert_eq!(stored.status.code(), Some(1));
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let tensors = value["tensors"].as_array().unwrap();
        assert_eq!(tensors.len(), read_tensors(&plain).len());
        for tensor in tensors {
            if tensor["name"] == "layers.0.every.weight" {
                let nan = [&tensor["nonfinite_a"], &tensor["nonfinite_b"], &tensor["changed"]];
                assert_eq!(nan, [2, 2, 0], "{tensor}");
            } else {
                assert_eq!(tensor["status"], "identical", "{tensor}");
            }
        }
    }
}

#[test]
fn the_loss_of_an_fp8_model_is_that_of_transformers() {
    let (model, rows) = (fixture("quantized/model"), fixture("quantized/rows.jsonl"));
    let expected = std::fs::read(fixture("quantized/loss.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_slice(&expected).unwrap();
    for more in [&[][..], &["--no-mmap"]] {
        let args = ["eval", "--model", path(&model), "--data", path(&rows), "--device", "cpu", "--json"];
        let found: serde_json::Value = serde_json::from_str(&ok(&[&args[..], more].concat())).unwrap();
        assert_eq!(found["tokens"], expected["tokens"]);
        let difference = found["loss"].as_f64().unwrap() - expected["loss"].as_f64().unwrap();
        assert!(difference.abs() < 1e-4, "{found} {expected}");
    }
}

/// A copy of a model of `fixtures/llama`, without what PyTorch says of it.
fn copied(name: &str, dir: &Path) -> std::path::PathBuf {
    let copy = dir.join(name);
    std::fs::create_dir(&copy).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture(&format!("llama/{name}/{file}")), copy.join(file)).unwrap();
    }
    copy
}

/// A half-trained gpt-oss: every byte of its experts is that of the start, and other tensors move.
#[test]
fn experts_in_mxfp4_are_computed_with_and_carried() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (copied("gpt-oss-mxfp4", dir.path()), dir.path().join("out"));
    let rows = dir.path().join("rows.jsonl");
    std::fs::write(&rows, "{\"input_ids\": [5, 9, 3, 7, 11, 4]}\n").unwrap();
    let train =
        ["train", "--model", path(&model), "--data", path(&rows), "--out", path(&out), "--device", "cpu"];
    let output = run(&[&train[..], &["--no-sync"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("12 tensors of quantized weights are frozen and carried as they are"), "{said}");
    let (before, after) = (read_tensors(&model), read_tensors(&out));
    let of_experts = |name: &str| name.contains(".experts.");
    let moved = before.iter().filter(|(name, bytes)| after[*name] != **bytes);
    let moved: Vec<&String> = moved.map(|(name, _)| name).collect();
    assert!(moved.len() > 5 && !moved.iter().any(|name| of_experts(name)), "{moved:?}");
    assert_eq!(after.keys().filter(|name| of_experts(name)).count(), 12);
    // The trained model is read again, experts as they are stored.
    let eval = ["eval", "--model", path(&out), "--data", path(&rows), "--device", "cpu"];
    let output = run(&eval);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("dequantized"), "{said}");
}

#[test]
fn experts_that_cannot_be_trained_are_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (out, plan) = (dir.path().join("out"), dir.path().join("plan.json"));
    let rows = dir.path().join("rows.jsonl");
    std::fs::write(&rows, "{\"input_ids\": [5, 9, 3, 7]}\n").unwrap();
    let (codes, plain) = (copied("gpt-oss-mxfp4", dir.path()), copied("gpt-oss", dir.path()));
    ok(&["plan", path(&codes), "--ratio", "1", "--out", path(&plan)]);
    let of_plan = ["--plan", path(&plan)];
    let cases: [(&Path, &[&str], &str); 3] = [
        (&codes, &of_plan, "trainable, but tensors of type U8 cannot be trained"),
        (
            &codes,
            &["--train", "*experts.down_proj*"],
            "freeze it with --freeze, or save the checkpoint dequantized",
        ),
        (
            &plain,
            &["--ratio", "1", "--optimizer", "adafactor", "--learning-rate", "1e-3"],
            "Adafactor has no factors for 3 dimensions",
        ),
    ];
    for (model, args, expected) in cases {
        let train = ["train", "-q", "--model", path(model), "--data", path(&rows), "--out", path(&out)];
        let message = fails(&[&train[..], args].concat());
        assert!(message.contains(expected), "{message}");
        assert!(!out.exists());
    }
}

/// The adapter of a model to itself in FP8 holds no change.
#[test]
fn an_adapter_is_extracted_from_dequantized_weights() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let (codes, plain) = (fixture("quantized/model"), fixture("quantized/model-plain"));
    let said =
        fails(&["lora", "extract", "-q", path(&plain), path(&codes), "--rank", "2", "--out", path(&out)]);
    assert!(said.contains("have the same weights: there is nothing to extract"), "{said}");
}

#[test]
fn scales_that_do_not_divide_the_codes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let weight = tensor("q_proj.weight", "F8_E4M3", &[4, 6], vec![1; 24]);
    let scales = |shape: &[u64]| {
        tensor("q_proj.weight_scale", "F32", shape, vec![0; 4 * shape.iter().product::<u64>() as usize])
    };
    let a = dir.path().join("a");
    for shape in [&[3, 1][..], &[1, 4], &[4], &[0, 1], &[1, 1, 1]] {
        write_checkpoint(&a, &[weight.clone(), scales(shape)], 1, "{}");
        let message = fails(&["diff", path(&a), path(&a), "--base", path(&a)]);
        let expected = format!("has codes [4, 6], which F32 {shape:?} do not divide");
        assert!(message.contains(&expected), "{message}");
    }
    let alone = tensor("k_proj.weight", "F8_E4M3", &[1, 1], vec![1]);
    write_checkpoint(&a, &[alone, weight, scales(&[1])], 1, "{}");
    let message = fails(&["diff", path(&a), path(&a), "--base", path(&a)]);
    assert!(message.contains("`k_proj.weight` has codes without scales"), "{message}");
}

#[test]
fn a_mask_over_codes_is_refused() {
    in_each_program(|program, saved, dir| {
        let (a, b, out) = (dir.join("a"), dir.join("b"), dir.join("out"));
        let reset = ["reset", "--base", path(&a), "--tuned", path(&b), "--out", path(&out)];
        for mask in [&["--granularity", "row"][..], &["--granularity", "element"]] {
            let count = 4 * saved.len() - 1;
            let expected = format!(
                "under a mask of rows or elements, but part of a quantized weight, as are {count} more"
            );
            let message = fails(&[&reset[..], mask].concat());
            assert!(message.contains(&expected), "{program}: {message}");
            assert!(fails(&[&["plan", path(&a)][..], mask].concat()).contains(&expected), "{program}");
        }
        // Plain tensors of the same checkpoint may be masked.
        let plain = ["--granularity", "row", "--embeddings", "select", "--freeze", "*self_attn*"];
        ok(&[&reset[..], &plain].concat());
    });
}

#[test]
fn a_weight_moves_with_its_scales() {
    in_each_program(|program, saved, dir| {
        let (a, b, out) = (dir.join("a"), dir.join("b"), dir.join("out"));
        let reset = ["reset", "--base", path(&a), "--tuned", path(&b), "--out", path(&out), "--force"];
        let mut returned = Vec::new();
        let glob = format!("*q_proj{}", saved[1].0);
        let forced = ["--strategy", "explicit", "--freeze", &glob];
        for options in [&["--seed", "1"][..], &["--seed", "2"], &forced] {
            ok(&[&reset[..], options].concat());
            let tensors = read_tensors(&out);
            let mut sides: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
            for (name, bytes) in tensors.iter().filter(|(name, _)| name.contains("self_attn")) {
                let module = MODULES.iter().find(|module| name.contains(*module)).unwrap();
                sides.entry(module).or_default().extend(bytes);
            }
            let whole = |bytes: &Vec<u8>| bytes.iter().all(|byte| *byte == bytes[0]);
            assert!(sides.values().all(whole), "{program} {options:?}: {sides:?}");
            returned.push(sides.values().filter(|bytes| bytes[0] == 1).count());
        }
        assert_eq!(returned, [2, 2, 1], "{program}");
    });
}

/// A plan that parts a weight from its scales was not drawn from this checkpoint.
#[test]
fn a_plan_that_parts_a_weight_from_its_scales_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    pair(dir.path(), "fp8", PROGRAMS[0].1, true);
    let (a, plan) = (dir.path().join("a"), dir.path().join("plan.json"));
    ok(&["plan", path(&a), "--out", path(&plan)]);
    let mut value: serde_json::Value = serde_json::from_slice(&std::fs::read(&plan).unwrap()).unwrap();
    let first = value["trainable"][1].clone();
    assert!(first.as_str().unwrap().contains("_proj.weight"), "{first}");
    value["trainable"].as_array_mut().unwrap().remove(1);
    value["frozen"].as_array_mut().unwrap().push(first);
    std::fs::write(&plan, value.to_string()).unwrap();
    let message = fails(&["plan", "show", path(&plan), "--checkpoint", path(&a)]);
    assert!(message.contains("part of a quantized weight whose tensors are in different lists"), "{message}");
}

/// Codes of one side beside scales of the other would be other numbers than either side's.
#[test]
fn sides_that_are_quantized_differently_do_not_pair() {
    let dir = tempfile::tempdir().unwrap();
    pair(dir.path(), "fp8", PROGRAMS[0].1, false);
    let (a, b, out) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("out"));
    let module = "model.layers.0.self_attn.q_proj";
    let scaled = |dtype, scale: Option<u64>| -> Vec<Tensor> {
        let weight = tensor(
            &format!("{module}.weight"),
            dtype,
            &[4, 4],
            vec![1; if dtype == "BF16" { 32 } else { 16 }],
        );
        let scale = scale
            .map(|n| tensor(&format!("{module}.weight_scale_inv"), "F32", &[n, 1], vec![1; 4 * n as usize]));
        [weight].into_iter().chain(scale).collect()
    };
    let refused = |base: Vec<Tensor>, tuned: Vec<Tensor>, configs: [&str; 2], expected: &str| {
        write_checkpoint(&a, &base, 1, configs[0]);
        write_checkpoint(&b, &tuned, 1, configs[1]);
        let reset = ["reset", "--base", path(&a), "--tuned", path(&b), "--out", path(&out)];
        let message = fails(&[&reset[..], &["--cast", "--on-missing", "keep-tuned"]].concat());
        assert!(message.contains(expected), "{message}");
    };
    let fp8 = |scale| scaled("F8_E4M3", scale);
    refused(fp8(Some(1)), scaled("BF16", None), ["{}"; 2], "base has another type or shape");
    refused(fp8(None), fp8(Some(1)), ["{}"; 2], "part of a quantized weight: only in tuned");
    refused(fp8(Some(1)), fp8(None), ["{}"; 2], "part of a quantized weight: only in base");
    let config = |version: u32| {
        format!(r#"{{"quantization_config": {{"quant_method": "fp8", "version": {version}}}}}"#)
    };
    let differ = "base and tuned differ in what config.json says of their quantization";
    refused(fp8(Some(1)), fp8(Some(1)), [&config(1), &config(2)], differ);
}

#[test]
fn diff_compares_bytes_and_measures_nothing() {
    in_each_program(|program, _, dir| {
        let (a, b) = (dir.join("a"), dir.join("b"));
        let diff = |more: &[&str]| {
            run(&[&["diff", path(&a), path(&b), "--json", "--only", "*self_attn*"], more].concat())
        };
        let output = diff(&[]);
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("compared as bytes, not measured"),
            "{program}"
        );
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        for tensor in value["tensors"].as_array().unwrap() {
            assert_eq!(
                (&tensor["status"], &tensor["l2"]),
                (&"changed".into(), &serde_json::Value::Null),
                "{tensor}"
            );
        }
        assert_eq!(output.status.code(), Some(1), "{program}");
        assert_eq!(diff(&["--fail-on", "rel_l2>1e300"]).status.code(), Some(1), "{program}");
    });
}
