//! The template engine: Jinja as transformers sets it up.

use std::collections::BTreeMap;
use std::ops::Range;

use minijinja::{Environment, Value};
use serde::{Deserialize, Serialize};

use super::chat::Chat;
use super::contain::contain;
use super::fault::Fault;
use super::jinja::{self, Rewritten};
use super::{generation, python};
use crate::error::Shown;

/// Steps of the template engine per rendering; a long chat takes some ten thousand.
const FUEL: u64 = 5_000_000;
const NAME: &str = "chat_template";

/// The text of a chat template and the variables that the tokenizer adds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Source {
    pub(super) template: String,
    /// `bos_token`, `eos_token`, …
    pub(super) special_tokens: BTreeMap<String, String>,
}

/// A compiled chat template, with the environment that transformers gives it.
#[derive(Debug)]
pub(super) struct Engine {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
    has_generation: bool,
}

impl Engine {
    /// Compiles a template.
    pub(super) fn compile(source: Source) -> Result<Self, Fault> {
        let compile = || {
            let Rewritten { template, has_generation } = jinja::rewrite(&source.template);
            let mut environment = environment();
            environment.add_template_owned(NAME, template)?;
            Ok(Self { environment, special_tokens: source.special_tokens, has_generation })
        };
        let not = |e: &dyn std::fmt::Display| {
            Fault::new(format!("the chat template does not compile: {}", Shown(&e.to_string())))
        };
        contain(compile).map_err(|e| not(&e))?.map_err(|e: minijinja::Error| not(&e))
    }

    /// Whether the template itself says what the assistant writes.
    pub(super) fn has_generation(&self) -> bool {
        self.has_generation
    }

    /// The first `count` messages of a chat; with `add_generation_prompt`, up to where the assistant's
    /// answer begins.
    pub(super) fn render(
        &self,
        chat: &Chat,
        count: usize,
        add_generation_prompt: bool,
    ) -> Result<String, Fault> {
        let marked = self.render_marked(chat, count, add_generation_prompt)?;
        if self.has_generation { generation::take_marks(&marked).map(|(text, _)| text) } else { Ok(marked) }
    }

    /// A whole chat and the byte ranges of its generation blocks.
    pub(super) fn render_blocks(&self, chat: &Chat) -> Result<(String, Vec<Range<usize>>), Fault> {
        generation::take_marks(&self.render_marked(chat, chat.messages.len(), false)?)
    }

    fn render_marked(
        &self,
        chat: &Chat,
        count: usize,
        add_generation_prompt: bool,
    ) -> Result<String, Fault> {
        let messages = &chat.messages[..count];
        if self.has_generation && messages.iter().any(|m| generation::holds_marks(&m.to_string())) {
            return Err(Fault::new("a message holds U+FDD0 or U+FDD1, which are no characters"));
        }
        let render = || {
            let mut context: BTreeMap<&str, Value> = BTreeMap::new();
            context
                .extend(self.special_tokens.iter().map(|(name, token)| (name.as_str(), Value::from(token))));
            context
                .extend(chat.kwargs.iter().map(|(name, value)| (name.as_str(), Value::from_serialize(value))));
            context.insert("messages", Value::from_serialize(messages));
            context.insert("tools", Value::from_serialize(&chat.tools));
            context.insert("documents", Value::from(()));
            context.insert("add_generation_prompt", Value::from(add_generation_prompt));
            self.environment.get_template(NAME)?.render(Value::from_iter(context))
        };
        let failed = |e: &dyn std::fmt::Display| {
            Fault::new(format!("the chat template: {}", Shown(&e.to_string())))
        };
        contain(render).map_err(|e| failed(&e))?.map_err(|e: minijinja::Error| failed(&e))
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
