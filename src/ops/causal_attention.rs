//! Grouped-query causal attention in tiles of queries, with an optional sliding window.
//!
//! ```text
//! p = first + i       key j is allowed iff j <= p and (no window or p - j < window)
//! y[b, i, h] = Σ_j softmax_j(f(scale q[b, h, i] · k[b, g, j])) v[b, g, j]  g = h / (heads / kv_heads)
//! f(s) = s, or cap tanh(s / cap)
//! q [b, heads, tq, d]    k, v [b, kv_heads, tk, d]    ->    y [b tq, heads d]    all f32
//! gradients of q, k and v:  see `gradient.rs`
//! ```
//!
//! `4 d` flops per allowed score. Scores exist for one tile of [`QUERIES`] queries of one head at a
//! time, and only for keys that some query of the tile may see: half of the square for a long text.
//! A tile is one task, so results do not depend on the number of threads.

mod cuda;
mod gradient;

use std::borrow::Cow;
use std::ops::Range;

use candle_core::{CpuStorage, CudaStorage, CustomOp3, DType, Layout, Shape, Tensor};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use half::bf16;
use rayon::prelude::*;

use super::lanes::{self, Kernel, LANES};
use super::operand;
use crate::error::Result;

const OP: &str = "causal_attention";

/// Queries of one tile: its scores over a few thousand keys stay in the second-level cache.
const QUERIES: usize = 64;

/// Scale and soft cap of the scores before the softmax, and the precision of the products.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scores {
    /// Factor of `q · k`; positive.
    pub scale: f32,
    /// `c`, where a scaled score `s` becomes `c tanh(s / c)`; positive.
    pub cap: Option<f32>,
    /// Whether q, k and v are rounded to bf16 (and on a GPU, whose tensor cores then multiply them,
    /// the weights of the softmax too), as the products of a model in bf16 are. Gradients are not.
    pub in_bf16: bool,
}

impl Scores {
    /// Returns the factor that makes `products` of `q · k` scores: the scale, or the cap, once they are
    /// bent to `tanh(scale q · k / cap)` in place.
    fn bend(self, products: &mut [f32]) -> f32 {
        let Some(cap) = self.cap else { return self.scale };
        lanes::run(Bend { by: self.scale / cap, products });
        cap
    }
}

impl Scores {
    /// Returns an operand as it is multiplied: rounded to bf16 where the products are in bf16.
    fn rounded(self, x: &[f32]) -> Cow<'_, [f32]> {
        match self.in_bf16 {
            true => x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect(),
            false => Cow::Borrowed(x),
        }
    }
}

/// `tanh(by x)` of every element, in place.
struct Bend<'a> {
    by: f32,
    products: &'a mut [f32],
}

impl Kernel for Bend<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for x in self.products {
            *x = lanes::tanh(*x * self.by);
        }
    }
}

/// Attention of `q [b, heads, tq, d]`, the first at position `first`, over all of `k` and `v`
/// `[b, kv_heads, tk, d]`, which are at positions `0..tk`. Rows of the result are `[b · tq, heads · d]`.
///
/// # Errors
/// Shapes that do not fit, or keys that end before the last query, are bugs of the caller.
pub fn causal_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scores: Scores,
    first: usize,
    window: Option<usize>,
) -> Result<Tensor> {
    for (name, tensor) in [("q", q), ("k", k), ("v", v)] {
        operand::expect(OP, name, tensor, DType::F32)?;
    }
    let (b, heads, tq, d) = q.dims4()?;
    let (_, kv_heads, tk, _) = k.dims4()?;
    operand::expect_dims(OP, "k", k, &[b, kv_heads, tk, d])?;
    operand::expect_dims(OP, "v", v, &[b, kv_heads, tk, d])?;
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        let why = format_args!("{heads} heads cannot share {kv_heads} of keys and values");
        return Err(operand::refuse(OP, why));
    }
    if first + tq > tk || window == Some(0) {
        let why = format_args!("{tq} queries from {first} over {tk} keys, window {window:?}");
        return Err(operand::refuse(OP, why));
    }
    Ok(q.apply_op3(k, v, CausalAttention { scores, first, window })?)
}

#[derive(Clone, Copy)]
struct CausalAttention {
    scores: Scores,
    first: usize,
    window: Option<usize>,
}

