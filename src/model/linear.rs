//! A site's weight in memory, however it is stored, and the product with it.

use candle_core::{DType, Device, Tensor};

use super::rows::load_site_tensor;
use super::stack::Stack;
use super::weights::Use;
use super::{GradientSinks, Observer};
use crate::arch::{Site, Storage};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::ops;

/// The weight `[out, in]` of `site` in f32, factors multiplied out where it is stored as factors.
///
/// # Errors
/// As [`load_tensor`](super::load_tensor).
pub fn dense_weight(checkpoint: &Checkpoint, site: &Site, device: &Device) -> Result<Tensor> {
    // Widened where it is: what crosses the bus is what is stored.
    let load = |suffix: &str| -> Result<Tensor> {
        let stored = load_site_tensor(Use::Product, checkpoint, site, suffix, device)?;
        Ok(stored.to_dtype(DType::F32)?)
    };
    match site.storage {
        Storage::Dense => load("weight"),
        Storage::LowRank { .. } => Ok(load("u.weight")?.matmul(&load("v.weight")?)?),
        Storage::Stack { rank, levels } => {
            Stack::load(checkpoint, site, (rank, levels), device)?.dense()
        }
    }
}

/// The bias `[out]` of `site` in f32, where it has one.
///
/// # Errors
/// As [`load_tensor`](super::load_tensor).
pub fn bias(checkpoint: &Checkpoint, site: &Site, device: &Device) -> Result<Option<Tensor>> {
    let load = || load_site_tensor(Use::Values, checkpoint, site, "bias", device);
    site.bias.then(load).transpose()
}

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
    /// Residual blocks.
    Stack(Box<Stack>),
}

impl Linear {
    /// Reads the site's tensors.
    ///
    /// # Errors
    /// As [`load_tensor`](super::load_tensor).
    pub fn load(checkpoint: &Checkpoint, site: &Site, device: &Device) -> Result<Self> {
        let load = |suffix: &str| load_site_tensor(Use::Product, checkpoint, site, suffix, device);
        let weight = match site.storage {
            Storage::Dense => Weight::Dense(load("weight")?),
            Storage::LowRank { .. } => {
                Weight::LowRank { v: load("v.weight")?, u: load("u.weight")? }
            }
            Storage::Stack { rank, levels } => {
                Weight::Stack(Box::new(Stack::load(checkpoint, site, (rank, levels), device)?))
            }
        };
        let bias = bias(checkpoint, site, device)?;
        Ok(Self { site: Box::new(site.clone()), weight, bias })
    }

    /// Whether its products are of bf16 numbers, which they are on a GPU where it is stored so.
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
    /// What the observer refuses.
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
