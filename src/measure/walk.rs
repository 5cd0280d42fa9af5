//! The walk of the windows through a model, forward or back: how they are cut into chunks, the blocks one
//! after the other, and one chunk's way through one block.

use candle_core::{Device, Tensor};

use super::compute::{Compute, ROWS_PER_HEAD};
use super::windows::Windows;
use crate::error::{Error, Result};
use crate::model::{Block, Decoder, Observer, Positions, View};
use crate::progress::Progress;

/// A decoder and the geometry of the windows that go through it.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    pub(super) decoder: Decoder<'a>,
    pub(super) compute: Compute,
    length: usize,
    rope: (Tensor, Tensor),
}

impl<'a> Walk<'a> {
    pub(super) fn new(view: View<'a>, length: usize, compute: &Compute) -> Result<Self> {
        let decoder = Decoder::new(view, compute.device());
        let rope = decoder.rope(0, length)?;
        Ok(Self { decoder, compute: compute.clone(), length, rope })
    }

    /// Tokens of a window.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Blocks of the model.
    pub(super) fn layers(&self) -> usize {
        self.decoder.model().spec().layers.len()
    }

    /// The residual stream of `ids`, whole windows, before the first block.
    pub(super) fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        self.decoder.embed(ids, 0, self.length)
    }

    /// The rows `chunk` of the residual stream, whole windows, through `block`.
    pub(super) fn through(
        &self,
        block: &Block,
        chunk: &Tensor,
        observer: &mut dyn Observer,
        progress: &dyn Progress,
    ) -> Result<Tensor> {
        progress.check()?;
        let (length, (cos, sin)) = (self.length, &self.rope);
        let positions = Positions { batch: chunk.dim(0)? / length, length, first: 0, cos, sin };
        let x = block.forward(chunk, &positions, None, observer)?;
        progress.advance(1);
        Ok(x)
    }

    /// Calls `work` with block `layer`, and returns it, and with it block `next`, which a GPU is sent
    /// meanwhile. `held` is the block where that was done before.
    pub(super) fn with_block(
        &self,
        layer: usize,
        next: Option<usize>,
        held: Option<Block>,
        work: impl FnOnce(&Block) -> Result<()>,
    ) -> Result<(Block, Option<Block>)> {
        let held = held.filter(|block| block.layer() == layer);
        let block = held.map_or_else(|| self.decoder.block(layer), Ok)?;
        let Some(next) = next.filter(|_| !self.compute.device().is_cpu()) else {
            work(&block)?;
            return Ok((block, None));
        };
        let coming = std::thread::scope(|scope| {
            let coming = scope.spawn(|| self.decoder.block(next));
            work(&block)?;
            let coming = coming.join();
            coming.map_err(|_| Error::Bug(format!("reading block {next} panicked")))?
        })?;
        Ok((block, Some(coming)))
    }
}

/// The tokens of the windows, chunk by chunk.
pub(super) fn chunks<'a>(
    windows: &'a Windows,
    compute: &Compute,
) -> impl ExactSizeIterator<Item = &'a [u32]> {
    windows.ids().chunks(compute.chunk_tokens(windows.length()))
}

/// Rows of a chunk that predict a token, and the tokens they predict.
#[derive(Debug)]
pub struct Scored {
    /// Row numbers within the chunk, `[n]` u32.
    pub rows: Tensor,
    /// Token ids, `[n]` u32.
    pub targets: Tensor,
}

impl Scored {
    /// Returns all scored rows of a chunk, in order, in groups small enough to hold their logits: row t
    /// predicts token t + 1, and a window's last row predicts nothing.
    ///
    /// # Errors
    /// Only if the device is out of memory.
    pub fn groups(ids: &[u32], length: usize, device: &Device) -> Result<Vec<Self>> {
        let predicting: Vec<u32> =
            (0..ids.len()).filter(|row| (row + 1) % length != 0).map(|row| row as u32).collect();
        let group = |rows: &[u32]| {
            let targets: Vec<u32> = rows.iter().map(|&row| ids[row as usize + 1]).collect();
            Ok(Self { rows: Tensor::new(rows, device)?, targets: Tensor::new(targets, device)? })
        };
        predicting.chunks(ROWS_PER_HEAD).map(group).collect()
    }
}
