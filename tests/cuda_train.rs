//! `train` and `eval` on the mock GPU against the CPU, and the messages when there is no GPU.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test that cannot go on fails")]

mod common;
#[path = "common/mock_cuda.rs"]
mod mock_cuda;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{aligned_model, fixture, hft, read_tensors};
use serde_json::{Value, json};

struct Lab {
    dir: tempfile::TempDir,
}

/// Every run under another order of threads.
const SCHEDULES: [&str; 3] = ["0", "1", "2"];

impl Lab {
    fn new(family: &str) -> Self {
        let lab = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir(lab.path("model")).unwrap();
        for name in ["model.safetensors", "config.json"] {
            let from = fixture("llama").join(family).join(name);
            std::fs::copy(from, lab.path("model").join(name)).unwrap();
        }
        let row = |i: usize| {
            let ids: Vec<usize> = (0..5 + i * 7 % 11).map(|t| (i * 13 + t * t * 5) % 48).collect();
            json!({ "input_ids": ids }).to_string()
        };
        let rows: Vec<String> = (0..6).map(row).collect();
        std::fs::write(lab.path("rows.jsonl"), rows.join("\n")).unwrap();
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command that finds the mock libraries, with a cache of its own.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = hft(args);
        command.env("HFT_CUDA_LIBRARIES", mock_cuda::libraries()).env("XDG_CACHE_HOME", self.path("cache"));
        command.env("MOCK_NVRTC_LOG", self.path("nvrtc.log")).env("MOCK_SCHEDULE", "1");
        command
    }

    fn train(&self, out: &str, more: &[&str]) -> Command {
        let (model, data, out) = (self.path("model"), self.path("rows.jsonl"), self.path(out));
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let (model, data, out) = (text(&model), text(&data), text(&out));
        let mut args = vec!["train", "--model", &model, "--data", &data, "--out", &out, "--batch-size", "3"];
        args.extend(["--learning-rate", "3e-3", "--max-steps", "3", "--adam-epsilon", "1e-5"]);
        args.extend(["--seed", "5", "--weight-decay", "0.1"]);
        args.extend(more);
        self.command(&args)
    }

    fn losses(&self, out: &str) -> Vec<f64> {
        let text = std::fs::read_to_string(self.path(out).join("train_log.jsonl")).unwrap();
        text.lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap())
            .collect()
    }

    /// Every tensor of `f32`.
    fn values(&self, dir: &str) -> Vec<(String, Vec<f32>)> {
        let floats =
            |bytes: Vec<u8>| bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        read_tensors(&self.path(dir)).into_iter().map(|(name, bytes)| (name, floats(bytes))).collect()
    }

    /// ‖a − b‖ / ‖b − start‖ over all tensors.
    fn distance(&self, a: &str, b: &str) -> f64 {
        let squares = |x: &str, y: &str| -> f64 {
            let (x, y) = (self.values(x), self.values(y));
            assert_eq!(x.len(), y.len());
            let pairs = x.iter().zip(&y).flat_map(|(x, y)| x.1.iter().zip(&y.1));
            pairs.map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum()
        };
        (squares(a, b) / squares(b, "model")).sqrt()
    }
}

