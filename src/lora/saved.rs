//! What an extracted adapter saves whole, and how its configuration names modules.

use std::collections::BTreeSet;

use crate::checkpoint::Checkpoint;
use crate::lora::adapter_file::PREFIX;
use crate::merge::tiles::source::Source;
use crate::plan::{TensorName, module_of};
use crate::surgery::Pairing;

/// What is saved whole.
pub(super) struct Saved<'a> {
    /// By the names that PEFT loads them by.
    pub(super) tensors: Vec<(String, Source<'a>)>,
    /// The modules for `modules_to_save`, by whole names: PEFT takes `norm` for the end of `input_layernorm` too.
    pub(super) modules: BTreeSet<String>,
    /// Whether there are biases of other modules.
    pub(super) biases: bool,
}

impl<'a> Saved<'a> {
    /// Biases are saved alone, as with `bias: all`; of what else differs, every tensor of the module, because PEFT
    /// replaces modules whole. A tied embedding is saved as the head too: PEFT unties what it replaces. `targets` are
    /// modules of the base, whose spelling of names an adapter has.
    pub(super) fn new(pairing: &Pairing<'a>, differing: &[&Source<'a>], targets: &BTreeSet<String>) -> Self {
        const HEAD: &str = "lm_head.weight";
        let (base, tuned) = (pairing.base, pairing.tuned);
        let of_weight = |name: &str| {
            let weight = name.strip_suffix(".bias").map(|module| format!("{module}.weight"));
            weight.is_some_and(|weight| tuned.find(&weight).is_some())
        };
        let changed: BTreeSet<&str> = differing.iter().map(|s| s.info.name.as_str()).collect();
        let whole = changed.iter().filter(|name| !of_weight(name));
        let whole: BTreeSet<&str> = whole.map(|name| module_of(name)).collect();
        let (mut tensors, mut modules, mut biases) =
            (Vec::<(String, Source<'a>)>::new(), BTreeSet::new(), false);
        for tensor in tuned.tensors() {
            let name = tensor.info.name.as_str();
            let is_whole = whole.contains(module_of(name));
            let is_bias = !is_whole && changed.contains(name);
            if !is_whole && !is_bias {
                continue;
            }
            biases |= is_bias;
            let name = base.twin(name, tuned).map_or(name, |twin| twin.info.name.as_str());
            let module = module_of(name);
            if is_whole {
                modules.insert(module.to_owned());
            }
            let is_target = is_bias && targets.contains(module);
            let stored = if is_target { format!("{module}.base_layer.bias") } else { name.to_owned() };
            tensors.push((stored, Source::stored(tuned, &tensor)));
        }
        let is_embedding = |name: &str| TensorName::of(name).is_token_embedding();
        let embedding = tensors.iter().find(|(name, _)| is_embedding(name)).map(|(_, s)| s.clone());
        if let Some(embedding) = embedding.filter(|_| tuned.tied() && tuned.find(HEAD).is_none()) {
            modules.insert(module_of(HEAD).to_owned());
            tensors.push((HEAD.to_owned(), embedding));
        }
        let tensors = tensors.into_iter().map(|(name, source)| (format!("{PREFIX}{name}"), source)).collect();
        Self { tensors, modules, biases }
    }
}

/// The last parts of module names, where all modules with such a name are meant; the whole names otherwise.
pub(super) fn short_names(tuned: &Checkpoint, modules: BTreeSet<String>) -> BTreeSet<String> {
    fn last(module: &str) -> &str {
        module.rsplit('.').next().unwrap_or(module)
    }
    let all: BTreeSet<&str> = tuned.tensors().map(|t| module_of(&t.info.name)).collect();
    let partial: BTreeSet<&str> = all.into_iter().filter(|m| !modules.contains(*m)).map(last).collect();
    modules.iter().map(|m| if partial.contains(last(m)) { m.clone() } else { last(m).to_owned() }).collect()
}
