//! `merge --lora` against PEFT: adapters that PEFT made, weights that its `merge_and_unload()` gave
//! (`fixtures/lora/make_lora.py`).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{Tensor, fails, fixture, ok, path, read_tensors, tensor, write_checkpoint, write_file};
use serde_json::{Value, json};

/// Adapters of a residual base, which the base itself does not fit.
const RESIDUAL: [&str; 2] = ["olora", "pissa"];

/// What PEFT made of an adapter.
struct Golden {
    base: PathBuf,
    tied: bool,
    changed: BTreeMap<String, Vec<f32>>,
}

fn adapter(name: &str) -> PathBuf {
    fixture("lora/adapters").join(name)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn golden(name: &str) -> Golden {
    let bytes = std::fs::read(adapter(name).join("merged.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let said: Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["golden"]).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let changed = tensors.tensors().into_iter().map(|(name, view)| (name, floats(view.data()))).collect();
    Golden {
        base: fixture("lora/base").join(said["base"].as_str().unwrap()),
        tied: said["tie_word_embeddings"] == true,
        changed,
    }
}

/// The tensors of a file, to be written again otherwise.
fn tensors_of(file: &Path) -> Vec<Tensor> {
    let bytes = std::fs::read(file).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let read = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        let shape: Vec<u64> = view.shape().iter().map(|n| *n as u64).collect();
        tensor(&name, "F32", &shape, view.data().to_vec())
    };
    all.tensors().into_iter().map(read).collect()
}

fn config_of(dir: &Path, file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join(file)).unwrap()).unwrap()
}