fn good(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

fn refused(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr
}

/// A family trained on the CPU (`cpu`) and in f32 on the GPU (`GPU`), whose weights are apart by less than `bound` of the update.
fn trained_on_both(family: &str, schedule: &str, bound: f64) -> Lab {
    let lab = Lab::new(family);
    good(&lab.train("cpu", &["--device", "cpu"]).output().unwrap());
    let f32 = ["--device", "cuda", "--compute-dtype", "float32"];
    good(&lab.train("GPU", &f32).env("MOCK_SCHEDULE", schedule).output().unwrap());
    for (cpu, gpu) in lab.losses("cpu").iter().zip(lab.losses("GPU")) {
        assert!((cpu - gpu).abs() < 1e-4 * cpu, "{family}: {cpu} on the CPU, {gpu} on the GPU");
    }
    let e = lab.distance("GPU", "cpu");
    println!("{family}: off by {e:.1e} of the update");
    assert!(e > 0.0 && e < bound, "{family}: off by {e:e} of the update");
    lab
}

/// A whole step through the backend, with biases, grouped heads, norms of heads, windows, tied and untied heads.
#[test]
fn training_agrees_with_the_cpu() {
    for (family, schedule) in ["llama-bias", "qwen3", "qwen2-window"].into_iter().zip(SCHEDULES) {
        let lab = trained_on_both(family, schedule, 1e-4);
        // bf16: the same curve within its precision.
        good(&lab.train("half", &["--device", "cuda"]).env("MOCK_SCHEDULE", schedule).output().unwrap());
        for (cpu, gpu) in lab.losses("cpu").iter().zip(lab.losses("half")) {
            assert!((cpu - gpu).abs() < 2e-2 * cpu, "{family}: {cpu} on the CPU, {gpu} in bf16");
        }
    }
}

/// What families have besides: soft caps, LayerNorm, a squared ReLU, matrices of several projections, heads rotated in part,
/// an MLP beside attention.
#[test]
fn families_agree_with_the_cpu() {
    let families = ["gemma2", "phi4-longrope", "glm4", "olmo", "stablelm-parallel", "cohere2", "nemotron"];
    for (family, schedule) in families.into_iter().zip(SCHEDULES.into_iter().cycle()) {
        trained_on_both(family, schedule, 1e-3);
    }
}

/// Experts of some tokens and of all, layers without a mixture, a loss of routers; each in bf16 too.
#[test]
fn mixtures_of_experts_agree_with_the_cpu() {
    let families = ["mixtral", "qwen2-moe", "qwen3-moe", "olmoe", "mixtral-router-loss"];
    for (family, schedule) in families.into_iter().zip(SCHEDULES.into_iter().cycle()) {
        let lab = trained_on_both(family, schedule, 1e-3);
        good(&lab.train("half", &["--device", "cuda"]).env("MOCK_SCHEDULE", schedule).output().unwrap());
        for (cpu, gpu) in lab.losses("cpu").iter().zip(lab.losses("half")) {
            assert!((cpu - gpu).abs() < 2e-2 * cpu, "{family}: {cpu} on the CPU, {gpu} in bf16");
        }
    }
}

/// The losses are read back between the head's two passes, which no graph does; the last pair is a micro-batch alone.
#[test]
fn preferences_agree_with_the_cpu() {
    // The loss of routers is one more term, about 2 times its factor of 0.2.
    for (family, of_routers) in
        [("qwen3", 0.0..1e-5), ("qwen2-moe", 0.0..1e-5), ("mixtral-router-loss", 0.35..0.6)]
    {
        learns_from_pairs(family, &of_routers);
    }
}

fn learns_from_pairs(family: &str, of_routers: &std::ops::Range<f64>) {
    let lab = Lab::new(family);
    let ids = |n: usize, step: usize| (0..n).map(|t| (t * t * step + n) % 48).collect::<Vec<_>>();
    let row = |i: usize| {
        json!({
            "prompt_input_ids": ids(2 + i % 3, 5),
            "chosen_input_ids": ids(3 + i * 5 % 7, 7 + i),
            "rejected_input_ids": ids(1 + i * 3 % 8, 11 + i),
        })
        .to_string()
    };
    let rows: Vec<String> = (0..4).map(row).collect();
    std::fs::write(lab.path("rows.jsonl"), rows.join("\n")).unwrap();
    let dpo = ["--objective", "dpo", "--beta", "0.5", "--gradient-accumulation-steps", "2"];
    good(&lab.train("cpu", &[&dpo[..], &["--device", "cpu"]].concat()).output().unwrap());
    let f32 = ["--device", "cuda", "--compute-dtype", "float32"];
    good(&lab.train("GPU", &[&dpo[..], &f32].concat()).output().unwrap());
    let (cpu, gpu) = (lab.losses("cpu"), lab.losses("GPU"));
    let more = (cpu[0] - std::f64::consts::LN_2).abs();
    assert!(of_routers.contains(&more) && cpu[2] < cpu[0], "{family}: {cpu:?}");
    for (cpu, gpu) in cpu.iter().zip(&gpu) {
        assert!((cpu - gpu).abs() < 1e-4, "{cpu} on the CPU, {gpu} on the GPU");
    }
    let e = lab.distance("GPU", "cpu");
    assert!(e > 0.0 && e < 1e-3, "off by {e:e} of the update");
}

/// A model with heads of 64, whose attention in bf16 runs on tensor cores, and rows of several tiles.
#[test]
fn heads_of_64_follow_the_cpu() {
    let lab = Lab::new("llama2");
    aligned_model(&lab.path("model"));
    let row = |n: usize| json!({ "input_ids": (0..n).map(|t| (t * t * 5 + n) % 48).collect::<Vec<_>>() });
    let rows: Vec<String> = [150, 64, 65, 3, 129, 80].iter().map(|n| row(*n).to_string()).collect();
    std::fs::write(lab.path("rows.jsonl"), rows.join("\n")).unwrap();
    good(&lab.train("cpu", &["--device", "cpu"]).output().unwrap());
    good(&lab.train("GPU", &["--device", "cuda"]).output().unwrap());
    let (cpu, gpu) = (lab.losses("cpu"), lab.losses("GPU"));
    println!("{cpu:?} on the CPU, {gpu:?} in bf16");
    assert!(cpu.len() == 3 && cpu[2] < cpu[0], "{cpu:?}");
    for (cpu, gpu) in cpu.iter().zip(&gpu) {
        assert!((cpu - gpu).abs() < 1e-2 * cpu, "{cpu} on the CPU, {gpu} in bf16");
    }
    // bf16 gradients give updates that point the same way.
    let e = lab.distance("GPU", "cpu");
    assert!(e < 0.3, "off by {e:e} of the update");
}

/// A sign that falls to the other side, or a code, moves an element by a whole step: hence the bounds.
#[test]
fn every_optimizer_agrees_with_the_cpu() {
    for (choice, bound) in [
        (&["--optimizer", "adamw8bit"][..], 1e-4),
        (&["--optimizer", "adafactor"], 1e-4),
        (&["--optimizer", "lion"], 3e-2),
        (&["--optimizer", "sgd", "--momentum", "0.9", "--granularity", "element"], 1e-4),
    ] {
        let lab = Lab::new("qwen3");
        good(&lab.train("cpu", &[choice, &["--device", "cpu"]].concat()).output().unwrap());
        let f32 = ["--device", "cuda", "--compute-dtype", "float32"];
        good(&lab.train("GPU", &[choice, &f32].concat()).output().unwrap());
        let e = lab.distance("GPU", "cpu");
        println!("{choice:?}: off by {e:.1e} of the update");
        // Not a number where nothing moved; signs alone may leave no difference.
        assert!(e < bound, "{choice:?}: off by {e:e} of the update");
    }
}

/// Weights in bfloat16 alone: the curve of the CPU within the precision of bfloat16, and the same bits again.
#[test]
fn weights_without_a_master_follow_the_cpu() {
    let lab = Lab::new("llama2");
    for (path, bytes) in common::files(&fixture("base")) {
        std::fs::write(lab.path("model").join(path), bytes).unwrap();
    }
    std::fs::remove_file(lab.path("model/model.safetensors")).unwrap();
    let none = ["--master", "none", "--optimizer", "adamw8bit", "--ratio", "1", "--device"];
    let run = |out: &str, device: &'static str| {
        good(&lab.train(out, &[&none[..], &[device]].concat()).output().unwrap());
        read_tensors(&lab.path(out))
    };
    let (_, gpu, again) = (run("cpu", "cpu"), run("GPU", "cuda"), run("again", "cuda"));
    assert!(gpu == again);
    for (cpu, gpu) in lab.losses("cpu").iter().zip(lab.losses("GPU")) {
        assert!((cpu - gpu).abs() < 2e-2 * cpu, "{cpu} on the CPU, {gpu} on the GPU");
    }
    let f32 = lab.train("f32", &[&none[..], &["cuda", "--compute-dtype", "float32"]].concat()).output();
    let f32 = refused(&f32.unwrap());
    assert!(f32.contains("--master none keeps weights in bfloat16"), "{f32}");
}

