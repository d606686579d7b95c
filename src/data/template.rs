//! The chat template of a model.

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

/// A compiled chat template.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
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

impl ChatTemplate {
    /// Compiles what the file `path` holds.
    pub(crate) fn compile(source: TemplateSource, path: PathBuf) -> Result<Self, Fault> {
        let length = source.template.len();
        if length > MOST_BYTES {
            let fault = format!("the chat template has {length} bytes, expected at most {MOST_BYTES}");
            return Err(Fault::new(fault));
        }
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

    /// Whether the template marks the assistant's text by generation blocks.
    pub(crate) fn has_generation(&self) -> bool {
        self.has_generation
    }

    /// Whether `fault` is that a limit was exceeded, so that no other row can be rendered either.
    pub(crate) fn is_limit(&self, fault: &Fault) -> bool {
        let Renderer::Workers(workers) = &self.renderer else { return false };
        workers.exceeded().is_some_and(|limit| fault.fault.starts_with(limit))
    }

    /// Renders a chat, as [`answers`]. A fault names the file of the template.
    pub(crate) fn answers(&self, chat: Chat, targets: TargetMessages) -> Result<Vec<RenderedChat>, Fault> {
        let answered = match &self.renderer {
            Renderer::InProcess(engine) => answers(&chat, targets, engine),
            Renderer::Workers(workers) => workers.ask(&Question { chat, targets }),
        };
        answered
            .map_err(|fault| Fault { fault: format!("{} ({})", fault.fault, Escaped(&self.path)), ..fault })
    }
}

/// The template among the files of a tokenizer: `chat_template.jinja`, else `chat_template` of
/// `tokenizer_config.json`, a text or a list of named templates of which `default` is taken.
pub(crate) fn find(root: &Path, config: &serde_json::Value) -> crate::Result<Option<String>> {
    let path = root.join("chat_template.jinja");
    match crate::checkpoint::read_small(&path) {
        Err(crate::Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(bytes) => {
            let fault = "not UTF-8 text".to_owned();
            let not_text = |_| crate::Error::Data { path, line: None, fault, hint: None };
            return String::from_utf8(bytes).map(Some).map_err(not_text);
        }
    }
    let template = &config["chat_template"];
    let named = || template.as_array()?.iter().find(|t| t["name"] == "default")?["template"].as_str();
    Ok(template.as_str().or_else(named).map(str::to_owned))
}
