//! Thin singular value decomposition: `A = U diag(s) V^T`, `U^T U = V^T V = I`.
//!
//! Bidiagonalisation (after a QR where one side is much longer), then divide and conquer (faer), in
//! f64 whatever the input. With k = min(m, n), about 4 m n k flops for the values alone, 3 to 5
//! times that with vectors. On a GPU by QR iteration instead (cuSOLVER's gesvd), in a copy of the
//! input.

use candle_core::{Device, Tensor};
use faer::diag::Diag;
use faer::dyn_stack::MemStack;
use faer::linalg::svd::{self, ComputeSvdVectors, svd_scratch};
use faer::{Mat, MatMut, MatRef};

use super::cuda;
use super::dense::{self, Entries};
use crate::error::{Error, Result};

pub(super) const OP: &str = "singular value decomposition";

/// A thin singular value decomposition, largest singular value first; `k = min(m, n)`.
#[derive(Debug)]
pub struct Svd {
    /// `[m, k]` f64, orthonormal columns; the entry of largest magnitude of each (the first of
    /// equals) is positive.
    pub u: Tensor,
    /// The singular values, descending, none negative.
    pub s: Vec<f64>,
    /// `[k, n]` f64, orthonormal rows.
    pub vt: Tensor,
}

/// Decomposes `a [m, n]`, f32 or f64.
///
/// # Errors
/// [`Error::NonFinite`] for NaN or infinity, [`Error::NoConvergence`] if the iteration fails, both
/// naming `subject`; [`Error::Bug`] for anything but an f32 or f64 matrix.
pub fn svd(a: &Tensor, subject: &str) -> Result<Svd> {
    let (m, n) = dense::dims(OP, a, subject)?;
    let k = m.min(n);
    if a.device().is_cuda() {
        return cuda::svd(a, subject);
    }
    let (mut u, mut v) = (Mat::zeros(m, k), Mat::zeros(n, k));
    let s = decompose(a, (m, n), subject, Some((u.as_mut(), v.as_mut())))?;
    let signs = dense::signs(u.as_ref());
    let u = dense::tensor_of_columns(u.as_ref(), &signs, |j| j)?;
    let mut vt = Vec::with_capacity(k * n);
    for (sign, column) in signs.iter().zip(v.col_iter()) {
        vt.extend(column.iter().map(|v| sign * v));
    }
    Ok(Svd { u, s, vt: Tensor::from_vec(vt, (k, n), &Device::Cpu)? })
}

/// The singular values of `a [m, n]`, f32 or f64, descending.
///
/// # Errors
/// As [`svd()`].
pub fn singular_values(a: &Tensor, subject: &str) -> Result<Vec<f64>> {
    let dims = dense::dims(OP, a, subject)?;
    if a.device().is_cuda() {
        return cuda::singular_values(a, subject);
    }
    decompose(a, dims, subject, None)
}

fn decompose(
    a: &Tensor,
    (m, n): (usize, usize),
    subject: &str,
    vectors: Option<(MatMut<'_, f64>, MatMut<'_, f64>)>,
) -> Result<Vec<f64>> {
    if m == 0 || n == 0 {
        return Ok(Vec::new());
    }
    dense::with_rows(OP, a, subject, |rows| {
        dense::expect_finite(rows, n, Entries::All, subject)?;
        let want = match vectors {
            Some(_) => ComputeSvdVectors::Thin,
            None => ComputeSvdVectors::No,
        };
        let par = dense::par();
        let need = svd_scratch::<f64>(m, n, want, want, par, Default::default());
        let mut scratch = dense::scratch(OP, subject, need)?;
        let mut values = Diag::zeros(m.min(n));
        let (u, v) = vectors.unzip();
        svd::svd(
            MatRef::from_row_major_slice(rows, m, n),
            values.as_mut(),
            u,
            v,
            par,
            MemStack::new(&mut scratch),
            Default::default(),
        )
        .map_err(|_| Error::NoConvergence { what: OP, subject: subject.to_owned() })?;
        Ok(values.column_vector().iter().copied().collect())
    })
}
