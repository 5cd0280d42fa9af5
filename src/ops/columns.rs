//! First moments and energies of the columns of activations, gathered chunk by chunk.
//!
//! ```text
//! column_sum:      master += sum_t x[t]      x [t, n] f32    master [n] f64
//! column_squares:  master += sum_t x[t]^2    x [t, n] f32    master [n] f64
//! ```
//!
//! f64 from the first addition: 4 t n bytes read.

use candle_core::{CpuStorage, CudaStorage, DType, InplaceOp2, Layout, Tensor};
use rayon::prelude::*;

use super::cuda::{Grid, Launch};
use super::gram::expect_rows;
use super::lanes::{self, Kernel};
use super::operand;
use crate::error::Result;

/// Rows that are summed before partial column sums are added up, in order.
const SUM_ROWS: usize = 256;

/// Adds the sum of the rows of `x [t, n]` to `master [n]`, in place.
///
/// # Errors
/// Operands that do not fit are [`Error::Bug`](crate::error::Error::Bug): shapes are checked when
/// a model is read.
pub fn column_sum(master: &Tensor, x: &Tensor) -> Result<()> {
    add_columns(master, x, Columns::Sum)
}

/// Adds the sum of the squares of the rows of `x [t, n]` to `master [n]`, in place.
///
/// # Errors
/// As [`column_sum`].
pub fn column_squares(master: &Tensor, x: &Tensor) -> Result<()> {
    add_columns(master, x, Columns::Squares)
}

fn add_columns(master: &Tensor, x: &Tensor, op: Columns) -> Result<()> {
    let n = expect_rows(op.name(), x)?;
    operand::expect(op.name(), "master", master, DType::F64)?;
    operand::expect_dims(op.name(), "master", master, &[n])?;
    Ok(master.inplace_op2(x, &op)?)
}

/// The sum to take of each column: of its entries, or of their squares.
#[derive(Clone, Copy)]
enum Columns {
    Sum,
    Squares,
}

impl InplaceOp2 for Columns {
    fn name(&self) -> &'static str {
        match self {
            Self::Sum => "column_sum",
            Self::Squares => "column_squares",
        }
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
        let partial: Vec<Vec<f64>> = x
            .par_chunks(SUM_ROWS * n)
            .map(|rows| {
                let mut sums = vec![0.0; n];
                match self {
                    Self::Sum => lanes::run(SumRows { sums: &mut sums, rows }),
                    Self::Squares => lanes::run(SumSquares { sums: &mut sums, rows }),
                }
                sums
            })
            .collect();
        for sums in partial {
            for (master, sum) in master.iter_mut().zip(sums) {
                *master += sum;
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
        /// Columns of a block, and rows it sums side by side.
        const BLOCK: (u32, u32) = (16, 64);
        let (t, n) = x_layout.shape().dims2()?;
        if t * n == 0 {
            return Ok(());
        }
        Launch::of("columns", self.name(), x)
            .read(x, x_layout)?
            .update(master, master_layout)?
            .int(t)
            .int(n)
            .run(Grid::blocks(n.div_ceil(BLOCK.0 as usize)).threads(BLOCK.0, BLOCK.1))?;
        Ok(())
    }
}

struct SumRows<'a> {
    sums: &'a mut [f64],
    rows: &'a [f32],
}

impl Kernel for SumRows<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for row in self.rows.chunks_exact(self.sums.len()) {
            for (sum, &v) in self.sums.iter_mut().zip(row) {
                *sum += f64::from(v);
            }
        }
    }
}

struct SumSquares<'a> {
    sums: &'a mut [f64],
    rows: &'a [f32],
}

impl Kernel for SumSquares<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for row in self.rows.chunks_exact(self.sums.len()) {
            for (sum, &v) in self.sums.iter_mut().zip(row) {
                *sum += f64::from(v) * f64::from(v);
            }
        }
    }
}
