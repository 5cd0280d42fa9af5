//! The forward pass with one block in memory at a time.
//!
//! All windows go through block 0, then all through block 1, and so on: a block is read once
//! however many windows there are, and only the residual stream of the windows is kept between.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::sweep::{self, Sweep};
use super::windows::Windows;
use crate::arch::SourceModel;
use crate::error::{Error, Result};
use crate::model::{Head, Observer, Unobserved};
use crate::progress::Progress;

/// The residual stream of every window, advanced block by block.
#[derive(Debug)]
pub struct Stream<'a> {
    sweep: Sweep<'a>,
    /// Rows `[windows of the chunk · length, hidden]` each.
    chunks: Vec<Tensor>,
    layer: usize,
}

impl<'a> Stream<'a> {
    /// Embeds `windows`.
    ///
    /// # Errors
    /// Ids outside the vocabulary; embeddings that cannot be read.
    pub fn new(model: &'a SourceModel, windows: &Windows, device: &Device) -> Result<Self> {
        let sweep = Sweep::new(model, windows.length(), device)?;
        let chunks = sweep::chunks(windows).map(|ids| sweep.embed(ids)).collect::<Result<_>>()?;
        Ok(Self { sweep, chunks, layer: 0 })
    }

    /// Steps [`Progress`] is told of per block, and once more for the head.
    pub fn steps(windows: &Windows) -> u64 {
        sweep::chunks(windows).len() as u64
    }

    /// Index of the block that [`advance`](Self::advance) runs next; `None` past the last.
    pub fn next_layer(&self) -> Option<usize> {
        (self.layer < self.sweep.layers()).then_some(self.layer)
    }

    /// Runs every window through the next block, in order, for an observer to see.
    ///
    /// # Errors
    /// What the block or the observer refuses; [`Error::Interrupted`].
    pub fn advance(&mut self, observer: &mut dyn Observer, progress: &dyn Progress) -> Result<()> {
        let block = self.sweep.decoder.block(self.layer)?;
        for chunk in &mut self.chunks {
            *chunk = self.sweep.through(&block, chunk, observer, progress)?;
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
        let block = self.sweep.decoder.block(self.layer)?;
        let sweep = &self.sweep;
        self.chunks.par_iter_mut().try_for_each(|chunk| {
            *chunk = sweep.through(&block, chunk, &mut Unobserved, progress)?;
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
            None => self.sweep.decoder.head(),
            Some(layer) => Err(Error::Bug(format!("the head was asked for before block {layer}"))),
        }
    }
}
