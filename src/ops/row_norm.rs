//! Code shared by the norms over rows: the checks of operands, and the launches of kernels.

use candle_core::{CudaStorage, DType, Layout, Shape, Tensor};

use super::cuda::{Grid, Launch};
use super::operand;
use crate::error::Result;

/// Checks that the operands are `x [.., d]` and `weight [d]`, f32, and returns d.
pub(super) fn expect_operands(op: &'static str, x: &Tensor, weight: &Tensor) -> Result<usize> {
    operand::expect(op, "x", x, DType::F32)?;
    operand::expect(op, "weight", weight, DType::F32)?;
    let Some(&d) = x.dims().last() else {
        return Err(operand::refuse(op, "x is a scalar, expected [.., d]"));
    };
    operand::expect_dims(op, "weight", weight, &[d])?;
    Ok(d)
}

/// Kernel `kernel(x, operands.., out, rows, d, eps)` of `kernels/<module>.cu`, for `x [.., d]`: a new
/// tensor of the shape of x. The first of `operands` is the weight, `[d]`.
pub(super) fn launch<const N: usize>(
    (module, kernel): (&'static str, &'static str),
    (x, x_layout): (&CudaStorage, &Layout),
    operands: [(&CudaStorage, &Layout); N],
    eps: f64,
) -> candle_core::Result<(CudaStorage, Shape)> {
    let d = operands[0].1.shape().elem_count();
    let rows = x_layout.shape().elem_count() / d.max(1);
    let mut launch = Launch::of(module, kernel, x).read(x, x_layout)?;
    for (operand, layout) in operands {
        launch = launch.read(operand, layout)?;
    }
    let out = launch
        .output(DType::F32, rows * d)?
        .int(rows)
        .int(d)
        .double(eps)
        .run(Grid::rows_of(rows, d))?
        .one()?;
    Ok((out, x_layout.shape().clone()))
}