fn write_adapter(dir: &Path, config: &Value, tensors: &[Tensor]) {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
    write_file(&dir.join("adapter_model.safetensors"), tensors, r#"{"format":"pt"}"#);
}

fn merge(base: &Path, adapter: &Path, out: &Path, more: &[&str]) {
    let all = ["merge", "--base", path(base), "--lora", path(adapter), "--out", path(out), "--force"];
    ok(&[&all, more].concat());
}

fn refused(base: &Path, adapter: &Path) -> String {
    let out = adapter.with_file_name("none");
    let stderr = fails(&["merge", "--base", path(base), "--lora", path(adapter), "--out", path(&out)]);
    assert!(!out.exists());
    stderr
}

fn assert_near(name: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{name}");
    let most = got.iter().zip(expected).fold(0f32, |most, (g, e)| most.max((g - e).abs()));
    assert!(most < 1e-5, "{name}: {most}");
}

#[test]
fn merged_weights_are_those_of_peft() {
    let dir = tempfile::tempdir().unwrap();
    let mut count = 0;
    for entry in std::fs::read_dir(fixture("lora/adapters")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if RESIDUAL.contains(&name.as_str()) {
            continue;
        }
        let golden = golden(&name);
        let out = dir.path().join(&name);
        merge(&golden.base, &adapter(&name), &out, &[]);
        let got = read_tensors(&out);
        let mut expected = read_tensors(&golden.base);
        expected.extend(golden.changed.keys().map(|name| (name.clone(), Vec::new())));
        assert!(got.keys().eq(expected.keys()), "{name}: {:?}", got.keys());
        for (tensor, bytes) in &expected {
            match golden.changed.get(tensor) {
                Some(changed) => assert_near(&format!("{name} {tensor}"), &floats(&got[tensor]), changed),
                None => assert!(got[tensor] == *bytes, "{name}: {tensor} changed"),
            }
        }
        let tied = &config_of(&out, "config.json")["tie_word_embeddings"];
        assert_eq!(*tied, golden.tied, "{name}");
        count += 1;
    }
    assert_eq!(count, 33);
}

#[test]
fn adapters_of_a_residual_base_are_refused() {
    for name in RESIDUAL {
        let stderr = refused(&golden(name).base, &adapter(name));
        assert!(stderr.contains("adapter_config.json: `init_lora_weights` is"), "{stderr}");
    }
    let dir = tempfile::tempdir().unwrap();
    let changed = dir.path().join("adapter");
    let tensors = tensors_of(&adapter("plain").join("adapter_model.safetensors"));
    for start in ["pissa_niter_4", "loftq", "corda", "lora_ga", "something"] {
        let mut config = config_of(&adapter("plain"), "adapter_config.json");
        config["init_lora_weights"] = start.into();
        write_adapter(&changed, &config, &tensors);
        let stderr = refused(&golden("plain").base, &changed);
        assert!(stderr.contains(&format!("`init_lora_weights` is \"{start}\"")), "{stderr}");
    }
}

/// A base whose configuration ties the head and whose file has a copy of it: both get the same bytes.
#[test]
fn a_stored_copy_of_a_tied_head_gets_the_bytes_of_its_embedding() {
    const EMBED: &str = "model.embed_tokens.weight";
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    let mut tensors = tensors_of(&fixture("lora/base/tied/model.safetensors"));
    let embedding = tensors.iter().find(|t| t.name == EMBED).unwrap();
    let head = tensor("lm_head.weight", "F32", &embedding.shape, embedding.bytes.clone());
    tensors.push(head);
    let config = config_of(&fixture("lora/base/tied"), "config.json");
    write_checkpoint(&base, &tensors, 1, &config.to_string());
    for name in
        ["tied-embedding", "tied-head", "tied-both", "tied-ensured", "tokens-tied", "saved-ensured-tied"]
    {
        let out = dir.path().join(name);
        merge(&base, &adapter(name), &out, &[]);
        let got = read_tensors(&out);
        assert!(got["lm_head.weight"] == got[EMBED], "{name}");
        assert_near(name, &floats(&got[EMBED]), &golden(name).changed[EMBED]);
        assert_eq!(config_of(&out, "config.json")["tie_word_embeddings"], true, "{name}");
    }
}

/// Every key of PEFT's `LoraConfig` that changes what is computed, and one that nobody knows.
#[test]
fn keys_that_change_the_computation_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let changed = dir.path().join("adapter");
    let tensors = tensors_of(&adapter("plain").join("adapter_model.safetensors"));
    let base = golden("plain").base;
    let write = |key: &str, value: &Value| {
        let mut config = config_of(&adapter("plain"), "adapter_config.json");
        config[key] = value.clone();
        write_adapter(&changed, &config, &tensors);
    };
    let cases = [
        ("alora_invocation_tokens", json!([1, 2])),
        ("arrow_config", json!({"top_k": 3})),
        ("kasa_config", json!({"beta": 1e-4})),
        ("layer_replication", json!([[0, 2], [1, 2]])),
        ("megatron_config", json!({"a": 1})),
        ("monteclora_config", json!({"num_samples": 8})),
        ("target_parameters", json!(["mlp.experts.gate_up_proj"])),
        ("use_bdlora", json!({"nblocks": 2})),
        ("use_qalora", json!(true)),
        ("velora_config", json!({"num_groups": 2})),
        ("use_something_new", json!(true)),
        ("use_rslora", json!("true")),
        ("alpha_pattern", json!({"(": 2})),
        ("alpha_pattern", json!([2])),
        ("trainable_token_indices", json!("all")),
        ("target_modules", json!(7)),
        ("layers_to_transform", json!("1")),
    ];
    for (key, value) in cases {
        write(key, &value);
        let stderr = refused(&base, &changed);
        let named = stderr.contains("adapter_config.json: ") && stderr.contains(&format!("`{key}"));
        assert!(named, "{key}: {stderr}");
    }
    let plain = dir.path().join("plain");
    merge(&base, &adapter("plain"), &plain, &[]);
    for (key, value) in [
        ("lora_dropout", json!(0.1)),
        ("eva_config", json!({"rho": 2.0})),
        ("auto_mapping", json!({"base_model_class": "X"})),
        ("use_something_new", json!(null)),
        ("init_lora_weights", json!("gaussian")),
    ] {
        write(key, &value);
        let out = dir.path().join("out");
        merge(&base, &changed, &out, &[]);
        assert!(read_tensors(&out) == read_tensors(&plain), "{key}");
    }
}

