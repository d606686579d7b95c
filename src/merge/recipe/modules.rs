//! The parts of a model that a recipe names: `modules`, or one part of `models` or `slices` that covers all.

use serde_json::{Map, Value};

use crate::error::Escaped;
use crate::merge::recipe::faults::Reader;
use crate::merge::recipe::method::Method;
use crate::merge::recipe::reader::{Module, Slice};
use crate::merge::recipe::setting::{Setting, Settings};

impl Reader {
    /// `name` of a recipe, or `out_path`, which recipes of earlier versions of mergekit have in its place.
    pub(super) fn name(&mut self, map: &Map<String, Value>) -> Option<String> {
        let [name, path] = ["name", "out_path"].map(|key| self.text(key, map));
        if name.is_some() && path.is_some() {
            self.fault("got both `name` and `out_path`".to_owned());
        }
        let name = name.or(path);
        if name.as_ref().is_some_and(|name| name.is_empty() || name.contains('+')) {
            self.fault("`name` of a recipe must have characters, and no `+`".to_owned());
        }
        name
    }

    /// Reads `models`, `slices` or `modules`.
    pub(super) fn modules(
        &mut self,
        map: &Map<String, Value>,
        method: Option<&'static Method>,
    ) -> Vec<Module> {
        const KEYS: [&str; 3] = ["models", "slices", "modules"];
        if KEYS.iter().filter(|key| known(map, key).is_some()).count() != 1 {
            let fault =
                "a recipe has a list of `models`, a list of `slices`, or `modules`, and only one of them";
            self.fault(fault.to_owned());
            return Vec::new();
        }
        let Some(modules) = known(map, "modules") else {
            return vec![Module { name: None, slices: self.slices("", map, method) }];
        };
        let Value::Object(modules) = modules else {
            self.fault(
                "`modules` must be a mapping of the names of modules to their `models` or `slices`"
                    .to_owned(),
            );
            return Vec::new();
        };
        if modules.is_empty() {
            self.fault("`modules` is empty".to_owned());
        }
        let mut read = Vec::with_capacity(modules.len());
        for (name, value) in modules {
            let place = format!("modules.{}", Escaped(name));
            let Value::Object(map) = value else {
                self.fault(format!("{place} must be a mapping with `models` or `slices`"));
                continue;
            };
            self.keys(&place, map, &["models", "slices", "parameters"]);
            let parameters = self.settings(&place, map.get("parameters"), method, false);
            let mut slices = self.slices(&format!("{place}."), map, method);
            slices.iter_mut().for_each(|slice| fall_back(&mut slice.parameters, &parameters));
            read.push(Module { name: Some(name.clone()), slices });
        }
        read
    }

    /// `models` becomes one slice without bounds.
    fn slices(
        &mut self,
        place: &str,
        map: &Map<String, Value>,
        method: Option<&'static Method>,
    ) -> Vec<Slice> {
        match (known(map, "models"), known(map, "slices")) {
            (Some(models), None) => {
                let sources = self.entries(&format!("{place}models"), models, method, false);
                vec![Slice { sources, base: None, parameters: Settings::new() }]
            }
            (None, Some(Value::Array(slices))) if !slices.is_empty() => {
                let mut all = Vec::with_capacity(slices.len());
                for (i, slice) in slices.iter().enumerate() {
                    all.extend(self.slice(&format!("{place}slices[{i}]"), slice, method));
                }
                all
            }
            (None, Some(Value::Array(_))) => {
                self.fault(format!("`{place}slices` is empty"));
                Vec::new()
            }
            _ => {
                let module = if place.is_empty() { "a recipe" } else { place.trim_end_matches('.') };
                self.fault(format!("{module} has a list of `models` or a list of `slices`, and not both"));
                Vec::new()
            }
        }
    }
}

fn known<'m>(map: &'m Map<String, Value>, key: &str) -> Option<&'m Value> {
    map.get(key).filter(|value| !value.is_null())
}

/// Lets the settings of a slice fall back to those of its module, where no filter of its own fits.
fn fall_back(slice: &mut Settings, module: &Settings) {
    for (name, setting) in module {
        let own = slice.remove(name);
        let both = own.map(|own| Setting::Filtered(vec![(None, own), (None, setting.clone())]));
        slice.insert(name.clone(), both.unwrap_or_else(|| setting.clone()));
    }
}
