//! From offers to a plan: the allocator for a size, or one of the published rank rules.

use super::Context;
use super::analyse::CalibrationText;
use crate::arch::{Site, SourceModel, Storage, Unit};
use crate::checkpoint::TensorSpec;
use crate::error::{Error, Result};
use crate::job::Job;
use crate::passes::{Analysis, Method, Needs, reduction_ranks, uniform_rank};
use crate::plan::{
    BlockOrder, Blocks, LossBasis, Measuring, ModelId, Offer, Plan, PlannedUnit, Rule, allocate,
    forecast, order_blocks, output_tensors,
};

/// What the user wants planned.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Request {
    /// How choices are made.
    pub rule: Rule,
    /// Ranks are multiples of this.
    pub rank_multiple: usize,
    /// No unit gets fewer than this fraction of the bytes that an even split would give it.
    pub floor: f64,
    /// Write dense tensors.
    pub fold: bool,
    /// In which order the blocks of stacks are written.
    pub order: BlockOrder,
}

/// An offer and the method that made it; `None` is the stored form.
type Candidate = (Option<Method>, Offer);

/// Draws the plan from the analyses in `job`. Without one, from shapes and an assumed spectrum.
///
/// # Errors
/// [`Error::BudgetTooSmall`] with the size of the smallest possible model; a rule that needs an
/// analysis which is not there.
pub fn draw_plan(
    model: &SourceModel,
    request: &Request,
    job: Option<&Job>,
    text: Option<&CalibrationText>,
    context: Context<'_>,
) -> Result<Plan> {
    let units = model.units();
    let candidates: Vec<Vec<Candidate>> =
        units.iter().map(|unit| candidates(unit, job, context)).collect::<Result<_>>()?;
    let chosen = match request.rule {
        Rule::Target(target) => {
            let weight_bytes = model.checkpoint.weight_bytes();
            let fixed = weight_bytes - units.iter().map(Unit::stored_bytes).sum::<u64>();
            let budget = target.bytes(weight_bytes);
            by_budget(&units, &candidates, budget, fixed, request.floor)?
        }
        Rule::Uniform(kept) => uniform(&units, &candidates, kept, request.rank_multiple),
        Rule::Reduce(reduce) => reduced(&units, &candidates, job, reduce, request, context)?,
        Rule::Stack => candidates.iter().map(|candidates| most_levels(candidates)).collect(),
    };
    let blocks: Vec<Blocks> = (0..units.len())
        .filter_map(|site| blocks(site, &units[site], &candidates[site], chosen[site]))
        .collect();
    let stack = (!blocks.is_empty()).then(|| order_blocks(&blocks, request.order));
    let planned: Vec<PlannedUnit> = units
        .iter()
        .zip(candidates.into_iter().zip(chosen))
        .map(|(unit, (candidates, index))| planned_unit(unit, candidates, index))
        .collect::<Result<_>>()?;
    let tensors = output_tensors(model, &planned, request.fold, stack.as_ref());
    Ok(Plan {
        bantam: env!("CARGO_PKG_VERSION").to_owned(),
        model: ModelId::of(model)?,
        rule: request.rule,
        methods: context.passes.iter().map(|pass| pass.method()).collect(),
        rank_multiple: request.rank_multiple,
        fold: request.fold,
        paper: context.measure.paper,
        expected_loss: match (job, text) {
            (None, _) => LossBasis::Assumed,
            (Some(_), Some(_)) if context.measure.gradients => LossBasis::Nats,
            (Some(_), Some(_)) => LossBasis::OutputEnergy,
            (Some(_), None) => LossBasis::WeightEnergy,
        },
        calibration: text.map(CalibrationText::record),
        memory: Some(forecast(model, measuring(text, context))),
        weight_bytes: tensors.iter().map(TensorSpec::bytes).sum(),
        units: planned,
        stack,
        tensors,
    })
}

/// How the model was or will be measured; not at all where every pass does without.
fn measuring(text: Option<&CalibrationText>, context: Context<'_>) -> Option<Measuring> {
    let needed = context.passes.iter().any(|pass| pass.needs() > Needs::Weights);
    let shape = match text {
        Some(text) => Some((text.windows.count(), text.windows.length())),
        None => needed.then_some(context.windows),
    };
    shape.map(|(windows, window)| Measuring {
        windows,
        window,
        text_bytes: text.map_or(0, |text| text.text_bytes),
        gradients: context.measure.gradients,
        activation_memory: context.activation_memory,
    })
}

/// Every offer for `unit`, by bytes ascending; the stored form is there once.
fn candidates(unit: &Unit, job: Option<&Job>, context: Context<'_>) -> Result<Vec<Candidate>> {
    let stored: Vec<Storage> = unit.sites.iter().map(|site| site.storage.clone()).collect();
    let as_it_is = Offer { storages: stored, bytes: unit.stored_bytes(), expected_loss: 0.0 };
    let mut found = Vec::new();
    for pass in context.passes.iter().filter(|pass| pass.takes(unit)) {
        let analysis = job.and_then(|job| job.get(unit.name(), pass.method(), context.device()));
        let offers = pass.offers(unit, analysis.as_ref())?.into_iter();
        let smaller = offers.filter(|offer| offer.storages != as_it_is.storages);
        found.extend(smaller.map(|offer| (Some(pass.method()), offer)));
    }
    found.push((None, as_it_is));
    if let Some((_, offer)) = found.iter().find(|(_, o)| !o.expected_loss.is_finite()) {
        return Err(Error::NonFinite {
            what: format!("the expected loss of `{}`", unit.name()),
            detail: format!("for {:?}", offer.storages),
        });
    }
    found.sort_by(|(_, a), (_, b)| {
        a.bytes.cmp(&b.bytes).then(a.expected_loss.total_cmp(&b.expected_loss))
    });
    Ok(found)
}

