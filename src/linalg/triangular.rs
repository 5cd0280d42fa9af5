//! Systems with a triangular matrix: `T X = B` or `T^T X = B` by substitution (faer; cuBLAS
//! on a GPU), n^2 k flops.

use candle_core::{DType, Tensor};
use faer::linalg::triangular_solve::{
    solve_lower_triangular_in_place, solve_upper_triangular_in_place,
};
use faer::{Mat, MatRef};

use super::cuda;
use super::dense::{self, Entries};
use crate::error::{Error, Result};

pub(super) const OP: &str = "triangular solve";

/// The half of a triangular matrix that holds its entries. The other half is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Triangle {
    /// On and below the diagonal.
    Lower,
    /// On and above the diagonal.
    Upper,
}

impl Triangle {
    pub(super) fn part(self) -> Entries {
        match self {
            Self::Lower => Entries::Lower,
            Self::Upper => Entries::Upper,
        }
    }
}

/// The `X [n, k]` f64 with `T X = B`, or `T^T X = B` where `transposed`, for the triangular
/// `t [n, n]` and `b [n, k]`.
///
/// # Errors
/// [`Error::NonFinite`] for NaN or infinity, naming `subject`; [`Error::Bug`] for a zero on the
/// diagonal, for operands on two devices, and for anything but f32 or f64 matrices of these shapes.
pub fn solve_triangular(
    t: &Tensor,
    b: &Tensor,
    triangle: Triangle,
    transposed: bool,
    subject: &str,
) -> Result<Tensor> {
    let n = dense::order(OP, t, subject)?;
    let (rows, k) = dense::dims(OP, b, subject)?;
    if rows != n {
        return Err(Error::Bug(format!("{OP} of {subject}: order {n} against {rows} rows")));
    }
    if !t.device().same_device(b.device()) {
        return Err(Error::Bug(format!("{OP} of {subject}: operands on two devices")));
    }
    if n == 0 || k == 0 {
        return Ok(Tensor::zeros((n, k), DType::F64, b.device())?);
    }
    if t.device().is_cuda() {
        return cuda::solve_triangular(t, b, triangle, transposed, subject);
    }
    let x = dense::with_rows(OP, t, subject, |t| {
        dense::expect_finite(t, n, triangle.part(), subject)?;
        let t = MatRef::from_row_major_slice(t, n, n);
        expect_regular((0..n).map(|i| t[(i, i)]), subject)?;
        dense::with_rows(OP, b, subject, |b| {
            dense::expect_finite(b, k, Entries::All, subject)?;
            let mut x: Mat<f64> = MatRef::from_row_major_slice(b, n, k).to_owned();
            let (x_mut, par) = (x.as_mut(), dense::par());
            match (triangle, transposed) {
                (Triangle::Lower, false) => solve_lower_triangular_in_place(t, x_mut, par),
                (Triangle::Upper, false) => solve_upper_triangular_in_place(t, x_mut, par),
                (Triangle::Lower, true) => {
                    solve_upper_triangular_in_place(t.transpose(), x_mut, par);
                }
                (Triangle::Upper, true) => {
                    solve_lower_triangular_in_place(t.transpose(), x_mut, par);
                }
            }
            Ok(x)
        })
    })?;
    dense::tensor_of_columns(x.as_ref(), &vec![1.0; k], |j| j)
}

/// Refuses a diagonal with a zero on it.
pub(super) fn expect_regular(diagonal: impl IntoIterator<Item = f64>, subject: &str) -> Result<()> {
    match diagonal.into_iter().position(|v| v == 0.0) {
        None => Ok(()),
        Some(i) => Err(Error::Bug(format!("{OP} of {subject}: entry {i} of the diagonal is zero"))),
    }
}
