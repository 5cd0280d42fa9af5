//! One transformer block: two norms, attention, MLP, two residual additions.
//!
//! ```text
//! sequential   h = x + attention(norm(x))    y = h + mlp(norm(h))
//! parallel     h = x + attention(norm(x))    y = h + mlp(norm(x))
//! ```
//!
//! With post-norms, what a half adds is normed once more before it is added.

use candle_core::{Device, Tensor};

use super::attention::Attention;
use super::mlp::Mlp;
use super::norm::Norm;
use super::{Half, KvCache, Observer};
use crate::arch::{Site, SourceModel};
use crate::error::{Error, Result};
use crate::ops;

/// A block's weights in f32.
#[derive(Debug)]
pub struct Block {
    layer: usize,
    attention_norm: Norm,
    attention: Attention,
    attention_post_norm: Option<Norm>,
    mlp_norm: Norm,
    mlp: Mlp,
    mlp_post_norm: Option<Norm>,
    /// The MLP reads what attention read, not what it wrote.
    parallel: bool,
}

/// Where the rows of an activation stand: `batch` texts of `length` positions from `first` on.
#[derive(Debug, Clone, Copy)]
pub struct BlockContext<'a> {
    /// Texts side by side.
    pub batch: usize,
    /// Positions of each.
    pub length: usize,
    /// Absolute position of the first.
    pub first: usize,
    /// `[length, half of the channels that turn]`.
    pub cos: &'a Tensor,
    /// The same shape.
    pub sin: &'a Tensor,
}

impl Block {
    /// Reads the weights of `layer`.
    ///
    /// # Errors
    /// A tensor that cannot be read or holds values that are not finite.
    pub fn load(model: &SourceModel, layer: usize, device: &Device) -> Result<Self> {
        let (checkpoint, spec) = (&model.checkpoint, &model.spec);
        let sites: Vec<&Site> = model.layer_sites(layer).collect();
        let [q, k, v, o, mlp @ ..] = sites.as_slice() else {
            return Err(Error::Bug(format!("layer {layer} has {} sites", sites.len())));
        };
        let names = &spec.family.names;
        let norm = |name: &str| {
            Norm::load(checkpoint, spec.norm, &format!("{}{layer}.{name}", names.layer), device)
        };
        Ok(Self {
            layer,
            attention_norm: norm(names.attention_norm)?,
            attention: Attention::load(checkpoint, spec, layer, [q, k, v, o], device)?,
            attention_post_norm: names.attention_post_norm.map(norm).transpose()?,
            mlp_norm: norm(names.mlp_norm)?,
            mlp: Mlp::load(checkpoint, spec, layer, mlp, device)?,
            mlp_post_norm: names.mlp_post_norm.map(norm).transpose()?,
            parallel: spec.parallel_residual,
        })
    }

    /// The residual stream `x [batch · length, hidden]` after this block.
    ///
    /// # Errors
    /// What the observer refuses.
    pub fn forward(
        &self,
        x: &Tensor,
        context: &BlockContext<'_>,
        cache: Option<&mut KvCache>,
        observer: &mut dyn Observer,
    ) -> Result<Tensor> {
        // Nothing outlives its half but the stream: activations are what limits a chunk.
        let between = {
            let normed = self.attention_norm.forward(x)?;
            let added = self.attention.forward(&normed, context, cache, observer)?;
            drop(normed);
            let added = post_normed(added, self.attention_post_norm.as_ref())?;
            let between = ops::add(x, &added)?;
            observer.residual(Half::Attention, &added, &between)?;
            between
        };
        let normed = self.mlp_norm.forward(if self.parallel { x } else { &between })?;
        let added = self.mlp.forward(&normed, observer)?;
        drop(normed);
        let added = post_normed(added, self.mlp_post_norm.as_ref())?;
        let x = ops::add(&between, &added)?;
        observer.residual(Half::Mlp, &added, &x)?;
        Ok(x)
    }

    /// Index of the block.
    pub fn layer(&self) -> usize {
        self.layer
    }
}

fn post_normed(added: Tensor, norm: Option<&Norm>) -> Result<Tensor> {
    match norm {
        Some(norm) => norm.forward(&added),
        None => Ok(added),
    }
}
