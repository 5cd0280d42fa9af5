//! The backward pass with one block in memory at a time.
//!
//! ```text
//! forward:   x_0 ──► block 0 ──► x_1 ──► … ──► x_L ──► head ──► Σ loss     every x_l is kept
//! backward:  g_L = ∂Σ loss / ∂x_L;   for l = L-1 .. 0:  compute block l again from x_l under autograd,
//!            start its backward with g_(l+1), keep g_l in the place of x_l
//! ```
//!
//! The objective is the sum over scored positions of the loss in nats, so a gradient is one token's,
//! whatever the number of windows. In memory are the inputs of the blocks (beyond a limit in a file),
//! one block's weights, and the graph of one chunk per thread. Weights get no gradient.
//!
//! Autograd adds gradients up with candle's own elementwise sums. Chunks side by side want
//! `CANDLE_NUM_THREADS=1`, as the program sets it: the pool behind those sums takes one caller at a
//! time and spins.

use std::sync::{Mutex, PoisonError};

use candle_core::{Tensor, Var};
use rayon::prelude::*;

use super::activations::{Activations, Spill};
use super::compute::Compute;
use super::stats::{GradientMoments, InOrder, Watched};
use super::walk::{self, Scored, Walk};
use super::windows::Windows;
use crate::arch::Model;
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::model::{Block, Head, Observer, Unobserved, View};
use crate::ops;
use crate::progress::Progress;

/// A loss on its way back through a model, block by block.
#[derive(Debug)]
pub struct Backward<'a> {
    walk: Walk<'a>,
    /// At place `l`, the input of block `l`, or the gradient there once block `l` is done with.
    activations: Activations,
    /// Blocks yet to be gone through.
    layers: usize,
    /// The next block, if it was read ahead.
    ahead: Option<Block>,
    /// The block that an observer saw last, until the next one runs.
    done: Option<Block>,
    loss: f64,
}

impl<'a> Backward<'a> {
    /// Runs `windows` forward through the model and its head, and keeps the input of every block and the
    /// gradient at the head's input for the way back.
    ///
    /// # Errors
    /// Tensors that cannot be read; [`Error::NonFinite`] where the logits or the loss are not finite;
    /// [`Error::Io`] where activations cannot be put aside; [`Error::Interrupted`].
    pub fn forward(
        view: impl Into<View<'a>>,
        windows: &Windows,
        compute: &Compute,
        spill: &Spill,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let walk = Walk::new(view.into(), windows.length(), compute)?;
        let chunks: Vec<&[u32]> = walk::chunks(windows, compute).collect();
        let (layers, rows) = (walk.layers(), chunks.iter().map(|ids| ids.len()).collect());
        let activations = Activations::new(
            layers + 1,
            rows,
            walk.decoder.model().spec().hidden,
            spill,
            compute.device(),
            compute.resident(),
        )?;
        for (chunk, ids) in chunks.iter().enumerate() {
            activations.put(0, chunk, &walk.embed(ids)?)?;
        }
        let mut ahead = None;
        for layer in 0..layers {
            let next = Some(layer + 1).filter(|next| *next < layers);
            (_, ahead) = walk.with_block(layer, next, ahead, |block| {
                each_chunk(compute, chunks.len(), |chunk| {
                    let x = activations.get(layer, chunk)?;
                    let x = walk.through(block, &x, &mut Unobserved, progress)?;
                    activations.put(layer + 1, chunk, &x)
                })
            })?;
        }
        let head = walk.decoder.head()?;
        let losses: Vec<Mutex<Vec<f64>>> = chunks.iter().map(|_| Mutex::default()).collect();
        each_chunk(compute, chunks.len(), |chunk| {
            progress.check()?;
            let x = activations.get(layers, chunk)?;
            let (found, gradient) = head_gradient(&head, &x, chunks[chunk], windows.length())?;
            *lock(&losses[chunk]) = found;
            activations.put(layers, chunk, &gradient)?;
            progress.advance(1);
            Ok(())
        })?;
        let scored = windows.count() * (windows.length() - 1);
        let sums = losses.iter().map(|losses| lock(losses).iter().sum::<f64>());
        let loss = sums.sum::<f64>() / scored as f64;
        if !loss.is_finite() {
            let detail = format!("mean of {scored} losses");
            return Err(Error::NonFinite { what: "the loss".into(), detail });
        }
        Ok(Self { walk, activations, layers, ahead: None, done: None, loss })
    }

    /// Steps [`Progress`] is told of over the whole of a pass, there and back.
    pub fn steps(model: &Model, windows: &Windows, compute: &Compute) -> u64 {
        (walk::chunks(windows, compute).len() * (2 * model.spec().layers.len() + 1)) as u64
    }

    /// Mean loss in nats per scored token.
    pub fn loss(&self) -> f64 {
        self.loss
    }

    /// Index of the block that [`retreat`](Self::retreat) goes back through next; `None` past the
    /// first.
    pub fn next_layer(&self) -> Option<usize> {
        self.layers.checked_sub(1)
    }

