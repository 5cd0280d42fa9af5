//! How one candidate of every site is chosen: the allocator for a size, or a published rule.

use std::collections::HashMap;

use super::draw::Candidate;
use super::run::Run;
use crate::arch::{Site, Storage};
use crate::error::{Error, Remedy, Result};
use crate::job::Job;
use crate::passes::{Analysis, uniform_rank};
use crate::plan::{Price, allocate};
use crate::settings::{Method, Rule};

/// The position of the candidate that each site gets under the rule of `run`, from what `job` holds.
pub(super) fn choose(
    run: &Run<'_>,
    job: Option<&Job>,
    candidates: &[Vec<Candidate>],
) -> Result<Vec<usize>> {
    match run.settings.rule {
        Rule::Target(target) => {
            let budget = target.bytes(run.model.checkpoint().weight_bytes());
            by_budget(run, candidates, budget)
        }
        Rule::Uniform(kept) => {
            let rank = |site: &Site| {
                let multiple = run.settings.rank_multiple;
                uniform_rank(site.out_features, site.in_features, kept, multiple)
            };
            let mut offered = candidates.iter().flatten().map(|candidate| candidate.offer.storage);
            if !offered.any(|storage| matches!(storage, Storage::LowRank { .. })) {
                let message = "`uniform` gives ranks, and no method offers any";
                return Err(Error::usage(message, Remedy::UseMethod(Method::LORD.to_string())));
            }
            let sites = run.model.sites().iter().zip(candidates);
            Ok(sites.map(|(site, candidates)| with_rank(candidates, rank(site))).collect())
        }
        Rule::Reduce(fraction) => reduced(run, job, candidates, fraction),
        Rule::Stack => Ok(candidates.iter().map(|candidates| most_levels(candidates)).collect()),
    }
}

/// What the allocator takes for `budget` bytes of all weights.
fn by_budget(run: &Run<'_>, candidates: &[Vec<Candidate>], budget: u64) -> Result<Vec<usize>> {
    let sites = run.model.sites();
    let prices: Vec<Vec<Price>> =
        candidates.iter().map(|list| list.iter().map(|c| c.offer.price).collect()).collect();
    let bytes = |of_block: bool| -> u64 {
        let counted = sites.iter().filter(|site| site.layer.is_some() == of_block);
        counted.map(Site::stored_bytes).sum()
    };
    let (in_blocks, vocabulary) = (bytes(true), bytes(false));
    let fixed = run.model.checkpoint().weight_bytes() - in_blocks - vocabulary;
    let too_small = |smallest: u64| Error::BudgetTooSmall { budget, smallest: smallest + fixed };
    let cheapest: u64 = prices.iter().filter_map(|list| list.first()).map(|p| p.bytes).sum();
    let for_sites = budget.checked_sub(fixed).ok_or_else(|| too_small(cheapest))?;
    // An even split is over the linears of blocks: the vocabulary is not the same in any way.
    let for_blocks = for_sites.saturating_sub(vocabulary);
    let even = (for_blocks as f64 / in_blocks.max(1) as f64).min(1.0);
    let floor = |site: &Site| match site.layer {
        Some(_) => (run.settings.floor * even * site.stored_bytes() as f64) as u64,
        None => 0,
    };
    let floors: Vec<u64> = sites.iter().map(floor).collect();
    match allocate(&prices, &floors, for_sites) {
        Ok(allocation) => Ok(allocation.chosen),
        Err(Error::BudgetTooSmall { smallest, .. }) => Err(too_small(smallest)),
        Err(other) => Err(other),
    }
}

/// The ranks of the method's own published rule.
fn reduced(
    run: &Run<'_>,
    job: Option<&Job>,
    candidates: &[Vec<Candidate>],
    fraction: f64,
) -> Result<Vec<usize>> {
    let [pass] = run.passes.as_slice() else {
        return Err(Error::Bug("a rule of one method was asked of several".into()));
    };
    let job = job.ok_or_else(|| {
        Error::usage("`reduce` ranks singular values, which headers do not tell", Remedy::Measure)
    })?;
    let analysis = |site: &Site| job.get(&site.name, &pass.method(), run.device());
    let sites = run.model.sites();
    let linears: Vec<(&Site, Analysis)> =
        sites.iter().filter_map(|site| Some((site, analysis(site)?))).collect();
    let ranks = pass.reduced_ranks(&linears, fraction)?.unwrap_or_default();
    let names = linears.iter().map(|(site, _)| site.name.as_str());
    let ranks: HashMap<&str, Option<usize>> = names.zip(ranks).collect();
    let rank = |site: &Site| ranks.get(site.name.as_str()).copied().flatten();
    Ok(sites.iter().zip(candidates).map(|(site, list)| with_rank(list, rank(site))).collect())
}

/// Position of the candidate of this rank; of the stored form where there is none.
fn with_rank(candidates: &[Candidate], rank: Option<usize>) -> usize {
    let wanted = rank.map(|rank| Storage::LowRank { rank });
    let found = candidates.iter().position(|c| Some(c.offer.storage) == wanted);
    let stored = || candidates.iter().position(|c| c.method.is_none());
    found.or_else(stored).unwrap_or(0)
}

/// Position of the candidate with the most levels; of the stored form where there is no stack.
fn most_levels(candidates: &[Candidate]) -> usize {
    let levels = |candidate: &Candidate| candidate.offer.storage.levels();
    let most = candidates.iter().map(levels).max().unwrap_or(0);
    let found = candidates.iter().position(|candidate| most > 0 && levels(candidate) == most);
    found.unwrap_or_else(|| with_rank(candidates, None))
}
