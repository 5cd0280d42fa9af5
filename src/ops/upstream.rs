//! The start of a backward pass in the middle of a model, from the gradient that arrives from above.
//!
//! ```text
//! s = 0, a scalar
//! gradient:  dy = upstream, whatever ds is
//! y, upstream  one shape, f32    ->    s  a scalar
//! ```
//!
//! `s` stands for the loss: its gradient at `y` is known, its value is not needed.

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{CpuStorage, CudaStorage, CustomOp1, DType, Layout, Shape, Tensor};

use super::operand;
use crate::error::Result;

const OP: &str = "upstream";

/// A scalar whose `backward` starts with `upstream` at `y`.
///
/// # Errors
/// Operands that do not fit are [`Error::Bug`](crate::error::Error::Bug).
pub fn upstream(y: &Tensor, upstream: &Tensor) -> Result<Tensor> {
    operand::expect(OP, "y", y, DType::F32)?;
    operand::expect(OP, "upstream", upstream, DType::F32)?;
    operand::expect_dims(OP, "upstream", upstream, y.dims())?;
    Ok(y.apply_op1(Upstream { gradient: upstream.clone() })?)
}

struct Upstream {
    gradient: Tensor,
}

impl CustomOp1 for Upstream {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn cuda_fwd(&self, y: &CudaStorage, _: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        let shape = Shape::from(());
        Ok((y.device().zeros_impl(&shape, DType::F32)?, shape))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.gradient.clone()))
    }
}
