//! The decompositions on an NVIDIA GPU, by cuSOLVER and cuBLAS, in f64.
//!
//! The libraries are column-major: they see a row-major matrix as its transpose. A symmetric one is
//! its own transpose, only its lower triangle is called the upper one; of any other matrix the
//! transpose is decomposed where that fits, and the result is read the same way. Matrices stay in
//! device memory; values, signs and status codes pass through the host.

mod decompose;
mod factor;
mod matrix;
mod solver;

use candle_core::{DType, Tensor};
use cudarc::driver::CudaSlice;

use self::matrix::{checked, copy, diagonal, f64s, on_device, power_of_two, signs, tensor};
use self::solver::Solver;
use super::cholesky::OP as CHOLESKY;
use super::dense::{self, Entries};
use super::eigh::OP as EIGH;
use super::qr::OP as QR;
use super::svd::OP as SVD;
use super::triangular::{OP as SOLVE, expect_regular};
use super::{Eigh, Svd, Triangle};
use crate::error::{Error, Result};

pub(super) fn eigh(a: &Tensor, subject: &str) -> Result<Eigh> {
    let n = dense::order(EIGH, a, subject)?;
    if n == 0 {
        let vectors = Tensor::zeros((0, 0), DType::F64, a.device())?;
        return Ok(Eigh { values: Vec::new(), vectors });
    }
    let (values, vectors) = eigen(a, n, subject, true)?;
    let rows = {
        // Columns one after the other: as rows.
        let rows = tensor(vectors, (n, n), &on_device(a)?);
        rows.broadcast_mul(&signs(&rows, 1)?)?
    };
    Ok(Eigh { values, vectors: rows.t()?.contiguous()? })
}

pub(super) fn eigvalsh(a: &Tensor, subject: &str) -> Result<Vec<f64>> {
    match dense::order(EIGH, a, subject)? {
        0 => Ok(Vec::new()),
        n => Ok(eigen(a, n, subject, false)?.0),
    }
}

/// The eigenvalues in descending order; the eigenvectors, where they are wanted, one after another.
fn eigen(a: &Tensor, n: usize, subject: &str, vectors: bool) -> Result<(Vec<f64>, CudaSlice<f64>)> {
    let a = checked(EIGH, a, Entries::Lower, subject)?;
    let scale = power_of_two(&a)?;
    // cuSOLVER sorts upwards; for -A that is downwards for A.
    let mut matrix = copy(&a, -1.0 / scale)?;
    let (mut values, info) = Solver::of(&on_device(&a)?)?.syevd(&mut matrix, n, vectors)?;
    expect_convergence(EIGH, info, subject)?;
    for value in &mut values {
        // Subtracted, so that zero keeps its sign.
        *value = (0.0 - *value) * scale;
    }
    Ok((values, matrix))
}

pub(super) fn svd(a: &Tensor, subject: &str) -> Result<Svd> {
    let (m, n) = dense::dims(SVD, a, subject)?;
    if m == 0 || n == 0 {
        let empty = |shape: (usize, usize)| Tensor::zeros(shape, DType::F64, a.device());
        return Ok(Svd { u: empty((m, 0))?, s: Vec::new(), vt: empty((0, n))? });
    }
    let (long, k) = (m.max(n), m.min(n));
    let device = on_device(a)?;
    let (mut left, mut right) = (f64s(&device, long * k)?, f64s(&device, k * k)?);
    let s = singular(a, (m, n), subject, Some((&mut left, &mut right)))?;
    // Column-major [long, k] and [k, k], read row by row: the transposes.
    let (left, right) = (tensor(left, (k, long), &device), tensor(right, (k, k), &device));
    let (u, vt) = if m > n { (left.t()?.contiguous()?, right.t()?) } else { (right, left) };
    let signs = signs(&u, 0)?;
    let (u, vt) = (u.broadcast_mul(&signs)?, vt.broadcast_mul(&signs.t()?)?);
    Ok(Svd { u, s, vt: vt.contiguous()? })
}

