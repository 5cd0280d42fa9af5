//! Measure and analyse: one block at a time, what the passes need and what they make of it.

use std::collections::{BTreeMap, HashMap};

use candle_core::Tensor;

use super::run::Run;
use super::statistics::Statistics;
use crate::arch::Site;
use crate::error::Result;
use crate::job::Job;
use crate::measure::SiteStats;
use crate::passes::{Pass, Weights};

/// Streams the calibration text through the model, where there is any, and analyses each block's linears
/// while their statistics are at hand. Every analysis goes to `job`; what is there already is not made
/// again, and blocks whose analyses are all there are run but not measured. With gradients the blocks come
/// last to first. What is in no block is analysed without statistics, last of all.
pub(super) fn analyse(run: &Run<'_>, job: &mut Job) -> Result<()> {
    let layers = run.model.spec().layers.len();
    let todo = |layer: Option<usize>, job: &Job| -> Vec<Todo<'_>> { Todo::of(run, layer, job) };
    let wanted: Vec<bool> = (0..layers).map(|l| !todo(Some(l), job).is_empty()).collect();
    let outside = todo(None, job);
    if wanted.contains(&true) || !outside.is_empty() {
        let analysed: usize = (0..layers).map(|layer| todo(Some(layer), job).len()).sum();
        let steps = Statistics::steps(run) + (analysed + outside.len()) as u64;
        run.progress.begin("measuring", steps);
        let mut statistics = Statistics::begin(run, job.folder())?;
        for layer in statistics.order(&wanted) {
            // All that would be measured in a fresh run, for which side of a port is measured depends
            // on who reads it, and with it the last bit.
            let sites: Vec<&Site> = match wanted[layer] {
                true => run.model.layer_sites(layer).filter(|site| run.takes(site)).collect(),
                false => Vec::new(),
            };
            let stats = statistics.of_layer(&sites, run)?;
            analyse_sites(run, &todo(Some(layer), job), &stats, statistics.take_weights(), job)?;
        }
        analyse_sites(run, &outside, &BTreeMap::new(), HashMap::new(), job)?;
        run.progress.end();
    }
    run.passes.iter().try_for_each(|pass| job.complete(&pass.method()))
}

/// An analysis that is still to be made.
struct Todo<'a> {
    site: &'a Site,
    pass: &'a dyn Pass,
}

impl<'a> Todo<'a> {
    /// What the job lacks of one layer, or of what is in none.
    fn of(run: &'a Run<'_>, layer: Option<usize>, job: &Job) -> Vec<Self> {
        let sites = run.model.sites().iter().filter(|site| site.layer == layer);
        let pairs = sites
            .flat_map(|site| run.passes.iter().map(move |pass| Self { site, pass: pass.as_ref() }));
        let lacks = |todo: &Self| {
            todo.pass.takes(todo.site) && !job.has(&todo.site.name, &todo.pass.method())
        };
        pairs.filter(lacks).collect()
    }
}

/// Makes and stores analyses. `held` are weights that are at hand from measuring, each let go once its
/// linear is done with.
fn analyse_sites(
    run: &Run<'_>,
    todo: &[Todo<'_>],
    stats: &BTreeMap<String, SiteStats>,
    mut held: HashMap<String, Tensor>,
    job: &mut Job,
) -> Result<()> {
    held.retain(|name, _| todo.iter().any(|todo| todo.site.name == *name));
    let mut weights = Weights::new(run.model.checkpoint(), run.device()).holding(held);
    for of_site in todo.chunk_by(|a, b| a.site.name == b.site.name) {
        for Todo { site, pass } in of_site {
            run.progress.check()?;
            let analysis = pass.analyse(site, &weights, stats.get(&site.name))?;
            job.store(&site.name, *pass, &analysis)?;
            run.progress.advance(1);
        }
        if let Some(done) = of_site.first() {
            weights.forget(done.site);
        }
    }
    Ok(())
}
