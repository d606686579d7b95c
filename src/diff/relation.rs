//! Whether two checkpoints are of one kind at all.

use crate::checkpoint::Checkpoint;
use crate::error::Escaped;

/// Why a comparison of `a` with `b` tells little: one is an adapter, or their architectures differ. `None` where the two
/// are of one kind, or do not say.
pub fn unlike(a: &Checkpoint, b: &Checkpoint) -> Option<String> {
    let adapter = |checkpoint: &Checkpoint| checkpoint.tensors().any(|t| t.info.name.contains(".lora_"));
    match (adapter(a), adapter(b)) {
        (true, false) => return Some(adapter_and_model("first", "second")),
        (false, true) => return Some(adapter_and_model("second", "first")),
        _ => {}
    }
    let architecture = |checkpoint: &'_ Checkpoint| checkpoint.config()?.architecture().map(str::to_owned);
    let (of_a, of_b) = (architecture(a)?, architecture(b)?);
    (of_a != of_b).then(|| {
        format!("different architectures: {} and {}", Escaped(of_a.as_str()), Escaped(of_b.as_str()))
    })
}

fn adapter_and_model(adapter: &str, model: &str) -> String {
    format!(
        "the {adapter} is an adapter, the {model} a whole model: merge the adapter into its base first \
         (hft-surgery merge --lora ADAPTER --base BASE --out MERGED)"
    )
}
