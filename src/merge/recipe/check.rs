//! Settings of a recipe against the parameters of its method.

use serde_json::Value;

use crate::Error;
use crate::error::Escaped;
use crate::merge::recipe::faults::Reader;
use crate::merge::recipe::method::{METHODS, Method};
use crate::merge::recipe::parameter::{Parameter, ParameterType, ParameterValue};
use crate::merge::recipe::setting::{Setting, Settings};

impl Reader {
    /// Settings at one level; `of_model` says whether they belong to one model. Those of other methods are left out and
    /// noted as unused, as mergekit ignores them.
    pub(crate) fn settings(
        &mut self,
        place: &str,
        value: Option<&Value>,
        method: Option<&'static Method>,
        of_model: bool,
    ) -> Settings {
        let map = match value {
            None | Some(Value::Null) => return Settings::new(),
            Some(Value::Object(map)) => map,
            Some(_) => {
                self.fault(format!("{place}: `parameters` must be a mapping"));
                return Settings::new();
            }
        };
        let mut settings = Settings::new();
        for (name, value) in map {
            let Some(parameter) = self.parameter(place, name, method) else { continue };
            match Setting::parse(value) {
                Ok(setting) => {
                    self.check(place, parameter, &setting, of_model);
                    settings.insert(name.clone(), setting);
                }
                Err(why) => self.fault(format!("{place}: `{}`: {why}", Escaped(name))),
            }
        }
        settings
    }

    /// The parameter of that name; `None` for one that the method does not have.
    fn parameter(
        &mut self,
        place: &str,
        name: &str,
        method: Option<&'static Method>,
    ) -> Option<&'static Parameter> {
        let method = method?;
        let found = method.parameter(name);
        if found.is_none() && METHODS.iter().any(|other| other.parameter(name).is_some()) {
            self.unused.entry(name.to_owned()).or_default().push(place.to_owned());
        } else if found.is_none() {
            let names: Vec<&str> = method.parameters.iter().map(|parameter| parameter.name).collect();
            self.unknown(&format!("parameter of {} at {place}", method.name), name, &names);
        }
        found
    }

    fn check(&mut self, place: &str, parameter: &Parameter, setting: &Setting, of_model: bool) {
        let Parameter { name, per_model, kind } = *parameter;
        if of_model && !per_model {
            let fault = format!("{place}: `{name}` is one value for all models");
            return self
                .faults
                .push(Error::usage(fault, "move it to the `parameters` of the recipe or of the slice"));
        }
        for scalar in setting.scalars() {
            match (kind.read(scalar), kind) {
                (None, kind) => {
                    self.fault(format!("{place}: `{name}`: got {scalar}, expected {}", kind.expected()));
                }
                (Some(ParameterValue::Number(x)), _) if x.abs() > f64::from(f32::MAX) => {
                    let fault = format!("{place}: `{name}`: got {scalar}, beyond the range of f32");
                    self.faults.push(Error::usage(fault, "use a number of at most 3.4e38"));
                }
                (Some(ParameterValue::Number(x)), ParameterType::Number { least, greatest, .. })
                    if !(least..=greatest).contains(&x) =>
                {
                    self.fault(format!("{place}: `{name}`: got {x}, expected {least} to {greatest}"));
                }
                _ => {}
            }
        }
    }
}
