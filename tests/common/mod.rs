//! Checkpoints made on the spot, and the command run on them.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test file uses its own part"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use assert_cmd::cargo::cargo_bin;

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// The command with these arguments; paths and numbers alike.
pub fn hft(args: &[&str]) -> Command {
    let mut command = Command::new(cargo_bin("hft-surgery"));
    command.args(args).env_remove("NO_COLOR");
    command
}

/// No command of a test takes this long.
const LIMIT: Duration = Duration::from_secs(300);

/// Waits for a command to end, and fails when it takes too long.
pub fn wait(child: Child) -> Output {
    let id = child.id().to_string();
    let (send, ended) = mpsc::channel();
    std::thread::spawn(move || send.send(child.wait_with_output()));
    let Ok(output) = ended.recv_timeout(LIMIT) else {
        Command::new("kill").args(["-KILL", &id]).status().unwrap();
        panic!("a command still runs after {LIMIT:?}");
    };
    output.unwrap()
}

/// Runs a command to its end, with its stdout and stderr, and fails when it takes too long.
pub fn output(command: &mut Command) -> Output {
    wait(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

/// Waits until `reached` holds; whether it did before `child` ended. Fails when neither comes.
pub fn wait_until(child: &mut Child, reached: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while !reached() {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        if start.elapsed() > LIMIT {
            child.kill().unwrap();
            panic!("a command neither ended nor went on within {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

pub fn run(args: &[&str]) -> Output {
    output(&mut hft(args))
}

/// Runs and expects success; stdout.
pub fn ok(args: &[&str]) -> String {
    let output = run(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs and expects exit code 2; stderr.
pub fn fails(args: &[&str]) -> String {
    let output = run(args);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
    assert!(stderr.starts_with("error: ") && !stderr.contains("panicked"), "{stderr}");
    stderr
}

pub fn path(p: &Path) -> &str {
    p.to_str().unwrap()
}

/// One tensor of a file to be written.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Vec<u64>,
    pub bytes: Vec<u8>,
}

pub fn tensor(name: &str, dtype: &'static str, shape: &[u64], bytes: Vec<u8>) -> Tensor {
    Tensor { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes }
}

/// A BF16 tensor whose elements are `first`, `first + 1`, …: every byte pair tells where it came from.
pub fn counted(name: &str, shape: &[u64], first: u16) -> Tensor {
    let n = shape.iter().product::<u64>();
    let bytes = (0..n).flat_map(|i| first.wrapping_add(i as u16).to_le_bytes());
    tensor(name, "BF16", shape, bytes.collect())
}

pub fn write_file(path: &Path, tensors: &[Tensor], metadata: &str) {
    let mut at = 0;
    let mut entries = vec![format!(r#""__metadata__":{metadata}"#)];
    for t in tensors {
        let end = at + t.bytes.len();
        entries.push(format!(
            r#""{}":{{"dtype":"{}","shape":{:?},"data_offsets":[{at},{end}]}}"#,
            t.name, t.dtype, t.shape
        ));
        at = end;
    }
    let json = format!("{{{}}}", entries.join(","));
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    tensors.iter().for_each(|t| bytes.extend_from_slice(&t.bytes));
    std::fs::write(path, bytes).unwrap();
}

/// Writes a directory of `shards` shards with an index, or a single file for one shard.
pub fn write_checkpoint(dir: &Path, tensors: &[Tensor], shards: usize, config: &str) {
    let _ = std::fs::remove_dir_all(dir);
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("config.json"), config).unwrap();
    if shards == 1 {
        return write_file(&dir.join("model.safetensors"), tensors, r#"{"format":"pt"}"#);
    }
    let size = tensors.len().div_ceil(shards);
    let chunks: Vec<_> = tensors.chunks(size).collect();
    let mut map = Vec::new();
    for (i, chunk) in chunks.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, chunks.len());
        write_file(&dir.join(&name), chunk, r#"{"format":"pt"}"#);
        map.extend(chunk.iter().map(|t| format!(r#""{}": "{name}""#, t.name)));
    }
    let index = format!(r#"{{"metadata": {{"total_size": 0}}, "weight_map": {{{}}}}}"#, map.join(", "));
    std::fs::write(dir.join("model.safetensors.index.json"), index).unwrap();
}

/// A pair of 24 MB a side, so that a run takes long enough to be interrupted or disturbed.
pub fn large_pair(dir: &Path) {
    for (name, first) in [("base", 1u16), ("tuned", 2)] {
        let tensors = (0..12)
            .map(|i| counted(&format!("model.layers.{i}.mlp.up_proj.weight"), &[1000, 1000], first + 10 * i));
        write_checkpoint(&dir.join(name), &tensors.collect::<Vec<_>>(), 4, "{}");
    }
}

/// A Llama of two layers with heads of 64; the sides of its matrices are multiples of 16.
pub fn aligned_model(dir: &Path) {
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 64,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 48, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256, "tie_word_embeddings": true, "hidden_act": "silu", "rope_theta": 1e4,
    });
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: &[u64], centre: f32| {
        let n = shape.iter().product::<u64>() as usize;
        let value = |i: usize| centre + 0.3 * ((i * 7919 + name.len() * 131) as f32 * 0.37).sin();
        let bytes = (0..n).flat_map(|i| value(i).to_le_bytes()).collect();
        tensors.push(tensor(&name, "F32", shape, bytes));
    };
    add("model.embed_tokens.weight".into(), &[48, 32], 0.0);
    for layer in 0..2 {
        let matrices = [
            ("self_attn.q_proj", [128, 32]),
            ("self_attn.k_proj", [64, 32]),
            ("self_attn.v_proj", [64, 32]),
            ("self_attn.o_proj", [32, 128]),
            ("mlp.gate_proj", [48, 32]),
            ("mlp.up_proj", [48, 32]),
            ("mlp.down_proj", [32, 48]),
        ];
        for (name, shape) in matrices {
            add(format!("model.layers.{layer}.{name}.weight"), &shape, 0.0);
        }
        for name in ["input_layernorm", "post_attention_layernorm"] {
            add(format!("model.layers.{layer}.{name}.weight"), &[32], 1.0);
        }
    }
    add("model.norm.weight".into(), &[32], 1.0);
    write_checkpoint(dir, &tensors, 1, &config.to_string());
}

/// Every tensor of a checkpoint directory, read by the reference crate.
pub fn read_tensors(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            let bytes = std::fs::read(&path).unwrap();
            for (name, view) in safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors() {
                assert!(all.insert(name, view.data().to_vec()).is_none());
            }
        }
    }
    all
}

/// Every file below a directory with its bytes.
pub fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    all.into_iter()
        .map(|(p, b)| (p.strip_prefix(dir).map_or_else(|_| p.clone(), Path::to_owned), b))
        .collect()
}

/// The plan that an output says it carried out.
pub fn plan_of(out: &Path) -> serde_json::Value {
    let text = std::fs::read(out.join("hft_surgery.json")).unwrap();
    serde_json::from_slice::<serde_json::Value>(&text).unwrap()["plan"].clone()
}
