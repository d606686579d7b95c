//! What the numbers show, by rules that hold for every experiment.

use crate::experiment::{Entry, Outcome, Paired, Results};

/// A quantity by which methods are compared.
pub(super) struct Measure {
    /// Its name in texts.
    pub(super) name: String,
    /// Whether a higher one is better.
    pub(super) higher_is_better: bool,
    /// Its value.
    pub(super) of: Box<dyn Fn(&Outcome) -> f64>,
}

/// Overall performance, backward transfer, and the score on each file of the general set.
pub(super) fn measures(results: &Results) -> Vec<Measure> {
    let own = results.higher_is_better;
    let mut all = vec![
        Measure { name: "OP".to_owned(), higher_is_better: own, of: Box::new(Outcome::op) },
        Measure { name: "BWT".to_owned(), higher_is_better: own, of: Box::new(Outcome::bwt) },
    ];
    for (at, (name, metric, better)) in results.general.iter().enumerate() {
        all.push(Measure {
            name: format!("{metric} of {name}"),
            higher_is_better: *better,
            of: Box::new(move |outcome| outcome.general[at].last),
        });
    }
    all
}

/// The word for a direction.
pub(super) fn direction(higher_is_better: bool) -> &'static str {
    if higher_is_better { "higher is better" } else { "lower is better" }
}

/// A difference with its standard error.
pub(super) fn difference(paired: Paired) -> String {
    let stderr = paired.stderr.map_or_else(String::new, |stderr| format!(" ± {stderr:.4}"));
    format!("{:+.4}{stderr}", paired.mean)
}

/// The rule in words.
pub(super) const RULE: &str = "A method is called better or worse where the mean of its differences to the reference over \
                               seeds is greater than twice the standard error of that mean; each ± here is this standard error.";

/// What training by the reference did, how the others differ from it, and which methods no other beats in two measures at
/// once.
pub(super) fn sentences(results: &Results) -> Vec<String> {
    let Some(reference) = results.entries.first() else { return Vec::new() };
    let mut out = vec![
        changed(
            reference,
            "the mean score of the tasks",
            results.higher_is_better,
            &Outcome::base_mean,
            &Outcome::op,
        ),
        changed(
            reference,
            "the score of tasks learnt before (BWT)",
            results.higher_is_better,
            &|_| 0.0,
            &Outcome::bwt,
        ),
    ];
    for (at, (name, metric, better)) in results.general.iter().enumerate() {
        let what = format!("the {metric} of {name}");
        let (before, after) = (move |o: &Outcome| o.general[at].base, move |o: &Outcome| o.general[at].last);
        out.push(changed(reference, &what, *better, &before, &after));
    }
    let all = measures(results);
    out.extend(all.iter().map(|measure| compared(results, reference, measure)));
    let op = &all[0];
    out.extend(all[1..].iter().map(|other| front(results, op, other)));
    out
}

/// How the reference changed a quantity.
fn changed(
    reference: &Entry,
    what: &str,
    higher_is_better: bool,
    before: &dyn Fn(&Outcome) -> f64,
    after: &dyn Fn(&Outcome) -> f64,
) -> String {
    let (first, last) = (reference.sample(before), reference.sample(after));
    let paired = last.minus(&first);
    let verdict = match paired.sign() {
        None => "one seed tells no spread",
        Some(0) => "no change by the rule",
        Some(sign) if (sign > 0) == higher_is_better => "better",
        Some(_) => "worse",
    };
    format!(
        "`{}` changed {what} from {:.4} to {:.4}, by {}: {verdict}.",
        reference.label,
        first.mean(),
        last.mean(),
        difference(paired)
    )
}

/// Who is better and worse than the reference in one measure.
fn compared(results: &Results, reference: &Entry, measure: &Measure) -> String {
    let head =
        format!("{} ({}), against `{}`", measure.name, direction(measure.higher_is_better), reference.label);
    let own = reference.sample(&measure.of);
    let (mut better, mut worse, mut same) = (Vec::new(), Vec::new(), Vec::new());
    for entry in results.entries.iter().filter(|entry| entry.label != reference.label) {
        let paired = entry.sample(&measure.of).minus(&own);
        let text = format!("`{}` ({})", entry.label, difference(paired));
        match paired.sign() {
            None => return format!("{head}: one seed tells no spread, so nothing is claimed."),
            Some(0) => same.push(text),
            Some(sign) if (sign > 0) == measure.higher_is_better => better.push(text),
            Some(_) => worse.push(text),
        }
    }
    let list = |name: &str, texts: &[String]| {
        if texts.is_empty() { format!("{name}: none") } else { format!("{name}: {}", texts.join(", ")) }
    };
    format!(
        "{head}. {}. {}. {}.",
        list("Better", &better),
        list("Worse", &worse),
        list("No difference by the rule", &same)
    )
}

/// The entries that no other entry beats in both means.
fn front(results: &Results, first: &Measure, second: &Measure) -> String {
    let place = |entry: &Entry| {
        let mean = |measure: &Measure| {
            let mean = entry.sample(&measure.of).mean();
            if measure.higher_is_better { mean } else { -mean }
        };
        (mean(first), mean(second))
    };
    let places: Vec<(f64, f64)> = results.entries.iter().map(place).collect();
    let beaten = |(x, y): (f64, f64)| places.iter().any(|(a, b)| *a >= x && *b >= y && (*a > x || *b > y));
    let unbeaten = results.entries.iter().zip(&places).filter(|(_, place)| !beaten(**place));
    let names: Vec<String> = unbeaten.map(|(entry, _)| format!("`{}`", entry.label)).collect();
    format!(
        "No other method has means as good in both {} and {} and better in one: {}.",
        first.name,
        second.name,
        names.join(", ")
    )
}
