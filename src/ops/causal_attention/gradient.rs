//! The gradients of causal attention, in the same tiles, their softmax computed again.
//!
//! ```text
//! p  = softmax(f(scale q kᵀ))       dp = dy vᵀ         f(s) = s, or cap tanh(s / cap)
//! ds = scale f' p (dp - Σ_j p dp)   dq = ds k      dk = Σ_heads dsᵀ q      dv = Σ_heads pᵀ dy
//! dy [b tq, heads d]    ->    dq like q    dk, dv like k, summed over the heads that share them
//! ```
//!
//! `10 d` flops per allowed score, five products where the forward has two. One task is one head of
//! keys of one text: it goes through the query heads that share it and their tiles in order, so the
//! sums over queries have one order whatever the number of threads.

use candle_core::{CpuStorage, CudaStorage, CustomOp3, Layout, Shape, Storage, Tensor};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::{CausalAttention, Mask, MaskedSoftmax, Sizes};
use crate::ops::lanes::{self, Kernel};
use crate::ops::operand;

/// Queries of one tile: its probabilities and their gradients together take the second-level cache.
const QUERIES: usize = 64;

/// The gradients of q, k and v.
pub(super) fn gradients(
    attention: CausalAttention,
    [q, k, v]: [&Tensor; 3],
    dy: &Tensor,
) -> candle_core::Result<[Tensor; 3]> {
    let dy = dy.contiguous()?;
    // One storage for the three.
    let all = q.apply_op3_no_bwd(k, v, &Gradient { attention, dy })?;
    let (queries, keys) = (q.elem_count(), k.elem_count());
    Ok([
        all.narrow(0, 0, queries)?.reshape(q.shape())?,
        all.narrow(0, queries, keys)?.reshape(k.shape())?,
        all.narrow(0, queries + keys, keys)?.reshape(v.shape())?,
    ])
}

/// dq, dk and dv one after the other.
struct Gradient {
    attention: CausalAttention,
    /// `[b tq, heads d]`; a fourth operand, for which candle has no op.
    dy: Tensor,
}

impl CustomOp3 for Gradient {
    fn name(&self) -> &'static str {
        "causal_attention_gradient"
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
        let (_, heads, tq, d) = q_layout.shape().dims4()?;
        let (_, kv_heads, tk, _) = k_layout.shape().dims4()?;
        let sizes = Sizes { heads, kv_heads, tq, tk, d };
        let q = operand::elements::<f32>(q, q_layout)?;
        let k = operand::elements::<f32>(k, k_layout)?;
        let v = operand::elements::<f32>(v, v_layout)?;
        let (dy, dy_layout) = self.dy.storage_and_layout();
        let Storage::Cpu(dy) = &*dy else {
            return Err(candle_core::Error::Msg("dy is on another device".into()));
        };
        let dy = operand::elements::<f32>(dy, dy_layout)?;
        let mut all = vec![0.0; q.len() + 2 * k.len()];
        let shape = Shape::from(all.len());
        if q.is_empty() {
            return Ok((CpuStorage::F32(all), shape));
        }
        let (dq, rest) = all.split_at_mut(q.len());
        let (dk, dv) = rest.split_at_mut(k.len());
        let (queries, keys) = (heads / kv_heads * tq * d, tk * d);
        let gradients = dk.par_chunks_mut(keys).zip(dv.par_chunks_mut(keys));
        let gradients = dq.par_chunks_mut(queries).zip(gradients);
        gradients.enumerate().for_each(|(index, (dq, (dk, dv)))| {
            let dy = &dy[index / kv_heads * tq * heads * d..][..tq * heads * d];
            let group = Group {
                q: &q[index * queries..][..queries],
                k: &k[index * keys..][..keys],
                v: &v[index * keys..][..keys],
                dy: &dy[index % kv_heads * (heads / kv_heads) * d..],
                sizes,
            };
            group.gradients(self.attention, dq, dk, dv);
        });
        Ok((CpuStorage::F32(all), shape))
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
        let (dy, dy_layout) = self.dy.storage_and_layout();
        let Storage::Cuda(dy) = &*dy else {
            return Err(candle_core::Error::Msg("dy is on another device".into()));
        };
        let (q, k, v) = ((q, q_layout), (k, k_layout), (v, v_layout));
        self.attention.launch_gradient(q, k, v, (dy, dy_layout))
    }
}

/// The heads of queries of one text that share a head of keys and values.
struct Group<'a> {
    /// `[heads / kv_heads, tq, d]`.
    q: &'a [f32],
    /// `[tk, d]`.
    k: &'a [f32],
    /// `[tk, d]`.
    v: &'a [f32],
    /// Rows of `heads d`, from the first channel of the first head on.
    dy: &'a [f32],
    sizes: Sizes,
}

