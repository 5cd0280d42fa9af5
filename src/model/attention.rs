//! Grouped-query causal attention: rotary positions or none, optional qk-norm, sliding window and
//! soft cap of the scores.

use candle_core::{Device, Tensor};

use super::context::Positions;
use super::linear::Linear;
use super::norm::Norm;
use super::source::View;
use super::{KvCache, Observer};
use crate::arch::{Port, Role};
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
    /// Reads the linears and norms of `layer`.
    pub(super) fn load(view: View<'_>, layer: usize, device: &Device) -> Result<Self> {
        let (checkpoint, spec) = (view.model.checkpoint(), view.model.spec());
        let (a, names) = (&spec.attention, &spec.family.names);
        let norm = |name: &str| {
            let module = format!("{}{layer}.{name}", names.layer);
            a.qk_norm.then(|| Norm::load(checkpoint, spec.norm, &module, device)).transpose()
        };
        let linear = |role| Linear::load(view.source, view.site(layer, role, None)?, device);
        let q = linear(Role::AttnQ)?;
        let scores = ops::Scores {
            scale: a.scale as f32,
            cap: a.score_cap.map(|cap| cap as f32),
            in_bf16: q.is_bf16(),
        };
        Ok(Self {
            q,
            k: linear(Role::AttnK)?,
            v: linear(Role::AttnV)?,
            o: linear(Role::AttnO)?,
            q_norm: norm(names.q_norm)?,
            k_norm: norm(names.k_norm)?,
            heads: a.heads,
            kv_heads: a.kv_heads,
            head_dim: a.head_dim,
            window: spec.layers[layer].window,
            scores,
        })
    }

    /// The linears.
    pub(super) fn into_linears(self) -> impl Iterator<Item = Linear> {
        [self.q, self.k, self.v, self.o].into_iter()
    }

    /// Normed rows `x [batch · length, hidden]` to rows of the same shape.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        positions: &Positions<'_>,
        cache: Option<&mut KvCache>,
        observer: &mut dyn Observer,
    ) -> Result<Tensor> {
        let (batch, length) = (positions.batch, positions.length);
        observer.input(Port::AttnIn, x)?;
        let rows = self.q.forward(x, observer)?;
        let q = self.rotated(rows, self.heads, self.q_norm.as_ref(), positions)?;
        let rows = self.k.forward(x, observer)?;
        let k = self.rotated(rows, self.kv_heads, self.k_norm.as_ref(), positions)?;
        let rows = self.v.forward(x, observer)?;
        let v = ops::heads_first(&rows.reshape((batch, length, self.kv_heads, self.head_dim))?)?;
        drop(rows);
        let (k, v) = match cache {
            Some(cache) => cache.extend(k, v)?,
            None => (k, v),
        };
        let mixed = ops::causal_attention(&q, &k, &v, self.scores, positions.first, self.window)?;
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
        positions: &Positions<'_>,
    ) -> Result<Tensor> {
        let split = rows.reshape((positions.batch, positions.length, heads, self.head_dim))?;
        match norm {
            Some(norm) => norm.forward_rotated(&split, positions.cos, positions.sin),
            None => ops::rope(&split, positions.cos, positions.sin),
        }
    }
}