/// Gradients in bfloat16, with accumulation, clipping and element masks; and updates in the backward pass.
#[test]
fn gradients_in_less_memory_agree_with_the_cpu() {
    let bf16 = ["--gradient-dtype", "bfloat16"];
    let within = ["--optimizer-in-backward", "--max-grad-norm", "0"];
    for (family, more, bound) in [
        // A gradient that falls to the other side of a rounding differs by one of 2^-8.
        ("qwen3", &[&bf16[..], &["--gradient-accumulation-steps", "2"]].concat(), 1e-2),
        ("llama3", &[&bf16[..], &["--granularity", "element", "--ratio", "0.5"]].concat(), 1e-2),
        ("mistral", &[&bf16[..], &["--optimizer", "adafactor", "--ratio", "1"]].concat(), 1e-2),
        ("qwen2-moe", &[&bf16[..], &["--ratio", "1"]].concat(), 1e-2),
        ("qwen3", &within.to_vec(), 1e-4),
        ("qwen2-moe", &[&within[..], &["--ratio", "1"]].concat(), 1e-4),
        ("llama-bias", &[&within[..], &["--optimizer", "adafactor", "--ratio", "1"]].concat(), 1e-4),
        ("llama3", &[&within[..], &["--granularity", "element"]].concat(), 1e-4),
    ] {
        let lab = Lab::new(family);
        good(&lab.train("cpu", &[more, &["--device", "cpu"][..]].concat()).output().unwrap());
        let f32 = ["--device", "cuda", "--compute-dtype", "float32"];
        good(&lab.train("GPU", &[more, &f32[..]].concat()).output().unwrap());
        for (cpu, gpu) in lab.losses("cpu").iter().zip(lab.losses("GPU")) {
            assert!((cpu - gpu).abs() < 1e-3 * cpu, "{family}: {cpu} on the CPU, {gpu} on the GPU");
        }
        let e = lab.distance("GPU", "cpu");
        println!("{family} {more:?}: off by {e:.1e} of the update");
        assert!(e < bound, "{family} {more:?}: off by {e:e} of the update");
    }
}

