//! Whether two checkpoints are of one kind at all.

use crate::checkpoint::Checkpoint;
use crate::error::Escaped;

/// Sizes of a model that every tensor of it depends on, and the number of its layers.
const SIZES: [&str; 3] = ["hidden_size", "intermediate_size", "num_hidden_layers"];

/// Why a comparison of `a` with `b` tells little: one is an adapter, or their architectures or sizes differ. `None` where
/// the two are of one kind, or do not say.
pub fn unlike(a: &Checkpoint, b: &Checkpoint) -> Option<String> {
    let adapter = |checkpoint: &Checkpoint| checkpoint.tensors().any(|t| t.info.name.contains(".lora_"));
    match (adapter(a), adapter(b)) {
        (true, false) => return Some(adapter_and_model("first", "second")),
        (false, true) => return Some(adapter_and_model("second", "first")),
        _ => {}
    }
    let architecture = |checkpoint: &'_ Checkpoint| checkpoint.config()?.architecture().map(str::to_owned);
    let (of_a, of_b) = (architecture(a)?, architecture(b)?);
    if of_a != of_b {
        return Some(format!(
            "different architectures: {} and {}",
            Escaped(of_a.as_str()),
            Escaped(of_b.as_str())
        ));
    }
    let size = |checkpoint: &Checkpoint, key: &str| checkpoint.config()?.value().get(key)?.as_u64();
    let differ = SIZES.iter().filter_map(|key| {
        let (of_a, of_b) = (size(a, key)?, size(b, key)?);
        (of_a != of_b).then(|| format!("{key} {of_a} and {of_b}"))
    });
    let differ: Vec<String> = differ.collect();
    (!differ.is_empty())
        .then(|| format!("different sizes of {}: {}", Escaped(of_a.as_str()), differ.join(", ")))
}

fn adapter_and_model(adapter: &str, model: &str) -> String {
    format!(
        "the {adapter} is an adapter, the {model} a whole model: merge the adapter into its base first \
         (hft-surgery merge --lora ADAPTER --base BASE --out MERGED)"
    )
}
