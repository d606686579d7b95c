//! The checkpoints that a recipe names.

use crate::checkpoint::{Checkpoint, ReadOptions, Sha256Hex, compare_contents, natural_order, sample_digest};
use crate::merge::recipe::Recipe;
use crate::surgery::{NameMap, align_names};
use crate::{Faults, Result};

/// The checkpoints that a recipe names.
#[derive(Debug)]
pub struct Models {
    named: Vec<(String, Checkpoint)>,
    identities: Vec<Identity>,
    /// The model whose tokenizer the result gets, where it is not one of them.
    tokenizer: Option<(String, Checkpoint)>,
}

/// Identifies a model by its contents, independent of its path and its position in the recipe: models of equal contents
/// have equal identities, all others differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Identity {
    /// [`sample_digest`]: random draws of the model are keyed by it.
    pub(crate) digest: Sha256Hex,
    /// How many models of the recipe have this digest and smaller bytes: 0 but where the sample does not tell models
    /// apart.
    pub(crate) rank: usize,
}

impl Models {
    /// Opens every model of a recipe, the base first; headers and a sample of each tensor are read, and models that the
    /// sample does not tell apart are compared.
    ///
    /// # Errors
    /// Everything that is wrong with any of them.
    pub fn open(recipe: &Recipe, options: impl Into<ReadOptions>) -> Result<Self> {
        let options = options.into();
        Self::open_with(recipe, &|name| Checkpoint::open(&recipe.path_of(name), options), &[])
    }

    /// As [`Models::open`], where `open` opens the model of a name of the recipe; `maps` name the tensors of all models but the
    /// reference as the reference does.
    ///
    /// # Errors
    /// As there, as `open`, and as [`align_names`].
    pub fn open_with(
        recipe: &Recipe,
        open: &dyn Fn(&str) -> Result<Checkpoint>,
        maps: &[NameMap],
    ) -> Result<Self> {
        let mut faults = Faults::default();
        let mut named = Vec::new();
        let paths: Vec<_> = recipe.models().iter().map(|name| recipe.path_of(name)).collect();
        Checkpoint::check_open_files(&paths)?;
        for name in recipe.models() {
            let checked = open(name).and_then(|model| {
                model.check_not_adapter()?;
                model.check_not_quantized("a merge")?;
                Ok((name.to_owned(), model))
            });
            named.extend(faults.keep(checked));
        }
        let of_tokenizer = recipe.tokenizer_model().map(|name| Ok((name.to_owned(), open(name)?)));
        let tokenizer = of_tokenizer.and_then(|opened| faults.keep(opened));
        faults.into_result()?;
        let reference = Self::reference_name(recipe);
        if let Some(at) = named.iter().position(|(name, _)| name == reference) {
            let reference = named.remove(at);
            align_names(named.iter_mut().map(|(_, model)| model), &reference.1, maps)?;
            named.insert(at, reference);
        }
        let identities = identities(&named)?;
        Ok(Self { named, identities, tokenizer })
    }

    /// Name and checkpoint of each, the base first.
    pub fn named(&self) -> &[(String, Checkpoint)] {
        &self.named
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Checkpoint> {
        self.named.iter().map(|(_, checkpoint)| checkpoint)
    }

    /// The model whose tokenizer the result gets, where it is not one of them.
    pub fn of_tokenizer(&self) -> Option<&(String, Checkpoint)> {
        self.tokenizer.as_ref()
    }

    /// The tensors that any of them has, each once, in natural order of names; of the spellings of one name, that of
    /// `reference` or else of the first model.
    pub(crate) fn names<'a>(&'a self, reference: &'a Checkpoint) -> Vec<&'a str> {
        let models: Vec<&Checkpoint> = std::iter::once(reference).chain(self.all()).collect();
        let mut names = Vec::new();
        for (i, model) in models.iter().enumerate() {
            let own = model.tensors().map(|tensor| tensor.info.name.as_str());
            names
                .extend(own.filter(|name| models[..i].iter().all(|other| other.twin(name, model).is_none())));
        }
        names.sort_by(|a, b| natural_order(a, b));
        names
    }

    /// The checkpoint whose spelling `name` is: `reference`, or else the first model that has it.
    pub(crate) fn speller<'a>(&'a self, name: &str, reference: &'a Checkpoint) -> &'a Checkpoint {
        let mut models = std::iter::once(reference).chain(self.all());
        models.find(|model| model.find(name).is_some()).unwrap_or(reference)
    }

    /// The checkpoint of a name of the recipe.
    pub(crate) fn get(&self, name: &str) -> &Checkpoint {
        &self.named[self.place(name)].1
    }

    /// A digest of a sample of the contents of each model, in the order of [`Models::named`].
    pub(crate) fn samples(&self) -> impl Iterator<Item = Sha256Hex> {
        self.identities.iter().map(|identity| identity.digest)
    }

    /// The identity of a name of the recipe.
    pub(crate) fn identity(&self, name: &str) -> Identity {
        self.identities[self.place(name)]
    }

    pub(crate) fn place(&self, name: &str) -> usize {
        self.named.iter().position(|(known, _)| known == name).unwrap_or(0)
    }

    /// The checkpoint that fixes shapes, types, shards and sidecars: the base, or the first model of the recipe.
    pub(crate) fn reference(&self, recipe: &Recipe) -> &Checkpoint {
        self.get(Self::reference_name(recipe))
    }

    pub(crate) fn reference_name(recipe: &Recipe) -> &str {
        let first = recipe.slices().next().and_then(|slice| slice.sources.first());
        let name = recipe.base.as_deref().or(first.map(|entry| entry.model.as_str()));
        name.unwrap_or_default()
    }
}

fn identities(named: &[(String, Checkpoint)]) -> Result<Vec<Identity>> {
    let digest = |(_, checkpoint): &(String, Checkpoint)| sample_digest(checkpoint);
    let digests = named.iter().map(digest).collect::<Result<Vec<_>>>()?;
    let mut identities: Vec<Identity> =
        digests.into_iter().map(|digest| Identity { digest, rank: 0 }).collect();
    for i in 0..named.len() {
        for j in 0..i {
            if identities[i].digest == identities[j].digest {
                let order = compare_contents(&named[i].1, &named[j].1)?;
                identities[i].rank += usize::from(order.is_gt());
                identities[j].rank += usize::from(order.is_lt());
            }
        }
    }
    Ok(identities)
}
