//! Several adapters into one, as `add_weighted_adapter` of PEFT does.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;
use serde_json::json;

use crate::checkpoint::{Checkpoint, CommandInputs};
use crate::error::Escaped;
use crate::lora::adapter::{Adapter, Module, WeightedAdapter};
use crate::lora::adapter_file::{ConfigText, PREFIX, write_config, write_weights};
use crate::lora::combine_factors::{Combination, CombinationType, ModuleTerms, Term};
use crate::lora::names::Part;
use crate::lora::task_tensors::{MajoritySign, TaskMerge, TaskRule};
use crate::merge::tiles::low_rank::finite_values;
use crate::merge::tiles::source::Source;
use crate::plan::module_of;
use crate::surgery::output::finish;
use crate::surgery::{Output, Provenance, Record};
use crate::{Error, Faults, Result};

/// The largest rank of a concatenation.
const MOST_RANK: usize = 4096;

/// What becomes of the adapters.
#[derive(Debug, Clone, Copy)]
pub struct Combine {
    /// How adapters become one; of a single one, always a multiple.
    pub kind: CombinationType,
    /// The share of elements that stay where the rule prunes; all from 1 on.
    pub density: f64,
    /// What elects the sign of an element, where the rule does.
    pub majority_sign: MajoritySign,
    /// The rank of a decomposition; `None`: the largest of the adapters.
    pub rank: Option<usize>,
    /// Seed of the draws.
    pub seed: u64,
}

/// What was written.
#[derive(Debug)]
pub struct Combined {
    /// Modules with factors.
    pub modules: usize,
    /// The largest rank of a module.
    pub rank: usize,
    /// Tensors that are saved whole.
    pub saved: usize,
    /// What a reader should know of the result.
    pub notes: Vec<String>,
}

