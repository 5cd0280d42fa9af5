//! The Cholesky factor of a symmetric positive definite matrix: `A = L L^T`, `L` lower triangular
//! with a positive diagonal, which makes it unique.
//!
//! Blocked, without pivoting (faer; cuSOLVER on a GPU): n^3 / 3 flops.

use candle_core::{DType, Device, Tensor};
use faer::dyn_stack::MemStack;
use faer::linalg::cholesky::llt::factor::{LltError, cholesky_in_place, cholesky_in_place_scratch};
use faer::{Mat, MatRef};

use super::cuda;
use super::dense::{self, Entries};
use crate::error::{Error, Result};

pub(super) const OP: &str = "Cholesky factorisation";

/// Factors the symmetric `a [n, n]` into its lower triangular `L [n, n]` f64, which is zero above the
/// diagonal. Only the lower triangle of `a` is read.
///
/// # Errors
/// [`Error::NonFinite`] for NaN or infinity, [`Error::NotPositiveDefinite`] for a pivot that is not
/// positive, both naming `subject`; [`Error::Bug`] for anything but a square f32 or f64 matrix.
pub fn cholesky(a: &Tensor, subject: &str) -> Result<Tensor> {
    let n = dense::order(OP, a, subject)?;
    if n == 0 {
        return Ok(Tensor::zeros((0, 0), DType::F64, a.device())?);
    }
    if a.device().is_cuda() {
        return cuda::cholesky(a, subject);
    }
    let factor = dense::with_rows(OP, a, subject, |rows| {
        dense::expect_finite(rows, n, Entries::Lower, subject)?;
        let mut factor: Mat<f64> = MatRef::from_row_major_slice(rows, n, n).to_owned();
        let par = dense::par();
        let need = cholesky_in_place_scratch::<f64>(n, par, Default::default());
        let mut scratch = dense::scratch(OP, subject, need)?;
        cholesky_in_place(
            factor.as_mut(),
            Default::default(),
            par,
            MemStack::new(&mut scratch),
            Default::default(),
        )
        .map_err(|LltError::NonPositivePivot { index }| Error::NotPositiveDefinite {
            subject: subject.to_owned(),
            minor: index + 1,
        })?;
        Ok(factor)
    })?;
    let mut rows = vec![0.0; n * n];
    for (i, row) in rows.chunks_exact_mut(n).enumerate() {
        for (j, v) in row[..=i].iter_mut().enumerate() {
            *v = factor[(i, j)];
        }
    }
    Ok(Tensor::from_vec(rows, (n, n), &Device::Cpu)?)
}
