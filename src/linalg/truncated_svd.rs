//! The leading part of a singular value decomposition, by randomised subspace iteration (Halko,
//! Martinsson, Tropp 2011).
//!
//! ```text
//! Y = A Omega;    repeated: Q = orth(Y), Z = A^T Q, P = orth(Z), Y = A P
//! P^T Z = U' S V'^T    ->    A ≈ Q Z^T = (Q V') S (P U')^T
//! ```
//!
//! Products with A in f32, `2 m n c` flops each, two per step and two more; bases in f64, and the
//! decomposition of `P^T Z [c, c]` on the CPU. c is the rank and some columns more, which speed
//! convergence. The energy of A that a basis captures is known after every step, so the gain of the
//! last step tells whether there is more to come. Where there is, steps are added, and if they do not
//! help either, all of A is decomposed.

use std::f64::consts::TAU;

use candle_core::{DType, Device, Tensor};

use super::dense::{self, Entries};
use super::{Svd, orthonormalise, svd};
use crate::error::{Error, Result};
use crate::ops;
use crate::random::split_mix;

const OP: &str = "truncated singular value decomposition";

/// The most energy that the last step may gain, as a share of the energy that is not captured. With a
/// larger gain the iteration has not settled.
const SETTLED: f64 = 1e-3;

/// The most steps, as a multiple of the steps asked for, before all of A is decomposed.
const MORE: usize = 4;

/// The most energy that rounding of f32 may gain beside that, as a share of the energy of A.
const ROUNDING: f64 = 1e-6;

/// Energies `|A|_F^2` that leave room for products in f32; with any other, all of A is decomposed.
const ENERGIES: std::ops::Range<f64> = 1e-40..1e40;

/// The part of a decomposition that is wanted, and the effort to spend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncation {
    /// Singular values and pairs of vectors.
    pub rank: usize,
    /// Columns beyond the rank that are iterated along.
    pub oversampling: usize,
    /// Times that A and its transpose are applied after the first product, at the least.
    pub power_steps: usize,
    /// Seed of the random start.
    pub seed: u64,
    /// Decompose all of the matrix instead.
    pub exact: bool,
}

impl Truncation {
    /// The defaults for `rank`.
    pub fn to(rank: usize) -> Self {
        Self { rank, oversampling: 16, power_steps: 4, seed: 0, exact: false }
    }

    /// Columns of a sketch.
    pub fn width(&self) -> usize {
        self.rank + self.oversampling
    }
}

/// The leading singular values and vectors of a matrix.
#[derive(Debug)]
pub struct Truncated {
    /// `[m, rank]` f32, orthonormal columns; the entry of largest magnitude of each (the first of
    /// equals) is positive.
    pub u: Tensor,
    /// The singular values, descending, none negative.
    pub s: Vec<f64>,
    /// `[rank, n]` f32, orthonormal rows.
    pub vt: Tensor,
    /// All of the matrix was decomposed.
    pub exact: bool,
    /// All of the matrix was decomposed because the iteration had not settled, or was ruled out by the
    /// energy of the matrix; not because all of it, or nearly all, was asked for.
    pub fell_back: bool,
}