pub(super) fn singular_values(a: &Tensor, subject: &str) -> Result<Vec<f64>> {
    match dense::dims(SVD, a, subject)? {
        (0, _) | (_, 0) => Ok(Vec::new()),
        dims => singular(a, dims, subject, None),
    }
}

/// The singular values of A, of A^T if A is wide, and the vectors as `Solver::gesvd` leaves them.
fn singular(
    a: &Tensor,
    (m, n): (usize, usize),
    subject: &str,
    vectors: Option<(&mut CudaSlice<f64>, &mut CudaSlice<f64>)>,
) -> Result<Vec<f64>> {
    let a = checked(SVD, a, Entries::All, subject)?;
    let scale = power_of_two(&a)?;
    let device = on_device(&a)?;
    // The solver takes no matrix with more columns than rows. A wide A is seen as A^T, which is
    // tall: A^T = V S U^T. A tall one is transposed first, so that it is seen as A = U S V^T.
    let mut matrix = copy(&if m > n { a.t()? } else { a }, 1.0 / scale)?;
    let dims = (m.max(n), m.min(n));
    let (mut s, info) = Solver::of(&device)?.gesvd(&mut matrix, dims, vectors)?;
    expect_convergence(SVD, info, subject)?;
    for value in &mut s {
        *value *= scale;
    }
    Ok(s)
}

pub(super) fn orthonormalise(a: &Tensor, subject: &str) -> Result<Tensor> {
    let (m, r) = dense::dims(QR, a, subject)?;
    let a = checked(QR, a, Entries::All, subject)?;
    let device = on_device(&a)?;
    let mut factors = copy(&a.t()?, 1.0)?;
    let solver = Solver::of(&device)?;
    let reflections = solver.geqrf(&mut factors, (m, r))?;
    let (diagonal, mut factors) = diagonal(factors, r, m, &device)?;
    solver.orgqr(&mut factors, &reflections, (m, r))?;
    let signs: Vec<f64> = diagonal.iter().map(|&v| if v < 0.0 { -1.0 } else { 1.0 }).collect();
    let signs = Tensor::from_vec(signs, (r, 1), a.device())?;
    Ok(tensor(factors, (r, m), &device).broadcast_mul(&signs)?.t()?.contiguous()?)
}

pub(super) fn cholesky(a: &Tensor, subject: &str) -> Result<Tensor> {
    let n = dense::order(CHOLESKY, a, subject)?;
    let a = checked(CHOLESKY, a, Entries::Lower, subject)?;
    let device = on_device(&a)?;
    let mut factor = copy(&a, 1.0)?;
    match Solver::of(&device)?.potrf(&mut factor, n)? {
        0 => {}
        minor => {
            let subject = subject.to_owned();
            return Err(Error::NotPositiveDefinite { subject, minor: minor as usize });
        }
    }
    // The other triangle still holds what the argument had there.
    let factor = tensor(factor, (n, n), &device);
    let lower = Tensor::tril2(n, DType::U8, a.device())?;
    Ok(lower.where_cond(&factor, &factor.zeros_like()?)?)
}

pub(super) fn solve_triangular(
    t: &Tensor,
    b: &Tensor,
    triangle: Triangle,
    transposed: bool,
    subject: &str,
) -> Result<Tensor> {
    let n = dense::order(SOLVE, t, subject)?;
    let (_, k) = dense::dims(SOLVE, b, subject)?;
    let t = checked(SOLVE, t, triangle.part(), subject)?;
    let device = on_device(&t)?;
    let (on_diagonal, t) = diagonal(copy(&t, 1.0)?, n, n, &device)?;
    expect_regular(on_diagonal, subject)?;
    let mut x = copy(&checked(SOLVE, b, Entries::All, subject)?, 1.0)?;
    factor::trsm(&device, &t, &mut x, (n, k), triangle, transposed)?;
    Ok(tensor(x, (n, k), &device))
}

fn expect_convergence(what: &'static str, info: i32, subject: &str) -> Result<()> {
    match info {
        0 => Ok(()),
        _ => Err(Error::NoConvergence { what, subject: subject.to_owned() }),
    }
}
