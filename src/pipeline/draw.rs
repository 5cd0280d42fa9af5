//! From offers to a plan.

use super::rules;
use super::run::Run;
use crate::arch::Site;
use crate::error::{Error, Result};
use crate::job::Job;
use crate::passes::{Analysis, Pass};
use crate::plan::{LevelLosses, LossBasis, Offer, Plan, PlannedSite, order_levels};
use crate::settings::{Method, Rule};

/// An offer and the method that made it; `None` is the stored form.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) method: Option<Method>,
    pub(super) offer: Offer,
}

/// The plan of `run` from what `job` holds; without one, from shapes and an assumed spectrum.
pub(super) fn plan(run: &Run<'_>, job: Option<&Job>) -> Result<Plan> {
    let basis = match (job, &run.text) {
        (None, _) => LossBasis::Assumed,
        (Some(_), Some(_)) if run.settings.gradients => LossBasis::Nats,
        (Some(_), Some(_)) => LossBasis::OutputEnergy,
        (Some(_), None) => LossBasis::WeightEnergy,
    };
    let of_site = |site: &Site| {
        let analysis = |pass: &dyn Pass| job?.get(&site.name, &pass.method(), run.device());
        candidates(site, &run.passes, &analysis)
    };
    let candidates = run.model.sites().iter().map(of_site).collect::<Result<Vec<_>>>()?;
    let chosen = rules::choose(run, job, &candidates)?;
    let sites = || run.model.sites().iter().zip(candidates.iter().zip(&chosen));
    let losses: Vec<LevelLosses> = sites()
        .enumerate()
        .filter_map(|(at, (site, (list, &chosen)))| level_losses(at, site, list, chosen))
        .collect();
    if losses.is_empty() && run.settings.rule == Rule::Stack {
        return Err(Error::usage(
            "no linear becomes a stack",
            "name a size, or a method of stacks",
        ));
    }
    let stack = (!losses.is_empty()).then(|| order_levels(&losses, run.settings.level_order()));
    let planned = sites().map(|(site, (list, &chosen))| {
        let Candidate { method, offer } = &list[chosen];
        PlannedSite::of(site, method.clone(), *offer)
    });
    let plan = Plan::new(run.model, run.settings.clone(), planned.collect(), stack)?;
    Ok(Plan {
        loss_basis: basis,
        calibration: run.text.as_ref().map(|text| text.record().clone()),
        memory: Some(run.footprint()),
        ..plan
    })
}

/// Every offer of `passes` for `site`, by bytes ascending, and the stored form.
pub(super) fn candidates(
    site: &Site,
    passes: &[Box<dyn Pass>],
    analysis: &dyn Fn(&dyn Pass) -> Option<Analysis>,
) -> Result<Vec<Candidate>> {
    let mut found = Vec::new();
    for pass in passes.iter().map(AsRef::as_ref).filter(|pass| pass.takes(site)) {
        let offers = pass.offers(site, analysis(pass).as_ref())?.into_iter();
        found.extend(offers.map(|offer| Candidate { method: Some(pass.method()), offer }));
    }
    found.push(Candidate { method: None, offer: Offer::of(site, site.storage, 0.0) });
    if let Some(odd) = found.iter().find(|c| !c.offer.price.expected_loss.is_finite()) {
        return Err(Error::NonFinite {
            what: format!("the expected loss of `{}`", site.name),
            detail: format!("for {}", odd.offer.storage),
        });
    }
    found.sort_by(|a, b| {
        let (a, b) = (a.offer.price, b.offer.price);
        a.bytes.cmp(&b.bytes).then(a.expected_loss.total_cmp(&b.expected_loss))
    });
    Ok(found)
}

/// If the chosen candidate is a stack: the expected loss with 1, 2 … levels, from the candidates that its
/// method made of the same rank, and the bytes of a level.
fn level_losses(
    number: usize,
    site: &Site,
    candidates: &[Candidate],
    chosen: usize,
) -> Option<LevelLosses> {
    let Candidate { method, offer: Offer { storage: stack, .. } } = &candidates[chosen];
    // By bytes ascending, so level by level.
    let alike = candidates.iter().filter(|candidate| {
        let storage = candidate.offer.storage;
        candidate.method == *method && storage.is_stack() && storage.rank() == stack.rank()
    });
    let losses = alike.map(|candidate| candidate.offer.price.expected_loss).take(stack.levels());
    let bytes = site.level_bytes(stack.rank());
    stack.is_stack().then(|| LevelLosses { site: number, losses: losses.collect(), bytes })
}
