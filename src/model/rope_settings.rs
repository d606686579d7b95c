//! The rotary settings of `config.json`, in the spellings of transformers 4 and 5.

use serde_json::Value;

use super::family::{Family, RopeRule};
use super::keys::Keys;
use super::no_rope::has_rope;
use super::rope_scaling::{PARTIAL, RopeScaling, Settings};
use crate::Result;

/// A rotary embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Their scaling.
    pub scaling: RopeScaling,
    /// How many elements of a head are rotated, from the first on.
    pub dims: usize,
    /// The tokens of a sequence from which on its frequencies depend on its length; `None`: they never do.
    pub longest: Option<usize>,
}

/// The rotary embeddings of a model, each once, and which of them each layer has.
#[derive(Debug)]
pub(super) struct LayerRopes {
    pub(super) ropes: Vec<Rope>,
    pub(super) of_layers: Vec<Option<usize>>,
}

/// The settings of layers with and without a sliding window, where they differ.
const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

impl LayerRopes {
    /// For layers of these windows; `window` is that of those that have one, `head_dim` is `E`.
    ///
    /// # Errors
    /// A rope type that is not supported; a number that is missing; an entry that is not known.
    pub(super) fn read(
        keys: &Keys<'_>,
        family: &Family,
        head_dim: usize,
        window: Option<usize>,
        windows: &[Option<usize>],
    ) -> Result<Self> {
        let reader = Reader { keys, family, head_dim };
        let layers = windows.len();
        let one = || {
            let theta = keys.number_or("rope_theta", family.rope_theta)?;
            let default = || family.rope_settings.map(|settings| ("rope_parameters", settings()));
            reader.rope(settings(keys)?.or_else(default), theta).map(|rope| vec![rope])
        };
        let first = |has: bool| has.then_some(0);
        Ok(match family.rope {
            RopeRule::EveryLayer => Self { ropes: one()?, of_layers: vec![Some(0); layers] },
            RopeRule::NoRopeLayers => {
                Self { ropes: one()?, of_layers: has_rope(keys, layers)?.into_iter().map(first).collect() }
            }
            RopeRule::SlidingLayers => {
                let of_layers = windows.iter().map(|own| first(own.is_some())).collect();
                Self { ropes: one()?, of_layers }
            }
            RopeRule::SlidingLayersOrAll => {
                let of_layers = windows.iter().map(|own| first(window.is_none() || own.is_some())).collect();
                Self { ropes: one()?, of_layers }
            }
            RopeRule::ByLayerType { local_theta } => Self {
                ropes: reader.by_layer_type(family.rope_theta, local_theta)?.to_vec(),
                of_layers: windows.iter().map(|own| Some(usize::from(own.is_some()))).collect(),
            },
        })
    }
}

/// Reads rotary embeddings of one model.
struct Reader<'a> {
    keys: &'a Keys<'a>,
    family: &'a Family,
    head_dim: usize,
}

