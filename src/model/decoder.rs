//! From token ids to the residual stream, and from the stream to logits and losses.

use std::ops::Range;

use candle_core::{Device, Tensor, Var};

use super::block::Block;
use super::context::Positions;
use super::norm::Norm;
use super::source::{self, View};
use super::weights::Use;
use super::{GradientSinks, KvCache, Unobserved, rope};
use crate::arch::{Model, ModelSpec, Piece, PositionRule};
use crate::checkpoint::{Dtype, to_f32};
use crate::error::{Error, Result};
use crate::ops::{self, CrossEntropy};

/// The parts of a model outside its blocks, and the way through all of it. Nothing is read before
/// it is asked for.
#[derive(Debug)]
pub struct Decoder<'a> {
    view: View<'a>,
    device: Device,
}

impl<'a> Decoder<'a> {
    /// A decoder of a model that computes on `device`.
    pub fn new(view: impl Into<View<'a>>, device: &Device) -> Self {
        Self { view: view.into(), device: device.clone() }
    }

    /// The model this decoder runs.
    pub fn model(&self) -> &'a Model {
        self.view.model
    }

    fn spec(&self) -> &'a ModelSpec {
        self.view.model.spec()
    }

    /// The device it computes on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The stream `[ids.len(), hidden]` before the first block, for texts of `length` ids each whose
    /// first stands at position `first`: rows of the embedding, scaled where the family scales, and
    /// those of learned positions added. Only these rows are read.
    ///
    /// # Errors
    /// Rows that are not finite; an id outside the vocabulary, or a position past the learned ones,
    /// is a bug of the caller.
    pub fn embed(&self, ids: &[u32], first: usize, length: usize) -> Result<Tensor> {
        let spec = self.spec();
        let names = &spec.family.names;
        let tokens: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
        let embedding = self.view.source.stored(self.view.embedding()?, Piece::Weight)?;
        let x = self.table_rows(&embedding.tensor, embedding.dtype, &embedding.bytes, &tokens)?;
        let x = match spec.family.scaled_embedding {
            // The factor is rounded to f32, as transformers rounds it to the dtype it computes in.
            true => x.affine(f64::from((spec.hidden as f64).sqrt() as f32), 0.0)?,
            false => x,
        };
        match spec.family.positions {
            PositionRule::Rotary { .. } => Ok(x),
            PositionRule::Learned => {
                let places: Vec<usize> = (0..ids.len()).map(|i| first + i % length).collect();
                let checkpoint = self.view.model.checkpoint();
                let table = checkpoint.require(names.positions)?;
                let bytes = checkpoint.bytes(table)?;
                let places = self.table_rows(&table.name, table.dtype, bytes, &places)?;
                ops::add(&x, &places)
            }
        }
    }

    /// Rows `[rows.len(), hidden]` of a table `name` whose data are `bytes` of `dtype`.
    fn table_rows(&self, name: &str, dtype: Dtype, bytes: &[u8], rows: &[usize]) -> Result<Tensor> {
        let hidden = self.spec().hidden;
        let width = hidden * dtype.bitsize() / 8;
        let mut found = Vec::with_capacity(rows.len() * width);
        for &row in rows {
            let data = bytes.get(row * width..(row + 1) * width);
            let missing = || Error::Bug(format!("row {row} of `{name}`, which has fewer"));
            found.extend_from_slice(data.ok_or_else(missing)?);
        }
        let values = to_f32(dtype, &found, name).map_err(|error| match error {
            // The place counts in the rows gathered; the user looks for it in the tensor.
            Error::NonFiniteTensor { tensor, index } => {
                let (row, column) = (index as usize / hidden, index % hidden as u64);
                let index = (rows[row] * hidden) as u64 + column;
                Error::NonFiniteTensor { tensor, index }
            }
            other => other,
        })?;
        Ok(Tensor::from_vec(values, (rows.len(), hidden), &self.device)?)
    }

    /// Reads block `layer`.
    ///
    /// # Errors
    /// As [`Block::load`].
    pub fn block(&self, layer: usize) -> Result<Block> {
        Block::load(self.view, layer, &self.device)
    }

    /// cos and sin for positions `first .. first + length`, `[length, 0]` where nothing turns.
    ///
    /// # Errors
    /// Only if the device is out of memory.
    pub fn rope(&self, first: usize, length: usize) -> Result<(Tensor, Tensor)> {
        if let Some(rope) = &self.spec().attention.rope {
            return rope::tables(rope, first, length, &self.device);
        }
        let none = Tensor::from_vec(Vec::<f32>::new(), (length, 0), &self.device)?;
        Ok((none.clone(), none))
    }

    /// Reads the final norm and the head.
    ///
    /// # Errors
    /// A tensor that cannot be read or is not finite.
    pub fn head(&self) -> Result<Head> {
        let (checkpoint, spec) = (self.view.model.checkpoint(), self.spec());
        let (source, site) = (self.view.source, self.view.head()?);
        let weight = source::load(source, site, Piece::Weight, Use::Product, &self.device)?;
        let names = &spec.family.names;
        let norm = Norm::load(checkpoint, spec.norm, names.final_norm, &self.device)?;
        Ok(Head { norm, weight, cap: spec.logit_cap.map(|cap| cap as f32) })
    }

    /// Logits `[batch · length, vocab]` of `batch` texts of equal length, every block read in turn.
    ///
    /// # Errors
    /// As [`embed`](Self::embed) and [`block`](Self::block).
    pub fn logits(&self, ids: &[u32], batch: usize) -> Result<Tensor> {
        let length = ids.len() / batch;
        let (cos, sin) = self.rope(0, length)?;
        let positions = Positions { batch, length, first: 0, cos: &cos, sin: &sin };
        let mut x = self.embed(ids, 0, length)?;
        for layer in 0..self.spec().layers.len() {
            x = self.block(layer)?.forward(&x, &positions, None, &mut Unobserved)?;
        }
        self.head()?.logits(&x)
    }
}