/// On the GPU too, updates in the backward pass are those after it, where nothing clips.
#[test]
fn updates_in_the_backward_pass_of_a_gpu_are_those_after_it() {
    let lab = Lab::new("qwen3");
    let more = ["--device", "cuda", "--max-grad-norm", "0", "--optimizer", "adamw8bit", "--ratio", "1"];
    good(&lab.train("after", &more).output().unwrap());
    good(&lab.train("within", &[&more[..], &["--optimizer-in-backward"]].concat()).output().unwrap());
    assert!(lab.values("after") == lab.values("within") && lab.losses("after") == lab.losses("within"));
}

/// The loss is read back before the first update: a step of which it is not finite changes nothing. Where only a gradient is
/// not, the blocks above it were updated.
#[test]
fn what_is_not_finite_stops_a_run_with_updates_in_the_backward_pass() {
    let lab = Lab::new("llama2");
    let more = ["--device", "cuda", "--optimizer-in-backward", "--max-grad-norm", "0", "--optimizer", "sgd"];
    for (rate, words) in [
        ("1e36", "the state is saved in"),
        ("1e30", "a gradient is not finite, and the blocks above it were updated before it was found"),
    ] {
        let command = lab.train(rate, &more);
        let args: Vec<&str> = command.get_args().map(|arg| arg.to_str().unwrap()).collect();
        // Without decay, which is added to the gradient.
        let decay = if rate == "1e36" { "0" } else { "0.1" };
        let args = args.iter().map(|arg| match *arg {
            "3e-3" => rate,
            "0.1" => decay,
            other => other,
        });
        let output = lab.command(&args.collect::<Vec<_>>()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("training stopped: step 2"), "{said}");
        assert!(said.contains(words), "{said}");
        assert!(!lab.path(rate).join("config.json").exists(), "there is no result");
    }
}

/// Frozen matrices in eight-bit floats: the curve of the CPU, which casts weights alone, within the precision of e4m3; what is
/// frozen stays; memory is planned; an older GPU is named.
#[test]
fn frozen_matrices_in_float8_follow_the_cpu() {
    let lab = Lab::new("llama2");
    aligned_model(&lab.path("model"));
    let float8 = ["--frozen-dtype", "float8", "--ratio", "0.5", "--device"];
    good(&lab.train("cpu", &[&float8[..], &["cpu"]].concat()).output().unwrap());
    for (out, more) in [
        ("f32", &["--compute-dtype", "float32"][..]),
        ("bf16", &["--recompute", "full", "--gradient-accumulation-steps", "2"]),
        ("again", &["--recompute", "full", "--gradient-accumulation-steps", "2"]),
    ] {
        let args = [&float8[..], &["cuda", "--json"], more].concat();
        let log = lab.path(&format!("{out}.log"));
        let output = lab.train(out, &args).env("MOCK_DRIVER_LOG", &log).output().unwrap();
        good(&output);
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        let [planned, used] = [&result["rounds"][0]["planned_bytes"], &result["device_memory"]]
            .map(|bytes| bytes.as_u64().unwrap() - (32 << 20));
        assert!(
            used <= planned && planned as f64 <= 1.1 * used as f64,
            "{out}: {planned} planned, {used} used"
        );
        let launched = log_of(&log);
        let count = |kernel: &str| launched.iter().filter(|(_, which)| which == kernel).count();
        assert!(count("float8_cast_e4m3") > 0 && count("float8_cast_e5m2") == count("float8_transpose"));
        let (start, trained) = (read_tensors(&lab.path("model")), read_tensors(&lab.path(out)));
        let plan = common::plan_of(&lab.path(out));
        let frozen: Vec<&str> = plan["frozen"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert!(frozen.iter().any(|name| name.contains("_proj")), "{frozen:?}");
        assert!(frozen.iter().all(|name| start[*name] == trained[*name]), "{out}");
    }
    for (cpu, gpu) in lab.losses("cpu").iter().zip(lab.losses("f32")) {
        assert!((cpu - gpu).abs() < 2e-2 * cpu, "{cpu} on the CPU, {gpu} on the GPU");
    }
    assert!(read_tensors(&lab.path("bf16")) == read_tensors(&lab.path("again")));
    let old =
        lab.train("old", &[&float8[..], &["cuda"]].concat()).env("MOCK_COMPUTE_CAPABILITY", "80").output();
    let old = refused(&old.unwrap());
    assert!(old.contains("mock GPU (sm_80) has no products of eight-bit floats"), "{old}");
    assert!(!lab.path("old").exists());
}

#[test]
fn element_masks_and_accumulation_agree_with_the_cpu() {
    masks_and_accumulates("llama3", "none");
    masks_and_accumulates("qwen2-moe", "block");
}

fn masks_and_accumulates(family: &str, recompute: &'static str) {
    let lab = Lab::new(family);
    let more = ["--granularity", "element", "--ratio", "0.5", "--gradient-accumulation-steps", "2"];
    let more = [&more[..], &["--recompute", recompute]].concat();
    let on = |device: &'static str| {
        let chosen: &[&str] = if device == "cpu" {
            &["--device", "cpu"]
        } else {
            &["--device", "cuda", "--compute-dtype", "float32"]
        };
        [&more[..], chosen].concat()
    };
    good(&lab.train("cpu", &on("cpu")).output().unwrap());
    good(&lab.train("GPU", &on("cuda")).output().unwrap());
    let e = lab.distance("GPU", "cpu");
    assert!(e > 0.0 && e < 1e-4, "off by {e:e} of the update");
    // The elements that a mask freezes stay bit-identical, on both.
    let (start, cpu, gpu) = (lab.values("model"), lab.values("cpu"), lab.values("GPU"));
    let mut frozen = 0;
    for ((start, cpu), gpu) in start.iter().zip(&cpu).zip(&gpu) {
        for ((s, a), b) in start.1.iter().zip(&cpu.1).zip(&gpu.1) {
            frozen += usize::from(s == a);
            assert!((s == a) == (s == b) || (a - b).abs() < 1e-6, "{}", start.0);
        }
    }
    assert!(frozen > 1000, "only {frozen} elements are frozen");
}

