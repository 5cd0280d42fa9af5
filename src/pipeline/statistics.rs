//! Where the statistics of a layer come from: a forward pass, a backward pass, or nowhere.

use crate::arch::{Site, SourceModel};
use crate::error::Result;
use crate::measure::{Backward, Keep, LayerMoments, Stream, Windows};
use crate::passes::{Needs, UnitStats};
use crate::progress::Progress;

use super::Context;

/// A pass over the calibration text that stops at every block.
pub(super) enum Statistics<'a> {
    /// There is no text: weights are all there is.
    None,
    /// Blocks in order, activations only.
    Forward(Stream<'a>),
    /// Blocks from the last to the first, activations and gradients.
    Backward(Backward<'a>),
}

impl<'a> Statistics<'a> {
    /// Steps that [`new`](Self::new) and [`of_layer`](Self::of_layer) will tell progress of, over
    /// `layers` blocks.
    pub(super) fn steps(
        model: &SourceModel,
        text: Option<&Windows>,
        layers: usize,
        context: Context<'_>,
    ) -> u64 {
        match text {
            None => 0,
            Some(text) if context.measure.gradients => Backward::steps(model, text, context.place),
            Some(text) => Stream::steps(text, context.place) * layers as u64,
        }
    }

    /// Begins the pass; a backward pass puts aside in `folder` what is too much for memory.
    pub(super) fn new(
        model: &'a SourceModel,
        text: Option<&Windows>,
        folder: &std::path::Path,
        context: Context<'_>,
    ) -> Result<Self> {
        let Some(text) = text else { return Ok(Self::None) };
        if !context.measure.gradients {
            return Ok(Self::Forward(Stream::new(model, text, context.place)?));
        }
        let keep = Keep { memory: context.activation_memory, folder: folder.to_owned() };
        let backward = Backward::new(model, text, context.place, &keep, context.progress)?;
        Ok(Self::Backward(backward))
    }

    /// The layers in the order in which the pass comes to them, those left out that come after the
    /// last of `wanted`.
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

    /// Runs the next block and returns the statistics of `sites`, which are its own.
    pub(super) fn of_layer(&mut self, sites: &[&Site], context: Context<'_>) -> Result<UnitStats> {
        let progress: &dyn Progress = context.progress;
        // Text prices what a pass of weights alone offers, too.
        let second = context.passes.iter().any(|pass| pass.needs() != Needs::Squares);
        let mut moments = match second {
            true => LayerMoments::for_sites(sites, context.device())?,
            false => LayerMoments::squares_only(sites, context.device())?,
        };
        let gradients = match self {
            Self::None => return Ok(UnitStats::new()),
            Self::Forward(stream) if sites.is_empty() => {
                stream.advance_unobserved(progress)?;
                None
            }
            Self::Forward(stream) => {
                stream.advance(&mut moments, progress)?;
                None
            }
            Self::Backward(backward) if sites.is_empty() => {
                Some(backward.retreat_unobserved(progress)?)
            }
            Self::Backward(backward) => {
                moments = moments.beside_gradients();
                Some(backward.retreat(&mut moments, progress)?)
            }
        };
        moments.into_stats(sites, gradients.as_ref())
    }
}