fn by_budget(
    units: &[Unit],
    candidates: &[Vec<Candidate>],
    budget: u64,
    fixed: u64,
    floor: f64,
) -> Result<Vec<usize>> {
    let offers: Vec<Vec<Offer>> =
        candidates.iter().map(|c| c.iter().map(|(_, offer)| offer.clone()).collect()).collect();
    let too_small = |smallest: u64| Error::BudgetTooSmall { budget, smallest: smallest + fixed };
    let stored: u64 = units.iter().map(Unit::stored_bytes).sum();
    let cheapest: u64 = offers.iter().filter_map(|o| o.first()).map(|o| o.bytes).sum();
    let for_units = budget.checked_sub(fixed).ok_or_else(|| too_small(cheapest))?;
    let even = (for_units as f64 / stored.max(1) as f64).min(1.0);
    let floors: Vec<u64> =
        units.iter().map(|unit| (floor * even * unit.stored_bytes() as f64) as u64).collect();
    match allocate(&offers, &floors, for_units) {
        Ok(allocation) => Ok(allocation.chosen),
        Err(Error::BudgetTooSmall { smallest, .. }) => Err(too_small(smallest)),
        Err(other) => Err(other),
    }
}

/// Position of the candidate that stores the unit's only site with `rank`; the stored form otherwise.
fn position(candidates: &[Candidate], rank: Option<usize>) -> usize {
    let wanted = rank.map(|rank| vec![Storage::LowRank { rank }]);
    let found = candidates.iter().position(|(_, offer)| Some(&offer.storages) == wanted.as_ref());
    let stored = || candidates.iter().position(|(method, _)| method.is_none());
    found.or_else(stored).unwrap_or(0)
}

/// Position of the candidate with the most blocks; of the stored form where there is no stack.
fn most_levels(candidates: &[Candidate]) -> usize {
    let levels = |(_, offer): &Candidate| match offer.storages.as_slice() {
        [Storage::Stack { levels, .. }] => *levels,
        _ => 0,
    };
    let most = candidates.iter().map(levels).max().unwrap_or(0);
    let stored = || position(candidates, None);
    let found = candidates.iter().position(|candidate| most > 0 && levels(candidate) == most);
    found.unwrap_or_else(stored)
}

/// What the candidates of linear `site` say of the blocks of the one chosen, where that is a stack.
fn blocks(site: usize, unit: &Unit, candidates: &[Candidate], chosen: usize) -> Option<Blocks> {
    let stack = |(_, offer): &Candidate| match *offer.storages.as_slice() {
        [Storage::Stack { rank, levels }] => Some((rank, levels, offer.expected_loss)),
        _ => None,
    };
    let (rank, levels, _) = stack(&candidates[chosen])?;
    let mut losses = vec![0.0; levels];
    for (other, level, loss) in candidates.iter().filter_map(stack) {
        if other == rank && level <= levels {
            losses[level - 1] = loss;
        }
    }
    Some(Blocks { site, losses, bytes: unit.sites[0].level_bytes(rank) })
}

fn uniform(
    units: &[Unit],
    candidates: &[Vec<Candidate>],
    kept: f64,
    multiple: usize,
) -> Vec<usize> {
    let rank = |unit: &Unit| match unit.sites.as_slice() {
        [site] => uniform_rank(site.out_features, site.in_features, kept, multiple),
        _ => None,
    };
    units.iter().zip(candidates).map(|(unit, c)| position(c, rank(unit))).collect()
}

fn reduced(
    units: &[Unit],
    candidates: &[Vec<Candidate>],
    job: Option<&Job>,
    reduce: f64,
    request: &Request,
    context: Context<'_>,
) -> Result<Vec<usize>> {
    let job = job.ok_or_else(|| {
        Error::usage("--reduce ranks singular values", "add --measure to read the weights")
    })?;
    let linears: Vec<(usize, &Site, Analysis)> = units
        .iter()
        .enumerate()
        .filter_map(|(i, unit)| {
            let analysis = job.get(unit.name(), Method::Welore, context.device())?;
            Some((i, &unit.sites[0], analysis))
        })
        .collect();
    let pairs: Vec<(&Site, &Analysis)> = linears.iter().map(|(_, s, a)| (*s, a)).collect();
    let ranks = reduction_ranks(&pairs, reduce, request.rank_multiple)?;
    let mut chosen: Vec<usize> = candidates.iter().map(|c| position(c, None)).collect();
    for ((unit, ..), rank) in linears.into_iter().zip(ranks) {
        chosen[unit] = position(&candidates[unit], rank);
    }
    Ok(chosen)
}

fn planned_unit(unit: &Unit, mut candidates: Vec<Candidate>, index: usize) -> Result<PlannedUnit> {
    let site = unit.sites.first().ok_or_else(|| Error::Bug("a unit without sites".into()))?;
    let (method, offer) = candidates.swap_remove(index);
    Ok(PlannedUnit {
        unit: unit.name().to_owned(),
        role: site.role,
        layer: site.layer,
        shape: [site.out_features, site.in_features],
        bytes_in: unit.stored_bytes(),
        method,
        offer,
    })
}
