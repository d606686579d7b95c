//! A chat rendered up to each of its messages.

use super::chat::Chat;
use super::engine::{Engine, Prepared};
use super::fault::Fault;
use super::once;

/// Assistant messages from which on one rendering is tried for all.
const MANY: usize = 8;

/// Renders the first messages of a chat.
pub(super) struct Prefixes<'a> {
    engine: &'a Engine,
    chat: Prepared<'a>,
    /// The whole chat.
    whole: String,
    once: Option<Once>,
}

/// A text that begins with bytes of the whole chat.
pub(super) struct Prefix<'a> {
    /// Bytes of the whole chat.
    pub(super) shared: usize,
    /// What follows them.
    pub(super) rest: std::borrow::Cow<'a, str>,
}

/// What one rendering of the whole chat says of all prefixes.
struct Once {
    /// Where in the whole chat each message ends.
    ends: Vec<usize>,
    /// What follows each message where it is the last, without and with the generation prompt.
    tails: Vec<[String; 2]>,
}

impl<'a> Prefixes<'a> {
    pub(super) fn new(engine: &'a Engine, chat: &'a Chat) -> Result<Self, Fault> {
        let turns = chat.turns();
        let chat = engine.prepare(chat)?;
        let whole = engine.render(&chat, chat.count(), false)?;
        let mut prefixes = Self { engine, chat, whole, once: None };
        if let (true, Some(last)) = (turns.len() >= MANY, turns.last()) {
            let once = prefixes.once();
            prefixes.once = once.filter(|once| prefixes.holds(once, *last) && prefixes.holds(once, turns[0]));
        }
        Ok(prefixes)
    }

    /// The whole chat.
    pub(super) fn whole(&self) -> &str {
        &self.whole
    }

    pub(super) fn into_whole(self) -> String {
        self.whole
    }

    /// The first `count` messages; with `add_generation_prompt`, up to where the answer begins.
    pub(super) fn render(&self, count: usize, add_generation_prompt: bool) -> Result<Prefix<'_>, Fault> {
        if let Some(once) = &self.once {
            return Ok(once.prefix(count, add_generation_prompt));
        }
        let rest = match (count == self.chat.count(), add_generation_prompt) {
            (true, false) => self.whole.as_str().into(),
            _ => self.engine.render(&self.chat, count, add_generation_prompt)?.into(),
        };
        Ok(Prefix { shared: 0, rest })
    }

    fn once(&self) -> Option<Once> {
        let marked = self.engine.render_once(&self.chat)?;
        let mut parts = marked.split(once::MARK);
        let (mut text, mut once) = (String::new(), Once { ends: Vec::new(), tails: Vec::new() });
        for _ in 0..self.chat.count() {
            text.push_str(parts.next()?);
            once.ends.push(text.len());
            once.tails.push([parts.next()?.to_owned(), parts.next()?.to_owned()]);
        }
        let ended = parts.next() == Some("") && parts.next().is_none();
        let tail = once.tails.last().map(|tails| tails[0].as_str());
        let same = self.whole.strip_prefix(&text) == tail && tail.is_some();
        (ended && same).then_some(once)
    }

    /// Whether `once` says of the prefixes at message `turn` what their own renderings are.
    fn holds(&self, once: &Once, turn: usize) -> bool {
        [(turn, false), (turn, true), (turn + 1, false)].into_iter().all(|(count, prompt)| {
            let prefix = once.prefix(count, prompt);
            let exact = self.engine.render(&self.chat, count, prompt);
            exact.is_ok_and(|exact| exact.strip_prefix(&self.whole[..prefix.shared]) == Some(&*prefix.rest))
        })
    }
}

impl Once {
    fn prefix(&self, count: usize, add_generation_prompt: bool) -> Prefix<'_> {
        let at = count - 1;
        let rest = self.tails[at][usize::from(add_generation_prompt)].as_str().into();
        Prefix { shared: self.ends[at], rest }
    }
}
