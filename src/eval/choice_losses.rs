//! The losses of choices on the CPU, with what the choices of a question have in common computed once.

use std::ops::Range;

use super::loss::SequenceLoss;
use crate::Result;
use crate::backend::{Backend, Cpu, CpuPrecision, Targets};
use crate::checkpoint::Checkpoint;
use crate::data::{ChoiceRow, IGNORED, Row};
use crate::model::{
    Activations, Capacity, KvCache, Model, ModelConfig, NewTokens, Recompute, forward_cached,
};

/// Tokens that go through the model at once, unless one question has more.
const TOKENS_AT_ONCE: usize = 512;

/// The loss of each choice of `rows`, in order, `batch_size` questions at a time. `computed` is told of the tokens of all
/// choices of a question after it; where it says no, the losses of later ones are left out.
///
/// # Errors
/// A model outside the Llama family, tensors missing or of unexpected shape.
pub(super) fn choice_losses(
    source: &Checkpoint,
    rows: &[ChoiceRow],
    batch_size: usize,
    precision: CpuPrecision,
    computed: &mut dyn FnMut(u64) -> bool,
) -> Result<Vec<SequenceLoss>> {
    let questions: Vec<Question<'_>> = rows.iter().map(Question::of).collect();
    let common = common_prefix(&questions);
    let groups = groups(&questions, common, batch_size);
    let most = groups.iter().map(|group| tokens_of(&questions[group.clone()], common)).max().unwrap_or(1);
    let cpu = Cpu::new(precision);
    let config = ModelConfig::read(source)?;
    let longest = rows.iter().flat_map(|row| &row.choices).map(|row| row.input_ids.len()).max();
    config.check_length(source, longest.unwrap_or(0), false)?;
    let model = Model::load(config, source, &cpu, |_, stored| Some((Cpu::frozen(stored)?, None)))?;
    let tokens = most.max(TOKENS_AT_ONCE.min(common)).max(1);
    let capacity = Capacity { tokens, positions: tokens };
    let acts = Activations::new(&cpu, &model.config, capacity, Recompute::Full, false);
    cpu.check()?;
    let mut shared = KvCache::new(&model.config);
    let mut computing = Computing { cpu, model: &model, acts };
    for ids in questions.first().map_or(&[][..], |first| &first.shared[..common]).chunks(TOKENS_AT_ONCE) {
        computing.read(&mut [NewTokens { ids, branches: &[], cache: &mut shared }]);
    }
    let mut losses = Vec::new();
    for group in groups {
        let questions = &questions[group];
        losses.extend(computing.losses(questions, &shared));
        if !computed(questions.iter().map(|question| question.all_tokens).sum()) {
            break;
        }
    }
    Ok(losses)
}

/// A question with its choices, and what they have in common.
struct Question<'a> {
    /// The tokens that all choices begin with, up to the last that predicts nothing.
    shared: &'a [u32],
    choices: &'a [Row],
    /// For each choice the first that has the same tokens.
    same: Vec<usize>,
    all_tokens: u64,
}

impl<'a> Question<'a> {
    fn of(row: &'a ChoiceRow) -> Self {
        let choices = &row.choices;
        let first_target =
            |row: &Row| row.labels.iter().skip(1).take_while(|label| **label == IGNORED).count();
        let common =
            |a: &Row, b: &Row| a.input_ids.iter().zip(&b.input_ids).take_while(|(a, b)| a == b).count();
        let shared =
            choices.iter().map(|row| common(&choices[0], row).min(first_target(row))).min().unwrap_or(0);
        let twin = |row: &Row| {
            choices.iter().position(|other| other.input_ids == row.input_ids && other.labels == row.labels)
        };
        let same = choices.iter().map(|row| twin(row).unwrap_or(0)).collect();
        let all_tokens = choices.iter().map(|row| row.input_ids.len() as u64).sum();
        Self { shared: &choices[0].input_ids[..shared], choices, same, all_tokens }
    }

    /// The choices that are computed: of equal ones the first.
    fn distinct(&self) -> impl Iterator<Item = &'a Row> {
        let first = |(at, row)| (self.same[at] == at).then_some(row);
        self.choices.iter().enumerate().filter_map(first).collect::<Vec<_>>().into_iter()
    }

    /// Tokens of a choice that go through the model: the last one predicts nothing.
    fn own<'r>(&self, row: &'r Row) -> &'r [u32] {
        &row.input_ids[self.shared.len()..row.input_ids.len() - 1]
    }

    fn branch_tokens(&self) -> usize {
        self.distinct().map(|row| self.own(row).len()).sum()
    }
}

