//! A chat rendered up to each of its messages.

use crate::data::chat::Chat;
use crate::data::engine::{Engine, Prepared};
use crate::data::fault::Fault;
use crate::data::once;

/// The number of assistant messages from which on one rendering is tried for all prefixes.
const MANY: usize = 8;

/// Renders the first messages of a chat.
pub(crate) struct Prefixes<'a> {
    engine: &'a Engine,
    chat: Prepared<'a>,
    /// The whole chat.
    whole: String,
    once: Option<Once>,
}

/// A text that begins with bytes of the whole chat.
pub(crate) struct Prefix<'a> {
    /// Bytes of the whole chat.
    pub(crate) shared: usize,
    /// The text after them.
    pub(crate) rest: std::borrow::Cow<'a, str>,
}

/// All prefixes of a chat, from one rendering of the whole.
struct Once {
    /// The byte of the whole chat at which each message ends.
    ends: Vec<usize>,
    /// The text after each message where it is the last, without and with the generation prompt.
    tails: Vec<[String; 2]>,
}

impl<'a> Prefixes<'a> {
    pub(crate) fn new(engine: &'a Engine, chat: &'a Chat) -> Result<Self, Fault> {
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
    pub(crate) fn whole(&self) -> &str {
        &self.whole
    }

    pub(crate) fn into_whole(self) -> String {
        self.whole
    }

    /// The first `count` messages; with `add_generation_prompt`, up to where the answer begins.
    pub(crate) fn render(&self, count: usize, add_generation_prompt: bool) -> Result<Prefix<'_>, Fault> {
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

    /// Whether the prefixes of `once` at message `turn` equal their own renderings.
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::data::engine::TemplateSource;

    /// Loops over messages, with the whitespace control that templates use.
    const SEEN: [&str; 8] = [
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
        "{{ bos_token }}\n{%- for m in messages -%}\n  {{- m['content'] }}\n{%- endfor -%}\n  tail \n",
        "{% for m in messages %}\n  {% if loop.first and messages[0].role != 'user' %}\n  x\n  {% endif %}\n {{ m.content }}\n  {% endfor %}\n  {% if add_generation_prompt %}\n  a\n  {% endif %}\n\n",
        "{%- for m in messages %}{{ loop.index0 }} {{ loop.index }}{{ m.content | trim }}\n\n{%+ endfor %}  {{- add_generation_prompt }} \n",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ m.content }}{% endfor %}\n{{ eos_token }}",
        "{% for m in messages %}{{ loop.previtem.role if not loop.first }}{% for c in m.content %}{{ c }}{% if loop.first %}!{% endif %}{% endfor %}{% endfor %}\n\n{%- if add_generation_prompt -%}\n  >\n{%- endif %}",
        "{% for m in messages %}{% set x = m.content %}{{ x }}{% endfor %}{% if add_generation_prompt %}{{ '%}' }}{% else %}-{% endif %}",
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% elif true %}{{ 'x' if false }}{% endif %}{% endfor %}   ",
    ];

    /// What a prefix renders depends on what follows it, or might.
    const NOT_SEEN: [&str; 14] = [
        "{% for m in messages %}{{ m.content }}{% if loop.last %}!{% endif %}{% endfor %}",
        "{% for m in messages %}{{ loop.length }}{% endfor %}",
        "{% for m in messages %}{{ loop['last'] }}{% endfor %}",
        "{% for m in messages %}{{ messages[-1].content }}{% endfor %}",
        "{% for m in messages %}{{ messages[loop.index0 + 1].content }}{% endfor %}",
        "{% set all = messages %}{% for m in all %}{{ m.content }}{% endfor %}",
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for m in messages[1:] %}{{ m.content }}{% endfor %}",
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content }}{% else %}x{% endfor %}",
        "{% for m in messages %}{{ m.content }}{{ add_generation_prompt }}{% endfor %}",
        "{% for m in messages %}{% set x = 1 %}{{ m.content }}{% endfor %}{{ x }}",
        "{% for m in messages %}{{ m.content }}{% endfor %}{{ messages[0].role }}",
        "{% if true %}{% for m in messages %}{{ m.content }}{% endfor %}{% endif %}",
    ];

    fn engine(template: &str) -> Engine {
        let special = [("bos_token", "<s>"), ("eos_token", "</s>")];
        let special_tokens: BTreeMap<_, _> =
            special.iter().map(|(name, token)| ((*name).to_owned(), (*token).to_owned())).collect();
        Engine::compile(TemplateSource { template: template.to_owned(), special_tokens }).unwrap()
    }

    fn chat() -> Chat {
        let message = |at: usize| {
            let role = if at.is_multiple_of(2) { "user" } else { "assistant" };
            (role, [" one \n", "", "\n two", "3 "][at % 4].to_owned())
        };
        Chat::of((0..2 * MANY + 1).map(message))
    }

    #[test]
    fn one_rendering_gives_every_prefix() {
        let (chat, count) = (chat(), 2 * MANY + 1);
        for template in SEEN {
            let engine = engine(template);
            let prefixes = Prefixes::new(&engine, &chat).unwrap();
            assert!(prefixes.once.is_some(), "{template}");
            for (count, prompt) in (1..=count).flat_map(|count| [(count, false), (count, true)]) {
                let Prefix { shared, rest } = prefixes.render(count, prompt).unwrap();
                let text = format!("{}{rest}", &prefixes.whole()[..shared]);
                let exact = engine.render(&prefixes.chat, count, prompt).unwrap();
                assert_eq!(text, exact, "{template}: {count} {prompt}");
            }
        }
    }

    #[test]
    fn a_template_that_looks_ahead_is_rendered_for_each_prefix() {
        for template in NOT_SEEN {
            assert_eq!(once::rewrite(template), None, "{template}");
        }
        let held =
            Chat::of((0..40).map(|at| (if at % 2 == 0 { "user" } else { "assistant" }, "\u{FDD2}".into())));
        assert!(Prefixes::new(&engine(SEEN[0]), &held).unwrap().once.is_none());
    }
}
