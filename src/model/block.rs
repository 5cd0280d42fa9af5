//! One transformer block: two norms, attention, MLP, two residual additions.
//!
//! ```text
//! sequential   h = x + attention(norm(x))    y = h + mlp(norm(h))
//! parallel     h = x + attention(norm(x))    y = h + mlp(norm(x))
//! ```
//!
//! With post-norms, the output of a half is normed once more before it is added.

use std::collections::HashMap;

use candle_core::{Device, Tensor};

use super::attention::Attention;
use super::context::Positions;
use super::linear::Linear;
use super::mlp::Mlp;
use super::norm::Norm;
use super::source::View;
use super::{Half, KvCache, Observer};
use crate::error::Result;
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
    /// The MLP reads the stream before attention was added to it, not after.
    parallel: bool,
}

impl Block {
    /// Reads the weights of `layer`.
    ///
    /// # Errors
    /// A tensor that cannot be read or holds values that are not finite.
    pub fn load(view: View<'_>, layer: usize, device: &Device) -> Result<Self> {
        let (checkpoint, spec) = (view.model.checkpoint(), view.model.spec());
        let names = &spec.family.names;
        let norm = |name: &str| {
            Norm::load(checkpoint, spec.norm, &format!("{}{layer}.{name}", names.layer), device)
        };
        Ok(Self {
            layer,
            attention_norm: norm(names.attention_norm)?,
            attention: Attention::load(view, layer, device)?,
            attention_post_norm: names.attention_post_norm.map(norm).transpose()?,
            mlp_norm: norm(names.mlp_norm)?,
            mlp: Mlp::load(view, layer, device)?,
            mlp_post_norm: names.mlp_post_norm.map(norm).transpose()?,
            parallel: spec.parallel_residual,
        })
    }

    /// The residual stream `x [batch · length, hidden]` after this block.
    ///
    /// # Errors
    /// The errors of the observer.
    pub fn forward(
        &self,
        x: &Tensor,
        positions: &Positions<'_>,
        cache: Option<&mut KvCache>,
        observer: &mut dyn Observer,
    ) -> Result<Tensor> {
        // Only the stream outlives a half, because activations limit the size of a chunk.
        let between = {
            let normed = self.attention_norm.forward(x)?;
            let added = self.attention.forward(&normed, positions, cache, observer)?;
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

    /// The weights `[out, in]` of its dense linears, by their names, as they are held: for somebody who
    /// would read them again.
    pub fn into_weights(self) -> HashMap<String, Tensor> {
        let linears = self.attention.into_linears().chain(self.mlp.into_linears());
        linears.filter_map(Linear::into_dense).collect()
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
