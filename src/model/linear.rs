//! A site's weight in memory, however it is stored, and the product with it.

use candle_core::{DType, Device, Tensor};

use super::source::{self, Source, bias};
use super::stack::Stack;
use super::weights::Use;
use super::{GradientSinks, Observer};
use crate::arch::{Piece, Site, Storage};
use crate::error::Result;
use crate::ops;

/// `y = W x + b` with `W` in one of its storages.
#[derive(Debug, Clone)]
pub struct Linear {
    site: Box<Site>,
    weight: Weight,
    bias: Option<Tensor>,
}

#[derive(Debug, Clone)]
enum Weight {
    /// `[out, in]`.
    Dense(Tensor),
    /// `v [rank, in]`, `u [out, rank]`.
    LowRank { v: Tensor, u: Tensor },
    /// Levels of signs and factors.
    Stack(Box<Stack>),
}

impl Linear {
    /// Reads the site's tensors.
    ///
    /// # Errors
    /// As [`dense_weight`](super::dense_weight).
    pub fn load(source: &dyn Source, site: &Site, device: &Device) -> Result<Self> {
        let load = |piece| source::load(source, site, piece, Use::Product, device);
        let weight = match site.storage {
            Storage::Dense => Weight::Dense(load(Piece::Weight)?),
            Storage::LowRank { .. } => Weight::LowRank { v: load(Piece::V)?, u: load(Piece::U)? },
            Storage::Stack { levels, .. } => {
                Weight::Stack(Box::new(Stack::load(source, site, levels, device)?))
            }
        };
        let bias = bias(source, site, device)?;
        Ok(Self { site: Box::new(site.clone()), weight, bias })
    }

    /// The site, and its weight `[out, in]` as it is held, where that is dense.
    pub(super) fn into_dense(self) -> Option<(String, Tensor)> {
        match self.weight {
            Weight::Dense(weight) => Some((self.site.name, weight)),
            Weight::LowRank { .. } | Weight::Stack(_) => None,
        }
    }

    /// Whether its products are of bf16 numbers: on a GPU, for a weight stored in bf16 or as a stack.
    pub fn is_bf16(&self) -> bool {
        match &self.weight {
            Weight::Dense(weight) | Weight::LowRank { v: weight, .. } => {
                weight.dtype() == DType::BF16
            }
            Weight::Stack(stack) => stack.is_bf16(),
        }
    }

    /// Rows `x [tokens, in]` to rows `[tokens, out]`.
    ///
    /// # Errors
    /// The errors of the observer.
    pub fn forward(&self, x: &Tensor, observer: &mut dyn Observer) -> Result<Tensor> {
        let (bias, sinks) = (self.bias.as_ref(), observer.gradients(&self.site)?);
        let y = match &self.weight {
            Weight::Dense(weight) => ops::linear(x, weight, bias, sinks)?,
            Weight::Stack(stack) => stack.forward(x, bias, sinks)?,
            Weight::LowRank { v, u } if x.dim(0)? == 1 && !x.track_op() => {
                ops::low_rank_matvec(x, v, u, bias)?
            }
            Weight::LowRank { v, u } => {
                let GradientSinks { input, output, gain } = sinks;
                let narrow = GradientSinks { input, ..GradientSinks::default() };
                let wide = GradientSinks { output, gain, ..GradientSinks::default() };
                ops::linear(&ops::linear(x, v, None, narrow)?, u, bias, wide)?
            }
        };
        observer.output(&self.site, &y)?;
        Ok(y)
    }
}