impl CustomOp3 for CausalAttention {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (b, heads, tq, d) = q_layout.shape().dims4()?;
        let (_, kv_heads, tk, _) = k_layout.shape().dims4()?;
        let shape = Shape::from((b * tq, heads * d));
        let mut y = vec![0.0; shape.elem_count()];
        if y.is_empty() {
            return Ok((CpuStorage::F32(y), shape));
        }
        let q = self.scores.rounded(operand::elements::<f32>(q, q_layout)?);
        let k = self.scores.rounded(operand::elements::<f32>(k, k_layout)?);
        let v = self.scores.rounded(operand::elements::<f32>(v, v_layout)?);
        let sizes = Sizes { heads, kv_heads, tq, tk, d };
        let text = |b: usize| Text {
            q: &q[b * heads * tq * d..][..heads * tq * d],
            k: &k[b * kv_heads * tk * d..][..kv_heads * tk * d],
            v: &v[b * kv_heads * tk * d..][..kv_heads * tk * d],
            sizes,
        };
        y.par_chunks_mut(tq * heads * d).enumerate().for_each(|(b, y)| {
            let text = text(b);
            y.par_chunks_mut(QUERIES * heads * d).enumerate().for_each(|(tile, y)| {
                self.tile(&text, tile * QUERIES, y);
            });
        });
        Ok((CpuStorage::F32(y), shape))
    }

    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        q_layout: &Layout,
        k: &CudaStorage,
        k_layout: &Layout,
        v: &CudaStorage,
        v_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        self.launch((q, q_layout), (k, k_layout), (v, v_layout))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dq, dk, dv] = gradient::gradients(*self, [q, k, v], dy)?;
        Ok((Some(dq), Some(dk), Some(dv)))
    }
}

/// The operands of one text.
struct Text<'a> {
    /// `[heads, tq, d]`.
    q: &'a [f32],
    /// `[kv_heads, tk, d]`.
    k: &'a [f32],
    /// `[kv_heads, tk, d]`.
    v: &'a [f32],
    sizes: Sizes,
}

#[derive(Clone, Copy)]
struct Sizes {
    heads: usize,
    kv_heads: usize,
    tq: usize,
    tk: usize,
    d: usize,
}

impl CausalAttention {
    /// Fills `y [queries, heads d]` for the queries from row `from` of the text on.
    fn tile(&self, text: &Text<'_>, from: usize, y: &mut [f32]) {
        let Sizes { heads, kv_heads, tq, tk, d } = text.sizes;
        let width = heads * d;
        let queries = y.len() / width;
        let (visible, mask) = self.visible(from, queries);
        let keys = visible.len();
        let mut scores = vec![0.0; queries * keys];
        for head in 0..heads {
            let q = &text.q[(head * tq + from) * d..][..queries * d];
            let group = (head / (heads / kv_heads) * tk + visible.start) * d;
            let q = MatRef::from_row_major_slice(q, queries, d);
            let k = MatRef::from_row_major_slice(&text.k[group..][..keys * d], keys, d);
            let v = MatRef::from_row_major_slice(&text.v[group..][..keys * d], keys, d);
            let s = MatMut::from_row_major_slice_mut(&mut scores, queries, keys);
            matmul(s, Accum::Replace, q, k.transpose(), 1.0, Par::Seq);
            let scale = self.scores.bend(&mut scores);
            lanes::run(MaskedSoftmax { scale, mask, scores: &mut scores, keys });
            let s = MatRef::from_row_major_slice(&scores, queries, keys);
            // Rows of y seen as columns: faer 0.24's row-major view with a stride mixes the two up.
            let y = &mut y[head * d..];
            let y = MatMut::from_column_major_slice_with_stride_mut(y, d, queries, width);
            matmul(y.transpose_mut(), Accum::Replace, s, v, 1.0, Par::Seq);
        }
    }

    /// The keys that some of `queries` queries from row `from` on may see, and which of them each may.
    fn visible(&self, from: usize, queries: usize) -> (Range<usize>, Mask) {
        let position = self.first + from;
        let start = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        // Positions are counted from the first visible key.
        (start..position + queries, Mask { first: position - start, window: self.window })
    }
}

/// The keys that each query of a tile may attend to.
#[derive(Clone, Copy)]
struct Mask {
    /// Position of the first query.
    first: usize,
    /// Keys a query sees, itself included; all before it without one.
    window: Option<usize>,
}

impl Mask {
    /// The keys that query `row` of the tile may attend to.
    #[inline(always)]
    fn allowed(self, row: usize) -> Range<usize> {
        let end = self.first + row + 1;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }
}

/// Rows of `scores [queries, keys]`, each replaced by its softmax over the keys it may attend to and
/// zero elsewhere. Masked scores are never read.
struct MaskedSoftmax<'a> {
    scale: f32,
    mask: Mask,
    scores: &'a mut [f32],
    keys: usize,
}

impl Kernel for MaskedSoftmax<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (row, y) in self.scores.chunks_exact_mut(self.keys).enumerate() {
            let allowed = self.mask.allowed(row);
            let (y, after) = y.split_at_mut(allowed.end.min(self.keys));
            let (before, y) = y.split_at_mut(allowed.start);
            before.fill(0.0);
            after.fill(0.0);
            softmax(y, self.scale);
        }
    }
}

/// The softmax of `scale y`, in place.
#[inline(always)]
fn softmax(y: &mut [f32], scale: f32) {
    let max = lanes::max(y);
    let mut sums = [0.0; LANES];
    let (chunks, tail) = y.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for (sum, y) in sums.iter_mut().zip(chunk) {
            *y = lanes::exp((*y - max) * scale);
            *sum += *y;
        }
    }
    let mut sum = lanes::total(&sums);
    for y in tail {
        *y = lanes::exp((*y - max) * scale);
        sum += f64::from(*y);
    }
    let inverse = (1.0 / sum) as f32;
    for y in y {
        *y *= inverse;
    }
}
