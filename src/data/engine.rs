//! The template engine: Jinja as transformers sets it up.

use std::collections::BTreeMap;
use std::ops::Range;

use minijinja::{Environment, Value};
use serde::{Deserialize, Serialize};

use crate::data::catch_panic::catch_panic;
use crate::data::chat::Chat;
use crate::data::fault::Fault;
use crate::data::jinja::{self, Rewritten};
use crate::data::{generation, once, python};
use crate::error::Escaped;

/// Steps of the template engine per rendering; a long chat takes some ten thousand.
const FUEL: u64 = 5_000_000;
const NAME: &str = "chat_template";
const ONCE: &str = "chat_template_once";

/// The text of a chat template and the variables that the tokenizer adds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TemplateSource {
    pub(crate) template: String,
    /// `bos_token`, `eos_token`, …
    pub(crate) special_tokens: BTreeMap<String, String>,
}

/// A compiled chat template, with the environment that transformers gives it.
#[derive(Debug)]
pub(crate) struct Engine {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
    has_generation: bool,
}

impl Engine {
    /// Compiles a template.
    pub(crate) fn compile(source: TemplateSource) -> Result<Self, Fault> {
        let compile = || {
            let Rewritten { template, has_generation } = jinja::rewrite(&source.template)?;
            let mut environment = environment();
            environment.add_template_owned(NAME, template).map_err(|e| e.to_string())?;
            if let Some(once) = once::rewrite(&source.template).and_then(|once| jinja::rewrite(&once).ok()) {
                // Without it, each prefix of a chat is rendered.
                let _ = environment.add_template_owned(ONCE, once.template);
            }
            Ok(Self { environment, special_tokens: source.special_tokens, has_generation })
        };
        let not = |e: &dyn std::fmt::Display| {
            Fault::new(format!("the chat template does not compile: {}", Escaped(&e.to_string())))
        };
        catch_panic(compile).map_err(|e| not(&e))?.map_err(|e: String| not(&e))
    }

    /// Whether the template marks the assistant's text by generation blocks.
    pub(crate) fn has_generation(&self) -> bool {
        self.has_generation
    }

    /// The values of a chat that a rendering reads.
    pub(crate) fn prepare<'a>(&self, chat: &'a Chat) -> Result<Prepared<'a>, Fault> {
        if self.has_generation && chat.messages.iter().any(|m| generation::holds_marks(&m.to_string())) {
            return Err(Fault::new("a message holds U+FDD0 or U+FDD1, which are no characters"));
        }
        let mut context: BTreeMap<String, Value> = BTreeMap::new();
        context.extend(self.special_tokens.iter().map(|(name, token)| (name.clone(), Value::from(token))));
        context.extend(chat.kwargs.iter().map(|(name, value)| (name.clone(), Value::from_serialize(value))));
        context.insert("tools".to_owned(), Value::from_serialize(&chat.tools));
        context.insert("documents".to_owned(), Value::from(()));
        Ok(Prepared { chat, messages: chat.messages.iter().map(Value::from_serialize).collect(), context })
    }

    /// The first `count` messages of a chat; with `add_generation_prompt`, up to where the assistant's
    /// answer begins.
    pub(crate) fn render(
        &self,
        chat: &Prepared<'_>,
        count: usize,
        add_generation_prompt: bool,
    ) -> Result<String, Fault> {
        let marked = self.render_template(NAME, chat, count, add_generation_prompt)?;
        if self.has_generation { generation::take_marks(&marked).map(|(text, _)| text) } else { Ok(marked) }
    }

    /// A whole chat and the byte ranges of its generation blocks.
    pub(crate) fn render_blocks(&self, chat: &Prepared<'_>) -> Result<(String, Vec<Range<usize>>), Fault> {
        generation::take_marks(&self.render_template(NAME, chat, chat.count(), false)?)
    }

    /// A whole chat as [`once`] renders it; `None` where the template is not of that form, the rendering
    /// fails, or the chat holds the mark.
    pub(crate) fn render_once(&self, chat: &Prepared<'_>) -> Option<String> {
        self.environment.get_template(ONCE).ok()?;
        let holds_mark = |message: &serde_json::Value| message.to_string().contains(once::MARK);
        if chat.chat.messages.iter().any(holds_mark) {
            return None;
        }
        self.render_template(ONCE, chat, chat.count(), false).ok()
    }

    fn render_template(
        &self,
        name: &str,
        chat: &Prepared<'_>,
        count: usize,
        add_generation_prompt: bool,
    ) -> Result<String, Fault> {
        let render = || {
            let mut context = chat.context.clone();
            context.insert("messages".to_owned(), Value::from(chat.messages[..count].to_vec()));
            context.insert("add_generation_prompt".to_owned(), Value::from(add_generation_prompt));
            self.environment.get_template(name)?.render(Value::from_iter(context))
        };
        let failed =
            |e: &dyn std::fmt::Display| Fault::new(format!("the chat template: {}", Escaped(&e.to_string())));
        catch_panic(render).map_err(|e| failed(&e))?.map_err(|e: minijinja::Error| failed(&e))
    }
}

