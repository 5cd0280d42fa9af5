//! Grouped-query causal attention: rotary positions or none, optional qk-norm, sliding window and
//! soft cap of the scores.

use candle_core::{Device, Tensor};

use super::block::BlockContext;
use super::linear::Linear;
use super::norm::Norm;
use super::{KvCache, Observer};
use crate::arch::{ModelSpec, Port, Site};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::ops;

/// The attention half of a block.
#[derive(Debug)]
pub(super) struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
    scores: ops::Scores,
}

impl Attention {
    /// Reads the linears and norms of `layer`; `sites` are q, k, v, o in that order.
    pub(super) fn load(
        checkpoint: &Checkpoint,
        spec: &ModelSpec,
        layer: usize,
        [q, k, v, o]: [&Site; 4],
        device: &Device,
    ) -> Result<Self> {
        let (a, names) = (&spec.attention, &spec.family.names);
        let norm = |name: &str| {
            let module = format!("{}{layer}.{name}", names.layer);
            a.qk_norm.then(|| Norm::load(checkpoint, spec.norm, &module, device)).transpose()
        };
        let q = Linear::load(checkpoint, q, device)?;
        let scores = ops::Scores {
            scale: a.scale as f32,
            cap: a.score_cap.map(|cap| cap as f32),
            in_bf16: q.is_bf16(),
        };
        Ok(Self {
            q,
            k: Linear::load(checkpoint, k, device)?,
            v: Linear::load(checkpoint, v, device)?,
            o: Linear::load(checkpoint, o, device)?,
            q_norm: norm(names.q_norm)?,
            k_norm: norm(names.k_norm)?,
            heads: a.heads,
            kv_heads: a.kv_heads,
            head_dim: a.head_dim,
            window: spec.layers[layer].window,
            scores,
        })
    }

    /// Normed rows `x [batch · length, hidden]` to rows of the same shape.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        context: &BlockContext<'_>,
        cache: Option<&mut KvCache>,
        observer: &mut dyn Observer,
    ) -> Result<Tensor> {
        let (batch, length) = (context.batch, context.length);
        observer.input(Port::AttnIn, x)?;
        let rows = self.q.forward(x, observer)?;
        let q = self.rotated(rows, self.heads, self.q_norm.as_ref(), context)?;
        let rows = self.k.forward(x, observer)?;
        let k = self.rotated(rows, self.kv_heads, self.k_norm.as_ref(), context)?;
        let rows = self.v.forward(x, observer)?;
        let v = ops::heads_first(&rows.reshape((batch, length, self.kv_heads, self.head_dim))?)?;
        drop(rows);
        let (k, v) = match cache {
            Some(cache) => cache.extend(k, v)?,
            None => (k, v),
        };
        let mixed = ops::causal_attention(&q, &k, &v, self.scores, context.first, self.window)?;
        drop((q, k, v));
        observer.input(Port::AttnOut, &mixed)?;
        self.o.forward(&mixed, observer)
    }

    /// Projected rows to `[batch, heads, length, head_dim]`, normed where the family norms, rotated
    /// as far as it rotates.
    #[expect(clippy::needless_pass_by_value, reason = "the rows go when they are turned")]
    fn rotated(
        &self,
        rows: Tensor,
        heads: usize,
        norm: Option<&Norm>,
        context: &BlockContext<'_>,
    ) -> Result<Tensor> {
        let split = rows.reshape((context.batch, context.length, heads, self.head_dim))?;
        match norm {
            Some(norm) => norm.forward_rotated(&split, context.cos, context.sin),
            None => ops::rope(&split, context.cos, context.sin),
        }
    }
}
