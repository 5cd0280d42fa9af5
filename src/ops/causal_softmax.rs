//! Softmax of attention scores under a causal mask, with an optional sliding window.
//!
//! ```text
//! p = first_query + i        key j is allowed iff j <= p and (no window or p - j < window)
//! y[.., i, j] = e^(scale s[.., i, j]) / sum over allowed j' of e^(scale s[.., i, j'])    if allowed
//!             = 0                                                                        else
//! s [b, h, tq, tk] f32    ->    y [b, h, tq, tk] f32
//! ```
//!
//! About 20 flops per allowed score; 4 bytes read per allowed score and 4 written per score. Masked
//! scores are never read. The exponentials of a row are summed in f32 lanes, the lanes in f64.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, DType, InplaceOp1, Layout, Shape, Tensor};

use super::lanes::{self, Kernel, LANES};
use super::operand;
use crate::error::Result;

const OP: &str = "causal_softmax";

/// The masked softmax of `scores [b, h, tq, tk]`, as a new tensor.
///
/// Row `i` is the query at position `first_query + i`; keys are at positions `0..tk`.
///
/// # Errors
/// A query without a key, or what does not fit, is [`Error::Bug`](crate::error::Error::Bug).
pub fn causal_softmax(
    scores: &Tensor,
    scale: f32,
    first_query: usize,
    window: Option<usize>,
) -> Result<Tensor> {
    let op = CausalSoftmax { scale, mask: Mask { first_query, window } };
    op.check(scores)?;
    Ok(scores.apply_op1(op)?)
}

/// The same in the memory of `scores`, which saves one tensor of the size of the scores and the
/// traffic of it.
///
/// Taken by value because whatever else shares this storage (a clone, a view) changes with it: pass
/// the fresh result of a matmul.
///
/// # Errors
/// As [`causal_softmax`]; and a tensor that takes part in autograd is refused.
pub fn causal_softmax_in_place(
    scores: Tensor,
    scale: f32,
    first_query: usize,
    window: Option<usize>,
) -> Result<Tensor> {
    let op = CausalSoftmax { scale, mask: Mask { first_query, window } };
    op.check(&scores)?;
    if scores.track_op() {
        return Err(operand::refuse(OP, "scores take part in autograd, in-place would break it"));
    }
    scores.inplace_op1(&op)?;
    Ok(scores)
}

struct CausalSoftmax {
    scale: f32,
    mask: Mask,
}

/// Which keys a query may attend to.
#[derive(Clone, Copy)]
pub(super) struct Mask {
    /// Position of the first query row.
    pub(super) first_query: usize,
    /// Keys a query sees, itself included; all before it without one.
    pub(super) window: Option<usize>,
}

impl Mask {
    /// The keys that query row `row` may attend to, before clipping to `tk`.
    #[inline(always)]
    fn allowed(self, row: usize) -> Range<usize> {
        let end = self.first_query + row + 1;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }
}

impl CausalSoftmax {
    fn check(&self, scores: &Tensor) -> Result<()> {
        operand::expect(OP, "scores", scores, DType::F32)?;
        let &[_, _, tq, tk] = scores.dims() else {
            let dims = scores.dims();
            return Err(operand::refuse(
                OP,
                format_args!("scores have shape {dims:?}, expected [b, h, tq, tk]"),
            ));
        };
        if !(self.scale.is_finite() && self.scale > 0.0) {
            return Err(operand::refuse(OP, format_args!("scale is {}", self.scale)));
        }
        if self.mask.first_query.checked_add(tq).is_none() {
            let first = self.mask.first_query;
            return Err(operand::refuse(OP, format_args!("{tq} queries from position {first}")));
        }
        // The last query's window starts furthest right.
        if let Some(last) = tq.checked_sub(1) {
            let allowed = self.mask.allowed(last);
            if allowed.start >= allowed.end.min(tk) {
                let position = self.mask.first_query + last;
                let window = self.mask.window;
                return Err(operand::refuse(
                    OP,
                    format_args!(
                        "query {position} may attend to none of {tk} keys (window {window:?})"
                    ),
                ));
            }
        }
        Ok(())
    }
}

impl CustomOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        scores: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (_, _, tq, tk) = layout.shape().dims4()?;
        let scores = operand::elements::<f32>(scores, layout)?;
        let mut y = vec![0.0; scores.len()];
        lanes::for_row_blocks(&mut y, tk, |first, y| {
            let scores = &scores[first * tk..first * tk + y.len()];
            lanes::run(Rows { scores, scale: self.scale, mask: self.mask, first, tq, tk, y });
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }
}

impl InplaceOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, scores: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (_, _, tq, tk) = layout.shape().dims4()?;
        let (start, end) = operand::range(layout)?;
        let CpuStorage::F32(scores) = scores else {
            return Err(candle_core::Error::Msg("scores are not f32".into()));
        };
        lanes::for_row_blocks(&mut scores[start..end], tk, |first, y| {
            lanes::run(RowsInPlace { scale: self.scale, mask: self.mask, first, tq, tk, y });
        });
        Ok(())
    }
}

/// Rows `first..` of the scores, counted over `[b, h, tq]`; y is zero where it comes from.
struct Rows<'a> {
    scores: &'a [f32],
    scale: f32,
    mask: Mask,
    first: usize,
    tq: usize,
    tk: usize,
    y: &'a mut [f32],
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let rows = self.scores.chunks_exact(self.tk).zip(self.y.chunks_exact_mut(self.tk));
        for (row, (scores, y)) in (self.first..).zip(rows) {
            let allowed = self.mask.allowed(row % self.tq);
            let allowed = allowed.start..allowed.end.min(self.tk);
            let y = &mut y[allowed.clone()];
            y.copy_from_slice(&scores[allowed]);
            softmax(y, self.scale);
        }
    }
}

/// Rows `first..` of the scores `y [.., tk]`, counted over `[b, h, tq]`, replaced by their softmax.
pub(super) struct RowsInPlace<'a> {
    pub(super) scale: f32,
    pub(super) mask: Mask,
    pub(super) first: usize,
    pub(super) tq: usize,
    pub(super) tk: usize,
    pub(super) y: &'a mut [f32],
}

impl Kernel for RowsInPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (row, y) in (self.first..).zip(self.y.chunks_exact_mut(self.tk)) {
            let allowed = self.mask.allowed(row % self.tq);
            let (y, after) = y.split_at_mut(allowed.end.min(self.tk));
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
