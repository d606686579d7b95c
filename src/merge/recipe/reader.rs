//! A recipe: which models, which method, which parameters. Written as mergekit writes it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::checkpoint::Dtype;
use crate::error::Escaped;
use crate::merge::recipe::faults::Reader;
use crate::merge::recipe::method::{METHODS, Method};
use crate::merge::recipe::setting::Settings;
use crate::merge::recipe::token_source::{Origin, TokenSource};
use crate::{Error, Result};

/// What to merge and how, checked as far as it can be without the models.
#[derive(Debug, Clone)]
pub struct Recipe {
    pub(crate) value: Value,
    /// Models whose path is not their name: those of paths that are not UTF-8.
    paths: BTreeMap<String, PathBuf>,
    pub(crate) method: &'static Method,
    /// `name`, or `out_path`: what other recipes of the file know the result by.
    name: Option<String>,
    /// The documents of the recipes whose results this one takes, in order.
    earlier: Vec<Value>,
    pub(crate) base: Option<String>,
    /// The parts of the model; one without a name that covers all of it for a recipe of `models` or `slices`.
    pub(crate) modules: Vec<Module>,
    pub(crate) parameters: Settings,
    /// `out_dtype`, or `dtype`: all arithmetic is f32, with one rounding at the end.
    pub(crate) dtype: Option<Dtype>,
    pub(crate) tokenizer: Option<TokenSource>,
    pub(crate) chat_template: Option<String>,
    pub(crate) seed: u64,
    /// Parameters of other methods: name, and where they stand.
    unused: BTreeMap<String, Vec<String>>,
    /// `override_architecture` of models, by their names.
    architectures: BTreeMap<String, String>,
}

/// A part of a composite model, such as its text decoder.
#[derive(Debug, Clone)]
pub(crate) struct Module {
    /// `None` for the whole model.
    pub(crate) name: Option<String>,
    /// Layers of the output in order; one that covers all of them for a module of `models`.
    pub(crate) slices: Vec<Slice>,
}

/// Some layers of the output.
#[derive(Debug, Clone)]
pub(crate) struct Slice {
    pub(crate) sources: Vec<Entry>,
    pub(crate) base: Option<String>,
    pub(crate) parameters: Settings,
}

/// A model, or some layers of it.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) model: String,
    /// First layer, and the one after the last; `None` for the whole model.
    pub(crate) layers: Option<(u32, u32)>,
    pub(crate) parameters: Settings,
}

const TOP: [&str; 14] = [
    "name",
    "out_path",
    "models",
    "slices",
    "modules",
    "merge_method",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "seed",
];

impl Recipe {
    /// Checks a recipe given as a value: the content of a file, or what flags say.
    ///
    /// # Errors
    /// Unknown keys, methods and parameters with the nearest spelling, and values out of range, all at once.
    pub fn new(value: Value) -> Result<Self> {
        let mut reader = Reader::default();
        let Value::Object(map) = &value else {
            return Err(Error::usage("a recipe is a mapping of keys to values", ""));
        };
        reader.keys("the recipe", map, &TOP);
        let method = reader.method(map);
        let parameters = reader.settings("parameters", map.get("parameters"), method, false);
        let modules = reader.modules(map, method);
        let base = reader.text("base_model", map);
        let name = reader.name(map);
        let dtype = reader.dtype("dtype", map);
        let out_dtype = reader.dtype("out_dtype", map);
        let tokenizer = reader.tokenizer(map);
        let chat_template = reader.text("chat_template", map);
        let seed = match map.get("seed") {
            None => 0,
            Some(seed) => seed.as_u64().unwrap_or_else(|| {
                reader.fault("`seed` must be a whole number from 0".to_owned());
                0
            }),
        };
        let Reader { faults, unused, architectures } = reader;
        faults.into_result()?;
        let Some(method) = method else {
            return Err(Error::usage("the recipe has no merge_method", ""));
        };
        let dtype = out_dtype.or(dtype);
        let paths = BTreeMap::new();
        Ok(Self {
            value,
            paths,
            method,
            name,
            earlier: Vec::new(),
            base,
            modules,
            parameters,
            dtype,
            tokenizer,
            chat_template,
            seed,
            unused,
            architectures,
        })
    }

    /// `override_architecture` of a model.
    pub(crate) fn architecture_of(&self, model: &str) -> Option<&str> {
        self.architectures.get(model).map(String::as_str)
    }

    /// The parameters that another method has and this one does not, which change nothing: one message for each.
    pub fn unused(&self) -> impl Iterator<Item = String> {
        let method = self.method.name;
        self.unused.iter().map(move |(name, places)| {
            format!("{method} does not use `{}`: {}", Escaped(name), places.join(", "))
        })
    }