/// Files that lack a part, have one too many or a number that is none: refused, naming the file with the fault.
#[test]
fn incomplete_adapters_are_refused() {
    type Edit = fn(&mut Vec<Tensor>, &mut Value);
    fn drop_part(tensors: &mut Vec<Tensor>, part: &str) {
        let at = tensors.iter().position(|t| t.name.contains(part)).unwrap();
        tensors.remove(at);
    }
    fn nan(tensors: &mut [Tensor], part: &str) {
        let found = tensors.iter_mut().find(|t| t.name.contains(part)).unwrap();
        found.bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    }
    let cases: [(&str, Edit, &str); 20] = [
        ("plain", |t, _| t.clear(), "no tensors: the adapter is empty"),
        ("plain", |t, _| drop_part(t, "lora_B"), "lora_A without its lora_B"),
        ("plain", |t, _| drop_part(t, "lora_A"), "lora_B without its lora_A"),
        ("embedding", |t, _| drop_part(t, "embedding_A"), "lora_embedding_B without its lora_embedding_A"),
        ("dora", |t, _| drop_part(t, "magnitude"), "the part is missing that use_dora"),
        ("dora", |_, c| c["use_dora"] = false.into(), "adapter_config.json does not set use_dora"),
        ("lora-bias", |t, _| drop_part(t, "lora_B.bias"), "the part is missing that lora_bias"),
        ("lora-bias", |_, c| c["lora_bias"] = false.into(), "adapter_config.json does not set lora_bias"),
        ("plain", |_, c| c["target_modules"] = json!(["q_proj"]), "adapter_config.json does not target"),
        ("plain", |_, c| c["exclude_modules"] = json!(["v_proj"]), "adapter_config.json does not target"),
        ("layers", |_, c| c["layers_to_transform"] = json!(0), "adapter_config.json does not target"),
        ("saved-untied", |t, _| drop_part(t, "lm_head"), "no `lm_head.weight`, which modules_to_save"),
        // PEFT: KeyError for each of these three.
        (
            "tied-embedding",
            |_, c| c["modules_to_save"] = json!(["lm_head"]),
            "no `lm_head.weight`, which modules_to_save",
        ),
        ("plain", |_, c| c["trainable_token_indices"] = json!([1]), "no rows of the token embedding, which"),
        ("tokens-head", |t, _| drop_part(t, "lm_head"), "no rows of lm_head, which trainable_token_indices"),
        (
            "tokens",
            |_, c| c["trainable_token_indices"] = json!([1, 2]),
            "trainable_token_indices asks for [2, 16]",
        ),
        ("saved-untied", |t, _| nan(t, "embed_tokens"), "embed_tokens.weight`: infinite or NaN values: 1"),
        ("dora", |t, _| nan(t, "magnitude"), "lora_magnitude_vector`: infinite or NaN values: 1"),
        ("tokens", |t, _| nan(t, "token_adapter"), "trainable_tokens_delta`: infinite or NaN values: 1"),
        ("lora-bias", |t, _| nan(t, "lora_B.bias"), "lora_B.bias`: infinite or NaN values: 1"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let changed = dir.path().join("adapter");
    for (name, edit, words) in cases {
        let mut tensors = tensors_of(&adapter(name).join("adapter_model.safetensors"));
        let mut config = config_of(&adapter(name), "adapter_config.json");
        edit(&mut tensors, &mut config);
        write_adapter(&changed, &config, &tensors);
        let stderr = refused(&golden(name).base, &changed);
        assert!(
            stderr.contains("adapter_model.safetensors: ") && stderr.contains(words),
            "{words}: {stderr}"
        );
    }
    std::fs::remove_file(changed.join("adapter_config.json")).unwrap();
    let stderr = refused(&golden("plain").base, &changed);
    assert!(stderr.contains("adapter_config.json: no such file: not a LoRA adapter"), "{stderr}");
}

/// The f32 result rounded once, in files of at most the size, with a configuration that says so.
#[test]
fn type_and_size_of_files_are_obeyed() {
    const SIZE: u64 = 4000;
    let dir = tempfile::tempdir().unwrap();
    let (whole, small) = (dir.path().join("whole"), dir.path().join("small"));
    let base = golden("saved-tied").base;
    merge(&base, &adapter("saved-tied"), &whole, &[]);
    merge(&base, &adapter("saved-tied"), &small, &["--dtype", "bfloat16", "--out-shard-size", "2k"]);
    let (whole, rounded) = (read_tensors(&whole), read_tensors(&small));
    assert!(whole.keys().eq(rounded.keys()));
    for (name, bytes) in &whole {
        let expected: Vec<u8> =
            floats(bytes).iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect();
        assert!(rounded[name] == expected, "{name}");
    }
    assert_eq!(config_of(&small, "config.json")["dtype"], "bfloat16");
    let index = config_of(&small, "model.safetensors.index.json");
    let map = index["weight_map"].as_object().unwrap();
    let files: std::collections::BTreeSet<&str> = map.values().map(|file| file.as_str().unwrap()).collect();
    assert!(map.len() == whole.len() && files.len() > 1);
    for file in files {
        let bytes: usize = tensors_of_bytes(&small.join(file));
        assert!(bytes as u64 <= SIZE, "{file}: {bytes}");
    }
    for more in [["--seed", "1"], ["--vocab", "union"], ["--on-missing", "keep"], ["--dtype", "int8"]] {
        let out = dir.path().join("none");
        let adapter = adapter("plain");
        let all = ["merge", "--base", path(&base), "--lora", path(&adapter), "--out", path(&out)];
        let stderr = fails(&[&all[..], &more[..]].concat());
        assert!(stderr.contains(more[0]), "{stderr}");
    }
}

fn tensors_of_bytes(file: &Path) -> usize {
    let bytes = std::fs::read(file).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    all.tensors().iter().map(|(_, view)| view.data().len()).sum()
}

/// A fine-tune with other biases, norms and matrices: PEFT loads what is extracted
/// (`fixtures/lora/check_extract.py`), and merged it gives the fine-tune back.
#[test]
fn extracted_adapters_are_as_peft_loads_them() {
    let dir = tempfile::tempdir().unwrap();
    for (name, module, a, b) in [
        ("bias", "model.layers.0.self_attn.q_proj", [2, 16], [16, 2]),
        ("gpt2", "transformer.h.0.attn.c_attn", [2, 16], [48, 2]),
    ] {
        let base = fixture("lora/base").join(name);
        let (tuned, made, out) = (dir.path().join(name), dir.path().join("made"), dir.path().join("out"));
        let mut tensors = tensors_of(&base.join("model.safetensors"));
        for (i, t) in tensors.iter_mut().enumerate() {
            let rows = t.shape[0] as usize;
            let columns = t.bytes.len() / 4 / rows;
            // A product of two vectors: of rank 1. The norms after attention stay as they are.
            let moved = !t.name.contains("post_attention");
            let delta = |k: usize| 0.25 * ((k / columns + i) as f32).sin() * ((k % columns + 1) as f32).cos();
            let value = |(k, x): (usize, f32)| if moved { x + delta(k) } else { x };
            t.bytes = floats(&t.bytes).into_iter().enumerate().flat_map(|k| value(k).to_le_bytes()).collect();
        }
        write_checkpoint(&tuned, &tensors, 1, &config_of(&base, "config.json").to_string());
        ok(&["lora", "extract", path(&base), path(&tuned), "--rank", "2", "--out", path(&made), "--force"]);
        let none = dir.path().join("none");
        let said = fails(&["lora", "extract", path(&base), path(&base), "--rank", "2", "--out", path(&none)]);
        assert!(said.contains("there is nothing to extract") && !none.exists(), "{said}");
        merge(&base, &made, &out, &[]);
        let (got, expected) = (read_tensors(&out), read_tensors(&tuned));
        for (tensor, bytes) in &expected {
            assert_near(tensor, &floats(&got[tensor]), &floats(bytes));
        }
        let shapes: BTreeMap<String, Vec<u64>> = tensors_of(&made.join("adapter_model.safetensors"))
            .into_iter()
            .map(|t| (t.name, t.shape))
            .collect();
        let shape = |part: &str| &shapes[&format!("base_model.model.{module}.{part}")];
        assert_eq!(*shape("lora_A.weight"), a, "{name}");
        assert_eq!(*shape("lora_B.weight"), b, "{name}");
        assert_eq!(*shape("base_layer.bias"), [b[0]], "{name}");
        let config = config_of(&made, "adapter_config.json");
        let listed = |key: &str| -> Vec<String> { serde_json::from_value(config[key].clone()).unwrap() };
        let saved = listed("modules_to_save");
        assert!(!saved.iter().any(|m| listed("target_modules").iter().any(|t| m.ends_with(t))), "{saved:?}");
        assert_eq!(config["fan_in_fan_out"], name == "gpt2");
        assert_eq!(config["bias"], "all");
    }
}

/// Names as torch.compile, DDP and the versions of transformers for vision-language models write them.
#[test]
fn other_spellings_of_names_mean_the_same_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let (base, changed, out) = (dir.path().join("base"), dir.path().join("adapter"), dir.path().join("out"));
    let plain = dir.path().join("plain");
    merge(&golden("plain").base, &adapter("plain"), &plain, &[]);
    let plain = read_tensors(&plain);
    // Prefixes of the decoder in the base and in the adapter.
    for (in_base, in_adapter) in [
        ("model.", "_orig_mod.base_model.model.model."),
        ("model.", "module.base_model.model.model."),
        ("model.language_model.", "base_model.model.language_model.model."),
        ("language_model.model.", "base_model.model.model.language_model."),
        ("model.", "base_model.model.model.language_model."),
        ("model.language_model.", "base_model.model.model."),
        ("", "base_model.model.model."),
    ] {
        let renamed = |name: &str| match name.strip_prefix("model.") {
            Some(rest) => format!("{in_base}{rest}"),
            None => name.to_owned(),
        };
        let mut tensors = tensors_of(&golden("plain").base.join("model.safetensors"));
        tensors.iter_mut().for_each(|t| t.name = renamed(&t.name));
        let config = config_of(&golden("plain").base, "config.json");
        write_checkpoint(&base, &tensors, 1, &config.to_string());
        let mut tensors = tensors_of(&adapter("plain").join("adapter_model.safetensors"));
        let inner = "base_model.model.model.";
        tensors.iter_mut().for_each(|t| t.name = t.name.replace(inner, in_adapter));
        write_adapter(&changed, &config_of(&adapter("plain"), "adapter_config.json"), &tensors);
        merge(&base, &changed, &out, &[]);
        let got = read_tensors(&out);
        assert_eq!(got.len(), plain.len());
        assert!(plain.iter().all(|(name, bytes)| got[&renamed(name)] == *bytes), "{in_base} {in_adapter}");
    }
}
