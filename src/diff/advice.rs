//! What the overlap of task vectors says about a merge: rules, each with its source, and a recipe.

use crate::diff::overlap::{Overlap, PairOverlap};

/// Fine-tunes whose task vectors point more nearly into one direction than this are near copies.
const NEAR_COPIES: f64 = 0.95;
/// Below this |cosine|, task vectors are called orthogonal.
const ORTHOGONAL: f64 = 0.1;
/// Norms that differ by less than this factor are left as they are.
const EVEN_NORMS: f64 = 1.5;
/// A task vector shorter than another by this factor hardly shows beside it.
const DROWNED: f64 = 10.0;
/// Conflicts in the top below this share leave TIES nothing to resolve.
const FEW_CONFLICTS: f64 = 0.01;
/// Weights are kept in this range.
const WEIGHTS: (f64, f64) = (0.1, 10.0);

const TASK_ARITHMETIC: &str = "Ilharco et al. 2022, arXiv:2212.04089";
const SOUPS: &str = "Wortsman et al. 2022, arXiv:2203.05482";
const TIES: &str = "Yadav et al. 2023, arXiv:2306.01708";
const COMPARISON: &str = "arXiv:2511.21437";
const CLOSED_FORM: &str = "closed form: ⟨Σ c τ, τi⟩ / ‖τi‖²";
const MEASURED: &str = "measured here";

/// One sentence of advice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The name of the rule, the same in every run.
    pub name: &'static str,
    /// What it says of these models.
    pub text: String,
    /// Where it comes from.
    pub source: &'static str,
}

/// What is advised for one fine-tune.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelAdvice {
    /// Its elements that differ from the base.
    pub changed: u64,
    /// ‖τ‖.
    pub norm: f64,
    /// ‖τ‖ / ‖base‖; `None` where the base is zero.
    pub relative: Option<f64>,
    /// Its weight in the recipe; `None` where it is left out.
    pub weight: Option<f64>,
    /// ⟨τ̂, τ⟩ / ‖τ‖² for τ̂ the change of the linear average of all fine-tunes that the recipe has: the share of its own
    /// change that the average keeps.
    pub kept_by_average: Option<f64>,
    /// The same for the recipe.
    pub kept_by_recipe: Option<f64>,
}

/// The advice on a set of fine-tunes.
#[derive(Debug, Clone, PartialEq)]
pub struct Advice {
    /// Every fine-tune, in the order given.
    pub models: Vec<ModelAdvice>,
    /// What holds, the most important first.
    pub rules: Vec<Rule>,
    /// λ of the recipe, by which task vectors are added with the weights of `models`; `None` where fewer than two
    /// fine-tunes are left.
    pub lambda: Option<f64>,
}

/// Inner products of the task vectors, from the sums over all pairs.
struct Products {
    /// Row-major, symmetric.
    values: Vec<Vec<f64>>,
    changed: Vec<u64>,
    base: f64,
}

impl Products {
    fn new(totals: &[([usize; 2], Overlap)], models: usize) -> Self {
        let mut values = vec![vec![0.0; models]; models];
        let (mut changed, mut base) = (vec![0; models], 0.0);
        for ([x, y], sums) in totals {
            values[*x][*x] = sums.squares_1;
            values[*y][*y] = sums.squares_2;
            (values[*x][*y], values[*y][*x]) = (sums.dot, sums.dot);
            (changed[*x], changed[*y]) = (sums.changed_1, sums.changed_2);
            base = sums.squares_base;
        }
        Self { values, changed, base }
    }

    fn norm(&self, model: usize) -> f64 {
        self.values[model][model].sqrt()
    }

    /// ⟨Σ c τ, τ of `model`⟩ / ‖τ of `model`‖².
    fn kept(&self, coefficients: &[f64], model: usize) -> Option<f64> {
        let dot: f64 = coefficients.iter().zip(&self.values[model]).map(|(c, dot)| c * dot).sum();
        let own = self.values[model][model];
        (own > 0.0).then(|| dot / own)
    }

    /// ‖Σ c τ‖.
    fn norm_of_sum(&self, c: &[f64]) -> f64 {
        let row = |(i, row): (usize, &Vec<f64>)| c[i] * row.iter().zip(c).map(|(x, c)| x * c).sum::<f64>();
        self.values.iter().enumerate().map(row).sum::<f64>().max(0.0).sqrt()
    }
}

