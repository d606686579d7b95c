//! The parts of a composite model: which tensors a module of a recipe stands for, and the towers that a text model lacks.
//!
//! Modules have mergekit's names: `text_decoder`, `vision_tower`, `vision_model`, `audio_tower`, `multi_modal_projector`,
//! `encoder`, `decoder`, `shared`, `default`; any other is the beginning of the names of its tensors, such as
//! `model.visual`.

use std::collections::{BTreeMap, BTreeSet};

use crate::checkpoint::Checkpoint;
use crate::error::Escaped;
use crate::merge::Models;
use crate::merge::recipe::reader::Module;
use crate::plan::{Category, TensorName};
use crate::{Error, Faults};

/// Why a tensor of a tower that a text model has nothing of is copied.
pub(crate) const TOWER: &str = "of a tower that not all models have";
/// Why a tensor that no module of the recipe stands for is copied.
pub(crate) const NO_MODULE: &str = "in no module of the recipe";

/// Components of the names of what maps images and sound into the embeddings of text.
const PROJECTORS: [&str; 8] = [
    "multi_modal_projector",
    "mm_projector",
    "merger",
    "deepstack_merger_list",
    "connector",
    "aligner",
    "resampler",
    "qformer",
];
/// Beginnings of components of the names of encoders of images.
const VISION: [&str; 3] = ["visual", "vision", "image_encoder"];
/// Beginnings of components of the names of encoders of sound.
const AUDIO: [&str; 2] = ["audio", "speech"];

/// What a tensor of a composite model belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Vision,
    Audio,
    Projector,
}

impl Kind {
    /// Reads the components of a name before its first number.
    pub(super) fn of(name: &str) -> Self {
        let is_number = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        let parts: Vec<&str> = name.split('.').take_while(|part| !is_number(part)).collect();
        let begins =
            |words: &[&str]| parts.iter().any(|part| words.iter().any(|word| part.starts_with(word)));
        if parts.iter().any(|part| PROJECTORS.contains(part)) {
            Self::Projector
        } else if begins(&VISION) {
            Self::Vision
        } else if begins(&AUDIO) {
            Self::Audio
        } else {
            Self::Text
        }
    }
}

/// Which tensors a module stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim<'r> {
    /// Those that no other module claims.
    Rest,
    Kind(Kind),
    /// A half of a model that reads one sequence and writes another.
    Half(&'r str),
    Prefix(&'r str),
}

impl<'r> Claim<'r> {
    fn of(module: Option<&'r str>) -> Self {
        match module {
            None | Some("default" | "shared") => Self::Rest,
            Some("text_decoder") => Self::Kind(Kind::Text),
            Some("vision_tower" | "vision_model") => Self::Kind(Kind::Vision),
            Some("audio_tower") => Self::Kind(Kind::Audio),
            Some("multi_modal_projector") => Self::Kind(Kind::Projector),
            Some(half @ ("encoder" | "decoder")) => Self::Half(half),
            Some(prefix) => Self::Prefix(prefix.trim_end_matches('.')),
        }
    }

    fn holds(self, name: &str) -> bool {
        match self {
            Self::Rest => false,
            Self::Kind(kind) => Kind::of(name) == kind,
            Self::Half(half) => {
                let inner = name.strip_prefix("model.").unwrap_or(name);
                inner.strip_prefix(half).is_some_and(|rest| rest.starts_with('.'))
            }
            Self::Prefix(prefix) => {
                name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            }
        }
    }
}

/// The modules of a recipe and their tensors.
#[derive(Debug)]
pub(super) struct Parts<'r>(Vec<Claim<'r>>);

impl<'r> Parts<'r> {
    pub(super) fn new(modules: &'r [Module]) -> Self {
        Self(modules.iter().map(|module| Claim::of(module.name.as_deref())).collect())
    }

    /// The module of a tensor.
    pub(super) fn of(&self, name: &str) -> Option<usize> {
        let claimed = self.0.iter().position(|claim| claim.holds(name));
        claimed.or_else(|| self.0.iter().position(|claim| *claim == Claim::Rest))
    }

    /// Checks that every module has tensors in the reference, and that no tensor is in two.
    pub(super) fn check(&self, modules: &[Module], reference: &Checkpoint, faults: &mut Faults) {
        let named = |i: usize| Escaped(modules[i].name.as_deref().unwrap_or_default()).to_string();
        let mut found = BTreeSet::new();
        let mut twice = BTreeMap::new();
        for tensor in reference.tensors() {
            let name = tensor.info.name.as_str();
            found.extend(self.of(name));
            let claims: Vec<usize> = (0..self.0.len()).filter(|i| self.0[*i].holds(name)).collect();
            if let [a, b, ..] = claims[..] {
                twice.entry((a, b)).or_insert(name);
            }
        }
        for i in (0..self.0.len()).filter(|i| !found.contains(i) && modules[*i].name.is_some()) {
            let fault =
                format!("modules: {} has no tensors of a module `{}`", Escaped(reference.path()), named(i));
            faults.push(Error::usage(
                fault,
                "known: text_decoder, vision_tower, vision_model, audio_tower, multi_modal_projector, encoder, decoder, \
                 shared, default, and beginnings of names such as model.visual",
            ));
        }
        for ((a, b), name) in twice {
            let (a, b) = (named(a), named(b));
            let fault = format!("modules: `{a}` and `{b}` both have the tensor `{}`", Escaped(name));
            faults.push(Error::usage(fault, "each tensor belongs to one module"));
        }
    }
}