/// The `rank` leading singular values and vectors of `a [m, n]` f32, from `sketch = a omega [m, c]`
/// where there is one, its `omega` being [`gaussian`].
///
/// # Errors
/// [`Error::NonFinite`] for NaN or infinity, [`Error::NoConvergence`] if an iteration fails, both
/// naming `subject`; [`Error::Bug`] for anything but an f32 matrix, for a rank above its sides and
/// for a sketch that does not belong to it.
pub fn truncated_svd(
    a: &Tensor,
    sketch: Option<&Tensor>,
    options: Truncation,
    subject: &str,
) -> Result<Truncated> {
    let (m, n) = dense::dims(OP, a, subject)?;
    let Truncation { rank, power_steps, .. } = options;
    let refuse = |why: String| Err(Error::Bug(format!("{OP} of {subject}: {why}")));
    if a.dtype() != DType::F32 {
        return refuse(format!("dtype is {:?}, expected f32", a.dtype()));
    }
    if rank == 0 || rank > m.min(n) {
        return refuse(format!("rank {rank} of [{m}, {n}]"));
    }
    let a = a.contiguous()?;
    let energy = energy(&a, subject)?;
    if options.exact || options.width() >= m.min(n) {
        return exact(&a, rank, false, subject);
    }
    if energy == 0.0 || !ENERGIES.contains(&energy) {
        return exact(&a, rank, true, subject);
    }
    let mut y = match sketch {
        None => a.matmul(&gaussian(n, options.width(), options.seed, a.device())?)?,
        Some(sketch) => match *sketch.dims() {
            [rows, c] if rows == m && (rank..=m.min(n)).contains(&c) => sketch.clone(),
            ref dims => return refuse(format!("sketch {dims:?} of [{m}, {n}], rank {rank}")),
        },
    };
    let transposed = a.t()?;
    let mut before = None;
    for step in 0..=MORE * power_steps {
        let q = orthonormalise(&y, subject)?;
        let z = transposed.matmul(&q.to_dtype(DType::F32)?)?;
        let p = orthonormalise(&z, subject)?;
        // The gain of the last step alone tells whether the steps were enough.
        if step + 1 >= power_steps {
            let t = p.t()?.contiguous()?.matmul(&z.to_dtype(DType::F64)?)?;
            let small = svd(&t.to_device(&Device::Cpu)?, subject)?;
            let captured = small.s.iter().take(rank).map(|s| s * s).sum::<f64>();
            let allowed = SETTLED * (energy - captured).max(0.0) + ROUNDING * energy;
            let settled = before.is_none_or(|before| captured - before <= allowed);
            if step >= power_steps && settled {
                let there = |t: &Tensor| t.contiguous()?.to_device(a.device());
                let u = q.matmul(&there(&small.vt.narrow(0, 0, rank)?.t()?)?)?;
                let vt = there(&small.u.narrow(1, 0, rank)?.t()?)?.matmul(&p.t()?.contiguous()?)?;
                return truncated(Svd { u, s: small.s, vt }, rank);
            }
            before = Some(captured);
        }
        y = a.matmul(&p.to_dtype(DType::F32)?)?;
    }
    exact(&a, rank, true, subject)
}

/// `[n, c]` f32 of independent normal numbers, the same for the same `seed` on every device.
///
/// # Errors
/// Only the device's.
pub fn gaussian(n: usize, c: usize, seed: u64, device: &Device) -> Result<Tensor> {
    let mut state = seed;
    // In (0, 1].
    let mut uniform = || ((split_mix(&mut state) >> 11) + 1) as f64 / (1_u64 << 53) as f64;
    let mut values = Vec::with_capacity(n * c + 1);
    while values.len() < n * c {
        // Box and Muller: two at a time.
        let radius = (-2.0 * uniform().ln()).sqrt();
        let (sin, cos) = (TAU * uniform()).sin_cos();
        values.extend([(radius * cos) as f32, (radius * sin) as f32]);
    }
    values.truncate(n * c);
    Ok(Tensor::from_vec(values, (n, c), device)?)
}

/// Returns `|a|_F^2` in f64, or refuses an `a` that is not finite.
fn energy(a: &Tensor, subject: &str) -> Result<f64> {
    let (_, n) = dense::dims(OP, a, subject)?;
    let squares = Tensor::zeros(n, DType::F64, a.device())?;
    ops::column_squares(&squares, a)?;
    let energy: f64 = squares.to_vec1::<f64>()?.iter().sum();
    if !energy.is_finite() {
        // Squares of f32 do not overflow in f64: an entry is to blame.
        let values: Vec<f64> = a.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
        dense::expect_finite(&values, n, Entries::All, subject)?;
    }
    Ok(energy)
}

/// By decomposing all of `a`.
fn exact(a: &Tensor, rank: usize, fell_back: bool, subject: &str) -> Result<Truncated> {
    Ok(Truncated { exact: true, fell_back, ..truncated(svd(a, subject)?, rank)? })
}

/// The first `rank` of all, in f32, with the signs of [`Svd`].
fn truncated(all: Svd, rank: usize) -> Result<Truncated> {
    let u = all.u.narrow(1, 0, rank)?.contiguous()?;
    let values: Vec<f64> = u.flatten_all()?.to_vec1()?;
    let mut largest = vec![0.0_f64; rank];
    for row in values.chunks_exact(rank) {
        for (largest, &v) in largest.iter_mut().zip(row) {
            if v.abs() > largest.abs() {
                *largest = v;
            }
        }
    }
    let signs: Vec<f64> = largest.iter().map(|&v| if v < 0.0 { -1.0 } else { 1.0 }).collect();
    let signs = Tensor::from_vec(signs, (1, rank), u.device())?;
    let vt = all.vt.narrow(0, 0, rank)?.broadcast_mul(&signs.t()?)?;
    let mut s = all.s;
    s.truncate(rank);
    Ok(Truncated {
        u: u.broadcast_mul(&signs)?.to_dtype(DType::F32)?,
        s,
        vt: vt.to_dtype(DType::F32)?.contiguous()?,
        exact: false,
        fell_back: false,
    })
}
