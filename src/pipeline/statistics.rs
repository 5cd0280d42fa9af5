//! Where the statistics of a layer come from: a forward pass, a backward pass, or nowhere.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::Tensor;

use super::run::Run;
use crate::arch::Site;
use crate::error::Result;
use crate::measure::{Backward, LayerStats, SiteStats, Spill, Stream, TextWindows, Wanted};
use crate::model::{Block, View};

/// A walk over the calibration text that stops at every block.
pub(super) enum Statistics<'a> {
    /// There is no text: weights are all there is.
    None,
    /// Blocks in order, activations only.
    Forward(Stream<'a>),
    /// Blocks from the last to the first, activations and gradients.
    Backward(Backward<'a>),
}

impl<'a> Statistics<'a> {
    /// Steps that [`begin`](Self::begin) and [`of_layer`](Self::of_layer) will tell progress of.
    pub(super) fn steps(run: &Run<'_>) -> u64 {
        let (model, compute) = (run.model, &run.compute);
        match run.text.as_ref().map(TextWindows::windows) {
            None => 0,
            Some(text) if run.settings.gradients => Backward::steps(model, text, compute),
            Some(text) => Stream::steps(text, compute) * model.spec().layers.len() as u64,
        }
    }

    /// Begins the walk; a backward pass puts aside in `folder` what is too much for memory.
    pub(super) fn begin(run: &Run<'a>, folder: &Path) -> Result<Self> {
        let Some(text) = run.text.as_ref().map(TextWindows::windows) else { return Ok(Self::None) };
        let view = View::from(run.model);
        if !run.settings.gradients {
            return Ok(Self::Forward(Stream::new(view, text, &run.compute)?));
        }
        let spill = Spill { memory: run.activation_memory, folder: folder.to_owned() };
        let walk = Backward::forward(view, text, &run.compute, &spill, run.progress)?;
        Ok(Self::Backward(walk))
    }

    /// The layers to run, in order: forward those up to the last wanted one, backward those down to the
    /// first. Layers between that are not wanted are run unmeasured.
    pub(super) fn order(&self, wanted: &[bool]) -> Vec<usize> {
        match self {
            Self::None => (0..wanted.len()).filter(|&layer| wanted[layer]).collect(),
            Self::Forward(_) => {
                let last = wanted.iter().rposition(|wanted| *wanted);
                (0..last.map_or(0, |last| last + 1)).collect()
            }
            Self::Backward(_) => {
                let first = wanted.iter().position(|wanted| *wanted).unwrap_or(wanted.len());
                (first..wanted.len()).rev().collect()
            }
        }
    }

    /// The weights of the block whose statistics were taken last, as far as they are dense.
    pub(super) fn take_weights(&mut self) -> HashMap<String, Tensor> {
        let block = match self {
            Self::None => None,
            Self::Forward(stream) => stream.take_block(),
            Self::Backward(backward) => backward.take_block(),
        };
        block.map(Block::into_weights).unwrap_or_default()
    }

    /// Runs the next block and returns the statistics of `sites`, which are its own, by name.
    pub(super) fn of_layer(
        &mut self,
        sites: &[&Site],
        run: &Run<'_>,
    ) -> Result<BTreeMap<String, SiteStats>> {
        let progress = run.progress;
        let stats = |shares| {
            let moments = sites.iter().copied().filter(|site| run.takes_moments_of(site));
            let wanted = Wanted { moments: &moments.collect::<Vec<_>>(), shares };
            LayerStats::new(sites, wanted, run.device())
        };
        match self {
            Self::None => {}
            Self::Forward(stream) if sites.is_empty() => stream.advance_unobserved(progress)?,
            Self::Backward(backward) if sites.is_empty() => {
                backward.retreat_unobserved(progress).map(drop)?;
            }
            Self::Forward(stream) => {
                let mut stats = stats(true)?;
                stream.advance(&mut stats, progress)?;
                return stats.finish(sites, None);
            }
            Self::Backward(backward) => {
                // Gradients say what an output is worth.
                let mut stats = stats(false)?;
                let gradients = backward.retreat(&mut stats, progress)?;
                return stats.finish(sites, Some(&gradients));
            }
        }
        Ok(BTreeMap::new())
    }
}
