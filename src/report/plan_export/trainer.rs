//! The trainers that a plan is exported for.

use super::name_pattern::name_patterns;
use super::torchtune_names::torchtune_name;
use super::whole_modules::WholeModules;
use crate::plan::Plan;
use crate::{Error, Faults, Result};

/// The first words of every export, by which this program knows a file as one.
pub const EXPORT_MARKER: &str = "# hft-surgery plan export";

/// A trainer that takes the names of trainable parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trainer {
    /// `unfrozen_parameters`: patterns matched at the beginning of a name, in which a point is a point.
    Axolotl,
    /// `freeze_parameters_regex`, then `trainable_parameters_regex`: searched for in a name.
    MsSwift,
    /// No option; `torchtune.modules.peft.set_trainable_params` takes a set of its own names.
    Torchtune,
    /// `finetuning_type: freeze`: whole modules in the first or last blocks.
    LlamaFactory,
    /// One regular expression for the trainable names and one for the frozen ones.
    Regex,
}

/// The configuration of `trainer` that trains what `plan` trains and nothing else, as YAML.
///
/// # Errors
/// [`Error::Plan`] for a row or element mask, a plan that trains nothing, and what the trainer's rule cannot say.
pub fn plan_export(plan: &Plan, trainer: Trainer) -> Result<String> {
    let fault = |fault: &str, hint: &str| {
        let hint = (!hint.is_empty()).then(|| hint.to_owned());
        Err(Error::Plan { path: None, tensor: None, fault: fault.to_owned(), hint })
    };
    if plan.mask().is_some() {
        return fault("a row or element mask cannot be exported", "other trainers freeze whole tensors only");
    }
    let (trainable, frozen) = (plan.trainable(), plan.frozen());
    if trainable.is_empty() {
        return fault("no tensor is trainable", "");
    }
    let body = match trainer {
        Trainer::Axolotl => {
            let patterns = name_patterns(trainable)?;
            let patterns = patterns.iter().map(|pattern| format!("- ^{}$\n", pattern.regex(".")));
            format!("unfrozen_parameters:\n{}", patterns.collect::<String>())
        }
        Trainer::MsSwift => format!(
            "tuner_type: full\nfreeze_parameters_regex: '.'\ntrainable_parameters_regex: '{}'\n",
            whole_regex(trainable)?
        ),
        Trainer::Regex => format!(
            "trainable_regex: '{}'\nfrozen_regex: '{}'\n",
            whole_regex(trainable)?,
            whole_regex(frozen)?
        ),
        Trainer::Torchtune => torchtune(trainable)?,
        Trainer::LlamaFactory => match WholeModules::of(plan) {
            Some(terms) => llama_factory(&terms),
            None => {
                return fault(
                    "LLaMA-Factory freezes whole modules outside of the first or last blocks; this plan is none of that kind",
                    "use hft_surgery.HFTCallback with transformers or TRL, or draw a plan with --strategy explicit",
                );
            }
        },
    };
    let (on, all) = (trainable.len(), trainable.len() + frozen.len());
    let (seed, round) = (plan.seed(), plan.round());
    let about =
        format!("{EXPORT_MARKER}: {on} of {all} tensors are trainable (seed {seed}, round {round})\n");
    Ok(about + note(trainer) + &body)
}

/// A regular expression that matches `names` whole and nothing else.
fn whole_regex(names: &[String]) -> Result<String> {
    let patterns = name_patterns(names)?;
    let patterns: Vec<String> = patterns.iter().map(|pattern| pattern.regex(r"\.")).collect();
    // Without a name, nothing matches: a lookahead for nothing fails.
    Ok(if patterns.is_empty() { "(?!)".to_owned() } else { format!("^({})$", patterns.join("|")) })
}

fn torchtune(names: &[String]) -> Result<String> {
    let mut faults = Faults::default();
    let mut body = "trainable:\n".to_owned();
    for name in names {
        match torchtune_name(name) {
            Some(renamed) => body += &format!("- {renamed}\n"),
            None => faults.push(Error::Plan {
                path: None,
                tensor: Some(name.clone()),
                fault: "no name in torchtune is known for it".to_owned(),
                hint: Some("names of Llama, Mistral and Qwen2 models are known".to_owned()),
            }),
        }
    }
    faults.into_result().map(|()| body)
}

fn llama_factory(terms: &WholeModules) -> String {
    let extra = match terms.extra.is_empty() {
        true => String::new(),
        false => format!("freeze_extra_modules: {}\n", terms.extra.join(",")),
    };
    let modules = terms.modules.join(",");
    format!(
        "finetuning_type: freeze\nfreeze_trainable_layers: {}\nfreeze_trainable_modules: {modules}\n{extra}",
        terms.layers
    )
}

fn note(trainer: Trainer) -> &'static str {
    match trainer {
        Trainer::Axolotl => "# without `adapter`; gradient checkpointing needs use_reentrant: false\n",
        Trainer::MsSwift | Trainer::LlamaFactory | Trainer::Regex => "",
        Trainer::Torchtune => {
            "# torchtune has no option for this: call torchtune.modules.peft.set_trainable_params(model, set(trainable))\n\
             # before the optimizer is made\n"
        }
    }
}

/// The names of experts that transformers 5 stacks into one parameter when it loads them: no parameter has these names.
pub fn fused_at_loading(plan: &Plan) -> Vec<&str> {
    let names = plan.trainable().iter().chain(plan.frozen()).map(String::as_str);
    names.filter(|name| is_numbered_expert(name)).collect()
}

fn is_numbered_expert(name: &str) -> bool {
    let mut parts = name.split('.');
    parts.any(|part| part == "experts")
        && parts.next().is_some_and(|part| !part.is_empty() && part.bytes().all(|c| c.is_ascii_digit()))
}
