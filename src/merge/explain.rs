//! What a merge will do, tensor by tensor.

use std::fmt::Write;

use crate::error::Escaped;
use crate::merge::plan::merge_tensor::MergeTensor;
use crate::merge::run::Merge;

impl Merge<'_> {
    /// One line per tensor: name, type, shape, what happens, and the values of all parameters.
    pub fn explain(&self) -> String {
        let mut text = format!("merge_method: {}", self.recipe.method.name);
        if !self.recipe.method.paper.is_empty() {
            let _ = write!(text, " ({})", self.recipe.method.paper);
        }
        text.push('\n');
        if let Some(aligned) = &self.aligned {
            let _ = writeln!(text, "{}", aligned.summary());
            for model in &aligned.assumed {
                let _ = writeln!(text, "tokenizer: {} has none: taken for that of the base", Escaped(*model));
            }
        }
        for tensor in &self.tensors {
            let MergeTensor { output, inputs, shared, .. } = tensor;
            let _ = write!(text, "{} {} {:?}: ", Escaped(&output.name), output.dtype, output.shape);
            if let Some(why) = output.copied {
                let _ = writeln!(text, "copied from {} ({why})", Escaped(output.longest.shard.path()));
                continue;
            }
            let _ = write!(text, "{}", self.recipe.method.name);
            let shared = shared.show();
            if !shared.is_empty() {
                let _ = write!(text, " {}", Escaped(&shared));
            }
            if inputs.base.is_some() {
                text.push_str("; base");
            }
            for model in &inputs.models {
                let from =
                    if model.source.info.name == output.name { "" } else { model.source.info.name.as_str() };
                let parameters = model.parameters.show();
                let parts = [model.model, from, parameters.as_str()];
                let shown: Vec<String> = parts
                    .iter()
                    .filter(|part| !part.is_empty())
                    .map(|part| Escaped(*part).to_string())
                    .collect();
                let _ = write!(text, "; {}", shown.join(" "));
            }
            let models = inputs.models.iter().map(|m| (m.model, &m.source));
            let base = inputs.base.as_ref().map(|source| ("base", source));
            for (i, (model, source)) in base.into_iter().chain(models).enumerate() {
                if let Some(rows) = &source.through {
                    let _ =
                        write!(text, "; {} by token: {}", Escaped(model), counts(rows.count_by_origin(i)));
                }
            }
            let all = output.elements();
            if inputs.common < all {
                let row = all / output.shape.first().copied().unwrap_or(1).max(1);
                let _ = write!(text, "; rows from {} on as they are", inputs.common / row.max(1));
            }
            text.push('\n');
        }
        text
    }
}

/// How many rows are of which origin, without origins that have none.
fn counts(rows: [u64; 5]) -> String {
    let kinds = ["own", "of another", "mean", "zero", "padding"];
    let there = kinds.iter().zip(rows).filter(|(_, n)| *n > 0);
    there.map(|(kind, n)| format!("{n} {kind}")).collect::<Vec<_>>().join(", ")
}
