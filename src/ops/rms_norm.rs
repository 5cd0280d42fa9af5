//! Root-mean-square normalisation, the decoder's norm.
//!
//! ```text
//! y[.., i] = x[.., i] / sqrt(mean_j x[.., j]^2 + eps) * weight[i]
//! x [.., d] f32    weight [d] f32    ->    y [.., d] f32
//! ```
//!
//! Per row: 4 d flops, 8 d bytes of memory (x read, y written; weight stays in cache). Squares are
//! summed in f32 lanes of d / 16 terms, the lanes and the root in f64.

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Shape, Tensor};

use super::lanes::{self, Kernel, LANES};
use super::operand;
use crate::error::Result;

const OP: &str = "rms_norm";

/// Normalises every row of `x [.., d]` and scales it by `weight [d]`.
///
/// # Errors
/// What does not fit is [`Error::Bug`](crate::error::Error::Bug): shapes are checked when a model
/// is read.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    operand::expect(OP, "x", x, DType::F32)?;
    operand::expect(OP, "weight", weight, DType::F32)?;
    let Some(&d) = x.dims().last() else {
        return Err(operand::refuse(OP, "x is a scalar, expected [.., d]"));
    };
    operand::expect_dims(OP, "weight", weight, &[d])?;
    Ok(x.apply_op2(weight, RmsNorm { eps })?)
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
    let mut squares = [0.0; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &v) in squares.iter_mut().zip(chunk) {
            *lane += v * v;
        }
    }
    lanes::total(&squares) + tail.iter().map(|&v| f64::from(v * v)).sum::<f64>()
}
