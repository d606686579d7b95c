//! What a Llama-3-8B takes on a GPU, rehearsed on the mock driver without allocating it.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test that cannot go on fails")]

mod common;
#[path = "common/mock_cuda.rs"]
mod mock_cuda;

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use common::{fixture, hft};
use hft_surgery::backend::cuda::{Directories, set_directories};
use hft_surgery::backend::{Device, DeviceChoice};
use hft_surgery::checkpoint::{Access, Checkpoint};
use hft_surgery::data::{Arrangement, BatchOptions, Batches, Location, Row};
use hft_surgery::model::{Capacity, Recompute};
use hft_surgery::optimizer::{Adam, Optimizer};
use hft_surgery::plan::{Inventory, Plan, Selection, Strategy, select};
use hft_surgery::train::{
    FrozenDtype, Gradients, Master, OptimizerOptions, RoundOptions, Scheduler, Stage, planned_bytes,
};
use serde_json::{Map, Value, json};

const ADAM: Adam = Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8 };

/// A checkpoint of zeros of the shapes of Llama-3-8B, in a file with a hole in place of them.
fn llama_8b(dir: &Path) -> Checkpoint {
    const D: u64 = 4096;
    let config = json!({
        "model_type": "llama", "hidden_size": D, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192, "tie_word_embeddings": false, "hidden_act": "silu", "rope_theta": 5e5,
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![128_256, D])];
    for layer in 0..32 {
        for (name, shape) in [
            ("self_attn.q_proj", vec![D, D]),
            ("self_attn.k_proj", vec![1024, D]),
            ("self_attn.v_proj", vec![1024, D]),
            ("self_attn.o_proj", vec![D, D]),
            ("mlp.gate_proj", vec![14336, D]),
            ("mlp.up_proj", vec![14336, D]),
            ("mlp.down_proj", vec![D, 14336]),
            ("input_layernorm", vec![D]),
            ("post_attention_layernorm", vec![D]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    shapes.push(("model.norm.weight".to_owned(), vec![D]));
    shapes.push(("lm_head.weight".to_owned(), vec![128_256, D]));
    let (mut header, mut at) = (Map::new(), 0);
    for (name, shape) in shapes {
        let end = at + 2 * shape.iter().product::<u64>();
        header.insert(name, json!({ "dtype": "BF16", "shape": shape, "data_offsets": [at, end] }));
        at = end;
    }
    let header = Value::Object(header).to_string();
    let path = dir.join("model.safetensors");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + at).unwrap();
    Checkpoint::open(dir, Access::Map).unwrap()
}

fn options(optimizer: Optimizer, master: Master, gradients: Gradients) -> RoundOptions {
    let max_grad_norm = if gradients == Gradients::OneBlock { 0.0 } else { 1.0 };
    RoundOptions {
        preference: None,
        label_smoothing: 0.0,
        learning_rate: 1e-5,
        scheduler: Scheduler::Linear,
        warmup_steps: 0,
        warmup_ratio: 0.0,
        epochs: 1,
        max_steps: None,
        gradient_accumulation_steps: 1,
        optimizer: OptimizerOptions { optimizer, weight_decay: 0.0, max_grad_norm },
        master,
        frozen: FrozenDtype::Stored,
        offload: None,
        gradients,
        recompute: Recompute::Full,
        save_steps: None,
        save_total_limit: 1,
        eval_steps: None,
    }
}

/// The plan of a whole round in sequences of `tokens` tokens, one in each pass.
fn planned(source: &Checkpoint, plan: &Plan, tokens: usize, options: &RoundOptions) -> u64 {
    let location = Location { path: Arc::from(Path::new("row")), line: 1 };
    let row = Row { input_ids: vec![0; tokens], labels: vec![0; tokens], location };
    let arrangement = Arrangement::Plain;
    let batches =
        Batches::new(vec![row], BatchOptions { batch_size: 1, arrangement, shuffle: false, seed: 0 });
    let batches = batches.unwrap();
    let stage = Stage {
        batches: &batches,
        eval: &[],
        eval_rows: &[],
        capacity: Capacity { tokens, positions: tokens },
        reference: &[],
        eval_reference: &[],
    };
    let libraries = mock_cuda::libraries().to_owned();
    set_directories(Directories { cache: libraries.join("cache"), libraries });
    let mut device = Device::open(DeviceChoice::Cuda, None).unwrap();
    planned_bytes(&mut device, source, plan, &stage, options).unwrap().unwrap()
}

fn elements(source: &Checkpoint, plan: &Plan) -> [f64; 2] {
    let of = |trained: bool| {
        let tensors = source.tensors().filter(|t| (plan.is_trainable(&t.info.name) == Some(true)) == trained);
        tensors.map(|tensor| tensor.info.elements()).sum::<u64>() as f64
    };
    [of(true), of(false)]
}

/// One sequence of 4096 tokens in a pass, blocks computed again, in GB of 10⁹ bytes.
#[test]
fn a_half_trained_8b_takes_at_most_40_gb() {
    let dir = tempfile::tempdir().unwrap();
    let source = llama_8b(dir.path());
    let select = |selection| select(&Inventory::of(&source), &selection).unwrap();
    let half = select(Selection { ratio: 0.5, ..Selection::default() });
    let full = select(Selection { ratio: 1.0, ..Selection::default() });
    let train = vec!["model.norm.weight".to_owned()];
    let none = select(Selection { strategy: Strategy::Explicit, train, ..Selection::default() });
    let [trained, frozen] = elements(&source, &half);
    println!("half: {trained} trained and {frozen} frozen parameters");
    let [all, rest] = elements(&source, &full);
    let [few, _] = elements(&source, &none);
    assert_eq!((rest, few), (0.0, 4096.0));
    let (adamw, adamw8bit) = (Optimizer::AdamW(ADAM), Optimizer::AdamW8bit(ADAM));
    for (name, optimizer, master, gradients, most_half, each) in [
        ("f32 master, f32 gradients, adamw", adamw, Master::F32, Gradients::F32, f64::INFINITY, 18.01),
        ("no master, f32 gradients, adamw8bit", adamw8bit, Master::None, Gradients::F32, 46e9, 8.04),
        ("no master, bf16 gradients, adamw8bit", adamw8bit, Master::None, Gradients::Bf16, 40e9, 6.45),
        ("no master, in backward, adamw8bit", adamw8bit, Master::None, Gradients::OneBlock, 32e9, 4.45),
    ] {
        let options = options(optimizer, master, gradients);
        let planned = |plan| planned(&source, plan, 4096, &options) as f64;
        let [of_half, of_full, of_none] = [planned(&half), planned(&full), planned(&none)];
        // A frozen parameter takes 2 bytes, as its values do.
        let trainable = (of_full - of_none) / (all - few) + 2.0;
        let beside = of_none - 2.0 * all;
        println!(
            "{name}: half {:.2} GB, full {:.2} GB; {trainable:.2} bytes for each trained parameter, 2 for each frozen, {:.2} GB \
             beside them",
            of_half / 1e9,
            of_full / 1e9,
            beside / 1e9
        );
        assert!(of_half <= most_half, "{name}: {of_half}");
        assert!(
            trainable <= each && beside < 3e9,
            "{name}: {trainable} bytes for each, {beside} beside them"
        );
    }
}

/// What is rehearsed from headers is what a run plans with its model loaded, which `no_step_allocates_and_the_plan_is_what_is_used`
/// holds to what the driver allocates.
#[test]
fn a_plan_from_headers_is_that_of_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let [rows, out] = ["rows.jsonl", "out"].map(|name| dir.path().join(name).to_str().unwrap().to_owned());
    let ids: Vec<usize> = (0..16).map(|t| t * 3 % 48).collect();
    std::fs::write(&rows, json!({ "input_ids": ids }).to_string()).unwrap();
    let model = fixture("llama").join("qwen3");
    let source = Checkpoint::open(&model, Access::Map).unwrap();
    let full = select(&Inventory::of(&source), &Selection { ratio: 1.0, ..Selection::default() }).unwrap();
    for (gradients, more) in [
        (Gradients::F32, &[][..]),
        (Gradients::Bf16, &["--gradient-dtype", "bfloat16"]),
        (Gradients::OneBlock, &["--optimizer-in-backward", "--max-grad-norm", "0"]),
    ] {
        let model = model.to_str().unwrap();
        let args = ["train", "--model", model, "--data", &rows, "--out", &out, "--ratio", "1", "--json"];
        let args = [&args[..], &["--force", "--device", "cuda", "--recompute", "full"], more].concat();
        let mut command = hft(&[&args[..], &["--max-steps", "1", "--batch-size", "1"]].concat());
        command.env("HFT_CUDA_LIBRARIES", mock_cuda::libraries()).env("XDG_CACHE_HOME", dir.path());
        let output = command.env("MOCK_SCHEDULE", "0").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        let options = options(Optimizer::AdamW(ADAM), Master::F32, gradients);
        let from_headers = planned(&source, &full, 16, &options);
        assert_eq!(result["rounds"][0]["planned_bytes"], from_headers, "{gradients:?}");
    }
}
