//! A file of several recipes, one in each YAML document: a recipe may take the result of a named one as a model.

use std::path::Path;

use serde_json::Value;

use crate::error::{Escaped, nearest};
use crate::merge::recipe::reader::Recipe;
use crate::{Error, Faults, Result};

/// The recipes of a file, in an order in which each follows those whose results it takes.
#[derive(Debug, Clone)]
pub struct Stages {
    all: Vec<Stage>,
}

/// A recipe of a file, and the name that other recipes know its result by.
#[derive(Debug, Clone)]
pub struct Stage {
    /// `name` of the document, or `out_path`; `None` where it has neither.
    pub name: Option<String>,
    /// The document.
    pub recipe: Recipe,
    /// Whether the last stage depends on it.
    pub needed: bool,
}

impl Stages {
    /// Reads a file of one or more recipes.
    ///
    /// # Errors
    /// [`Error::Io`]; as [`Stages::new`].
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = crate::checkpoint::read_named(path)?;
        let bad = |what: String| Error::usage(format!("{}: {what}", Escaped(path)), "");
        let text = std::str::from_utf8(&bytes).map_err(|e| bad(format!("not UTF-8: {e}")))?;
        let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|e| {
            // The lines after the first show the text around the fault.
            let said = e.to_string();
            let line = said.lines().next().unwrap_or_default();
            bad(format!("not valid YAML: {}", Escaped(line.trim_start_matches("error: "))))
        })?;
        if documents.is_empty() {
            return Err(bad("has no recipe".to_owned()));
        }
        Self::new(documents)
    }

    /// One recipe, which depends on no other.
    pub fn of(recipe: Recipe) -> Self {
        Self { all: vec![Stage { name: None, recipe, needed: true }] }
    }

    /// Checks the recipes and orders them. The last stage is the document without a name, or else the last of those whose
    /// results no other document takes.
    ///
    /// # Errors
    /// As [`Recipe::new`], of all documents at once; a name given twice, two documents without a name, a circle.
    pub fn new(documents: Vec<Value>) -> Result<Self> {
        let mut faults = Faults::default();
        let read = documents.into_iter().filter_map(|document| faults.keep(Recipe::new(document)));
        let mut stages: Vec<Stage> = read
            .map(|recipe| Stage { name: recipe.name().map(str::to_owned), recipe, needed: false })
            .collect();
        faults.into_result()?;
        check_names(&stages)?;
        let needs: Vec<Vec<usize>> = stages.iter().map(|stage| needs(stage, &stages)).collect();
        let mut order = Vec::new();
        for i in 0..stages.len() {
            visit(i, &needs, &mut order, &mut Vec::new()).map_err(|circle| in_circle(&circle, &stages))?;
        }
        let taken = |i: &usize| needs.iter().any(|of| of.contains(i));
        let unnamed = stages.iter().position(|stage| stage.name.is_none());
        let last = unnamed.or_else(|| (0..stages.len()).rev().find(|i| !taken(i))).unwrap_or_default();
        let mut needed = Vec::new();
        // There is no circle, which the loop above would have found.
        let _ = visit(last, &needs, &mut needed, &mut Vec::new());
        needed.iter().for_each(|i| stages[*i].needed = true);
        check_spelling(&stages)?;
        order.retain(|i| *i != last);
        order.push(last);
        for i in 0..order.len() {
            let mut own = Vec::new();
            let _ = visit(order[i], &needs, &mut own, &mut Vec::new());
            own.retain(|stage| *stage != order[i]);
            let documents = own.iter().map(|stage| stages[*stage].recipe.value().clone()).collect();
            stages[order[i]].recipe.set_earlier(documents);
        }
        let all = order.into_iter().map(|i| stages[i].clone()).collect();
        Ok(Self { all })
    }

    /// All stages but the last, in order.
    pub fn earlier(&self) -> &[Stage] {
        self.all.split_last().map_or(&[], |(_, earlier)| earlier)
    }

    /// The stage whose result is that of the file.
    ///
    /// # Panics
    /// Never: a file has a recipe.
    pub fn last(&self) -> &Stage {
        self.all.last().unwrap_or_else(|| unreachable!("a file has a recipe"))
    }

    /// All stages, in order.
    pub fn all(&self) -> &[Stage] {
        &self.all
    }

    /// The stages with `change` applied to each recipe; it is told which is the last.
    ///
    /// # Errors
    /// As `change`.
    pub fn map(mut self, change: impl Fn(Recipe, bool) -> Result<Recipe>) -> Result<Self> {
        let last = self.all.len().saturating_sub(1);
        for (i, stage) in self.all.iter_mut().enumerate() {
            stage.recipe = change(stage.recipe.clone(), i == last)?;
        }
        Ok(self)
    }
}

/// Whether `model`, a name in a recipe, is the result of the stage `name`, by itself or with adapters.
pub fn is_result_of(model: &str, name: &str) -> bool {
    model.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('+'))
}