impl Group<'_> {
    /// Fills `dq`, laid out as q is, and adds to `dk` and `dv`, laid out as k is.
    fn gradients(
        &self,
        attention: CausalAttention,
        dq: &mut [f32],
        dk: &mut [f32],
        dv: &mut [f32],
    ) {
        let Sizes { heads, tq, d, .. } = self.sizes;
        let longest = QUERIES.min(tq) * attention.visible(0, tq).0.end;
        let (mut p, mut ds) = (vec![0.0; longest], vec![0.0; longest]);
        // The bent scores `tanh(s / cap)`, where there is a cap.
        let mut bent = attention.scores.cap.map(|_| vec![0.0; longest]);
        for (head, dq) in dq.chunks_exact_mut(tq * d).enumerate() {
            for (tile, dq) in dq.chunks_mut(QUERIES * d).enumerate() {
                let (from, queries) = (tile * QUERIES, dq.len() / d);
                let (visible, mask) = attention.visible(from, queries);
                let keys = visible.len();
                let (p, ds) = (&mut p[..queries * keys], &mut ds[..queries * keys]);
                let seen = visible.start * d..visible.end * d;
                let q = &self.q[(head * tq + from) * d..][..queries * d];
                let q = MatRef::from_row_major_slice(q, queries, d);
                let k = MatRef::from_row_major_slice(&self.k[seen.clone()], keys, d);
                let v = MatRef::from_row_major_slice(&self.v[seen.clone()], keys, d);
                let dk = MatMut::from_row_major_slice_mut(&mut dk[seen.clone()], keys, d);
                let dv = MatMut::from_row_major_slice_mut(&mut dv[seen], keys, d);
                let dq = MatMut::from_row_major_slice_mut(dq, queries, d);
                // Rows seen as columns: faer 0.24's row-major view with a stride mixes the two up.
                let dy = &self.dy[from * heads * d + head * d..];
                let dy = MatRef::from_column_major_slice_with_stride(dy, d, queries, heads * d);
                let dy = dy.transpose();

                let product = MatMut::from_row_major_slice_mut(p, queries, keys);
                matmul(product, Accum::Replace, q, k.transpose(), 1.0, Par::Seq);
                let scale = attention.scores.bend(p);
                let bent = bent.as_mut().map(|bent| &mut bent[..p.len()]);
                let bent = bent.map(|bent| {
                    bent.copy_from_slice(p);
                    &*bent
                });
                lanes::run(MaskedSoftmax { scale, mask, scores: p, keys });
                let product = MatMut::from_row_major_slice_mut(ds, queries, keys);
                matmul(product, Accum::Replace, dy, v.transpose(), 1.0, Par::Seq);
                lanes::run(ScoreGradients { scale: attention.scores.scale, mask, p, ds, keys });
                if let Some(bent) = bent {
                    lanes::run(Unbend { bent, ds });
                }
                let p = MatRef::from_row_major_slice(p, queries, keys);
                let ds = MatRef::from_row_major_slice(ds, queries, keys);
                matmul(dv, Accum::Add, p.transpose(), dy, 1.0, Par::Seq);
                matmul(dq, Accum::Replace, ds, k, 1.0, Par::Seq);
                matmul(dk, Accum::Add, ds.transpose(), q, 1.0, Par::Seq);
            }
        }
    }
}

/// Turns gradients at bent scores into gradients at straight ones, in place: `tanh' = 1 - tanh²`.
struct Unbend<'a> {
    bent: &'a [f32],
    ds: &'a mut [f32],
}

impl Kernel for Unbend<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (ds, &t) in self.ds.iter_mut().zip(self.bent) {
            *ds *= (1.0 - t) * (1.0 + t);
        }
    }
}

/// Rows of `ds [queries, keys]`, gradients of the probabilities `p`, each replaced by the gradients
/// of the scores before scale and softmax; zero where a query may not attend.
struct ScoreGradients<'a> {
    scale: f32,
    mask: Mask,
    p: &'a [f32],
    ds: &'a mut [f32],
    keys: usize,
}

impl Kernel for ScoreGradients<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let rows = self.p.chunks_exact(self.keys).zip(self.ds.chunks_exact_mut(self.keys));
        for (row, (p, ds)) in rows.enumerate() {
            let allowed = self.mask.allowed(row);
            let p = &p[allowed.clone()];
            let (ds, after) = ds.split_at_mut(allowed.end);
            let (before, ds) = ds.split_at_mut(allowed.start);
            before.fill(0.0);
            after.fill(0.0);
            let mean = lanes::dot(p, ds) as f32;
            for (ds, &p) in ds.iter_mut().zip(p) {
                *ds = self.scale * p * (*ds - mean);
            }
        }
    }
}