/// The sums of a pair over all tensors.
pub fn total(pair: &PairOverlap) -> Overlap {
    let mut all = Overlap::default();
    pair.tensors.iter().for_each(|tensor| all.append(&tensor.overlap));
    all
}

/// Advice on a merge of the fine-tunes that its sentences call `names`, from the comparison of every two of them with their tops counted.
///
/// Weights: 1, or the geometric mean of the norms over ‖τ‖ where norms differ by a factor of 1.5 or more, so that all
/// weighted task vectors have one length. λ: the mean length of the weighted task vectors over the length of their sum, at
/// most 1, so that the merge lies as far from the base as the fine-tunes do: 1/√N for N orthogonal ones of one length, 1/N
/// for copies.
pub fn advise(names: &[String], pairs: &[PairOverlap]) -> Advice {
    let totals: Vec<([usize; 2], Overlap)> = pairs.iter().map(|pair| (pair.of, total(pair))).collect();
    let products = Products::new(&totals, names.len());
    let mut rules = Vec::new();
    let used = used(names, &totals, &products, &mut rules);
    let left: Vec<usize> = (0..names.len()).filter(|i| used[*i]).collect();
    let weights = weights(names, &left, &products, &mut rules);
    let kept = totals.iter().filter(|([x, y], _)| used[*x] && used[*y]);
    for ([x, y], sums) in kept {
        directions(names, [*x, *y], sums, left.len(), &mut rules);
        conflicts(names, [*x, *y], sums, &mut rules);
    }
    let average: Vec<f64> =
        used.iter().map(|used| if *used { 1.0 / left.len() as f64 } else { 0.0 }).collect();
    let lambda = (left.len() > 1).then(|| lambda(&weights, &left, &products));
    let coefficients: Vec<f64> = weights.iter().map(|w| w * lambda.unwrap_or(0.0)).collect();
    match lambda {
        Some(lambda) => rules.push(recipe_rule(lambda)),
        None => rules.push(Rule {
            name: "nothing_to_merge",
            text: "fewer than two different fine-tunes are left: there is nothing to merge".to_owned(),
            source: MEASURED,
        }),
    }
    let model = |i: usize| ModelAdvice {
        changed: products.changed[i],
        norm: products.norm(i),
        relative: (products.base > 0.0).then(|| products.norm(i) / products.base.sqrt()),
        weight: (used[i] && lambda.is_some()).then_some(weights[i]),
        kept_by_average: if used[i] { products.kept(&average, i) } else { None },
        kept_by_recipe: lambda.filter(|_| used[i]).and_then(|_| products.kept(&coefficients, i)),
    };
    Advice { models: (0..names.len()).map(model).collect(), rules, lambda }
}

fn recipe_rule(lambda: f64) -> Rule {
    Rule {
        name: "task_arithmetic",
        text: format!(
            "start from task arithmetic: of the methods compared on 16 benchmarks, it alone gained reliably. λ = {lambda} \
             keeps the merge as far from the base as the fine-tunes are; it is a start, so measure a smaller and a larger one"
        ),
        source: COMPARISON,
    }
}

/// Which fine-tunes take part: not the base itself, and one of several that are equal.
fn used(
    names: &[String],
    totals: &[([usize; 2], Overlap)],
    products: &Products,
    rules: &mut Vec<Rule>,
) -> Vec<bool> {
    let mut used = vec![true; names.len()];
    for (i, name) in names.iter().enumerate() {
        if products.changed[i] == 0 {
            used[i] = false;
            let text = format!("{name} is the base itself: no element differs; it is left out");
            rules.push(Rule { name: "base_itself", text, source: MEASURED });
        }
    }
    for ([x, y], sums) in totals {
        let same_places = sums.both == sums.changed_1 && sums.both == sums.changed_2;
        let apart = sums.squares_1 + sums.squares_2 - 2.0 * sums.dot;
        let same = same_places && sums.opposite() == 0 && apart.abs() <= 1e-12 * sums.squares_1;
        if used[*x] && used[*y] && same {
            used[*y] = false;
            let (first, second) = (&names[*x], &names[*y]);
            let text =
                format!("{second} is a copy of {first}: adding both would double one change; it is left out");
            rules.push(Rule { name: "copy", text, source: MEASURED });
        }
    }
    used
}