/// The stages whose results a stage takes, itself among them where it takes its own.
fn needs(stage: &Stage, stages: &[Stage]) -> Vec<usize> {
    let mut models = stage.recipe.models();
    models.extend(stage.recipe.tokenizer_model());
    let takes = |other: &Stage| {
        other.name.as_ref().is_some_and(|name| models.iter().any(|model| is_result_of(model, name)))
    };
    (0..stages.len()).filter(|i| takes(&stages[*i])).collect()
}

/// Appends `i` to `order` after everything that it depends on; `Err` is a circle.
fn visit(
    i: usize,
    needs: &[Vec<usize>],
    order: &mut Vec<usize>,
    path: &mut Vec<usize>,
) -> std::result::Result<(), Vec<usize>> {
    if let Some(at) = path.iter().position(|stage| *stage == i) {
        return Err([&path[at..], &[i]].concat());
    }
    if order.contains(&i) {
        return Ok(());
    }
    path.push(i);
    needs[i].iter().try_for_each(|need| visit(*need, needs, order, path))?;
    path.pop();
    order.push(i);
    Ok(())
}

fn in_circle(circle: &[usize], stages: &[Stage]) -> Error {
    let name = |i: &usize| stages[*i].name.as_deref().unwrap_or_default();
    let names: Vec<String> = circle.iter().map(|i| format!("`{}`", Escaped(name(i)))).collect();
    let fault = format!("the recipes depend on each other in a circle: {}", names.join(" takes "));
    Error::usage(fault, "a stage takes models and the results of other stages, never its own")
}

fn check_names(stages: &[Stage]) -> Result<()> {
    let mut faults = Faults::default();
    for (i, stage) in stages.iter().enumerate() {
        let same = stages[..i].iter().any(|other| other.name == stage.name);
        match &stage.name {
            Some(name) if same => {
                let fault = format!("two documents have the name `{}`", Escaped(name));
                faults.push(Error::usage(fault, "each stage has a name of its own"));
            }
            None if same => {
                let fault = "two documents have no `name`";
                faults
                    .push(Error::usage(fault, "one document may do without: its result is that of the file"));
            }
            _ => {}
        }
    }
    faults.into_result()
}

/// A name without a directory that does not exist and is nearly that of a stage is a slip.
fn check_spelling(stages: &[Stage]) -> Result<()> {
    let names: Vec<&str> = stages.iter().filter_map(|stage| stage.name.as_deref()).collect();
    let mut faults = Faults::default();
    for model in stages.iter().flat_map(|stage| stage.recipe.models()) {
        let path = model.contains('/') || Path::new(model).exists();
        let known = path || names.iter().any(|name| is_result_of(model, name));
        if let Some(near) = nearest(model, names.iter().copied()).filter(|_| !known) {
            let fault = format!("`{}` is neither a path nor a stage of this file", Escaped(model));
            faults.push(Error::usage(fault, format!("did you mean the stage `{}`?", Escaped(near))));
        }
    }
    faults.into_result()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn document(name: Option<&str>, models: &[&str]) -> Value {
        let models: Vec<Value> = models.iter().map(|model| json!({"model": model})).collect();
        let mut value = json!({"merge_method": "linear", "parameters": {"weight": 1}, "models": models});
        if let Some(name) = name {
            value["name"] = name.into();
        }
        value
    }

    fn names(stages: &Stages) -> Vec<&str> {
        stages.all().iter().map(|stage| stage.name.as_deref().unwrap_or("-")).collect()
    }

    #[test]
    fn stages_follow_what_they_take() {
        let documents = vec![
            document(None, &["c", "/x"]),
            document(Some("c"), &["b+/adapter", "/y"]),
            document(Some("alone"), &["/z"]),
            document(Some("b"), &["/a"]),
        ];
        let stages = Stages::new(documents).unwrap();
        assert_eq!(names(&stages), ["b", "c", "alone", "-"]);
        let needed: Vec<bool> = stages.all().iter().map(|stage| stage.needed).collect();
        assert_eq!(needed, [true, true, false, true]);
    }

    #[test]
    fn without_an_unnamed_document_the_last_that_none_takes_ends_the_file() {
        let documents = vec![document(Some("b"), &["a"]), document(Some("a"), &["/x"])];
        assert_eq!(names(&Stages::new(documents).unwrap()), ["a", "b"]);
    }

    #[test]
    fn circles_and_names_given_twice_are_refused() {
        let fault = |documents: Vec<Value>| Stages::new(documents).unwrap_err().to_string();
        let circle =
            fault(vec![document(Some("a"), &["b"]), document(Some("b"), &["a"]), document(None, &["b"])]);
        assert_eq!(circle, "the recipes depend on each other in a circle: `a` takes `b` takes `a`");
        assert!(fault(vec![document(Some("a"), &["a"])]).contains("`a` takes `a`"));
        let twice = fault(vec![document(Some("a"), &["/x"]), document(Some("a"), &["/y"])]);
        assert_eq!(twice, "two documents have the name `a`");
        assert_eq!(
            fault(vec![document(None, &["/x"]), document(None, &["/y"])]),
            "two documents have no `name`"
        );
        let slip = fault(vec![document(Some("stage-one"), &["/x"]), document(None, &["stage-on"])]);
        assert_eq!(slip, "`stage-on` is neither a path nor a stage of this file");
    }
}