/// How many tokens all questions begin with.
fn common_prefix(questions: &[Question<'_>]) -> usize {
    let Some(first) = questions.first().filter(|_| questions.len() > 1) else { return 0 };
    let common =
        |other: &Question<'_>| first.shared.iter().zip(other.shared).take_while(|(a, b)| a == b).count();
    questions.iter().map(common).min().unwrap_or(0)
}

/// Tokens of the larger of the two passes over these questions.
fn tokens_of(questions: &[Question<'_>], common: usize) -> usize {
    let shared = questions.iter().map(|question| question.shared.len() - common).sum::<usize>();
    shared.max(questions.iter().map(Question::branch_tokens).sum())
}

/// Questions that go through the model together.
fn groups(questions: &[Question<'_>], common: usize, batch_size: usize) -> Vec<Range<usize>> {
    let (mut groups, mut first) = (Vec::new(), 0);
    while first < questions.len() {
        let fits = |end: &usize| tokens_of(&questions[first..*end], common) <= TOKENS_AT_ONCE;
        let most = questions.len().min(first + batch_size.max(1));
        let end = (first + 2..=most).take_while(fits).last().unwrap_or(first + 1);
        groups.push(first..end);
        first = end;
    }
    groups
}

struct Computing<'m, 'c> {
    cpu: Cpu<'c>,
    model: &'m Model<Cpu<'c>>,
    acts: Activations<Cpu<'c>>,
}

impl<'c> Computing<'_, 'c> {
    fn read(&mut self, new: &mut [NewTokens<'_>]) -> &Vec<f32> {
        forward_cached(&mut self.cpu, self.model, new, &mut self.acts)
    }

    /// The losses of all choices of some questions, of which `shared` has the first tokens.
    fn losses(&mut self, questions: &[Question<'_>], shared: &KvCache) -> Vec<SequenceLoss> {
        let mut caches: Vec<KvCache> = questions.iter().map(|_| shared.clone()).collect();
        let rest = questions.iter().map(|question| &question.shared[shared.tokens()..]);
        let mut new: Vec<NewTokens<'_>> = rest
            .zip(&mut caches)
            .filter(|(ids, _)| !ids.is_empty())
            .map(|(ids, cache)| NewTokens { ids, branches: &[], cache })
            .collect();
        if !new.is_empty() {
            self.read(&mut new);
        }
        let branches: Vec<(Vec<u32>, Vec<usize>)> = questions
            .iter()
            .map(|question| {
                let ids = question.distinct().flat_map(|row| question.own(row).iter().copied()).collect();
                (ids, question.distinct().map(|row| question.own(row).len()).collect())
            })
            .collect();
        let mut new: Vec<NewTokens<'_>> = branches
            .iter()
            .zip(&mut caches)
            .map(|((ids, branches), cache)| NewTokens { ids, branches, cache })
            .collect();
        let (mut rows, mut ids, mut first) = (Vec::new(), Vec::new(), 0);
        for question in questions {
            for row in question.distinct() {
                let own = question.own(row).len();
                let labels = row.labels[question.shared.len() + 1..].iter().enumerate();
                let targets =
                    labels.filter_map(|(at, label)| Some(((first + at) as u32, u32::try_from(*label).ok()?)));
                let (own_rows, own_ids): (Vec<u32>, Vec<u32>) = targets.unzip();
                rows.extend(own_rows);
                ids.extend(own_ids);
                first += own;
            }
        }
        let hidden = forward_cached(&mut self.cpu, self.model, &mut new, &mut self.acts);
        let targets = Targets { rows: &rows, ids: &ids, label_smoothing: 0.0 };
        self.cpu.cross_entropy(hidden, self.model.head(), targets, None);
        let losses = self.cpu.losses();
        let mut rest = losses.as_slice();
        let mut all = Vec::new();
        for question in questions {
            let mut of_question: Vec<SequenceLoss> = Vec::new();
            for (at, row) in question.choices.iter().enumerate() {
                let loss = if question.same[at] == at {
                    let (own, after) = rest.split_at(row.targets());
                    rest = after;
                    let nats = own.iter().map(|loss| f64::from(*loss)).sum();
                    SequenceLoss { nats, targets: own.len() as u64 }
                } else {
                    of_question[question.same[at]]
                };
                of_question.push(loss);
            }
            all.extend(of_question);
        }
        all
    }
}
