//! Root-mean-square normalisation, the decoder's norm.
//!
//! ```text
//! y[.., i] = x[.., i] / sqrt(mean_j x[.., j]^2 + eps) * weight[i]
//! x [.., d] f32    weight [d] f32    ->    y [.., d] f32
//!
//! gradient, with r = 1 / sqrt(mean_j x[j]^2 + eps):
//! dx[.., i] = r (weight[i] dy[i] - x[i] r^2 mean_j(weight[j] dy[j] x[j]))
//! ```
//!
//! Per row: 4 d flops, 8 d bytes of memory (x read, y written; weight stays in cache). Squares are
//! summed in f32 lanes of d / 16 terms, the lanes and the root in f64. The gradient takes 9 d flops and
//! 12 d bytes; the weight gets none.

use candle_core::{CpuStorage, CudaStorage, CustomOp2, CustomOp3, Layout, Shape, Tensor};

use super::lanes::{self, Kernel, LANES};
use super::{operand, row_norm};
use crate::error::Result;

pub(super) const OP: &str = "rms_norm";

/// Normalises every row of `x [.., d]` and scales it by `weight [d]`.
///
/// # Errors
/// Operands that do not fit are [`Error::Bug`](crate::error::Error::Bug): shapes are checked when
/// a model is read.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    row_norm::expect_operands(OP, x, weight)?;
    Ok(x.apply_op2(weight, RmsNorm { eps })?)
}

/// The gradient at x from the gradient `dy` at y.
pub(super) fn gradient(
    x: &Tensor,
    weight: &Tensor,
    dy: &Tensor,
    eps: f64,
) -> candle_core::Result<Tensor> {
    x.apply_op3_no_bwd(weight, dy, &RmsNormGradient { eps })
}

struct RmsNorm {
    eps: f64,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = operand::elements::<f32>(x, x_layout)?;
        let weight = operand::elements::<f32>(weight, weight_layout)?;
        let d = weight.len();
        let mut y = vec![0.0; x.len()];
        lanes::for_row_blocks(&mut y, d, |first, y| {
            let x = &x[first * d..first * d + y.len()];
            lanes::run(Rows { x, weight, eps: self.eps, y });
        });
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let operands = [(weight, weight_layout)];
        row_norm::launch((OP, OP), (x, x_layout), operands, self.eps)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(gradient(x, weight, &dy.contiguous()?, self.eps)?), None))
    }
}

/// `dx` from x, weight and dy.
struct RmsNormGradient {
    eps: f64,
}

impl CustomOp3 for RmsNormGradient {
    fn name(&self) -> &'static str {
        "rms_norm_gradient"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        dy: &CpuStorage,
        dy_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = operand::elements::<f32>(x, x_layout)?;
        let weight = operand::elements::<f32>(weight, weight_layout)?;
        let dy = operand::elements::<f32>(dy, dy_layout)?;
        let d = weight.len();
        let mut dx = vec![0.0; x.len()];
        lanes::for_row_blocks(&mut dx, d, |first, dx| {
            let block = first * d..first * d + dx.len();
            let (x, dy) = (&x[block.clone()], &dy[block]);
            lanes::run(GradientRows { x, weight, dy, eps: self.eps, dx });
        });
        Ok((CpuStorage::F32(dx), x_layout.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
        dy: &CudaStorage,
        dy_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let operands = [(weight, weight_layout), (dy, dy_layout)];
        row_norm::launch((OP, "rms_norm_gradient"), (x, x_layout), operands, self.eps)
    }
}

struct Rows<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f64,
    y: &'a mut [f32],
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let d = self.weight.len();
        for (x, y) in self.x.chunks_exact(d).zip(self.y.chunks_exact_mut(d)) {
            let inverse = (1.0 / (sum_of_squares(x) / d as f64 + self.eps).sqrt()) as f32;
            for ((y, &x), &w) in y.iter_mut().zip(x).zip(self.weight) {
                *y = (x * inverse) * w;
            }
        }
    }
}

#[inline(always)]
fn sum_of_squares(x: &[f32]) -> f64 {
    lanes::sum_by(x, |_, v| v * v)
}

struct GradientRows<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    dy: &'a [f32],
    eps: f64,
    dx: &'a mut [f32],
}

impl Kernel for GradientRows<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let d = self.weight.len();
        let rows = self.x.chunks_exact(d).zip(self.dy.chunks_exact(d));
        for ((x, dy), dx) in rows.zip(self.dx.chunks_exact_mut(d)) {
            let inverse = 1.0 / (sum_of_squares(x) / d as f64 + self.eps).sqrt();
            let mean = weighted_dot(x, self.weight, dy) / d as f64;
            let (r, along) = (inverse as f32, (inverse * inverse * mean) as f32);
            let inputs = x.iter().zip(self.weight).zip(dy);
            for (dx, ((&x, &w), &dy)) in dx.iter_mut().zip(inputs) {
                *dx = r * (w * dy - x * along);
            }
        }
    }
}

/// `sum_j weight[j] dy[j] x[j]`, summed as squares are.
#[inline(always)]
fn weighted_dot(x: &[f32], weight: &[f32], dy: &[f32]) -> f64 {
    let mut sums = [0.0; LANES];
    let (x, x_tail) = x.as_chunks::<LANES>();
    let (weight, weight_tail) = weight.as_chunks::<LANES>();
    let (dy, dy_tail) = dy.as_chunks::<LANES>();
    for ((x, weight), dy) in x.iter().zip(weight).zip(dy) {
        for (((lane, &x), &w), &dy) in sums.iter_mut().zip(x).zip(weight).zip(dy) {
            *lane += w * dy * x;
        }
    }
    let tail = x_tail.iter().zip(weight_tail).zip(dy_tail);
    lanes::total(&sums) + tail.map(|((&x, &w), &dy)| f64::from(w * dy * x)).sum::<f64>()
}