/// The text models beside a composite reference, which have nothing of its towers.
#[derive(Debug)]
pub(super) struct Towers<'a>(Vec<TextModel<'a>>);

#[derive(Debug)]
struct TextModel<'a> {
    name: &'a str,
    /// What the names of the reference's language model begin with: the part that this model's layers pair with.
    language: String,
}

impl<'a> Towers<'a> {
    pub(super) fn new(models: &'a Models, reference: &Checkpoint) -> Self {
        let composite = |checkpoint: &Checkpoint| {
            checkpoint.tensors().any(|tensor| Kind::of(&tensor.info.name) != Kind::Text)
        };
        if !composite(reference) {
            return Self(Vec::new());
        }
        let text_model = |(name, checkpoint): &'a (String, Checkpoint)| {
            if composite(checkpoint) {
                return None;
            }
            let twins = checkpoint.tensors().filter_map(|t| reference.twin(&t.info.name, checkpoint));
            let stack =
                twins.map(|twin| TensorName::of(&twin.info.name)).find(|twin| twin.layer.is_some())?;
            let language = stack.stack.rsplit_once('.').map_or("", |(parent, _)| parent).to_owned();
            Some(TextModel { name, language })
        };
        Self(models.named().iter().filter_map(text_model).collect())
    }

    /// Whether all of `missing` are text models, and the tensor `name` of the reference belongs to no part that they have.
    pub(super) fn carries(&self, name: &str, missing: &[&str]) -> bool {
        let lacks = |model: &&str| self.0.iter().any(|text| text.name == *model && text.lacks(name));
        !missing.is_empty() && missing.iter().all(lacks)
    }
}

impl TextModel<'_> {
    /// Whether a tensor of the reference is outside of the language model. A head may stand beside it.
    fn lacks(&self, name: &str) -> bool {
        let below = |outer: &str, inner: &str| {
            inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let place = name.rsplitn(3, '.').nth(2).unwrap_or_default();
        let head = TensorName::of(name).category == Category::LmHead
            && (place.is_empty() || below(place, &self.language));
        let inside = self.language.is_empty() || below(&self.language, name) || head;
        Kind::of(name) != Kind::Text || !inside
    }
}

/// The list of blocks with the most layers among the tensors that `wanted` names; encoders of images and sound do not
/// count where there is another.
pub(super) fn main_stack(checkpoint: &Checkpoint, wanted: &dyn Fn(&str) -> bool) -> String {
    let mut layers: BTreeMap<(bool, String), BTreeSet<u32>> = BTreeMap::new();
    for tensor in checkpoint.tensors().filter(|tensor| wanted(&tensor.info.name)) {
        let name = TensorName::of(&tensor.info.name);
        if let Some(layer) = name.layer {
            let text = Kind::of(&tensor.info.name) == Kind::Text;
            layers.entry((text, name.stack)).or_default().insert(layer);
        }
    }
    let text = layers.keys().any(|(text, _)| *text);
    let longest = layers.into_iter().filter(|((of_text, _), _)| *of_text == text);
    longest.max_by_key(|(_, set)| set.len()).map(|((_, stack), _)| stack).unwrap_or_default()
}

/// The towers that tensors belong to, with the number of their tensors: the beginning of each name up to the part in which
/// it differs from all others of its model, such as `model.visual`.
pub(crate) fn tower_names<'n>(names: impl Iterator<Item = &'n str>) -> Vec<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for name in names {
        let front =
            ["model.", "thinker."].iter().find(|front| name.starts_with(**front)).map_or(0, |f| f.len());
        let end = name[front..].find('.').map_or(name.len(), |dot| front + dot);
        *counts.entry(&name[..end]).or_default() += 1;
    }
    let shown =
        |(tower, n): (&&str, &usize)| format!("{tower} ({n} tensor{})", if *n == 1 { "" } else { "s" });
    counts.iter().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_of_a_tensor_is_read_from_its_name() {
        for (name, kind) in [
            ("model.language_model.layers.0.mlp.up_proj.weight", Kind::Text),
            ("lm_head.weight", Kind::Text),
            ("model.visual.blocks.0.attn.qkv.weight", Kind::Vision),
            ("visual.merger.mlp.0.weight", Kind::Projector),
            ("vision_tower.vision_model.encoder.layers.0.layer_norm1.bias", Kind::Vision),
            ("multi_modal_projector.linear_1.weight", Kind::Projector),
            ("audio_tower.layers.3.fc1.weight", Kind::Audio),
        ] {
            assert_eq!(Kind::of(name), kind, "{name}");
        }
    }

    #[test]
    fn a_module_is_a_part_a_half_a_beginning_or_the_rest() {
        let of = |module: &str, name: &str| Claim::of(Some(module)).holds(name);
        assert!(of("encoder", "model.encoder.layers.0.fc1.weight"));
        assert!(of("decoder", "decoder.block.0.layer.0.layer_norm.weight"));
        assert!(!of("encoder", "model.decoder.layers.0.encoder_attn.k_proj.weight"));
        assert!(of("model.visual", "model.visual.merger.norm.weight") && !of("model.vis", "model.visual.x"));
        assert_eq!(Claim::of(Some("default")), Claim::Rest);
    }

    #[test]
    fn towers_are_counted_by_the_beginning_of_their_names() {
        let names =
            ["model.visual.blocks.0.w", "model.visual.merger.w", "multi_modal_projector.linear_1.weight"];
        assert_eq!(
            tower_names(names.into_iter()),
            ["model.visual (2 tensors)", "multi_modal_projector (1 tensor)"]
        );
    }
}
