//! Plans in the terms of LLaMA-Factory's `finetuning_type: freeze`: whole modules in the first or last blocks.

use std::collections::BTreeSet;

use super::name_pattern::block_number;
use crate::plan::Plan;

/// What LLaMA-Factory trains.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WholeModules {
    /// `freeze_trainable_layers`: the last blocks; the first ones where it is negative.
    pub(super) layers: i64,
    /// `freeze_trainable_modules`: children of a block.
    pub(super) modules: Vec<String>,
    /// `freeze_extra_modules`: modules outside of blocks.
    pub(super) extra: Vec<String>,
}

impl WholeModules {
    /// The terms that train what `plan` trains and nothing else, if there are any.
    pub(super) fn of(plan: &Plan) -> Option<Self> {
        let names: Vec<&str> = plan.trainable().iter().chain(plan.frozen()).map(String::as_str).collect();
        let blocks = 1 + names.iter().filter_map(|name| block_of(name)).max()?;
        let trained: Vec<&str> = plan.trainable().iter().map(String::as_str).collect();
        let on: BTreeSet<i64> = trained.iter().filter_map(|name| block_of(name)).collect();
        let layers = match (on.first(), on.last()) {
            (Some(first), Some(last)) if last - first + 1 != on.len() as i64 => return None,
            (Some(_), Some(last)) if last + 1 == blocks => on.len() as i64,
            (Some(0), Some(_)) => -(on.len() as i64),
            (None, None) => 0,
            _ => return None,
        };
        let of = |names: &[&str], find: fn(&str) -> Option<&str>| -> BTreeSet<String> {
            names.iter().filter_map(|name| find(name)).map(str::to_owned).collect()
        };
        let modules = of(&trained, child_of_block);
        let modules = match modules.is_empty() || modules == of(&names, child_of_block) {
            true => vec!["all".to_owned()],
            false => modules.into_iter().collect(),
        };
        let extra = of(&trained, outside_blocks).into_iter().collect();
        let found = Self { layers, modules, extra };
        let exact =
            names.iter().all(|name| found.trains(name, blocks) == (plan.is_trainable(name) == Some(true)));
        exact.then_some(found)
    }

    /// The rule of LLaMA-Factory: the name contains `.BLOCK.MODULE`, or the name of an extra module, anywhere.
    fn trains(&self, name: &str, blocks: i64) -> bool {
        let range = match self.layers {
            last if last > 0 => (blocks - last).max(0)..blocks,
            first => 0..blocks.min(-first),
        };
        let in_block = |module: &String| {
            let module = if module == "all" { "" } else { module };
            range.clone().any(|block| name.contains(&format!(".{block}.{module}")))
        };
        self.modules.iter().any(in_block) || self.extra.iter().any(|module| name.contains(module.as_str()))
    }
}

fn block_of(name: &str) -> Option<i64> {
    let (start, end) = block_number(name)?;
    name[start..end].parse().ok()
}

/// The part behind the number of the block. LLaMA-Factory takes the names from block 0 and finds them in all.
fn child_of_block(name: &str) -> Option<&str> {
    let (_, end) = block_number(name)?;
    name[end + 1..].split('.').next()
}

/// The module that holds a parameter outside of blocks.
fn outside_blocks(name: &str) -> Option<&str> {
    block_number(name).map_or_else(|| name.rsplit('.').nth(1), |_| None)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn found(trained: &[&str]) -> Option<WholeModules> {
        let block =
            |i: usize| ["self_attn.q", "self_attn.o", "mlp.up", "ln"].map(|m| format!("l.{i}.{m}.weight"));
        let blocks = (0..12).flat_map(block);
        let all: Vec<String> = blocks.chain(["emb.weight", "norm.weight"].map(String::from)).collect();
        let (on, off): (Vec<_>, Vec<_>) =
            all.iter().partition(|name| trained.iter().any(|part| name.contains(part)));
        let text =
            serde_json::json!({"format": "hft-surgery/plan", "version": 1, "trainable": on, "frozen": off});
        WholeModules::of(&Plan::parse(text.to_string().as_bytes(), Path::new("p")).unwrap())
    }

    #[test]
    fn only_whole_modules_at_one_end_can_be_said() {
        let terms = |layers, modules: &[&str], extra: &[&str]| {
            let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            Some(WholeModules { layers, modules: owned(modules), extra: owned(extra) })
        };
        assert_eq!(found(&["l.10.self_attn", "l.11.self_attn"]), terms(2, &["self_attn"], &[]));
        assert_eq!(found(&["l.0.", "emb"]), terms(-1, &["all"], &["emb"]));
        assert_eq!(found(&["l.0.mlp", "l.0.ln", "l.1.mlp", "l.1.ln."]), terms(-2, &["ln", "mlp"], &[]));
        assert_eq!(found(&["norm"]), terms(0, &["all"], &["norm"]));
        assert_eq!(found(&["l."]), terms(12, &["all"], &[]));
        for cannot in [&["l.5.mlp"][..], &["l.11.self_attn.q"], &["l.11.mlp", "l.10.ln"], &["l.0.", "l.11."]]
        {
            assert_eq!(found(cannot), None, "{cannot:?}");
        }
    }
}
