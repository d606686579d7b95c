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
            let Rewritten { template, has_generation } = jinja::rewrite(&source.template);
            let mut environment = environment();
            environment.add_template_owned(NAME, template)?;
            if let Some(once) = once::rewrite(&source.template) {
                // Without it, each prefix of a chat is rendered.
                let _ = environment.add_template_owned(ONCE, jinja::rewrite(&once).template);
            }
            Ok(Self { environment, special_tokens: source.special_tokens, has_generation })
        };
        let not = |e: &dyn std::fmt::Display| {
            Fault::new(format!("the chat template does not compile: {}", Escaped(&e.to_string())))
        };
        catch_panic(compile).map_err(|e| not(&e))?.map_err(|e: minijinja::Error| not(&e))
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
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_fuel(Some(FUEL));
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_formatter(python::print);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", python::raise_exception);
    environment.add_function("strftime_now", python::strftime_now);
    environment.add_filter("tojson", python::to_json);
    environment.add_filter(generation::FILTER, |text: &str| generation::mark(text));
    environment
}
