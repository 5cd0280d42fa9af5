//! From token ids to the residual stream, and from the stream to logits and losses.

use candle_core::{Device, Tensor, Var};

use super::block::{Block, BlockContext};
use super::linear::load_tensor;
use super::{GradientSinks, KvCache, Unobserved, rope};
use crate::arch::SourceModel;
use crate::checkpoint::{CheckpointError, to_f32};
use crate::error::{Error, Result};
use crate::ops;

/// The parts of a model outside its blocks, and the way through all of it. Nothing is read before
/// it is asked for.
#[derive(Debug)]
pub struct Decoder<'a> {
    model: &'a SourceModel,
    device: Device,
}

impl<'a> Decoder<'a> {
    /// A decoder that computes on `device`.
    pub fn new(model: &'a SourceModel, device: &Device) -> Self {
        Self { model, device: device.clone() }
    }

    /// The model this decoder runs.
    pub fn model(&self) -> &'a SourceModel {
        self.model
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Rows `[ids.len(), hidden]` of the embedding; only these are read.
    ///
    /// # Errors
    /// Rows that are not finite; an id outside the vocabulary is a bug of the caller.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        let (vocab, hidden) = (self.model.spec.vocab, self.model.spec.hidden);
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::Bug(format!("token id {id} is outside the vocabulary of {vocab}")));
        }
        let checkpoint = &self.model.checkpoint;
        let info = checkpoint.require(self.model.spec.family.names.embedding)?;
        let bytes = checkpoint.bytes(info)?;
        let row = bytes.len() / vocab;
        let rows: Vec<u8> =
            ids.iter().flat_map(|&id| &bytes[id as usize * row..][..row]).copied().collect();
        let values = to_f32(info.dtype, &rows, &info.name).map_err(|error| match error {
            // The place counts in the rows gathered; the user looks for it in the tensor.
            CheckpointError::NonFinite { tensor, index } => {
                let (row, column) = (index as usize / hidden, index % hidden as u64);
                let index = u64::from(ids[row]) * hidden as u64 + column;
                CheckpointError::NonFinite { tensor, index }
            }
            other => other,
        })?;
        Ok(Tensor::from_vec(values, (ids.len(), hidden), &self.device)?)
    }

    /// Reads block `layer`.
    ///
    /// # Errors
    /// As [`Block::load`].
    pub fn block(&self, layer: usize) -> Result<Block> {
        Block::load(self.model, layer, &self.device)
    }

    /// cos and sin for positions `first .. first + length`.
    ///
    /// # Errors
    /// Only if the device is out of memory.
    pub fn rope(&self, first: usize, length: usize) -> Result<(Tensor, Tensor)> {
        let attention = &self.model.spec.attention;
        rope::tables(&attention.rope, attention.head_dim, first, length, &self.device)
    }

    /// Reads the final norm and the head.
    ///
    /// # Errors
    /// A tensor that cannot be read or is not finite.
    pub fn head(&self) -> Result<Head> {
        let (checkpoint, spec) = (&self.model.checkpoint, &self.model.spec);
        let names = &spec.family.names;
        let weight = if spec.tied { names.embedding } else { names.head };
        let weight = load_tensor(checkpoint, weight, &self.device)?;
        let norm = load_tensor(checkpoint, names.final_norm, &self.device)?;
        Ok(Head { norm, weight, norm_eps: spec.norm_eps })
    }

    /// Logits `[batch · length, vocab]` of `batch` texts of equal length, every block read in turn.
    ///
    /// # Errors
    /// As [`embed`](Self::embed) and [`block`](Self::block).
    pub fn logits(&self, ids: &[u32], batch: usize) -> Result<Tensor> {
        let length = ids.len() / batch;
        let (cos, sin) = self.rope(0, length)?;
        let context = BlockContext { batch, length, first: 0, cos: &cos, sin: &sin };
        let mut x = self.embed(ids)?;
        for layer in 0..self.model.spec.layers.len() {
            x = self.block(layer)?.forward(&x, &context, None, &mut Unobserved)?;
        }
        self.head()?.logits(&x)
    }
}