/// The final norm and the projection to the vocabulary.
#[derive(Debug)]
pub struct Head {
    norm: Norm,
    weight: Tensor,
    /// The soft cap of the logits.
    cap: Option<f32>,
}

impl Head {
    /// Rows `x [tokens, hidden]` of the stream to logits `[tokens, vocab]`.
    ///
    /// # Errors
    /// Only the tensor engine's.
    pub fn logits(&self, x: &Tensor) -> Result<Tensor> {
        self.tile(&self.norm.forward(x)?, 0..self.weight.dim(0)?)
    }

    /// The logits of some columns of the vocabulary, from normed rows.
    fn tile(&self, normed: &Tensor, columns: Range<usize>) -> Result<Tensor> {
        let weight = self.weight.narrow(0, columns.start, columns.len())?;
        let logits = ops::linear(normed, &weight, None, GradientSinks::default())?;
        match self.cap {
            Some(cap) => ops::soft_cap(&logits, cap),
            None => Ok(logits),
        }
    }

    /// Negative log likelihood `[tokens]` in nats of `targets` under the logits of rows `x`.
    ///
    /// # Errors
    /// [`Error::NonFinite`] where the logits are not finite.
    pub fn losses(&self, x: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let normed = self.norm.forward(x)?;
        let tile = |columns| self.tile(&normed, columns);
        Ok(CrossEntropy::of(targets, self.weight.dim(0)?, tile)?.losses().clone())
    }

    /// The losses, as [`losses`](Self::losses), and the gradient of their sum at the rows `x [tokens,
    /// hidden]`.
    ///
    /// # Errors
    /// As [`losses`](Self::losses).
    pub fn losses_and_gradient(&self, x: &Tensor, targets: &Tensor) -> Result<(Tensor, Tensor)> {
        let x = Var::from_tensor(&x.detach())?;
        let normed = self.norm.forward(&x)?;
        let rows = normed.detach();
        let vocabulary = self.weight.dim(0)?;
        // The last tile need not be computed twice; a small vocabulary has no other.
        let mut last = None;
        let found = CrossEntropy::of(targets, vocabulary, |columns| {
            let logits = self.tile(&rows, columns.clone())?;
            last = (columns.end == vocabulary).then(|| logits.clone());
            Ok(logits)
        })?;
        // Tile by tile, so that nothing is as large as all logits; autograd would hold copies of them.
        let mut above = None;
        let tiles: Vec<_> = ops::tiles(vocabulary).collect();
        for columns in tiles.into_iter().rev() {
            let logits = match last.take() {
                Some(logits) => logits,
                None => self.tile(&rows, columns.clone())?,
            };
            let part = found.gradient(&logits, columns.start)?;
            let part = match self.cap {
                Some(cap) => ops::soft_cap_gradient(&logits, &part, cap)?,
                None => part,
            };
            drop(logits);
            let weight = self.weight.narrow(0, columns.start, columns.len())?;
            let part = ops::linear_gradient(&part, &weight)?;
            above = Some(match above {
                Some(above) => ops::add(&above, &part)?,
                None => part,
            });
        }
        let above = above.ok_or_else(|| Error::Bug("the vocabulary is empty".into()))?;
        let gradient = ops::upstream(&normed, &above)?.backward()?.remove(&x);
        let gradient = gradient.ok_or_else(|| Error::Bug("the head has no gradient".into()))?;
        Ok((found.losses().clone(), gradient))
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
    pub fn new(view: impl Into<View<'a>>, device: &Device) -> Result<Self> {
        let decoder = Decoder::new(view, device);
        let blocks = (0..decoder.spec().layers.len())
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
        let positions =
            Positions { batch: 1, length: ids.len(), first: self.position, cos: &cos, sin: &sin };
        let mut x = self.decoder.embed(ids, self.position, ids.len())?;
        for (block, cache) in &mut self.blocks {
            x = block.forward(&x, &positions, Some(cache), &mut Unobserved)?;
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
