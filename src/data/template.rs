//! The chat templates of a model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::data::answers::{RenderedChat, TargetMessages, answers};
use crate::data::chat::Chat;
use crate::data::engine::{Engine, TemplateSource};
use crate::data::fault::Fault;
use crate::data::worker::Question;
use crate::data::workers::Workers;
use crate::error::Escaped;

/// Bytes of a template at most; the largest that we know of has 30,000.
const MOST_BYTES: usize = 1 << 20;

/// The compiled chat templates of a model.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    /// For chats without tools; absent where the files name others only.
    default: Option<Compiled>,
    /// For chats with tools, where there is one; a fault of it matters to those only.
    tool_use: Option<Result<Compiled, Fault>>,
}

/// A compiled template.
#[derive(Debug)]
struct Compiled {
    path: PathBuf,
    renderer: Renderer,
    has_generation: bool,
}

/// The process in which a template is rendered.
#[derive(Debug)]
enum Renderer {
    InProcess(Box<Engine>),
    Workers(Workers),
}

/// The text of a template and the file that holds it.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) template: String,
    pub(crate) path: PathBuf,
}

/// The templates among the files of a tokenizer.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    pub(crate) default: Option<Source>,
    pub(crate) tool_use: Option<Source>,
}

impl Compiled {
    fn new(source: Source, special_tokens: &BTreeMap<String, String>) -> Result<Self, Fault> {
        let Source { template, path } = source;
        let length = template.len();
        if length > MOST_BYTES {
            let fault = format!("the chat template has {length} bytes, expected at most {MOST_BYTES}");
            return Err(Fault::new(fault));
        }
        let source = TemplateSource { template, special_tokens: special_tokens.clone() };
        let (renderer, has_generation) = match Workers::start(&source) {
            Some(started) => started.map(|(workers, has)| (Renderer::Workers(workers), has))?,
            None => {
                let engine = Engine::compile(source)?;
                let has_generation = engine.has_generation();
                (Renderer::InProcess(Box::new(engine)), has_generation)
            }
        };
        Ok(Self { path, renderer, has_generation })
    }

    fn exceeded(&self) -> Option<&str> {
        let Renderer::Workers(workers) = &self.renderer else { return None };
        workers.exceeded()
    }
}

impl ChatTemplate {
    /// Compiles the templates of a model.
    ///
    /// # Errors
    /// The fault of the default template.
    pub(crate) fn compile(
        sources: Sources,
        special_tokens: &BTreeMap<String, String>,
    ) -> Result<Self, Fault> {
        let compile = |source: Source| {
            let path = source.path.clone();
            Compiled::new(source, special_tokens)
                .map_err(|fault| Fault { fault: format!("{} ({})", fault.fault, Escaped(&path)), ..fault })
        };
        let default = sources.default.map(|source| Compiled::new(source, special_tokens)).transpose()?;
        Ok(Self { default, tool_use: sources.tool_use.map(compile) })
    }

    /// The template for a chat: `tool_use` where it has tools, as in transformers.
    fn of(&self, chat: &Chat) -> Result<&Compiled, Fault> {
        if let (Some(tool_use), false) = (&self.tool_use, chat.tools.is_null()) {
            return tool_use.as_ref().map_err(Clone::clone);
        }
        self.default.as_ref().ok_or_else(|| {
            Fault::hinted(
                "a chat without tools, but the only chat template is named `tool_use`",
                "put the chat_template.jinja of the model's instruct version beside tokenizer.json",
            )
        })
    }

    /// Whether the template of a chat marks the assistant's text by generation blocks.
    pub(crate) fn has_generation(&self, chat: &Chat) -> bool {
        self.of(chat).is_ok_and(|template| template.has_generation)
    }

    /// Whether `fault` is that a limit was exceeded, so that no other row can be rendered either.
    pub(crate) fn is_limit(&self, fault: &Fault) -> bool {
        let tool_use = self.tool_use.as_ref().and_then(|template| template.as_ref().ok());
        let mut limits = self.default.iter().chain(tool_use).filter_map(Compiled::exceeded);
        limits.any(|limit| fault.fault.starts_with(limit))
    }

    /// Renders a chat, as [`answers`]. A fault names the file of the template.
    pub(crate) fn answers(&self, chat: Chat, targets: TargetMessages) -> Result<Vec<RenderedChat>, Fault> {
        let Compiled { path, renderer, .. } = self.of(&chat)?;
        let answered = match renderer {
            Renderer::InProcess(engine) => answers(&chat, targets, engine),
            Renderer::Workers(workers) => workers.ask(&Question { chat, targets }),
        };
        answered.map_err(|fault| Fault { fault: format!("{} ({})", fault.fault, Escaped(path)), ..fault })
    }
}

/// The templates among the files of a tokenizer: `chat_template.jinja` and `additional_chat_templates/NAME.jinja`,
/// else `chat_template` of `tokenizer_config.json`, a text or a list of named templates.
pub(crate) fn find(root: &Path, config: &serde_json::Value) -> crate::Result<Sources> {
    let file = |name: &str| {
        let path = root.join(name);
        Ok(text(&path)?.map(|template| Source { template, path }))
    };
    let (default, tool_use) =
        (file("chat_template.jinja")?, file("additional_chat_templates/tool_use.jinja")?);
    if default.is_some() || tool_use.is_some() {
        return Ok(Sources { default, tool_use });
    }
    let template = &config["chat_template"];
    let source = |template: &serde_json::Value| {
        let path = root.join("tokenizer_config.json");
        Some(Source { template: template.as_str()?.to_owned(), path })
    };
    let named = |name: &str| source(&template.as_array()?.iter().find(|t| t["name"] == name)?["template"]);
    Ok(Sources { default: source(template).or_else(|| named("default")), tool_use: named("tool_use") })
}

/// The text of a file; `None` where there is none.
fn text(path: &Path) -> crate::Result<Option<String>> {
    match crate::checkpoint::read_small(path) {
        Err(crate::Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
        Ok(bytes) => String::from_utf8(bytes).map(Some).map_err(|_| {
            let fault = "not UTF-8 text".to_owned();
            crate::Error::Data { path: path.to_owned(), line: None, fault, hint: None }
        }),
    }
}