impl Reader<'_> {
    /// The rotary embedding of these settings, with `theta` where they have none.
    fn rope(&self, settings: Option<(&'static str, &Value)>, theta: f64) -> Result<Rope> {
        let Some((key, value)) = settings else {
            let dims = self.dims(self.partial_rotary_factor()?)?;
            return Ok(Rope { theta, scaling: RopeScaling::Default, dims, longest: None });
        };
        let inner = Keys { value, path: self.keys.path };
        let theta = match inner.get("rope_theta") {
            None => theta,
            Some(own) => own.as_f64().filter(|x| *x > 0.0).ok_or_else(|| {
                let fault = format!("`{key}`: `rope_theta`: got `{own}`, expected a number above 0");
                self.keys.fault(fault, None)
            })?,
        };
        let settings = Settings { keys: self.keys, key, inner: &inner, family: self.family };
        let (share, dims) = match (settings.partial_rotary_factor()?, settings.is_proportional()) {
            (Some(share), true) => (share, self.head_dim),
            (None, true) => (self.partial_rotary_factor()?, self.head_dim),
            (None, false) => (1.0, self.dims(self.partial_rotary_factor()?)?),
            (Some(share), false) => (share, self.dims(share)?),
        };
        let scaling = settings.read(theta, dims, share)?;
        let longest = match scaling {
            RopeScaling::Dynamic { .. } => Some(settings.max_positions()?),
            RopeScaling::LongRope { .. } => Some(settings.original()? as usize),
            _ => None,
        };
        Ok(Rope { theta, scaling, dims, longest })
    }

    /// The share of a head that is rotated, where the settings do not say it.
    fn partial_rotary_factor(&self) -> Result<f64> {
        let share = self.keys.number_or(PARTIAL, self.family.partial_rotary_factor.unwrap_or(1.0))?;
        if self.family.partial_rotary_factor.is_none() && share != 1.0 {
            return Err(self.keys.wrong(PARTIAL, "1"));
        }
        Ok(share)
    }

    /// The elements of a head that are rotated.
    fn dims(&self, share: f64) -> Result<usize> {
        let dims = (self.head_dim as f64 * share) as usize;
        if dims == 0 || !dims.is_multiple_of(2) || dims > self.head_dim {
            let expected =
                format!("a share of the {} elements of a head that is an even number", self.head_dim);
            return Err(self.keys.fault(format!("`{PARTIAL}`: got {share}, expected {expected}"), None));
        }
        Ok(dims)
    }

    /// Those of layers without and with a sliding window. `rope_scaling` and `rope_theta` are those of layers without.
    fn by_layer_type(&self, theta: f64, local: (&'static str, f64)) -> Result<[Rope; 2]> {
        let keys = self.keys;
        let nested = match keys.get("rope_parameters") {
            None => None,
            Some(value) => {
                let entries = value.as_object().filter(|entries| {
                    entries.iter().all(|(name, value)| {
                        [FULL, SLIDING].contains(&name.as_str()) && (value.is_object() || value.is_null())
                    })
                });
                let expected = format!("an object of `{FULL}` and `{SLIDING}`");
                Some(entries.ok_or_else(|| keys.wrong("rope_parameters", &expected))?)
            }
        };
        let own = |name: &'static str| {
            nested.and_then(|all| all.get(name)).filter(|v| !v.is_null()).map(|v| (name, v))
        };
        let scaling = keys.get("rope_scaling").map(|value| ("rope_scaling", value));
        if scaling.is_some() && own(FULL).is_some() {
            let fault = format!("`rope_scaling` and `{FULL}` of `rope_parameters` both say how to scale");
            return Err(keys.fault(fault, None));
        }
        let (local_key, local_theta) = local;
        let top = keys.get("rope_theta").map(|_| keys.number_or("rope_theta", theta)).transpose()?;
        let sliding = own(SLIDING).is_some_and(|(_, value)| value.get("rope_theta").is_some());
        if local_key.is_empty() && !sliding && top.is_some_and(|top| top != local_theta) {
            let fault = "`rope_theta`: transformers 4 uses it for layers with a sliding window, transformers 5 does \
                         not";
            let hint =
                format!("write `rope_parameters` with `{FULL}` and `{SLIDING}`, each with its `rope_theta`");
            return Err(keys.fault(fault, Some(&hint)));
        }
        let local = if local_key.is_empty() { local_theta } else { keys.number_or(local_key, local_theta)? };
        let full = self.rope(own(FULL).or(scaling), top.unwrap_or(theta))?;
        Ok([full, self.rope(own(SLIDING), local)?])
    }
}

/// The object with the rotary settings, and its key: `rope_scaling` where it has entries, else `rope_parameters`; `None`
/// where neither has entries.
fn settings<'a>(keys: &Keys<'a>) -> Result<Option<(&'static str, &'a Value)>> {
    for key in ["rope_scaling", "rope_parameters"] {
        match keys.value.get(key) {
            None | Some(Value::Null) => {}
            Some(Value::Object(entries)) if entries.is_empty() => {}
            Some(value @ Value::Object(_)) => return Ok(Some((key, value))),
            Some(_) => return Err(keys.wrong(key, "an object")),
        }
    }
    Ok(None)
}