/// The weight of every fine-tune: 1, or one that balances norms; 0 for those left out.
fn weights(names: &[String], left: &[usize], products: &Products, rules: &mut Vec<Rule>) -> Vec<f64> {
    let mut weights = vec![0.0; names.len()];
    left.iter().for_each(|i| weights[*i] = 1.0);
    let by_norm = |a: &&usize, b: &&usize| products.norm(**a).total_cmp(&products.norm(**b));
    let (Some(least), Some(most)) = (left.iter().min_by(by_norm), left.iter().max_by(by_norm)) else {
        return weights;
    };
    let ratio = products.norm(*most) / products.norm(*least);
    if ratio < EVEN_NORMS {
        return weights;
    }
    let logs: f64 = left.iter().map(|i| products.norm(*i).ln()).sum();
    let mean = (logs / left.len() as f64).exp();
    for i in left {
        let weight = (mean / products.norm(*i)).clamp(WEIGHTS.0, WEIGHTS.1);
        weights[*i] = (weight * 1000.0).round() / 1000.0;
    }
    let (long, short) = (&names[*most], &names[*least]);
    let drowned = if ratio >= DROWNED {
        format!(
            "; at equal weights the merge is {long} almost alone. See first whether {short} learned anything"
        )
    } else {
        String::new()
    };
    let text = format!(
        "{long} moved {ratio:.1} times as far as {short}: the weights of the recipe give all task vectors one length{drowned}"
    );
    rules.push(Rule { name: "norms", text, source: TASK_ARITHMETIC });
    weights
}

/// What the cosine of two task vectors says; `left` fine-tunes take part.
fn directions(names: &[String], [x, y]: [usize; 2], sums: &Overlap, left: usize, rules: &mut Vec<Rule>) {
    let Some(cosine) = sums.cosine() else { return };
    let both = format!("{} and {}", names[x], names[y]);
    let share = 100.0 / left as f64;
    let (name, text, source) = if cosine > NEAR_COPIES {
        let text = format!(
            "{both} are near copies (cosine {cosine:.3}): average them; adding both would double what they share"
        );
        ("near_copies", text, SOUPS)
    } else if cosine.abs() < ORTHOGONAL {
        let text = format!(
            "{both} are orthogonal (cosine {cosine:.3}): a linear merge of {left} at equal weights keeps about {share:.0} % \
             of each change, as the others add nothing along it; a sum of task vectors with larger weights keeps more"
        );
        ("orthogonal", text, CLOSED_FORM)
    } else if cosine < 0.0 {
        let text =
            format!("{both} pull against each other (cosine {cosine:.3}): each merge undoes part of both");
        ("opposed", text, CLOSED_FORM)
    } else {
        let text = format!(
            "{both} share a part of their direction (cosine {cosine:.3}): an average keeps that part whole"
        );
        ("related", text, CLOSED_FORM)
    };
    rules.push(Rule { name, text, source });
}

/// Whether TIES has something to resolve.
fn conflicts(names: &[String], [x, y]: [usize; 2], sums: &Overlap, rules: &mut Vec<Rule>) {
    let Some(conflict) = sums.top_conflict() else { return };
    let both = format!("{} and {}", names[x], names[y]);
    let percent = 100.0 * conflict;
    let (name, text) = if conflict < FEW_CONFLICTS {
        let text = format!(
            "TIES has nothing to resolve between {both}: {percent:.2} % of the largest fifth of either have opposite signs"
        );
        ("ties_idle", text)
    } else {
        let text = format!(
            "TIES would drop one side of {percent:.1} % of what the largest fifth of {both} changed, where signs are opposite"
        );
        ("ties", text)
    };
    rules.push(Rule { name, text, source: TIES });
}

