//! An orthonormal basis of the columns of a tall matrix: the thin Q of `A = Q R`.
//!
//! Blocked Householder reflections (faer; cuSOLVER on a GPU): 4 m r^2 flops. The diagonal of R is
//! made non-negative, which makes Q unique, so the basis is nested: its first k columns are a basis
//! of the first k columns of A and depend on nothing else, up to rounding.

use candle_core::{DType, Tensor};
use faer::dyn_stack::{MemStack, StackReq};
use faer::linalg::householder;
use faer::linalg::qr::no_pivoting::factor::{
    qr_in_place, qr_in_place_scratch, recommended_block_size,
};
use faer::{Conj, Mat, MatRef};

use super::cuda;
use super::dense::{self, Entries};
use crate::error::{Error, Result};

pub(super) const OP: &str = "orthonormalisation";

/// Replaces the columns of `a [m, r]`, `r <= m`, by an orthonormal basis `[m, r]` f64.
///
/// If a column is a combination of the columns before it, the basis is completed from there on with
/// directions that still span all of `a`, but are no longer nested.
///
/// # Errors
/// [`Error::NonFinite`] for NaN or infinity, naming `subject`; [`Error::Bug`] for `r > m` and for
/// anything but an f32 or f64 matrix.
pub fn orthonormalise(a: &Tensor, subject: &str) -> Result<Tensor> {
    let (m, r) = dense::dims(OP, a, subject)?;
    if r > m {
        return Err(Error::Bug(format!(
            "{OP} of {subject}: {r} columns of length {m} cannot be orthonormal"
        )));
    }
    if r == 0 {
        return Ok(Tensor::zeros((m, 0), DType::F64, a.device())?);
    }
    if a.device().is_cuda() {
        return cuda::orthonormalise(a, subject);
    }
    let mut factors = dense::with_rows(OP, a, subject, |rows| {
        dense::expect_finite(rows, r, Entries::All, subject)?;
        Ok(MatRef::from_row_major_slice(rows, m, r).to_owned())
    })?;
    let par = dense::par();
    let block = recommended_block_size::<f64>(m, r);
    let mut coefficients = Mat::zeros(block, r);
    let mut scratch = dense::scratch(
        OP,
        subject,
        StackReq::any_of(&[
            qr_in_place_scratch::<f64>(m, r, block, par, Default::default()),
            householder::apply_block_householder_sequence_on_the_left_in_place_scratch::<f64>(
                m, block, r,
            ),
        ]),
    )?;
    qr_in_place(
        factors.as_mut(),
        coefficients.as_mut(),
        par,
        MemStack::new(&mut scratch),
        Default::default(),
    );
    let mut q = Mat::identity(m, r);
    householder::apply_block_householder_sequence_on_the_left_in_place_with_conj(
        factors.as_ref(),
        coefficients.as_ref(),
        Conj::No,
        q.as_mut(),
        par,
        MemStack::new(&mut scratch),
    );
    let signs: Vec<f64> = (0..r).map(|i| if factors[(i, i)] < 0.0 { -1.0 } else { 1.0 }).collect();
    dense::tensor_of_columns(q.as_ref(), &signs, |j| j)
}