/// Combines the adapters into a new one in the directory of `output`, of scale 1.
///
/// # Errors
/// [`Error::Checkpoint`] for adapters with norms (DoRA), biases of factors or new rows of tokens, which PEFT leaves out;
/// [`Error::Pairing`] for ranks, shapes or saved modules that do not fit together; [`Error::Output`], [`Error::Io`].
pub fn combine(
    adapters: &[WeightedAdapter<'_>],
    how: Combine,
    output: &Output<'_>,
    provenance: &Provenance,
) -> Result<Combined> {
    let checkpoints: Vec<&Checkpoint> =
        adapters.iter().map(|weighted| weighted.adapter.checkpoint()).collect();
    let mut faults = Faults::default();
    faults.extend(adapters.iter().filter_map(|weighted| check_parts(weighted.adapter).err()));
    faults.into_result()?;
    let kind = if adapters.len() == 1 { CombinationType::Factors(TaskRule::Linear) } else { how.kind };
    let rank = rank(adapters, kind, how.rank)?;
    check_targets(adapters)?;
    let whole = Whole::of(adapters)?;
    let staging = output.stage(CommandInputs::of(checkpoints.iter().copied()))?;
    let modules = modules(adapters, kind)?;
    if modules.is_empty() {
        return Err(fault(None, "the adapters have no factors: there is nothing to combine"));
    }
    let rule = match kind {
        CombinationType::Cat => TaskRule::Linear,
        CombinationType::Factors(rule) | CombinationType::Products(rule) => rule,
    };
    let merge = TaskMerge { rule, density: how.density, majority_sign: how.majority_sign };
    let combination = Combination { kind, merge, rank, seed: how.seed };
    let combine =
        |(terms, sources): (ModuleTerms, Vec<TermSource<'_>>)| read(terms, &sources)?.combined(&combination);
    let pairs = modules.into_par_iter().map(combine).collect::<Result<Vec<_>>>()?;
    let configs = || adapters.iter().map(|weighted| &weighted.adapter.config);
    let first = configs().next();
    let text = ConfigText {
        base_model: first.and_then(|config| config.base_model.clone()),
        task_type: first.and_then(|config| config.task_type.clone()),
        bias: if whole.biases { "all" } else { "none" },
        fan_in_fan_out: configs().any(|config| config.fan_in_fan_out),
        targets: pairs.iter().map(|pair| pair.module.clone()).collect(),
        saved: whole.modules,
    };
    write_config(&staging, &pairs, &text)?;
    let combined = Combined {
        modules: pairs.len(),
        rank: pairs.iter().map(|pair| pair.rank).max().unwrap_or(0),
        saved: whole.tensors.len(),
        notes: notes(adapters, &whole.unweighted),
    };
    write_weights(&staging, pairs, &whole.tensors)?;
    let plan = json!({"modules": combined.modules, "rank": combined.rank});
    finish(staging, &checkpoints, Record { provenance, seed: how.seed, plan })?;
    Ok(combined)
}

fn fault(tensor: Option<&str>, fault: &str) -> Error {
    Error::Pairing { tensor: tensor.map(str::to_owned), fault: fault.to_owned(), hint: None }
}

/// Refuses the parts that `add_weighted_adapter` leaves out without a word.
fn check_parts(adapter: &Adapter) -> Result<()> {
    let parts = [
        (Part::Magnitude, "norms (DoRA) cannot be combined"),
        (Part::Bias, "the bias of a lora_B cannot be combined"),
        (Part::Tokens, "new rows of trainable_token_indices cannot be combined"),
    ];
    for module in adapter.modules() {
        if let Some((_, why)) = parts.iter().find(|(part, _)| module.part(*part).is_some()) {
            return Err(module
                .fault(&format!("{why}; PEFT leaves them out: merge the adapters into the base instead")));
        }
    }
    Ok(())
}

/// The rank of the result, at most [`MOST_RANK`].
fn rank(adapters: &[WeightedAdapter<'_>], kind: CombinationType, asked: Option<usize>) -> Result<usize> {
    let ranks: Vec<usize> =
        adapters.iter().map(|weighted| weighted.adapter.config.largest_rank() as usize).collect();
    let largest = ranks.iter().copied().max().unwrap_or(0);
    match kind {
        CombinationType::Cat if ranks.iter().all(|rank| *rank <= MOST_RANK) => match ranks.iter().sum() {
            sum if sum <= MOST_RANK => Ok(sum),
            sum => Err(fault(None, &format!("the rank would be {sum}, expected at most {MOST_RANK}"))),
        },
        CombinationType::Cat => {
            Err(fault(None, &format!("the adapters have the ranks {ranks:?}, expected at most {MOST_RANK}")))
        }
        CombinationType::Products(_) => Ok(asked.unwrap_or(largest)),
        CombinationType::Factors(_) if ranks.iter().all(|rank| *rank == largest) => Ok(largest),
        CombinationType::Factors(_) => Err(Error::Pairing {
            tensor: None,
            fault: format!("the adapters have the ranks {ranks:?}, and this combination type needs one"),
            hint: Some("take `cat`, or a type that ends in `svd`".to_owned()),
        }),
    }
}

/// As PEFT, refuses target_modules as a regular expression beside a list.
fn check_targets(adapters: &[WeightedAdapter<'_>]) -> Result<()> {
    let regex = |weighted: &&WeightedAdapter<'_>| weighted.adapter.config.targets.is_regex();
    let count = adapters.iter().filter(regex).count();
    if count == 0 || count == adapters.len() {
        return Ok(());
    }
    Err(Error::Pairing {
        tensor: None,
        fault: "target_modules is a regular expression in one adapter and a list in another".to_owned(),
        hint: Some(
            "PEFT refuses to combine them; write both in one form into adapter_config.json".to_owned(),
        ),
    })
}

/// Where the factors of a term lie.
type TermSource<'a> = [Source<'a>; 2];

/// The modules of all adapters, in order of their names, with factors that are not read yet.
fn modules<'a>(
    adapters: &[WeightedAdapter<'a>],
    kind: CombinationType,
) -> Result<Vec<(ModuleTerms, Vec<TermSource<'a>>)>> {
    let mut all: BTreeMap<String, (ModuleTerms, Vec<TermSource<'a>>)> = BTreeMap::new();
    let mut faults = Faults::default();
    for weighted in adapters {
        for module in weighted.adapter.modules() {
            faults.extend(add_module(&mut all, weighted, &module, kind).err());
        }
    }
    faults.into_result().map(|()| all.into_values().collect())
}

fn add_module<'a>(
    all: &mut BTreeMap<String, (ModuleTerms, Vec<TermSource<'a>>)>,
    weighted: &WeightedAdapter<'a>,
    module: &Module<'a>,
    kind: CombinationType,
) -> Result<()> {
    let linear = module.part(Part::A).zip(module.part(Part::B));
    let embedding = module.part(Part::EmbeddingA).zip(module.part(Part::EmbeddingB));
    let is_embedding = embedding.is_some();
    let Some((a, b)) = linear.xor(embedding) else {
        return Err(module.fault("expected the factors of a linear layer or of an embedding"));
    };
    let (sa, sb) = (&a.info.shape, &b.info.shape);
    let ([r, n], [m, s]) = (sa.as_slice(), sb.as_slice()) else {
        return Err(module.fault(&format!("shapes do not fit: B {sb:?} times A {sa:?}")));
    };
    if r != s || [r, n, m].contains(&&0) {
        return Err(module.fault(&format!("shapes do not fit: B {sb:?} times A {sa:?}")));
    }
    let config = &weighted.adapter.config;
    let said = config.rank(module.name)?;
    if said != *r as f64 {
        let what = format!("rank differs: the file has {r}, adapter_config.json says {said}");
        return Err(module.fault(&what));
    }
    let term = Term {
        weight: weighted.weight,
        scale: config.scale(module.name, 1.0)?,
        rank: *r as usize,
        a: Vec::new(),
        b: Vec::new(),
    };
    let start = ModuleTerms { module: module.name.to_owned(), is_embedding, terms: Vec::new() };
    let (terms, sources) = all.entry(module.name.to_owned()).or_insert((start, Vec::new()));
    if let Some([a, b]) = sources.first() {
        let (x, y) = ([b.info.shape[0], a.info.shape[1]], [*m, *n]);
        if x != y || terms.is_embedding != is_embedding {
            let what = format!("two adapters have updates of the shapes {x:?} and {y:?}: not of one base");
            return Err(fault(Some(module.name), &what));
        }
        let first = a.info.shape[0];
        if first != *r && matches!(kind, CombinationType::Factors(_)) {
            let what =
                format!("two adapters have the ranks {first} and {r}, and this combination type needs one");
            return Err(fault(Some(module.name), &what));
        }
    }
    terms.terms.push(term);
    sources.push([a, b]);
    Ok(())
}

/// Reads the factors.
fn read(mut terms: ModuleTerms, sources: &[TermSource<'_>]) -> Result<ModuleTerms> {
    for (term, [a, b]) in terms.terms.iter_mut().zip(sources) {
        (term.a, term.b) = (finite_values(a)?, finite_values(b)?);
    }
    Ok(terms)
}

/// What adapters save whole.
struct Whole<'a> {
    /// By their names in the file.
    tensors: Vec<(String, Source<'a>)>,
    /// The modules for `modules_to_save`.
    modules: BTreeSet<String>,
    /// Whether there are biases of other modules.
    biases: bool,
    /// Names of modules that are taken whatever the weight of their adapter.
    unweighted: Vec<String>,
}

impl<'a> Whole<'a> {
    /// Of one adapter only, as PEFT has it; weights of the base that PEFT saves beside factors of an embedding are those of
    /// all adapters.
    fn of(adapters: &[WeightedAdapter<'a>]) -> Result<Self> {
        let mut found =
            Self { tensors: Vec::new(), modules: BTreeSet::new(), biases: false, unweighted: Vec::new() };
        let mut by_name: BTreeMap<&'a str, Source<'a>> = BTreeMap::new();
        let mut faults = Faults::default();
        for weighted in adapters {
            let adapter = weighted.adapter;
            for (name, source) in adapter.whole() {
                let module = module_of(name);
                let copied = adapter.config.targets.copies(module);
                let stored = source.info.name.as_str();
                if let Some(other) = by_name.get(name) {
                    let same = !copied && other.same_bytes(&source, source.info.elements())?;
                    if !same || other.info.shape != source.info.shape {
                        faults.push(fault(Some(name), "two adapters save it whole"));
                    }
                    continue;
                }
                by_name.insert(name, source.clone());
                let of_base = stored.ends_with(".base_layer.weight");
                found.unweighted.extend((!of_base).then(|| name.to_owned()));
                found.biases |= !copied && name.ends_with(".bias");
                if copied {
                    found.modules.insert(module.to_owned());
                }
                let stored =
                    if stored.starts_with(PREFIX) { stored.to_owned() } else { format!("{PREFIX}{name}") };
                found.tensors.push((stored, source));
            }
        }
        faults.into_result().map(|()| found)
    }
}

/// What a reader should know, and where the result is not the one of PEFT.
fn notes(adapters: &[WeightedAdapter<'_>], unweighted: &[String]) -> Vec<String> {
    let mut notes = Vec::new();
    let configs = || adapters.iter().map(|weighted| &weighted.adapter.config);
    let bases: BTreeSet<&str> = configs().filter_map(|config| config.base_model.as_deref()).collect();
    if bases.len() > 1 {
        let bases: Vec<String> = bases.iter().map(|base| format!("`{}`", Escaped(*base))).collect();
        notes.push(format!("the adapters name other bases: {}", bases.join(", ")));
    }
    if configs().next().is_some_and(|config| config.rslora) {
        notes.push(
            "the scale of the result is 1; PEFT keeps use_rslora of the first adapter and multiplies it by √r"
                .to_owned(),
        );
    }
    if let Some(first) = unweighted.first() {
        notes.push(format!(
            "{} tensors that one adapter saves whole are taken as they are, whatever its weight, `{}` the first; PEFT takes \
             those of the base",
            unweighted.len(),
            Escaped(first)
        ));
    }
    notes
}
