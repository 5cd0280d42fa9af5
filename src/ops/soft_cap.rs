//! Values bent into `(-cap, cap)`: the soft cap of logits.
//!
//! ```text
//! y = cap tanh(x / cap)
//! x  any shape, f32    ->    y  the same shape, f32
//! gradient:  dx = dy (1 - (y / cap)^2)
//! ```
//!
//! About 30 flops and 8 bytes per element: bound by memory on several threads.

use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp2, DType, Layout, Shape, Tensor};

use super::cuda::{Grid, Launch};
use super::{lanes, operand};
use crate::error::Result;

const OP: &str = "soft_cap";

/// `cap tanh(x / cap)`, element by element; `cap` is positive.
///
/// # Errors
/// [`Error::Bug`](crate::error::Error::Bug) for an x that does not fit, or a cap that is not positive:
/// shapes are checked when a model is read.
pub fn soft_cap(x: &Tensor, cap: f32) -> Result<Tensor> {
    operand::expect(OP, "x", x, DType::F32)?;
    if cap.is_nan() || cap <= 0.0 {
        return Err(operand::refuse(OP, format_args!("cap is {cap}, expected more than 0")));
    }
    Ok(x.apply_op1(SoftCap { cap })?)
}

struct SoftCap {
    cap: f32,
}

impl CustomOp1 for SoftCap {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = operand::elements::<f32>(x, x_layout)?;
        let cap = self.cap;
        let y = lanes::map(x, |x| cap * lanes::tanh(x / cap));
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let shape = x_layout.shape().clone();
        let n = shape.elem_count();
        let y = Launch::new(OP, x)
            .read(x, x_layout)?
            .output(DType::F32, n)?
            .int(n)
            .float(self.cap)
            .run(Grid::elements(n))?
            .one()?;
        Ok((y, shape))
    }

    fn bwd(&self, _: &Tensor, y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        y.apply_op2_no_bwd(&dy.contiguous()?, &SoftCapGradient { cap: self.cap }).map(Some)
    }
}

/// The gradient at `x` of `y = soft_cap(x)`, from the gradient `dy` at `y`.
///
/// # Errors
/// As [`soft_cap`].
pub fn soft_cap_gradient(y: &Tensor, dy: &Tensor, cap: f32) -> Result<Tensor> {
    operand::expect(OP, "y", y, DType::F32)?;
    operand::expect(OP, "dy", dy, DType::F32)?;
    operand::expect_dims(OP, "dy", dy, y.dims())?;
    Ok(y.apply_op2_no_bwd(dy, &SoftCapGradient { cap })?)
}

struct SoftCapGradient {
    cap: f32,
}

impl CustomOp2 for SoftCapGradient {
    fn name(&self) -> &'static str {
        "soft_cap_gradient"
    }

    fn cpu_fwd(
        &self,
        y: &CpuStorage,
        y_layout: &Layout,
        dy: &CpuStorage,
        dy_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let y = operand::elements::<f32>(y, y_layout)?;
        let dy = operand::elements::<f32>(dy, dy_layout)?;
        let cap = self.cap;
        let dx = lanes::zip(y, dy, |y, dy| {
            let share = y / cap;
            // (1 - s) (1 + s) keeps the digits that 1 - s² loses near the cap.
            dy * ((1.0 - share) * (1.0 + share))
        });
        Ok((CpuStorage::F32(dx), y_layout.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        y: &CudaStorage,
        y_layout: &Layout,
        dy: &CudaStorage,
        dy_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let shape = y_layout.shape().clone();
        let n = shape.elem_count();
        let dx = Launch::of(OP, "soft_cap_gradient", y)
            .read(y, y_layout)?
            .read(dy, dy_layout)?
            .output(DType::F32, n)?
            .int(n)
            .float(self.cap)
            .run(Grid::elements(n))?
            .one()?;
        Ok((dx, shape))
    }
}