/// The mean length of the weighted task vectors over the length of their sum, at most 1, to two digits.
fn lambda(weights: &[f64], left: &[usize], products: &Products) -> f64 {
    let mean = left.iter().map(|i| weights[*i] * products.norm(*i)).sum::<f64>() / left.len() as f64;
    let sum = products.norm_of_sum(weights);
    let lambda = if sum > mean { mean / sum } else { 1.0 };
    ((lambda * 100.0).round() / 100.0).max(0.01)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diff::overlap::TensorOverlap;

    /// Task vectors of the given squares and inner products, on 100 elements that all changed.
    fn pair(of: [usize; 2], squares: [f64; 2], dot: f64, top: [u64; 4]) -> PairOverlap {
        let same_sign = if dot > 0.0 { 100 } else { 50 };
        let overlap = Overlap {
            elements: 100,
            nonfinite: 0,
            changed_1: if squares[0] > 0.0 { 100 } else { 0 },
            changed_2: if squares[1] > 0.0 { 100 } else { 0 },
            both: if squares[0] * squares[1] > 0.0 { 100 } else { 0 },
            same_sign: if squares[0] * squares[1] > 0.0 { same_sign } else { 0 },
            top_1: top[0],
            top_2: top[1],
            top_both: top[2],
            top_opposite: top[3],
            squares_1: squares[0],
            squares_2: squares[1],
            dot,
            squares_base: 10_000.0,
        };
        PairOverlap { of, tensors: vec![TensorOverlap { name: "w".to_owned(), overlap }] }
    }

    fn names(n: usize) -> Vec<String> {
        (1..=n).map(|i| format!("A{i}")).collect()
    }

    fn rule<'a>(advice: &'a Advice, name: &str) -> Option<&'a str> {
        advice.rules.iter().find(|rule| rule.name == name).map(|rule| rule.text.as_str())
    }

    #[test]
    fn orthogonal_ones_are_halved_by_an_average() {
        let advice = advise(&names(2), &[pair([0, 1], [4.0, 4.0], 0.0, [20, 20, 4, 2])]);
        assert_eq!(advice.lambda, Some(0.71));
        assert_eq!(advice.models[0].kept_by_average, Some(0.5));
        assert_eq!((advice.models[1].kept_by_recipe, advice.models[1].weight), (Some(0.71), Some(1.0)));
        assert_eq!(advice.models[0].relative, Some(0.02));
        assert!(
            rule(&advice, "orthogonal").is_some_and(|text| text.contains("keeps about 50 % of each change"))
        );
        // 2 of 36 elements.
        assert!(rule(&advice, "ties").is_some_and(|text| text.contains("5.6 %")));
        assert!(rule(&advice, "task_arithmetic").is_some() && rule(&advice, "norms").is_none());
    }

    #[test]
    fn near_copies_are_averaged() {
        let advice = advise(&names(2), &[pair([0, 1], [4.0, 4.0], 3.96, [20, 20, 20, 0])]);
        assert_eq!(advice.lambda, Some(0.5));
        assert!(rule(&advice, "near_copies").is_some());
        assert!(rule(&advice, "ties_idle").is_some());
    }

    #[test]
    fn norms_are_balanced() {
        let advice = advise(&names(2), &[pair([0, 1], [16.0, 1.0], 0.0, [20, 20, 4, 2])]);
        let weights: Vec<Option<f64>> = advice.models.iter().map(|model| model.weight).collect();
        assert_eq!(weights, [Some(0.5), Some(2.0)]);
        assert_eq!(advice.lambda, Some(0.71));
        assert!(rule(&advice, "norms").is_some_and(|text| text.contains("A1 moved 4.0 times as far as A2")));
        let far = advise(&names(2), &[pair([0, 1], [1.0, 400.0], 0.0, [20, 20, 4, 2])]);
        assert!(rule(&far, "norms").is_some_and(|text| text.contains("the merge is A2 almost alone")));
    }

    #[test]
    fn the_base_and_copies_are_left_out() {
        let none = [20, 0, 0, 0];
        let pairs = [
            pair([0, 1], [4.0, 0.0], 0.0, none),
            pair([0, 2], [4.0, 4.0], 4.0, [20, 20, 20, 0]),
            pair([1, 2], [0.0, 4.0], 0.0, none),
        ];
        let advice = advise(&names(3), &pairs);
        assert!(rule(&advice, "base_itself").is_some_and(|text| text.starts_with("A2 is the base itself")));
        assert!(rule(&advice, "copy").is_some_and(|text| text.starts_with("A3 is a copy of A1")));
        assert_eq!(advice.lambda, None);
        assert!(advice.models.iter().all(|model| model.weight.is_none()));
        assert!(rule(&advice, "nothing_to_merge").is_some());
    }

    #[test]
    fn opposed_ones_never_get_a_weight_above_one() {
        let advice = advise(&names(2), &[pair([0, 1], [4.0, 4.0], -4.0, [20, 20, 20, 20])]);
        assert_eq!(advice.lambda, Some(1.0));
        assert_eq!(advice.models[0].kept_by_recipe, Some(0.0));
        assert!(rule(&advice, "opposed").is_some());
    }
}