    /// Goes back through the next block, chunk by chunk in order. The observer sees the block computed
    /// again, and the gradients it asks for. Returns the gradient moments of the block's sites.
    ///
    /// # Errors
    /// The errors of the block and the observer; [`Error::NonFinite`] naming the site of a gradient;
    /// [`Error::Io`]; [`Error::Interrupted`]. Past the first block it is a bug.
    pub fn retreat(
        &mut self,
        observer: &mut dyn Observer,
        progress: &dyn Progress,
    ) -> Result<GradientMoments> {
        let mut moments = InOrder::default();
        self.with_next_block(|pass, block| {
            for chunk in 0..pass.activations.chunks() {
                moments.add(chunk, pass.back(block, chunk, observer, progress)?)?;
            }
            Ok(())
        })?;
        Ok(moments.finish())
    }

    /// Goes back through the next block, chunks side by side. The result is the same as that of
    /// [`retreat`](Self::retreat), bit for bit.
    ///
    /// # Errors
    /// As [`retreat`](Self::retreat).
    pub fn retreat_unobserved(&mut self, progress: &dyn Progress) -> Result<GradientMoments> {
        let moments = Mutex::new(InOrder::default());
        self.with_next_block(|pass, block| {
            each_chunk(&pass.walk.compute, pass.activations.chunks(), |chunk| {
                let part = pass.back(block, chunk, &mut Unobserved, progress)?;
                lock(&moments).add(chunk, part)
            })
        })?;
        // Nobody saw it, and nobody will ask for it.
        self.done = None;
        Ok(moments.into_inner().unwrap_or_else(PoisonError::into_inner).finish())
    }

    fn with_next_block(&mut self, work: impl FnOnce(&Self, &Block) -> Result<()>) -> Result<()> {
        let layer = self.next_layer().ok_or_else(|| Error::Bug("no block is left".into()))?;
        self.done = None;
        let ahead = self.ahead.take();
        let before = layer.checked_sub(1);
        let (done, ahead) =
            self.walk.with_block(layer, before, ahead, |block| work(self, block))?;
        (self.done, self.ahead) = (Some(done), ahead);
        self.layers -= 1;
        Ok(())
    }

    /// Hands out the block that an observer saw last.
    pub fn take_block(&mut self) -> Option<Block> {
        self.done.take()
    }

    /// The gradients at the output of the next block (past the first, at the embedded tokens), chunk
    /// by chunk, each `[tokens, hidden]`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn gradients(&self) -> impl Iterator<Item = Result<Tensor>> {
        (0..self.activations.chunks()).map(|chunk| self.activations.get(self.layers, chunk))
    }

    /// One chunk back through `block`; its graph ends with the call.
    fn back(
        &self,
        block: &Block,
        chunk: usize,
        observer: &mut dyn Observer,
        progress: &dyn Progress,
    ) -> Result<GradientMoments> {
        let layer = block.layer();
        let x = Var::from_tensor(&self.activations.take(layer, chunk)?)?;
        let above = self.activations.take(layer + 1, chunk)?;
        let mut watched = Watched::new(observer, self.walk.decoder.device(), self.walk.length());
        let y = self.walk.through(block, &x, &mut watched, progress)?;
        let gradient = ops::upstream(&y, &above)?.backward()?.remove(&x);
        let gradient = gradient
            .ok_or_else(|| Error::Bug(format!("block {layer} does not depend on its input")))?;
        self.activations.put(layer, chunk, &gradient)?;
        watched.moments(x.dim(0)?)
    }
}

/// Calls `work(chunk)` for every chunk: on a CPU a chunk on each thread, in order as threads come free
/// (one thread never has two chunks in hand), on a GPU one after the other.
fn each_chunk(
    compute: &Compute,
    chunks: usize,
    work: impl Fn(usize) -> Result<()> + Sync + Send,
) -> Result<()> {
    match compute.side_by_side() {
        true => (0..chunks).par_bridge().try_for_each(work),
        false => (0..chunks).try_for_each(work),
    }
}

/// The summed loss of every window of a chunk of the stream, and its gradient, `[tokens, hidden]`.
fn head_gradient(
    head: &Head,
    x: &Tensor,
    ids: &[u32],
    length: usize,
) -> Result<(Vec<f64>, Tensor)> {
    let mut losses = Vec::with_capacity(ids.len());
    // Rows that predict nothing have a gradient of zero.
    let mut gradient = x.zeros_like()?;
    for Scored { rows, targets } in Scored::groups(ids, length, x.device())? {
        let (loss, part) = head.losses_and_gradient(&x.index_select(&rows, 0)?, &targets)?;
        losses.extend(loss.to_vec1::<f32>()?);
        gradient = gradient.index_add(&rows, &part, 0)?;
    }
    let windows = losses.chunks(length - 1);
    Ok((windows.map(|window| window.iter().map(|&l| f64::from(l)).sum()).collect(), gradient))
}