#[test]
fn eval_agrees_with_the_cpu_and_the_kernels_are_compiled_once() {
    ["mistral", "qwen2-moe"].into_iter().for_each(evaluates_on_both);
}

fn evaluates_on_both(family: &str) {
    let lab = Lab::new(family);
    let (model, data) = (lab.path("model"), lab.path("rows.jsonl"));
    let eval = |more: &[&str]| -> f64 {
        let (model, data) = (model.to_str().unwrap(), data.to_str().unwrap());
        let args = [&["eval", "--model", model, "--data", data, "--json"], more].concat();
        let output = lab.command(&args).output().unwrap();
        good(&output);
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["loss"].as_f64().unwrap()
    };
    let cpu = eval(&["--device", "cpu"]);
    let gpu = eval(&["--device", "cuda", "--compute-dtype", "float32"]);
    assert!((cpu - gpu).abs() < 1e-5 * cpu, "{cpu} on the CPU, {gpu} on the GPU");
    assert_eq!(gpu, eval(&["--device", "auto", "--compute-dtype", "float32"]), "auto chooses a usable GPU");
    let compiled = || std::fs::read_to_string(lab.path("nvrtc.log")).unwrap();
    assert_eq!(compiled(), "sm_90 f32\n", "once for each type, then from the cache");
    eval(&["--device", "auto"]);
    assert_eq!(compiled(), "sm_90 f32\nsm_90 bf16\n");
}

#[test]
fn what_is_missing_is_an_error_and_never_a_panic() {
    let lab = Lab::new("llama2");
    let cuda = ["--device", "cuda"];
    let damaged = tempfile::tempdir().unwrap();
    let source = damaged.path().join("empty.cpp");
    std::fs::write(&source, "int nothing;").unwrap();
    mock_cuda::compile(&source, &damaged.path().join("libcuda.so"), &[]);
    let without = lab.train("out", &cuda).env("HFT_CUDA_LIBRARIES", damaged.path()).output().unwrap();
    let without = refused(&without);
    assert!(without.starts_with("error: driver: damaged") && without.contains("doctor"), "{without}");
    let old = refused(&lab.train("out", &cuda).env("MOCK_COMPUTE_CAPABILITY", "75").output().unwrap());
    assert!(old.contains("mock GPU is too old: compute capability 7.5"), "{old}");
    let none = refused(&lab.train("out", &cuda).env("MOCK_NO_DEVICE", "1").output().unwrap());
    assert!(none.contains("CUDA_ERROR_NO_DEVICE"), "{none}");
    // Memory for the workspace of cuBLASLt, not for a model.
    let full = refused(&lab.train("out", &cuda).env("MOCK_MEMORY", "33650000").output().unwrap());
    assert!(full.contains("OUT_OF_MEMORY") && full.contains("--batch-size"), "{full}");
}

