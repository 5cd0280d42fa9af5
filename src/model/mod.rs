//! The one decoder that [`ModelSpec`](crate::arch::ModelSpec) describes.
//!
//! ```text
//! ids ──► embed ──► block 0 ──► … ──► block L-1 ──► norm ──► head ──► logits
//!                    │ norm · attention · +          each block is loaded, used and dropped
//!                    │ norm · mlp or experts · +     (measure, eval) or kept (generate)
//! ```
//!
//! Families differ in their norms, in whether the halves are normed once more before they are added,
//! and in whether the MLP reads the stream before or after attention was added to it.
//!
//! Weights are read in their own dtype. On the CPU they are computed with in f32; on a GPU bf16 weights
//! stay bf16, and activations are rounded to bf16 when they are multiplied with them. A block reports
//! its activations to an [`Observer`], and does not know their use.
//!
//! ```
//! use bantam::arch::Model;
//! use bantam::model::Decoder;
//! use candle_core::Device;
//!
//! let model = Model::open("tests/fixtures/golden/llama".as_ref())?;
//! let logits = Decoder::new(&model, &Device::Cpu).logits(&[1, 2, 3, 4], 1)?;
//! assert_eq!(logits.dims(), [4, model.spec().vocab]);
//! # Ok::<(), bantam::Error>(())
//! ```

mod attention;
mod block;
mod cache;
mod context;
mod decoder;
mod linear;
mod mlp;
mod norm;
mod reading;
mod rope;
mod sampler;
mod source;
mod stack;
mod weights;

pub use block::Block;
pub use cache::KvCache;
pub use context::Positions;
pub use decoder::{Decoder, Head, Session};
pub use linear::Linear;
pub use reading::Weights;
pub use sampler::Sampler;
pub use source::{Source, Stored, View, bias, dense_weight};
pub use stack::stack_scale;
pub use weights::load_tensor;

use candle_core::Tensor;

use crate::arch::{Port, Role, Site};
use crate::error::Result;
pub use crate::ops::{GradientSink, GradientSinks};

/// Something that looks at the activations inside a block while it computes.
///
/// In a backward pass the tensors it is shown carry the graph of their computation: an observer that
/// keeps one beyond the call keeps [`Tensor::detach`] of it.
pub trait Observer {
    /// Rows `[tokens, in]` that enter every linear reading `port`; called once per port.
    ///
    /// # Errors
    /// Whatever makes the observation unusable, a value that is not finite above all.
    fn input(&mut self, port: Port, x: &Tensor) -> Result<()>;

    /// Rows `[tokens, out]` that leave `site`, bias included.
    ///
    /// # Errors
    /// As [`input`](Self::input).
    fn output(&mut self, site: &Site, y: &Tensor) -> Result<()>;

    /// Sees `added`, the output of one half of the block, and `stream`, the residual stream after it,
    /// both `[tokens, hidden]`.
    ///
    /// # Errors
    /// As [`input`](Self::input).
    fn residual(&mut self, half: Half, added: &Tensor, stream: &Tensor) -> Result<()>;

    /// Sees the tokens of the chunk that the rows of `expert` stand for, in the order of the rows;
    /// called before those rows are seen, and without tokens for an expert that no token chose.
    ///
    /// # Errors
    /// As [`input`](Self::input).
    fn routed(&mut self, _expert: usize, _tokens: &[u32]) -> Result<()> {
        Ok(())
    }

    /// Returns the sinks for the gradients at `site`, should a backward pass follow; called before the
    /// site computes. The gradient at a [`Port`] that only one site reads (the hidden activation of an
    /// MLP or an expert) is the gradient at the input of that site.
    ///
    /// # Errors
    /// Only if the device is out of memory.
    fn gradients(&mut self, _site: &Site) -> Result<GradientSinks> {
        Ok(GradientSinks::default())
    }
}

/// The halves of a block, each of which adds to the residual stream once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Half {
    /// q, k, v, o.
    Attention,
    /// The MLP or the experts.
    Mlp,
}

impl Half {
    /// The half a linear belongs to; `None` of embedding and head, which are in no block.
    pub fn of(role: Role) -> Option<Self> {
        match role {
            Role::AttnQ | Role::AttnK | Role::AttnV | Role::AttnO => Some(Self::Attention),
            Role::MlpGate
            | Role::MlpUp
            | Role::MlpDown
            | Role::ExpertGate
            | Role::ExpertUp
            | Role::ExpertDown => Some(Self::Mlp),
            Role::Embed | Role::Head => None,
        }
    }
}

/// An observer that looks at nothing.
#[derive(Debug, Clone, Copy)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn input(&mut self, _: Port, _: &Tensor) -> Result<()> {
        Ok(())
    }

    fn output(&mut self, _: &Site, _: &Tensor) -> Result<()> {
        Ok(())
    }

    fn residual(&mut self, _: Half, _: &Tensor, _: &Tensor) -> Result<()> {
        Ok(())
    }
}
