//! The dot products of the rows of two matrices.
//!
//! ```text
//! y[t] = Σ_j a[t, j] b[t, j]
//! a, b [t, n] f32    ->    y [t] f32
//! no gradient
//! ```
//!
//! Terms are added in f32 lanes, the lanes in f64, and the sum is rounded. 8 bytes read for two operations.

use candle_core::{CpuStorage, CudaStorage, CustomOp2, DType, Layout, Shape, Tensor};
use rayon::prelude::*;

use super::cuda::{Grid, Launch};
use super::lanes::{self, Dot};
use super::operand;
use crate::error::Result;

const OP: &str = "row_dots";

/// Rows below which another task costs more than it saves.
const ROWS: usize = 64;

/// The dot product of every row of `a [t, n]` with that of `b [t, n]`.
///
/// # Errors
/// Operands that do not fit are [`Error::Bug`](crate::error::Error::Bug): shapes are checked when
/// a model is read.
pub fn row_dots(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    operand::expect(OP, "a", a, DType::F32)?;
    operand::expect(OP, "b", b, DType::F32)?;
    let &[t, n] = a.dims() else {
        return Err(operand::refuse(
            OP,
            format_args!("a has shape {:?}, expected [t, n]", a.dims()),
        ));
    };
    operand::expect_dims(OP, "b", b, &[t, n])?;
    if n == 0 {
        return Ok(Tensor::zeros(t, DType::F32, a.device())?);
    }
    Ok(a.apply_op2_no_bwd(b, &RowDots)?)
}

struct RowDots;

impl CustomOp2 for RowDots {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (t, n) = a_layout.shape().dims2()?;
        let a = operand::elements::<f32>(a, a_layout)?;
        let b = operand::elements::<f32>(b, b_layout)?;
        let rows = a.par_chunks_exact(n).zip(b.par_chunks_exact(n)).with_min_len(ROWS);
        let dots = rows.map(|(a, b)| lanes::run(Dot { a, b }) as f32).collect();
        Ok((CpuStorage::F32(dots), Shape::from(t)))
    }

    fn cuda_fwd(
        &self,
        a: &CudaStorage,
        a_layout: &Layout,
        b: &CudaStorage,
        b_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let (t, n) = a_layout.shape().dims2()?;
        let y = Launch::new(OP, a)
            .read(a, a_layout)?
            .read(b, b_layout)?
            .output(DType::F32, t)?
            .int(t)
            .int(n)
            .run(Grid::rows_of(t, n))?
            .one()?;
        Ok((y, Shape::from(t)))
    }
}