/// Lines of the log of the mock driver: (event, its object).
fn log_of(path: &Path) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(path).unwrap();
    let pair = |line: &str| line.split_once(' ').map(|(what, which)| (what.to_owned(), which.to_owned()));
    text.lines().map(|line| pair(line).unwrap()).collect()
}

/// Everything is allocated before the first kernel of the first step, and it is what was planned.
#[test]
fn no_step_allocates_and_the_plan_is_what_is_used() {
    let qwen3: [(&str, &str, &[&str]); 9] = [
        ("full", "adamw", &["--ratio", "1.0", "--gradient-accumulation-steps", "2"]),
        ("half", "adamw", &["--granularity", "element", "--ratio", "0.5"]),
        ("block", "adamw", &["--recompute", "block", "--compute-dtype", "float32"]),
        ("lion", "lion", &["--optimizer", "lion"]),
        ("adafactor", "adafactor", &["--optimizer", "adafactor", "--ratio", "1"]),
        ("bf16", "adamw", &["--gradient-dtype", "bfloat16", "--gradient-accumulation-steps", "2"]),
        ("tied", "lion", &["--gradient-dtype", "bfloat16", "--optimizer", "lion", "--ratio", "1"]),
        ("within", "adamw", &["--optimizer-in-backward", "--max-grad-norm", "0", "--ratio", "1"]),
        ("masks", "adamw", &["--optimizer-in-backward", "--max-grad-norm", "0", "--granularity", "element"]),
    ];
    no_step_allocates(&Lab::new("qwen3"), &qwen3);
    no_step_allocates(&Lab::new("qwen2-moe"), &qwen3[..3]);
    no_step_allocates(&Lab::new("mixtral-router-loss"), &qwen3[..1]);
}

fn no_step_allocates(lab: &Lab, runs: &[(&str, &str, &[&str])]) {
    for &(out, last, more) in runs {
        let log = lab.path(&format!("{out}.log"));
        let more = [more, &["--device", "cuda", "--json"]].concat();
        let output = lab.train(out, &more).env("MOCK_DRIVER_LOG", &log).output().unwrap();
        good(&output);
        let lines = log_of(&log);
        let is = |what: &str, which: &str| lines.iter().position(|(a, b)| a == what && b == which).unwrap();
        let begin = is("launch", "embedding_forward");
        let end = lines.iter().rposition(|(a, b)| a == "launch" && b == last).unwrap();
        let steps = lines[begin..=end].iter().filter(|(_, which)| which == last).count();
        // Where tensors are updated one by one, or block by block, there are several launches for each step.
        assert!(steps >= 3 && steps.is_multiple_of(3), "{out}: {steps}");
        let allocations = lines[begin..=end].iter().filter(|(a, _)| a == "alloc" || a == "pinned");
        assert_eq!(allocations.count(), 0, "{out}");
        let bytes = |what: &str| -> u64 {
            let found = lines[..begin].iter().filter(|(a, _)| a == what);
            found.map(|(_, bytes)| bytes.parse::<u64>().unwrap()).sum()
        };
        let used = bytes("alloc") - bytes("free");
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        let planned = result["rounds"][0]["planned_bytes"].as_u64().unwrap();
        assert_eq!(result["device_memory"].as_u64().unwrap(), used, "{out}");
        assert_eq!(planned, used, "{out}: planned, used");
    }
}

