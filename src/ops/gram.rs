//! Second moments of activations, gathered chunk by chunk.
//!
//! ```text
//! gram:        master += x^T x      x [t, n] f32    master [n, n] f64, lower triangle
//! symmetrise:  master[i, j] = master[j, i] for i < j
//! ```
//!
//! The product of [`ROWS`] rows is computed in f32, only on and below the diagonal (t n^2 flops),
//! and added to the master in f64 (10 n^2 bytes per product, half of them read). The strict upper
//! triangle of the master is left alone, because `linalg::eigh` never reads it; [`symmetrise`] fills
//! it once at the end for code that does.

use candle_core::{CpuStorage, CudaStorage, DType, InplaceOp1, InplaceOp2, Layout, Tensor};
use faer::linalg::matmul::triangular::BlockStructure;
use faer::linalg::matmul::{self};
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::cuda::{Grid, Launch};
use super::lanes::{self, Kernel};
use super::operand;
use crate::error::Result;

/// Rows of one f32 product: few enough that its rounding stays near 1e-6, many enough that adding
/// it to the master costs a few percent.
const ROWS: usize = 1024;

/// Rows of the master that are computed at a time: the f32 product takes `PANEL * n` elements,
/// never `n * n`.
const PANEL: usize = 1024;

/// Adds `x^T x` of `x [t, n]` to the lower triangle of `master [n, n]`, in place.
///
/// # Errors
/// Operands that do not fit are [`Error::Bug`](crate::error::Error::Bug): shapes are checked when
/// a model is read.
pub fn gram(master: &Tensor, x: &Tensor) -> Result<()> {
    const OP: &str = "gram";
    let n = expect_rows(OP, x)?;
    operand::expect(OP, "master", master, DType::F64)?;
    operand::expect_dims(OP, "master", master, &[n, n])?;
    Ok(master.inplace_op2(x, &Gram)?)
}

/// Copies the lower triangle of `master [n, n]` f64 onto the upper one, in place.
///
/// # Errors
/// Operands that do not fit are [`Error::Bug`](crate::error::Error::Bug): shapes are checked when
/// a model is read.
pub fn symmetrise(master: &Tensor) -> Result<()> {
    const OP: &str = "symmetrise";
    operand::expect(OP, "master", master, DType::F64)?;
    let n = master.dims().first().copied().unwrap_or(0);
    operand::expect_dims(OP, "master", master, &[n, n])?;
    Ok(master.inplace_op1(&Symmetrise)?)
}

pub(super) fn expect_rows(op: &'static str, x: &Tensor) -> Result<usize> {
    operand::expect(op, "x", x, DType::F32)?;
    match *x.dims() {
        [_, n] => Ok(n),
        ref dims => Err(operand::refuse(op, format_args!("x has shape {dims:?}, expected [t, n]"))),
    }
}

struct Gram;

impl InplaceOp2 for Gram {
    fn name(&self) -> &'static str {
        "gram"
    }

    fn cpu_fwd(
        &self,
        master: &mut CpuStorage,
        master_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
    ) -> candle_core::Result<()> {
        let n = x_layout.shape().dims2()?.1;
        if n == 0 {
            return Ok(());
        }
        let master = operand::sums_mut(master, master_layout)?;
        let x = operand::elements::<f32>(x, x_layout)?;
        let mut panel = vec![0.0; PANEL.min(n) * n];
        for rows in x.chunks(ROWS * n) {
            let rows = MatRef::from_row_major_slice(rows, rows.len() / n, n);
            for first in (0..n).step_by(PANEL) {
                let height = PANEL.min(n - first);
                let width = first + height;
                let panel = &mut panel[..height * width];
                multiply_panel(panel, rows, first, height);
                master[first * n..(first + height) * n]
                    .par_chunks_mut(n)
                    .zip(panel.par_chunks(width))
                    .enumerate()
                    .with_min_len(16)
                    .for_each(|(i, (master, panel))| {
                        let lower = first + i + 1;
                        lanes::run(Add { master: &mut master[..lower], product: &panel[..lower] });
                    });
            }
        }
        Ok(())
    }

    fn cuda_fwd(
        &self,
        master: &mut CudaStorage,
        master_layout: &Layout,
        x: &CudaStorage,
        x_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (t, n) = x_layout.shape().dims2()?;
        if t * n == 0 {
            return Ok(());
        }
        Launch::new("gram", x)
            .read(x, x_layout)?
            .update(master, master_layout)?
            .int(t)
            .int(n)
            .run(Grid::triangle(n, 128))?;
        Ok(())
    }
}

/// Rows `first..first + height` of the lower triangle of `x^T x`, `first + height` columns wide.
fn multiply_panel(panel: &mut [f32], x: MatRef<'_, f32>, first: usize, height: usize) {
    let par = Par::rayon(0);
    let panel = MatMut::from_row_major_slice_mut(panel, height, first + height);
    let (left, diagonal) = panel.split_at_col_mut(first);
    let own = x.subcols(first, height);
    if first > 0 {
        let before = x.subcols(0, first);
        matmul::matmul(left, Accum::Replace, own.transpose(), before, 1.0, par);
    }
    matmul::triangular::matmul(
        diagonal,
        BlockStructure::TriangularLower,
        Accum::Replace,
        own.transpose(),
        BlockStructure::Rectangular,
        own,
        BlockStructure::Rectangular,
        1.0,
        par,
    );
}

struct Add<'a> {
    master: &'a mut [f64],
    product: &'a [f32],
}

impl Kernel for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (master, &product) in self.master.iter_mut().zip(self.product) {
            *master += f64::from(product);
        }
    }
}

struct Symmetrise;

impl InplaceOp1 for Symmetrise {
    fn name(&self) -> &'static str {
        "symmetrise"
    }

    fn cpu_fwd(&self, master: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        /// Side of the square blocks that are mirrored, so that both sides stay in cache.
        const SIDE: usize = 32;
        let n = layout.shape().dims2()?.0;
        let master = operand::sums_mut(master, layout)?;
        for top in (0..n).step_by(SIDE) {
            for left in (0..=top).step_by(SIDE) {
                for i in top..(top + SIDE).min(n) {
                    for j in left..(left + SIDE).min(i) {
                        master[j * n + i] = master[i * n + j];
                    }
                }
            }
        }
        Ok(())
    }

    fn cuda_fwd(&self, master: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        let n = layout.shape().dims2()?.0;
        if n == 0 {
            return Ok(());
        }
        Launch::of("gram", "symmetrise", master)
            .update(master, layout)?
            .int(n)
            .run(Grid::triangle(n, 32))?;
        Ok(())
    }
}
