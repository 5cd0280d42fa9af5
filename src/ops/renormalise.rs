//! Shares of the chosen experts, made to add up to one.
//!
//! ```text
//! y[t, i] = x[t, i] / Σ_j x[t, j]
//! x [t, k] f32, positive sums    ->    y [t, k] f32
//! gradient:  dx[t, i] = (dy[t, i] - Σ_j dy[t, j] y[t, j]) / Σ_j x[t, j]
//! ```
//!
//! A few numbers per token; sums run from the first column on.

use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp3, DType, Layout, Shape, Tensor};

use super::cuda::{Grid, Launch};
use super::operand;
use crate::error::Result;

const OP: &str = "renormalise";

/// Rows of `x [t, k]` divided by their sums.
///
/// # Errors
/// Operands that do not fit are [`Error::Bug`](crate::error::Error::Bug): shapes are checked when
/// a model is read.
pub fn renormalise(x: &Tensor) -> Result<Tensor> {
    operand::expect(OP, "x", x, DType::F32)?;
    match x.dims() {
        [_, k] if *k > 0 => Ok(x.apply_op1(Renormalise)?),
        dims => Err(operand::refuse(OP, format_args!("x has shape {dims:?}, expected [t, k]"))),
    }
}

struct Renormalise;

impl CustomOp1 for Renormalise {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let k = layout.shape().dims2()?.1;
        let mut y = operand::elements::<f32>(x, layout)?.to_vec();
        for row in y.chunks_exact_mut(k) {
            let total: f32 = row.iter().sum();
            for y in row {
                *y /= total;
            }
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let (rows, k) = x_layout.shape().dims2()?;
        let y = Launch::new(OP, x)
            .read(x, x_layout)?
            .output(DType::F32, rows * k)?
            .int(rows)
            .int(k)
            .run(Grid::threads_for(rows))?
            .one()?;
        Ok((y, x_layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(x.apply_op3_no_bwd(y, &dy.contiguous()?, &RenormaliseGradient)?))
    }
}

/// `dx` from x, y and dy.
struct RenormaliseGradient;

impl CustomOp3 for RenormaliseGradient {
    fn name(&self) -> &'static str {
        "renormalise_gradient"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
        dy: &CpuStorage,
        dy_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let k = x_layout.shape().dims2()?.1;
        let x = operand::elements::<f32>(x, x_layout)?;
        let y = operand::elements::<f32>(y, y_layout)?;
        let mut dx = operand::elements::<f32>(dy, dy_layout)?.to_vec();
        let rows = x.chunks_exact(k).zip(y.chunks_exact(k));
        for ((x, y), dx) in rows.zip(dx.chunks_exact_mut(k)) {
            let total: f32 = x.iter().sum();
            let mean: f32 = dx.iter().zip(y).map(|(dy, y)| dy * y).sum();
            for dx in dx {
                *dx = (*dx - mean) / total;
            }
        }
        Ok((CpuStorage::F32(dx), x_layout.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        y: &CudaStorage,
        y_layout: &Layout,
        dy: &CudaStorage,
        dy_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let (rows, k) = x_layout.shape().dims2()?;
        let dx = Launch::of(OP, "renormalise_gradient", x)
            .read(x, x_layout)?
            .read(y, y_layout)?
            .read(dy, dy_layout)?
            .output(DType::F32, rows * k)?
            .int(rows)
            .int(k)
            .run(Grid::threads_for(rows))?
            .one()?;
        Ok((dx, x_layout.shape().clone()))
    }
}
