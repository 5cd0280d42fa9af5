//! A site's weight in memory, however it is stored, and the product with it.

use candle_core::{Device, Tensor};

use super::rows::load_site_tensor;
use super::{GradientSinks, Observer};
use crate::arch::{Site, Storage};
use crate::checkpoint::{Checkpoint, to_f32};
use crate::error::Result;
use crate::ops;

/// Reads tensor `name` as f32, refusing values that are not finite.
///
/// # Errors
/// A tensor that is missing, of a dtype that is not a float, or not finite.
pub fn load_tensor(checkpoint: &Checkpoint, name: &str, device: &Device) -> Result<Tensor> {
    let info = checkpoint.require(name)?;
    let values = to_f32(info.dtype, checkpoint.bytes(info)?, name)?;
    // The values are ours now; the mapped pages would only add to what the process seems to hold.
    checkpoint.release(info);
    Ok(Tensor::from_vec(values, info.shape.as_slice(), device)?)
}

/// The weight `[out, in]` of `site` in f32, factors multiplied out where it is stored as factors.
///
/// # Errors
/// As [`load_tensor`].
pub fn dense_weight(checkpoint: &Checkpoint, site: &Site, device: &Device) -> Result<Tensor> {
    let load = |suffix: &str| load_site_tensor(checkpoint, site, suffix, device);
    match site.storage {
        Storage::Dense => load("weight"),
        Storage::LowRank { .. } => Ok(load("u.weight")?.matmul(&load("v.weight")?)?),
    }
}

/// The bias `[out]` of `site` in f32, where it has one.
///
/// # Errors
/// As [`load_tensor`].
pub fn bias(checkpoint: &Checkpoint, site: &Site, device: &Device) -> Result<Option<Tensor>> {
    site.bias.then(|| load_site_tensor(checkpoint, site, "bias", device)).transpose()
}

/// `y = W x + b` with `W` in one of its storages.
#[derive(Debug, Clone)]
pub struct Linear {
    site: Site,
    weight: Weight,
    bias: Option<Tensor>,
}

#[derive(Debug, Clone)]
enum Weight {
    /// `[out, in]`.
    Dense(Tensor),
    /// `v [rank, in]`, `u [out, rank]`.
    LowRank { v: Tensor, u: Tensor },
}

impl Linear {
    /// Reads the site's tensors.
    ///
    /// # Errors
    /// As [`load_tensor`].
    pub fn load(checkpoint: &Checkpoint, site: &Site, device: &Device) -> Result<Self> {
        let load = |suffix: &str| load_site_tensor(checkpoint, site, suffix, device);
        let weight = match site.storage {
            Storage::Dense => Weight::Dense(load("weight")?),
            Storage::LowRank { .. } => {
                Weight::LowRank { v: load("v.weight")?, u: load("u.weight")? }
            }
        };
        let bias = bias(checkpoint, site, device)?;
        Ok(Self { site: site.clone(), weight, bias })
    }

    /// Rows `x [tokens, in]` to rows `[tokens, out]`.
    ///
    /// # Errors
    /// What the observer refuses.
    pub fn forward(&self, x: &Tensor, observer: &mut dyn Observer) -> Result<Tensor> {
        let (bias, sinks) = (self.bias.as_ref(), observer.gradients(&self.site)?);
        let y = match &self.weight {
            Weight::Dense(weight) => ops::linear(x, weight, bias, sinks)?,
            Weight::LowRank { v, u } => {
                let GradientSinks { input, output } = sinks;
                let narrow = GradientSinks { input, output: None };
                let wide = GradientSinks { input: None, output };
                ops::linear(&ops::linear(x, v, None, narrow)?, u, bias, wide)?
            }
        };
        observer.output(&self.site, &y)?;
        Ok(y)
    }
}
