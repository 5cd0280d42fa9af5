//! One transformer block: two norms, attention, MLP, two residual additions.

use candle_core::{Device, Tensor};

use super::attention::Attention;
use super::linear::load_tensor;
use super::mlp::Mlp;
use super::{Half, KvCache, Observer};
use crate::arch::{Site, SourceModel};
use crate::error::{Error, Result};
use crate::ops;

/// A block's weights in f32.
#[derive(Debug)]
pub struct Block {
    layer: usize,
    attention_norm: Tensor,
    attention: Attention,
    mlp_norm: Tensor,
    mlp: Mlp,
    norm_eps: f64,
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
    /// `[length, head_dim / 2]`.
    pub cos: &'a Tensor,
    /// `[length, head_dim / 2]`.
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
        let norm =
            |name: &str| load_tensor(checkpoint, &format!("{}{layer}.{name}", names.layer), device);
        Ok(Self {
            layer,
            attention_norm: norm(names.attention_norm)?,
            attention: Attention::load(checkpoint, spec, layer, [q, k, v, o], device)?,
            mlp_norm: norm(names.mlp_norm)?,
            mlp: Mlp::load(checkpoint, spec, layer, mlp, device)?,
            norm_eps: spec.norm_eps,
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
        let normed = ops::rms_norm(x, &self.attention_norm, self.norm_eps)?;
        let added = self.attention.forward(&normed, context, cache, observer)?;
        let x = ops::add(x, &added)?;
        observer.residual(Half::Attention, &added, &x)?;
        let normed = ops::rms_norm(&x, &self.mlp_norm, self.norm_eps)?;
        let added = self.mlp.forward(&normed, observer)?;
        let x = ops::add(&x, &added)?;
        observer.residual(Half::Mlp, &added, &x)?;
        Ok(x)
    }

    /// Index of the block.
    pub fn layer(&self) -> usize {
        self.layer
    }
}
