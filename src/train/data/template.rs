//! The chat template of a model.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use minijinja::{Environment, Value};

use super::chat::Chat;
use super::fault::Fault;
use super::jinja::{self, Rewritten};
use super::{generation, python};
use crate::error::Escaped;

/// Steps of the template engine per rendering; a long chat takes some ten thousand.
const FUEL: u64 = 5_000_000;
const NAME: &str = "chat_template";

/// A compiled chat template, with the environment that transformers gives it.
#[derive(Debug)]
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
    has_generation: bool,
}

/// A rendered chat and the byte ranges of its generation blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rendered {
    pub(super) text: String,
    pub(super) blocks: Vec<Range<usize>>,
}

impl ChatTemplate {
    /// Compiles `source`; `special_tokens` (`bos_token`, `eos_token`, …) are variables of the template.
    pub(super) fn compile(
        source: &str,
        special_tokens: BTreeMap<String, String>,
    ) -> Result<Self, minijinja::Error> {
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
        let Rewritten { template, has_generation } = jinja::rewrite(source);
        environment.add_template_owned(NAME, template)?;
        Ok(Self { environment, special_tokens, has_generation })
    }

    /// Whether the template itself says what the assistant writes.
    pub(super) fn has_generation(&self) -> bool {
        self.has_generation
    }

    /// Renders the first `count` messages of a chat; with `add_generation_prompt`, up to where the
    /// assistant's answer begins.
    pub(super) fn render(
        &self,
        chat: &Chat,
        count: usize,
        add_generation_prompt: bool,
    ) -> Result<Rendered, Fault> {
        let messages = &chat.messages[..count];
        if self.has_generation && messages.iter().any(|m| generation::holds_marks(&m.to_string())) {
            return Err(Fault::new("a message holds U+FDD0 or U+FDD1, which are no characters"));
        }
        let mut context: BTreeMap<&str, Value> = BTreeMap::new();
        context.extend(self.special_tokens.iter().map(|(name, token)| (name.as_str(), Value::from(token))));
        context.extend(chat.kwargs.iter().map(|(name, value)| (name.as_str(), Value::from_serialize(value))));
        context.insert("messages", Value::from_serialize(messages));
        context.insert("tools", Value::from_serialize(&chat.tools));
        context.insert("documents", Value::from(()));
        context.insert("add_generation_prompt", Value::from(add_generation_prompt));
        let template = self.environment.get_template(NAME);
        let rendered = template.and_then(|t| t.render(Value::from_iter(context)));
        let text = rendered.map_err(|e| Fault::new(format!("the chat template: {}", shown(&e))))?;
        if !self.has_generation {
            return Ok(Rendered { text, blocks: Vec::new() });
        }
        let (text, blocks) = generation::take_marks(&text)?;
        Ok(Rendered { text, blocks })
    }
}

/// A message of the template engine, safe to show.
pub(super) fn shown(error: &minijinja::Error) -> String {
    Escaped(&error.to_string()).to_string()
}

/// The template among the files of a tokenizer: `chat_template.jinja`, else `chat_template` of
/// `tokenizer_config.json`, a text or a list of named templates of which `default` is taken.
pub(super) fn find(root: &Path, config: &serde_json::Value) -> crate::Result<Option<String>> {
    let path = root.join("chat_template.jinja");
    match crate::checkpoint::read_small(&path) {
        Err(crate::Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(bytes) => {
            let not_text = |_| super::tokenizer::fault(&path, "not UTF-8 text", None);
            return String::from_utf8(bytes).map(Some).map_err(not_text);
        }
    }
    let template = &config["chat_template"];
    let named = || template.as_array()?.iter().find(|t| t["name"] == "default")?["template"].as_str();
    Ok(template.as_str().or_else(named).map(str::to_owned))
}
