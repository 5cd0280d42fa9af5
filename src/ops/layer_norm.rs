//! Layer normalisation: mean and variance removed, scale and shift learned.
//!
//! ```text
//! y[.., i] = (x[.., i] - mean) / sqrt(variance + eps) * weight[i] + bias[i]
//! mean = mean_j x[.., j]    variance = mean_j (x[.., j] - mean)^2
//! x [.., d] f32    weight, bias [d] f32    ->    y [.., d] f32
//!
//! gradient:  dx[.., i] = r (h[.., i] - mean_j h[.., j] - z[.., i] mean_j h[.., j] z[.., j])
//!            r = 1 / sqrt(variance + eps)    z = (x - mean) r    h = dy * weight
//! ```
//!
//! Per row: 8 d flops, 8 d bytes of memory (x read, y written; the second and third pass find the
//! row in cache). Sums are taken in f32 lanes of d / 16 terms, the lanes and the root in f64; the
//! variance is summed around the mean, so that a large mean costs no digits. Weights and biases get
//! no gradient.

use candle_core::{CpuStorage, CudaStorage, CustomOp3, DType, Layout, Shape, Tensor};

use super::lanes::{self, Kernel};
use super::{operand, row_norm};
use crate::error::Result;

const OP: &str = "layer_norm";

/// Normalises every row of `x [.., d]`, scales it by `weight [d]` and adds `bias [d]`.
///
/// # Errors
/// Operands that do not fit are [`Error::Bug`](crate::error::Error::Bug): shapes are checked when
/// a model is read.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let d = row_norm::expect_operands(OP, x, weight)?;
    operand::expect(OP, "bias", bias, DType::F32)?;
    operand::expect_dims(OP, "bias", bias, &[d])?;
    Ok(x.apply_op3(weight, bias, LayerNorm { eps })?)
}

struct LayerNorm {
    eps: f64,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = operand::elements::<f32>(x, x_layout)?;
        let weight = operand::elements::<f32>(weight, weight_layout)?;
        let bias = operand::elements::<f32>(bias, bias_layout)?;
        let d = weight.len();
        let mut y = vec![0.0; x.len()];
        lanes::for_row_blocks(&mut y, d, |first, y| {
            let x = &x[first * d..][..y.len()];
            lanes::run(Rows { x, weight, bias, eps: self.eps, y });
        });
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let operands = [(weight, weight_layout), (bias, bias_layout)];
        row_norm::launch((OP, OP), (x, x_layout), operands, self.eps)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = LayerNormGradient { eps: self.eps };
        let dx = x.apply_op3_no_bwd(weight, &dy.contiguous()?, &gradient)?;
        Ok((Some(dx), None, None))
    }
}

struct LayerNormGradient {
    eps: f64,
}

impl CustomOp3 for LayerNormGradient {
    fn name(&self) -> &'static str {
        "layer_norm_gradient"
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
            let (x, dy) = (&x[first * d..][..dx.len()], &dy[first * d..][..dx.len()]);
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
        row_norm::launch((OP, "layer_norm_gradient"), (x, x_layout), operands, self.eps)
    }
}

struct Rows<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f64,
    y: &'a mut [f32],
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let d = self.weight.len();
        for (x, y) in self.x.chunks_exact(d).zip(self.y.chunks_exact_mut(d)) {
            let (mean, inverse) = moments(x, self.eps);
            for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(self.weight).zip(self.bias) {
                *y = ((x - mean) * inverse) * w + b;
            }
        }
    }
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
            let (mean, inverse) = moments(x, self.eps);
            for ((dx, &dy), &w) in dx.iter_mut().zip(dy).zip(self.weight) {
                *dx = dy * w;
            }
            let along_one = (lanes::sum_by(dx, |_, h| h) / d as f64) as f32;
            let along_x = lanes::sum_by(dx, |i, h| h * ((x[i] - mean) * inverse)) / d as f64;
            let along_x = along_x as f32;
            for (dx, &x) in dx.iter_mut().zip(x) {
                *dx = inverse * (*dx - along_one - ((x - mean) * inverse) * along_x);
            }
        }
    }
}

/// Mean of a row, and the inverse of its standard deviation.
#[inline(always)]
fn moments(x: &[f32], eps: f64) -> (f32, f32) {
    let d = x.len() as f64;
    let mean = (lanes::sum_by(x, |_, v| v) / d) as f32;
    let variance = lanes::sum_by(x, |_, v| (v - mean) * (v - mean)) / d;
    (mean, (1.0 / (variance + eps).sqrt()) as f32)
}
