//! Measure and analyse: one block at a time, what the passes need and what they make of it.

use super::Context;
use super::statistics::Statistics;
use crate::arch::{Site, SourceModel, Unit};
use crate::error::{Error, Result};
use crate::job::Job;
use crate::measure::Windows;
use crate::passes::{Needs, Pass, UnitStats, Weights};
use crate::plan::Calibration;

/// The calibration tokens and where they come from.
#[derive(Debug, Clone)]
pub struct CalibrationText {
    /// The tokens.
    pub windows: Windows,
    /// Hash of the text files.
    pub text_sha256: String,
    /// Bytes of the text, more than the windows may take of it.
    pub text_bytes: usize,
}

impl CalibrationText {
    /// As a plan records it.
    pub fn record(&self) -> Calibration {
        Calibration {
            text_sha256: self.text_sha256.clone(),
            windows: self.windows.count(),
            window: self.windows.length(),
            windows_sha256: self.windows.sha256(),
        }
    }
}

/// Streams the calibration text through the model, where any pass needs it, and analyses each
/// block's units while its statistics are at hand. Every analysis goes to `job`; what is there
/// already is not made again, and blocks whose units are all there are run but not measured. With
/// gradients the blocks come last to first.
///
/// # Errors
/// [`Error::Usage`] where a pass needs text and there is none; whatever reading, measuring, a pass
/// or the job folder refuses.
pub fn analyse(
    model: &SourceModel,
    text: Option<&CalibrationText>,
    job: &mut Job,
    context: Context<'_>,
) -> Result<()> {
    let needs_text = context.passes.iter().find(|pass| pass.needs() > Needs::Weights);
    if let (Some(pass), None) = (needs_text, text) {
        return Err(Error::usage(
            format!("method `{}` measures activations and needs calibration text", pass.method()),
            "add --text FILE",
        ));
    }
    let layers = Todo::of(model, job, context);
    if layers.iter().any(|todo| !todo.is_empty()) {
        let windows = text.map(|text| &text.windows);
        let steps = Statistics::steps(model, windows, layers.len(), context);
        let analysed = layers.iter().map(Vec::len).sum::<usize>();
        context.progress.begin("measuring", steps + analysed as u64);
        let mut statistics = Statistics::new(model, windows, job.folder(), context)?;
        let taken = taken_sites(model, context);
        let wanted: Vec<bool> = layers.iter().map(|todo| !todo.is_empty()).collect();
        for layer in statistics.order(&wanted) {
            let todo = &layers[layer];
            // All that would be measured in a fresh run, for which side of a port is measured depends
            // on who reads it, and with it the last bit.
            let sites: Vec<&Site> = match todo.is_empty() {
                true => Vec::new(),
                false => taken.iter().filter(|site| site.layer == layer).collect(),
            };
            let stats = statistics.of_layer(&sites, context)?;
            analyse_layer(model, todo, &stats, job, context)?;
        }
        context.progress.end();
    }
    for pass in context.passes {
        job.complete(pass.method())?;
    }
    Ok(())
}

/// An analysis that is still to be made.
struct Todo<'a> {
    unit: Unit,
    pass: &'a dyn Pass,
}

impl<'a> Todo<'a> {
    /// What the job lacks, layer by layer.
    fn of(model: &SourceModel, job: &Job, context: Context<'a>) -> Vec<Vec<Self>> {
        let mut layers: Vec<Vec<Self>> = model.spec.layers.iter().map(|_| Vec::new()).collect();
        for unit in model.units() {
            for pass in context.passes.iter().map(AsRef::as_ref) {
                if pass.takes(&unit) && !job.has(unit.name(), pass.method()) {
                    layers[unit.sites[0].layer].push(Self { unit: unit.clone(), pass });
                }
            }
        }
        layers
    }
}

/// The sites of every unit that some pass takes.
fn taken_sites(model: &SourceModel, context: Context<'_>) -> Vec<Site> {
    let taken = |unit: &Unit| context.passes.iter().any(|pass| pass.takes(unit));
    model.units().into_iter().filter(taken).flat_map(|unit| unit.sites).collect()
}

/// Makes and stores the analyses of one layer.
fn analyse_layer(
    model: &SourceModel,
    todo: &[Todo<'_>],
    stats: &UnitStats,
    job: &mut Job,
    context: Context<'_>,
) -> Result<()> {
    let weights = Weights::new(&model.checkpoint, context.device());
    for Todo { unit, pass } in todo {
        context.progress.check()?;
        let analysis = pass.analyse(unit, &weights, stats)?;
        job.store(unit.name(), pass.method(), &analysis)?;
        context.progress.advance(1);
    }
    Ok(())
}
