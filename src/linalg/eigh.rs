//! Eigenvalues and eigenvectors of a symmetric matrix: `A V = V diag(values)`, `V^T V = I`.
//!
//! Householder tridiagonalisation, then divide and conquer (faer); about 4/3 n^3 flops for the
//! values alone, 9 n^3 with vectors, and 3 n^2 f64 of scratch and result beside the input. On a GPU
//! cuSOLVER does the same (syevd), in a copy of the input; the result takes two at its peak.

use candle_core::Tensor;
use faer::diag::Diag;
use faer::dyn_stack::MemStack;
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::{Mat, MatMut, MatRef};

use super::cuda;
use super::dense::{self, Entries};
use crate::error::{Error, Result};

pub(super) const OP: &str = "eigendecomposition";

/// A symmetric eigendecomposition, largest eigenvalue first.
#[derive(Debug)]
pub struct Eigh {
    /// The eigenvalues, descending.
    pub values: Vec<f64>,
    /// `[n, n]` f64; column `i` belongs to `values[i]`, has norm 1, and its entry of largest
    /// magnitude (the first of equals) is positive.
    pub vectors: Tensor,
}

/// Decomposes the symmetric `a [n, n]`; only its lower triangle is read.
///
/// # Errors
/// [`Error::NonFinite`] for NaN or infinity, [`Error::NoConvergence`] if the iteration fails, both
/// naming `subject`; [`Error::Bug`] for anything but a square f32 or f64 matrix.
pub fn eigh(a: &Tensor, subject: &str) -> Result<Eigh> {
    let n = dense::order(OP, a, subject)?;
    if a.device().is_cuda() {
        return cuda::eigh(a, subject);
    }
    let mut vectors = Mat::zeros(n, n);
    let values = decompose(a, n, subject, Some(vectors.as_mut()))?;
    let mut signs = dense::signs(vectors.as_ref());
    signs.reverse();
    let vectors = dense::tensor_of_columns(vectors.as_ref(), &signs, |j| n - 1 - j)?;
    Ok(Eigh { values, vectors })
}

/// The eigenvalues of the symmetric `a [n, n]`, descending; only its lower triangle is read.
///
/// # Errors
/// As [`eigh`].
pub fn eigvalsh(a: &Tensor, subject: &str) -> Result<Vec<f64>> {
    let n = dense::order(OP, a, subject)?;
    if a.device().is_cuda() {
        return cuda::eigvalsh(a, subject);
    }
    decompose(a, n, subject, None)
}

/// Fills `vectors` in ascending order and returns the values in descending order.
fn decompose(
    a: &Tensor,
    n: usize,
    subject: &str,
    vectors: Option<MatMut<'_, f64>>,
) -> Result<Vec<f64>> {
    if n == 0 {
        return Ok(Vec::new());
    }
    dense::with_rows(OP, a, subject, |rows| {
        dense::expect_finite(rows, n, Entries::Lower, subject)?;
        let want = match vectors {
            Some(_) => ComputeEigenvectors::Yes,
            None => ComputeEigenvectors::No,
        };
        let par = dense::par();
        let need = self_adjoint_evd_scratch::<f64>(n, want, par, Default::default());
        let mut scratch = dense::scratch(OP, subject, need)?;
        let mut values = Diag::zeros(n);
        self_adjoint_evd(
            MatRef::from_row_major_slice(rows, n, n),
            values.as_mut(),
            vectors,
            par,
            MemStack::new(&mut scratch),
            Default::default(),
        )
        .map_err(|_| Error::NoConvergence { what: OP, subject: subject.to_owned() })?;
        Ok(values.column_vector().iter().rev().copied().collect())
    })
}
