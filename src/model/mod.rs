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
//! stay bf16, and what is multiplied with them is rounded to it. A block reports what flows
//! through it to an [`Observer`]; it knows nothing of what is done with it.

mod attention;
mod block;
mod cache;
mod context;
mod decoder;
mod linear;
mod mlp;
mod norm;
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
/// In a backward pass the tensors it is shown carry the graph of their computation: who keeps one
/// beyond the call keeps [`Tensor::detach`] of it.
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

    /// What one half of the block wrote, `added`, and the residual stream after it, both
    /// `[tokens, hidden]`.
    ///
    /// # Errors
    /// As [`input`](Self::input).
    fn residual(&mut self, half: Half, added: &Tensor, stream: &Tensor) -> Result<()>;

    /// Which tokens of the chunk the rows of `expert` are, in their order; called before they are seen, with
    /// none for an expert that nobody chose.
    ///
    /// # Errors
    /// As [`input`](Self::input).
    fn routed(&mut self, _expert: usize, _tokens: &[u32]) -> Result<()> {
        Ok(())
    }

    /// Who looks at the gradients at `site`, should a backward pass follow; asked before the site
    /// computes. The gradient at a [`Port`] that one site reads (the hidden activation of an MLP or an
    /// expert) is that at the input of this site.
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

/// Nobody looks.
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
