//! Rows of concatenated heads to heads of rows, the layout in which attention takes its values.
//!
//! ```text
//! y[b, h, t, i] = x[b, t, h, i]
//! x [b, t, h, d] f32    ->    y [b, h, t, d] f32, contiguous
//! gradient:  dy transposed back
//! ```
//!
//! 8 bytes (one read, one write) per element: bound by memory.

use candle_core::{CpuStorage, CudaStorage, CustomOp1, DType, Layout, Shape, Tensor};

use super::cuda::{Grid, Launch};
use super::{lanes, operand};
use crate::error::Result;

const OP: &str = "heads_first";

/// Exchanges the two axes in the middle of `x [b, t, h, d]`.
///
/// # Errors
/// Operands that do not fit are [`Error::Bug`](crate::error::Error::Bug): shapes are checked when
/// a model is read.
pub fn heads_first(x: &Tensor) -> Result<Tensor> {
    operand::expect(OP, "x", x, DType::F32)?;
    if x.rank() != 4 {
        let why = format_args!("x has shape {:?}, expected [b, t, h, d]", x.dims());
        return Err(operand::refuse(OP, why));
    }
    Ok(x.apply_op1(HeadsFirst)?)
}

struct HeadsFirst;

impl CustomOp1 for HeadsFirst {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (b, t, h, d) = layout.shape().dims4()?;
        let x = operand::elements::<f32>(x, layout)?;
        let mut y = vec![0.0; x.len()];
        lanes::for_row_blocks(&mut y, d, |first, y| {
            for (row, y) in (first..).zip(y.chunks_exact_mut(d)) {
                let (batch, head, position) = (row / t / h, row / t % h, row % t);
                let at = ((batch * t + position) * h + head) * d;
                y.copy_from_slice(&x[at..at + d]);
            }
        });
        Ok((CpuStorage::F32(y), Shape::from((b, h, t, d))))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let (b, t, h, d) = x_layout.shape().dims4()?;
        let n = b * t * h * d;
        let y = Launch::new(OP, x)
            .read(x, x_layout)?
            .output(DType::F32, n)?
            .int(b)
            .int(t)
            .int(h)
            .int(d)
            .run(Grid::elements(n))?
            .one()?;
        Ok((y, Shape::from((b, h, t, d))))
    }

    /// The transposition is its own inverse.
    fn bwd(&self, _: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(dy.contiguous()?.apply_op1_no_bwd(&Self)?))
    }
}
