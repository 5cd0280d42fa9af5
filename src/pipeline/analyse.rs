//! Measure and analyse: one block at a time, what the passes need and what they make of it.

use std::collections::BTreeMap;

use super::Context;
use crate::arch::{Site, SourceModel, Unit};
use crate::error::{Error, Result};
use crate::measure::{LayerMoments, Stream, Windows};
use crate::passes::{Analysis, Method, Needs, Pass, Repairs, UnitStats, Weights};
use crate::plan::Calibration;

/// The calibration tokens and where they come from.
#[derive(Debug, Clone)]
pub struct CalibrationText {
    /// The tokens.
    pub windows: Windows,
    /// Hash of the text files.
    pub text_sha256: String,
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

/// What every pass made of every unit it takes.
#[derive(Debug, Default)]
pub struct Analyses {
    found: BTreeMap<(String, Method), Analysis>,
}

impl Analyses {
    /// The analysis of `unit` by `method`.
    pub fn get(&self, unit: &str, method: Method) -> Option<&Analysis> {
        self.found.get(&(unit.to_owned(), method))
    }

    /// All repairs together.
    pub fn repairs(&self) -> Repairs {
        let mut total = Repairs::default();
        for analysis in self.found.values() {
            total.add(analysis.repairs);
        }
        total
    }
}

/// Streams the calibration text through the model, where any pass needs it, and analyses each
/// block's units while its statistics are at hand.
///
/// # Errors
/// [`Error::Usage`] where a pass needs text and there is none; whatever reading, measuring or a
/// pass refuses.
pub fn analyse(
    model: &SourceModel,
    text: Option<&CalibrationText>,
    context: Context<'_>,
) -> Result<Analyses> {
    let needs_text = context.passes.iter().find(|pass| pass.needs() == Needs::Moments);
    let mut stream = match (needs_text, text) {
        (Some(_), Some(text)) => Some(Stream::new(model, &text.windows, context.device)?),
        (Some(pass), None) => {
            return Err(Error::usage(
                format!(
                    "method `{}` measures activations and needs calibration text",
                    pass.method()
                ),
                "add --text FILE",
            ));
        }
        (None, _) => None,
    };
    let units = model.units();
    let layers = model.spec.layers.len();
    let streamed = stream.as_ref().map_or(0, |s| s.steps() * layers as u64);
    context.progress.begin("measuring", streamed + units.len() as u64);
    let mut analyses = Analyses::default();
    for layer in 0..layers {
        let here: Vec<&Unit> = units.iter().filter(|u| u.sites[0].layer == layer).collect();
        let stats = match &mut stream {
            Some(stream) => measured(stream, &here, context)?,
            None => UnitStats::new(),
        };
        let weights = Weights::new(&model.checkpoint, context.device);
        for unit in here {
            context.progress.check()?;
            for pass in context.passes.iter().filter(|pass| pass.takes(unit)) {
                let analysis = pass.analyse(unit, &weights, &stats)?;
                analyses.found.insert((unit.name().to_owned(), pass.method()), analysis);
            }
            context.progress.advance(1);
        }
    }
    context.progress.end();
    Ok(analyses)
}

/// Runs one block and returns the statistics of its sites that some pass takes.
fn measured(stream: &mut Stream<'_>, units: &[&Unit], context: Context<'_>) -> Result<UnitStats> {
    let measures =
        |pass: &dyn Pass, unit: &Unit| pass.needs() == Needs::Moments && pass.takes(unit);
    let taken = |unit: &&&Unit| context.passes.iter().any(|pass| measures(pass.as_ref(), unit));
    let sites: Vec<&Site> = units.iter().filter(taken).flat_map(|unit| &unit.sites).collect();
    let mut moments = LayerMoments::for_sites(&sites, context.device)?;
    stream.advance(&mut moments, context.progress)?;
    Ok(moments.into_stats(&sites))
}
