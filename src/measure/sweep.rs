//! What every pass over the windows shares: how they are cut into chunks, and one chunk's way
//! through one block.

use candle_core::{Device, Tensor};

use super::windows::Windows;
use crate::arch::SourceModel;
use crate::error::Result;
use crate::model::{Block, BlockContext, Decoder, Observer};
use crate::progress::Progress;

/// Tokens that go through a block together: enough to keep a matrix product busy, few enough for
/// activations to stay in cache.
pub const TOKENS_PER_CHUNK: usize = 1024;

/// Rows of the residual stream turned into logits at a time: bounds the logits to this times the
/// vocabulary.
pub(crate) const ROWS_PER_HEAD: usize = 512;

/// A decoder and the geometry of the windows that go through it.
#[derive(Debug)]
pub(super) struct Sweep<'a> {
    pub(super) decoder: Decoder<'a>,
    length: usize,
    rope: (Tensor, Tensor),
}

impl<'a> Sweep<'a> {
    pub(super) fn new(model: &'a SourceModel, length: usize, device: &Device) -> Result<Self> {
        let decoder = Decoder::new(model, device);
        let rope = decoder.rope(0, length)?;
        Ok(Self { decoder, length, rope })
    }

    /// Blocks of the model.
    pub(super) fn layers(&self) -> usize {
        self.decoder.model().spec.layers.len()
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
        let context = BlockContext { batch: chunk.dim(0)? / length, length, first: 0, cos, sin };
        let x = block.forward(chunk, &context, None, observer)?;
        progress.advance(1);
        Ok(x)
    }
}

/// The tokens of the windows, chunk by chunk: as many whole windows as fit, one at least.
pub(super) fn chunks(windows: &Windows) -> impl ExactSizeIterator<Item = &[u32]> {
    let length = windows.length();
    windows.ids().chunks((TOKENS_PER_CHUNK / length).max(1) * length)
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
    /// All of a chunk's, in order, in groups few enough for their logits to be held: row t predicts
    /// token t + 1, and a window's last row predicts nothing.
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