    /// The recipe with another seed.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self.set("seed", seed.into());
        self
    }

    /// The recipe with another type of the result, by its name in PyTorch.
    ///
    /// # Errors
    /// A name that is no type of floating-point numbers.
    pub fn with_dtype(mut self, name: &str) -> Result<Self> {
        let mut reader = Reader::default();
        self.set("out_dtype", name.into());
        let dtype = self.value.as_object().and_then(|map| reader.dtype("out_dtype", map));
        reader.faults.into_result()?;
        self.dtype = dtype;
        Ok(self)
    }

    /// The model whose tokenizer the result gets, where the recipe names one that it does not merge.
    pub fn tokenizer_model(&self) -> Option<&str> {
        match &self.tokenizer.as_ref()?.source {
            Origin::Model(name) if !self.models().contains(&name.as_str()) => Some(name),
            _ => None,
        }
    }

    /// What other recipes of the file know the result by.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The recipe as it was given, with those before it whose results it takes.
    pub(crate) fn record(&self) -> Value {
        if self.earlier.is_empty() {
            return self.value.clone();
        }
        self.earlier.iter().chain([&self.value]).cloned().collect()
    }

    pub(super) fn set_earlier(&mut self, documents: Vec<Value>) {
        self.earlier = documents;
    }

    fn set(&mut self, key: &str, value: Value) {
        if let Value::Object(map) = &mut self.value {
            map.insert(key.to_owned(), value);
        }
    }

    /// The recipe with models at other paths than their names say.
    #[must_use]
    pub fn with_paths(mut self, paths: BTreeMap<String, PathBuf>) -> Self {
        self.paths.extend(paths);
        self
    }

    /// Where the model of that name is.
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.paths.get(name).cloned().unwrap_or_else(|| name.into())
    }

    /// The models as they are named, each once, the base first.
    pub fn models(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.base.as_deref().into_iter().collect();
        for slice in self.slices() {
            let sources = slice.sources.iter().map(|entry| entry.model.as_str());
            for name in slice.base.as_deref().into_iter().chain(sources) {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        names
    }

    /// The slices of all modules.
    pub(crate) fn slices(&self) -> impl Iterator<Item = &Slice> {
        self.modules.iter().flat_map(|module| &module.slices)
    }

    /// The name of the method.
    pub fn method(&self) -> &'static str {
        self.method.name
    }

    /// The seed of all random choices.
    pub fn seed(&self) -> u64 {
        self.seed
    }
}

impl Reader {
    fn method(&mut self, map: &Map<String, Value>) -> Option<&'static Method> {
        let Some(name) = map.get("merge_method").and_then(Value::as_str) else {
            self.fault("the recipe has no `merge_method`".to_owned());
            return None;
        };
        let found = Method::find(name);
        if found.is_none() {
            let names: Vec<&str> = METHODS.iter().map(|m| m.name).collect();
            self.unknown("merge_method", name, &names);
        }
        found
    }

    fn dtype(&mut self, key: &str, map: &Map<String, Value>) -> Option<Dtype> {
        const NAMES: [(&str, &str); 4] =
            [("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16"), ("float64", "F64")];
        let name = self.text(key, map)?;
        let name = name.strip_prefix("torch.").unwrap_or(&name);
        let found = NAMES.iter().find(|(n, _)| *n == name).map(|(_, dtype)| Dtype::parse(dtype));
        if found.is_none() {
            self.unknown(key, name, &NAMES.map(|(n, _)| n));
        }
        found
    }

    pub(super) fn slice(
        &mut self,
        place: &str,
        value: &Value,
        method: Option<&'static Method>,
    ) -> Option<Slice> {
        let Value::Object(map) = value else {
            self.fault(format!("{place} must be a mapping with `sources`"));
            return None;
        };
        self.keys(place, map, &["sources", "base_model", "parameters", "residual_weight"]);
        let sources = map.get("sources").unwrap_or(&Value::Null);
        let sources = self.entries(&format!("{place}.sources"), sources, method, true);
        let lengths: Vec<u32> = sources.iter().filter_map(|s| s.layers).map(|(a, b)| b - a).collect();
        if lengths.windows(2).any(|pair| pair[0] != pair[1]) {
            self.fault(format!("{place}: its sources have different numbers of layers: {lengths:?}"));
        }
        let parameters = self.settings(place, map.get("parameters"), method, false);
        if map.get("residual_weight").is_some_and(|weight| !weight.is_null()) {
            self.unused.entry("residual_weight".to_owned()).or_default().push(place.to_owned());
        }
        Some(Slice { sources, base: self.text("base_model", map), parameters })
    }

    pub(super) fn entries(
        &mut self,
        place: &str,
        value: &Value,
        method: Option<&'static Method>,
        sliced: bool,
    ) -> Vec<Entry> {
        let list = value.as_array().filter(|list| !list.is_empty());
        let Some(list) = list else {
            self.fault(format!("`{place}` must be a list of models"));
            return Vec::new();
        };
        let mut entries = Vec::with_capacity(list.len());
        for (i, value) in list.iter().enumerate() {
            let place = format!("{place}[{i}]");
            let Value::Object(map) = value else {
                self.fault(format!("{place} must be a mapping with `model`"));
                continue;
            };
            let known: &[&str] =
                if sliced { &["model", "layer_range", "parameters"] } else { &["model", "parameters"] };
            self.keys(&place, map, known);
            let layers = if sliced { self.layers(&place, map) } else { None };
            let parameters = self.settings(&place, map.get("parameters"), method, true);
            match self.text("model", map) {
                Some(model) => entries.push(Entry { model, layers, parameters }),
                None => self.fault(format!("{place} has no `model`")),
            }
        }
        entries
    }

    fn layers(&mut self, place: &str, map: &Map<String, Value>) -> Option<(u32, u32)> {
        let range = map.get("layer_range").and_then(Value::as_array);
        let bound = |i: usize| range?.get(i)?.as_u64().and_then(|n| u32::try_from(n).ok());
        match (bound(0), bound(1), range.map(Vec::len)) {
            (Some(first), Some(end), Some(2)) if first < end && end <= 100_000 => Some((first, end)),
            _ => {
                self.fault(format!(
                    "{place}: `layer_range` must be [first, end] with first < end, end not included"
                ));
                None
            }
        }
    }
}