/// A chat as values of the template engine.
pub(crate) struct Prepared<'a> {
    chat: &'a Chat,
    messages: Vec<Value>,
    context: BTreeMap<String, Value>,
}

impl Prepared<'_> {
    /// Number of messages.
    pub(crate) fn count(&self) -> usize {
        self.messages.len()
    }
}

fn environment() -> Environment<'static> {
    let mut environment = python::environment();
    environment.set_fuel(Some(FUEL));
    environment.add_filter(generation::FILTER, |text: &str| generation::mark(text));
    environment
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// What Python renders and this environment refuses, by what the refusal says.
    const REFUSED: [(&str, &str); 12] = [
        ("{{ \"\\N{BULLET}\" }}", "a character by its name"),
        ("{{ 'ß'.casefold() }}", "casefold of a text that is not ASCII is not supported"),
        ("{{ s.__class__ }}", "`__class__` is not accessible"),
        ("{{ none.__class__ }}", "`__class__` is not accessible"),
        ("{{ lipsum is defined }}", "the variable `lipsum` is not supported"),
        ("{{ self is defined }}", "the variable `self` is not supported"),
        ("{% set ns = namespace() %}{{ ns.x }}{{ ns }}", "an object is printed"),
        ("{% macro f(a) %}{{ varargs }}{% endmacro %}{{ f(1, 2, 3) }}", "`varargs` is not supported"),
        ("{% macro f(a) %}{{ kwargs }}{% endmacro %}{{ f(1, z=3) }}", "`kwargs` is not supported"),
        ("{% print n %}{% print 1, 2 %}", "the statement `print` is not supported"),
        ("{% block a %}x{{ n }}{% endblock %}{{ self.a() }}", "the statement `block` is not supported"),
        ("{% autoescape true %}{{ '<' }}{% endautoescape %}", "the statement `autoescape` is not supported"),
    ];

    fn render(template: &str, context: &Value) -> Result<String, String> {
        let rewritten = jinja::rewrite(template)?.template;
        let environment = environment();
        let rendered = environment.template_from_str(&rewritten).and_then(|t| t.render(context));
        rendered.map(|text| text.replace(['\u{FDD0}', '\u{FDD1}'], "")).map_err(|e| e.to_string())
    }

    /// `fixtures/data/jinja/make_expressions.py`: the results are those of transformers' environment.
    #[test]
    fn templates_render_as_on_python() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/data/jinja/expressions.json");
        let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let context = Value::from_serialize(&golden["context"]);
        let (mut compared, mut refused) = (0, 0);
        for case in golden["cases"].as_array().unwrap() {
            let template = case[0].as_str().unwrap();
            let rendered = render(template, &context);
            if let Some((_, words)) = REFUSED.iter().find(|(refused, _)| *refused == template) {
                assert!(rendered.as_ref().is_err_and(|e| e.contains(words)), "{template}: {rendered:?}");
                refused += 1;
                continue;
            }
            assert_eq!(rendered.as_deref().ok(), case[1].as_str(), "{template}: {rendered:?}");
            compared += 1;
        }
        assert_eq!(refused, REFUSED.len());
        assert!(compared >= 860, "{compared}");
    }
}