/// Moments in memory of the host: the same bits, and less memory of the GPU by exactly their bytes, planned and used.
#[test]
fn moments_on_the_host_change_no_bit_and_take_no_memory_of_the_gpu() {
    for optimizer in [
        &["--optimizer", "adamw"][..],
        &["--optimizer", "adamw8bit"],
        &["--optimizer", "adafactor"],
        &["--optimizer", "lion", "--granularity", "element"],
        &["--optimizer", "sgd", "--momentum", "0.9"],
    ] {
        let lab = Lab::new("qwen3");
        let run = |offload: &'static str| {
            let more = [optimizer, &["--ratio", "1", "--device", "cuda", "--json", "--offload", offload]];
            let log = lab.path(&format!("{offload}.log"));
            let mut command = lab.train(offload, &more.concat());
            // Under all orders of threads, each of which leaves the same moments on the host.
            let schedule = if offload == "host" { "3" } else { "1" };
            let output =
                command.env("MOCK_DRIVER_LOG", &log).env("MOCK_SCHEDULE", schedule).output().unwrap();
            good(&output);
            (serde_json::from_slice::<Value>(&output.stdout).unwrap(), log_of(&log))
        };
        let ((none, _), (host, lines)) = (run("none"), run("host"));
        assert!(read_tensors(&lab.path("none")) == read_tensors(&lab.path("host")), "{optimizer:?}");
        assert_eq!(lab.losses("none"), lab.losses("host"), "{optimizer:?}");
        let part = |result: &Value, key: &str| result["rounds"][0]["memory"][key].as_u64().unwrap();
        let moments = part(&none, "moments");
        assert_eq!((part(&host, "moments"), part(&host, "offloaded_moments")), (0, moments));
        for total in ["/device_memory", "/rounds/0/planned_bytes"] {
            let bytes = |result: &Value| result.pointer(total).unwrap().as_u64().unwrap();
            assert_eq!(bytes(&none) - bytes(&host), moments, "{optimizer:?}: {total}");
        }
        let begin = lines.iter().position(|(a, b)| a == "launch" && b == "embedding_forward").unwrap();
        let count = |lines: &[(String, String)]| -> u64 {
            let mapped = lines.iter().filter(|(what, _)| what == "mapped");
            mapped.map(|(_, bytes)| bytes.parse::<u64>().unwrap()).sum()
        };
        assert_eq!((count(&lines[..begin]), count(&lines[begin..])), (moments, 0), "{optimizer:?}");
        let freed = lines.iter().filter(|(what, _)| what == "unmapped").count();
        assert_eq!(freed, lines.iter().filter(|(what, _)| what == "mapped").count(), "{optimizer:?}");
    }
}

/// `auto` takes the host where the moments do not fit, and only there; what is not there is an error.
#[test]
fn moments_go_to_the_host_where_the_gpu_has_no_memory_for_them() {
    let lab = Lab::new("qwen3");
    let more = ["--ratio", "1", "--device", "cuda", "--json", "--force"];
    let planned = |memory: Option<u64>| -> (Value, String) {
        let mut command = lab.train("out", &more);
        memory.map(|bytes| command.env("MOCK_MEMORY", bytes.to_string()));
        let output = command.output().unwrap();
        good(&output);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let result = serde_json::from_slice::<Value>(&output.stdout).unwrap();
        (result["rounds"][0].clone(), said)
    };
    let (round, said) = planned(None);
    assert!(!said.contains("moments: "), "{said}");
    let (total, moments) = (round["planned_bytes"].as_u64().unwrap(), round["memory"]["moments"].clone());
    let moments = moments.as_u64().unwrap();
    // The plan counts the workspace of cuBLASLt, which is there already.
    let (round, said) = planned(Some(total + (32 << 20) - moments / 2));
    assert_eq!(round["memory"]["offloaded_moments"], moments);
    let place = "in page-locked memory of the host: with them the run needs";
    assert!(said.contains(place) && said.contains("are available"), "{said}");
    let host = ["--ratio", "1", "--device", "cuda", "--force", "--offload", "host"];
    let none = lab.train("out", &host).env("MOCK_HOST_MEMORY", (moments / 2).to_string()).output().unwrap();
    let none = refused(&none);
    assert!(
        none.contains("cannot page-lock memory of the host") && none.contains("--offload none"),
        "{none}"
    );
    let disk = refused(&lab.train("disk", &["--device", "cuda", "--offload", "disk"]).output().unwrap());
    assert!(disk.contains("--offload disk") && disk.contains("use --offload host"), "{disk}");
}

/// What does not fit is told before anything is loaded.
#[test]
fn an_estimate_on_a_gpu_is_refused_where_the_run_does_not_fit() {
    let lab = Lab::new("qwen3");
    let [model, data] = ["model", "rows.jsonl"].map(|name| lab.path(name).to_str().unwrap().to_owned());
    let args = ["train", "--model", &model, "--data", &data, "--estimate", "--device", "cuda"];
    let output = lab.command(&args).env("MOCK_MEMORY", "34000000").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("the run needs"), "{said}");
    assert!(said.contains("nothing was measured") && said.contains("--gradient-dtype bfloat16"), "{said}");
}

/// Passes of one shape are recorded once, and each is computed on its own tokens.
#[test]
fn steps_of_one_shape_run_as_one_graph() {
    ["llama3", "qwen2-moe", "mixtral-router-loss"].into_iter().for_each(runs_as_one_graph);
}

