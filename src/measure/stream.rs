//! The forward pass with one block in memory at a time.
//!
//! All windows go through block 0, then all through block 1, and so on: a block is read once
//! however many windows there are, and only the residual stream of the windows is kept between.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::compute::Compute;
use super::walk::{self, Walk};
use super::windows::Windows;
use crate::error::{Error, Result};
use crate::model::{Block, Head, Observer, Unobserved, View};
use crate::progress::Progress;

/// The residual stream of every window, advanced block by block.
#[derive(Debug)]
pub struct Stream<'a> {
    walk: Walk<'a>,
    /// Rows `[windows of the chunk · length, hidden]` each, on the device as far as there is room.
    chunks: Vec<Tensor>,
    layer: usize,
    /// The next block, if it was read ahead.
    ahead: Option<Block>,
    /// The block that an observer saw last, until the next one runs.
    done: Option<Block>,
}

impl<'a> Stream<'a> {
    /// Embeds `windows`.
    ///
    /// # Errors
    /// Ids outside the vocabulary; embeddings that cannot be read.
    pub fn new(view: impl Into<View<'a>>, windows: &Windows, compute: &Compute) -> Result<Self> {
        let walk = Walk::new(view.into(), windows.length(), compute)?;
        let mut room = compute.resident();
        let mut embed = |ids| {
            let chunk = walk.embed(ids)?;
            let bytes = (chunk.elem_count() * size_of::<f32>()) as u64;
            match room.checked_sub(bytes) {
                Some(left) => {
                    room = left;
                    Ok(chunk)
                }
                None => Ok(chunk.to_device(&Device::Cpu)?),
            }
        };
        let chunks = walk::chunks(windows, compute).map(&mut embed).collect::<Result<_>>()?;
        Ok(Self { walk, chunks, layer: 0, ahead: None, done: None })
    }

    /// Steps [`Progress`] is told of per block, and once more for the head.
    pub fn steps(windows: &Windows, compute: &Compute) -> u64 {
        walk::chunks(windows, compute).len() as u64
    }

    /// Index of the block that [`advance`](Self::advance) runs next; `None` past the last.
    pub fn next_layer(&self) -> Option<usize> {
        (self.layer < self.walk.layers()).then_some(self.layer)
    }

    /// Runs every window through the next block, in order, for an observer to see.
    ///
    /// # Errors
    /// The errors of the block and the observer; [`Error::Interrupted`].
    pub fn advance(&mut self, observer: &mut dyn Observer, progress: &dyn Progress) -> Result<()> {
        self.with_next_block(|walk, block, chunks| {
            for chunk in chunks {
                advance_chunk(walk, block, chunk, observer, progress)?;
            }
            Ok(())
        })
    }

    /// Runs every window through the next block, on a CPU with chunks side by side: without an observer
    /// there is no order to keep, and a chunk on each thread leaves no thread waiting for another. The
    /// result is the same as that of [`advance`](Self::advance), bit for bit.
    ///
    /// # Errors
    /// The errors of the block; [`Error::Interrupted`].
    pub fn advance_unobserved(&mut self, progress: &dyn Progress) -> Result<()> {
        match self.walk.compute.side_by_side() {
            true => self.advance_side_by_side(progress)?,
            false => self.advance(&mut Unobserved, progress)?,
        }
        // Nobody saw it, and nobody will ask for it.
        self.done = None;
        Ok(())
    }

    fn advance_side_by_side(&mut self, progress: &dyn Progress) -> Result<()> {
        self.with_next_block(|walk, block, chunks| {
            chunks
                .par_iter_mut()
                .try_for_each(|chunk| advance_chunk(walk, block, chunk, &mut Unobserved, progress))
        })
    }

    fn with_next_block(
        &mut self,
        work: impl FnOnce(&Walk<'_>, &Block, &mut [Tensor]) -> Result<()>,
    ) -> Result<()> {
        self.done = None;
        let (layer, walk, chunks) = (self.layer, &self.walk, &mut self.chunks);
        let next = Some(layer + 1).filter(|next| *next < walk.layers());
        let ahead = self.ahead.take();
        let (done, ahead) =
            walk.with_block(layer, next, ahead, |block| work(walk, block, chunks))?;
        (self.done, self.ahead) = (Some(done), ahead);
        self.layer += 1;
        Ok(())
    }

    /// Hands out the block that an observer saw last.
    pub fn take_block(&mut self) -> Option<Block> {
        self.done.take()
    }

    /// The residual stream as it stands, chunk by chunk, each `[tokens, hidden]`, on the device where it
    /// had room, else on the host.
    pub fn chunks(&self) -> &[Tensor] {
        &self.chunks
    }

    /// The head, once every block ran.
    ///
    /// # Errors
    /// Tensors that cannot be read; calling it early is a bug.
    pub fn head(&self) -> Result<Head> {
        match self.next_layer() {
            None => self.walk.decoder.head(),
            Some(layer) => Err(Error::Bug(format!("the head was asked for before block {layer}"))),
        }
    }
}

/// `chunk` after `block`, in the place where it was.
fn advance_chunk(
    walk: &Walk<'_>,
    block: &Block,
    chunk: &mut Tensor,
    observer: &mut dyn Observer,
    progress: &dyn Progress,
) -> Result<()> {
    let x = chunk.to_device(walk.compute.device())?;
    let x = walk.through(block, &x, observer, progress)?;
    *chunk = x.to_device(chunk.device())?;
    Ok(())
}