/// The final norm and the projection to the vocabulary.
#[derive(Debug)]
pub struct Head {
    norm: Tensor,
    weight: Tensor,
    norm_eps: f64,
}

impl Head {
    /// Rows `x [tokens, hidden]` of the stream to logits `[tokens, vocab]`.
    ///
    /// # Errors
    /// Only the tensor engine's.
    pub fn logits(&self, x: &Tensor) -> Result<Tensor> {
        let normed = ops::rms_norm(x, &self.norm, self.norm_eps)?;
        ops::linear(&normed, &self.weight, None, GradientSinks::default())
    }

    /// Negative log likelihood `[tokens]` in nats of `targets` under the logits of rows `x`.
    ///
    /// # Errors
    /// [`Error::NonFinite`] where the logits are not finite.
    pub fn losses(&self, x: &Tensor, targets: &Tensor) -> Result<Tensor> {
        ops::cross_entropy(&self.logits(x)?, targets)
    }

    /// The losses, as [`losses`](Self::losses), and the gradient of their sum at the rows `x [tokens,
    /// hidden]`.
    ///
    /// # Errors
    /// As [`losses`](Self::losses).
    pub fn losses_and_gradient(&self, x: &Tensor, targets: &Tensor) -> Result<(Tensor, Tensor)> {
        let x = Var::from_tensor(&x.detach())?;
        let normed = ops::rms_norm(&x, &self.norm, self.norm_eps)?;
        // Step by step: nothing is as large as the logits, of which autograd would hold copies.
        let logits = ops::linear(&normed.detach(), &self.weight, None, GradientSinks::default())?;
        let losses = ops::cross_entropy(&logits, targets)?;
        let above = ops::cross_entropy_gradient(&logits, targets, &losses.ones_like()?)?;
        drop(logits);
        let above = above.matmul(&self.weight)?;
        let gradient = ops::upstream(&normed, &above)?.backward()?.remove(&x);
        Ok((losses, gradient.ok_or_else(|| Error::Bug("the head has no gradient".into()))?))
    }
}

/// A whole model in memory, decoding one text token by token.
#[derive(Debug)]
pub struct Session<'a> {
    decoder: Decoder<'a>,
    blocks: Vec<(Block, KvCache)>,
    head: Head,
    position: usize,
}

impl<'a> Session<'a> {
    /// Reads every block.
    ///
    /// # Errors
    /// As [`Decoder::block`].
    pub fn new(model: &'a SourceModel, device: &Device) -> Result<Self> {
        let decoder = Decoder::new(model, device);
        let blocks = (0..model.spec.layers.len())
            .map(|layer| Ok((decoder.block(layer)?, KvCache::default())))
            .collect::<Result<_>>()?;
        let head = decoder.head()?;
        Ok(Self { decoder, blocks, head, position: 0 })
    }

    /// Feeds `ids` and returns the logits `[vocab]` after the last of them.
    ///
    /// # Errors
    /// As [`Decoder::embed`]; no ids is a usage error.
    pub fn feed(&mut self, ids: &[u32]) -> Result<Tensor> {
        if ids.is_empty() {
            return Err(Error::usage("there is no token to continue from", "give a prompt"));
        }
        let (cos, sin) = self.decoder.rope(self.position, ids.len())?;
        let context = BlockContext {
            batch: 1,
            length: ids.len(),
            first: self.position,
            cos: &cos,
            sin: &sin,
        };
        let mut x = self.decoder.embed(ids)?;
        for (block, cache) in &mut self.blocks {
            x = block.forward(&x, &context, Some(cache), &mut Unobserved)?;
        }
        self.position += ids.len();
        let last = x.narrow(0, ids.len() - 1, 1)?;
        Ok(self.head.logits(&last)?.squeeze(0)?)
    }

    /// Positions fed so far.
    pub fn position(&self) -> usize {
        self.position
    }
}
