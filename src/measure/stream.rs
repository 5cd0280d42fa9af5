//! The forward pass with one block in memory at a time.
//!
//! All windows go through block 0, then all through block 1, and so on: a block is read once
//! however many windows there are, and only the residual stream of the windows is kept between.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::windows::Windows;
use crate::arch::SourceModel;
use crate::error::{Error, Result};
use crate::model::{Block, BlockContext, Decoder, Head, Observer, Unobserved};
use crate::progress::Progress;

/// Tokens that go through a block together: enough to keep a matrix product busy, few enough for
/// activations to stay in cache.
pub const TOKENS_PER_CHUNK: usize = 1024;

/// The residual stream of every window, advanced block by block.
#[derive(Debug)]
pub struct Stream<'a> {
    decoder: Decoder<'a>,
    length: usize,
    /// Rows `[windows of the chunk · length, hidden]` each.
    chunks: Vec<Tensor>,
    layer: usize,
    rope: (Tensor, Tensor),
}

impl<'a> Stream<'a> {
    /// Embeds `windows`.
    ///
    /// # Errors
    /// Ids outside the vocabulary; embeddings that cannot be read.
    pub fn new(model: &'a SourceModel, windows: &Windows, device: &Device) -> Result<Self> {
        let decoder = Decoder::new(model, device);
        let length = windows.length();
        let per_chunk = (TOKENS_PER_CHUNK / length).max(1) * length;
        let chunks =
            windows.ids().chunks(per_chunk).map(|ids| decoder.embed(ids)).collect::<Result<_>>()?;
        let rope = decoder.rope(0, length)?;
        Ok(Self { decoder, length, chunks, layer: 0, rope })
    }

    /// Steps [`Progress`] is told of per block, and once more for the head.
    pub fn steps(&self) -> u64 {
        self.chunks.len() as u64
    }

    /// Index of the block that [`advance`](Self::advance) runs next; `None` past the last.
    pub fn next_layer(&self) -> Option<usize> {
        (self.layer < self.decoder.model().spec.layers.len()).then_some(self.layer)
    }

    /// Runs every window through the next block, in order, for an observer to see.
    ///
    /// # Errors
    /// What the block or the observer refuses; [`Error::Interrupted`].
    pub fn advance(&mut self, observer: &mut dyn Observer, progress: &dyn Progress) -> Result<()> {
        let block = self.decoder.block(self.layer)?;
        for chunk in &mut self.chunks {
            *chunk = through(&block, chunk, self.length, &self.rope, observer, progress)?;
        }
        self.layer += 1;
        Ok(())
    }

    /// Runs every window through the next block, chunks side by side: where nobody looks there is no
    /// order to keep, and a chunk on each thread leaves none of them waiting for another. The result
    /// is the same as that of [`advance`](Self::advance), bit for bit.
    ///
    /// # Errors
    /// What the block refuses; [`Error::Interrupted`].
    pub fn advance_unobserved(&mut self, progress: &dyn Progress) -> Result<()> {
        let block = self.decoder.block(self.layer)?;
        let (length, rope) = (self.length, &self.rope);
        self.chunks.par_iter_mut().try_for_each(|chunk| {
            *chunk = through(&block, chunk, length, rope, &mut Unobserved, progress)?;
            Ok::<(), Error>(())
        })?;
        self.layer += 1;
        Ok(())
    }

    /// The residual streams as they stand, chunk by chunk, each `[tokens, hidden]`.
    pub fn chunks(&self) -> &[Tensor] {
        &self.chunks
    }

    /// The head, once every block ran.
    ///
    /// # Errors
    /// Tensors that cannot be read; calling it early is a bug.
    pub fn head(&self) -> Result<Head> {
        match self.next_layer() {
            None => self.decoder.head(),
            Some(layer) => Err(Error::Bug(format!("the head was asked for before block {layer}"))),
        }
    }
}

/// One chunk of windows of `length` tokens through `block`.
fn through(
    block: &Block,
    chunk: &Tensor,
    length: usize,
    (cos, sin): &(Tensor, Tensor),
    observer: &mut dyn Observer,
    progress: &dyn Progress,
) -> Result<Tensor> {
    progress.check()?;
    let context = BlockContext { batch: chunk.dim(0)? / length, length, first: 0, cos, sin };
    let x = block.forward(chunk, &context, None, observer)?;
    progress.advance(1);
    Ok(x)
}