fn runs_as_one_graph(family: &str) {
    let lab = Lab::new(family);
    let row = |i: usize| {
        let ids: Vec<usize> = (0..9).map(|t| (i * 17 + t * t * 7) % 48).collect();
        json!({ "input_ids": ids }).to_string()
    };
    std::fs::write(lab.path("rows.jsonl"), (0..18).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    let more = ["--no-shuffle", "--ratio", "1.0", "--device"];
    let log = lab.path("driver.log");
    let steps = |out: &str, device: &[&'static str]| lab.train(out, &[&more[..], device].concat());
    good(&steps("cpu", &["cpu"]).output().unwrap());
    let gpu = steps("GPU", &["cuda", "--compute-dtype", "float32"]).env("MOCK_DRIVER_LOG", &log).output();
    good(&gpu.unwrap());
    for (cpu, gpu) in lab.losses("cpu").iter().zip(lab.losses("GPU")) {
        assert!((cpu - gpu).abs() < 1e-5 * cpu, "{cpu} on the CPU, {gpu} on the GPU");
    }
    let lines = log_of(&log);
    let count = |what: &str| lines.iter().filter(|(a, _)| a == what).count();
    assert_eq!((count("graph"), count("replay")), (1, 2), "seen, recorded and run, run");
}

/// The benchmark for a machine with a GPU fails on one without.
#[test]
fn the_gpu_bench_fails_without_a_gpu() {
    let lab = Lab::new("llama2");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/gpu.sh");
    let binary = hft(&[]).get_program().to_owned();
    let mut command = Command::new("bash");
    command
        .arg(script)
        .arg("--results")
        .arg(lab.path("results"))
        .env("HFT_BINARY", binary)
        .env("HFT_TESTS", "true");
    command.env("HFT_CUDA_LIBRARIES", mock_cuda::libraries()).env("MOCK_NO_DEVICE", "1");
    let output = command.output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && text.contains("CUDA_ERROR_NO_DEVICE"), "{text}");
    assert!(!lab.path("results").exists());
}

/// The benchmark on tiny models and the mock GPU, with a script in place of the test program, whose output it reads.
fn gpu_bench(lab: &Lab, operations: &str) -> (Output, String, Value) {
    use std::os::unix::fs::PermissionsExt;
    let tests = lab.path("operations");
    std::fs::write(&tests, format!("#!/bin/sh\n{operations}\n")).unwrap();
    std::fs::set_permissions(&tests, std::fs::Permissions::from_mode(0o755)).unwrap();
    let results = lab.path("results");
    let mut command = Command::new("bash");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/gpu.sh")).arg("--tiny");
    command.args(["--without-pytorch", "--families", "llama2,mixtral", "--budget", "1000"]);
    command.args(["--choices", "half,the same again,frozen in float8,dpo", "--results"]).arg(&results);
    command.env("HFT_BINARY", hft(&[]).get_program()).env("HFT_TESTS", &tests);
    command.env("HFT_CUDA_LIBRARIES", mock_cuda::libraries()).env("XDG_CACHE_HOME", lab.path("cache"));
    let output = command.output().unwrap();
    let report = std::fs::read_to_string(results.join("gpu.md")).unwrap_or_default();
    let json = std::fs::read(results.join("gpu.json")).unwrap_or_default();
    (output, report, serde_json::from_slice(&json).unwrap_or_default())
}

#[test]
fn the_gpu_bench_writes_its_report() {
    let lab = Lab::new("llama2");
    let operations =
        "echo 'linear Bf16 error 1.0e-3 (at most 8e-3)'; echo 'bandwidth copy 4.0 GB/s, adamw 3.0 GB/s'";
    let (output, report, json) = gpu_bench(&lab, operations);
    good(&output);
    for part in
        ["# mock GPU", "left out by --without-pytorch", "masked AdamW 3 GB/s: 75%", "says nothing of speed"]
    {
        assert!(report.contains(part), "{part}: {report}");
    }
    let list = |name: &str| json[name].as_array().unwrap().clone();
    assert!(json["wrong"].is_null() && list("sections").iter().all(|section| section["seconds"].is_number()));
    assert_eq!(list("choices").len(), 4);
    assert!(list("families").iter().any(|family| family["name"] == "llama2"));
    let (speeds, ratios) = (list("speeds"), list("ratios"));
    assert!(speeds[0]["peak_bytes"].as_u64().unwrap() <= speeds[0]["planned_bytes"].as_u64().unwrap());
    assert!(speeds[2]["loss_gap"].as_f64().unwrap() > 0.0 && speeds[1]["planned"].is_string(), "{speeds:?}");
    assert_eq!(ratios.len(), 2);
}

#[test]
fn the_gpu_bench_stops_at_the_first_wrong_number() {
    let lab = Lab::new("llama2");
    let (output, report, json) = gpu_bench(&lab, "echo 'linear Bf16 error 1.0e-3 (at most 8e-3)'");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        report.contains("Stopped at a wrong number:** no operation was tested, or no bandwidth"),
        "{report}"
    );
    assert!(json["families"].as_array().unwrap().is_empty(), "nothing runs after it");
}
