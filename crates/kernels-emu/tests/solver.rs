//! The emulated cuSOLVER by the identities that define its results, in both precisions, with
//! matrices that are part of larger ones; and what it refuses.
mod common;

use common::noise;
use std::ffi::c_void;
use std::ptr::null_mut;

const LIBRARY: &str = "libcusolver.so.12";
const INVALID_VALUE: i32 = 3;
/// Columns of every matrix start this much further apart than they are long.
const GAP: usize = 3;
const UNTOUCHED: f64 = 77.0;

type P = *mut c_void;
type L = i64;
type U = usize;
type S = *mut usize;
type I = *mut i32;

/// f32 or f64, by cuSOLVER's number.
trait Real: Copy + Default {
    const TYPE: i32;
    /// What results may be off by, relative to the norm, times a small number.
    const ROUNDING: f64;
    fn new(v: f64) -> Self;
    fn get(self) -> f64;
}

impl Real for f32 {
    const TYPE: i32 = 0;
    const ROUNDING: f64 = 6e-8;
    fn new(v: f64) -> Self {
        v as f32
    }
    fn get(self) -> f64 {
        f64::from(self)
    }
}

impl Real for f64 {
    const TYPE: i32 = 1;
    const ROUNDING: f64 = 1.2e-16;
    fn new(v: f64) -> Self {
        v
    }
    fn get(self) -> f64 {
        self
    }
}

/// A column-major matrix, part of one with `GAP` more rows.
#[derive(Clone)]
struct Matrix<T> {
    m: usize,
    n: usize,
    numbers: Vec<T>,
}

impl<T: Real> Matrix<T> {
    fn new(m: usize, n: usize, at: impl Fn(usize, usize) -> f64) -> Self {
        let lead = m + GAP;
        let number = |i: usize| if i % lead < m { at(i % lead, i / lead) } else { UNTOUCHED };
        Self { m, n, numbers: (0..lead * n).map(|i| T::new(number(i))).collect() }
    }

    fn random(m: usize, n: usize, seed: u64) -> Self {
        let values = noise(m * n, seed);
        Self::new(m, n, |i, j| f64::from(values[i + j * m]))
    }

    fn lead(&self) -> L {
        (self.m + GAP) as L
    }

    fn data(&mut self) -> P {
        self.numbers.as_mut_ptr().cast()
    }

    fn at(&self, i: usize, j: usize) -> f64 {
        self.numbers[i + j * (self.m + GAP)].get()
    }

    fn t(&self) -> Self {
        Self::new(self.n, self.m, |i, j| self.at(j, i))
    }

    /// The sum of products of row i of this and column j of the other.
    fn times(&self, other: &Self) -> impl Fn(usize, usize) -> f64 {
        |i, j| (0..self.n).map(|k| self.at(i, k) * other.at(k, j)).sum()
    }

    fn norm(&self) -> f64 {
        let all = (0..self.m * self.n).map(|i| self.at(i % self.m, i / self.m).powi(2));
        all.sum::<f64>().sqrt()
    }

    #[track_caller]
    fn assert_is(&self, expected: impl Fn(usize, usize) -> f64) {
        let allowed = 20.0 * T::ROUNDING * (self.m.max(self.n) as f64) * self.norm().max(1.0);
        for j in 0..self.n {
            for i in 0..self.m {
                let (found, expected) = (self.at(i, j), expected(i, j));
                let off = (found - expected).abs();
                assert!(off <= allowed, "[{i}, {j}] is {found}, expected {expected}: off by {off}");
            }
        }
        let gaps = (0..self.numbers.len()).filter(|i| i % (self.m + GAP) >= self.m);
        assert!(
            gaps.into_iter().all(|i| self.numbers[i].get() == UNTOUCHED),
            "wrote past a column"
        );
    }

    #[track_caller]
    fn assert_orthonormal(&self) {
        let product = self.t();
        let product = product.times(self);
        Self::new(self.n, self.n, product).assert_is(|i, j| f64::from(u8::from(i == j)));
    }
}

struct Solver {
    handle: P,
    params: P,
}

/// Status, singular values, U and V^T.
type Decomposed<T> = (i32, Vec<f64>, Matrix<T>, Matrix<T>);

impl Solver {
    fn new() -> Self {
        let (mut handle, mut params) = (null_mut(), null_mut());
        let create = function!(LIBRARY, "cusolverDnCreate", fn(*mut P));
        let create_params = function!(LIBRARY, "cusolverDnCreateParams", fn(*mut P));
        // SAFETY: cuSOLVER's interface.
        unsafe {
            assert_eq!(create(&raw mut handle), 0);
            assert_eq!(create_params(&raw mut params), 0);
        }
        Self { handle, params }
    }

    /// Asks for the size of the workspace, calls with that, and returns the status of the library,
    /// else that of the routine.
    fn run(
        sizes: impl FnOnce(*mut usize, *mut usize) -> i32,
        call: impl FnOnce(P, usize, P, usize, *mut i32) -> i32,
    ) -> Result<i32, i32> {
        let (mut device, mut host, mut info) = (0, 0, -1);
        let status = sizes(&raw mut device, &raw mut host);
        if status != 0 {
            return Err(status);
        }
        let (mut on_device, mut on_host) = (vec![0u8; device], vec![0u8; host]);
        let (d, h) = (on_device.as_mut_ptr().cast(), on_host.as_mut_ptr().cast());
        match call(d, device, h, host, &raw mut info) {
            0 => Ok(info),
            status => Err(status),
        }
    }

    fn syevd<T: Real>(&self, a: &mut Matrix<T>, job: i32, uplo: i32) -> (Vec<f64>, i32) {
        let sizes = function!(
            LIBRARY,
            "cusolverDnXsyevd_bufferSize",
            fn(P, P, i32, i32, L, i32, P, L, i32, P, i32, S, S)
        );
        let call = function!(
            LIBRARY,
            "cusolverDnXsyevd",
            fn(P, P, i32, i32, L, i32, P, L, i32, P, i32, P, U, P, U, I)
        );
        let (t, n, lead) = (T::TYPE, a.n as L, a.lead());
        let mut values = vec![T::default(); a.n];
        let (a, w) = (a.data(), values.as_mut_ptr().cast());
        // SAFETY: cuSOLVER's interface.
        let info = Self::run(
            |d, h| unsafe {
                sizes(self.handle, self.params, job, uplo, n, t, a, lead, t, w, t, d, h)
            },
            |d, ds, h, hs, info| unsafe {
                call(
                    self.handle,
                    self.params,
                    job,
                    uplo,
                    n,
                    t,
                    a,
                    lead,
                    t,
                    w,
                    t,
                    d,
                    ds,
                    h,
                    hs,
                    info,
                )
            },
        );
        (values.into_iter().map(Real::get).collect(), info.unwrap())
    }

    fn gesvd<T: Real>(&self, a: &mut Matrix<T>, job: u8) -> Result<Decomposed<T>, i32> {
        let sizes = function!(
            LIBRARY,
            "cusolverDnXgesvd_bufferSize",
            fn(P, P, i8, i8, L, L, i32, P, L, i32, P, i32, P, L, i32, P, L, i32, S, S)
        );
        let call = function!(
            LIBRARY,
            "cusolverDnXgesvd",
            fn(P, P, i8, i8, L, L, i32, P, L, i32, P, i32, P, L, i32, P, L, i32, P, U, P, U, I)
        );
        let (t, m, n, lead, job) = (T::TYPE, a.m as L, a.n as L, a.lead(), job as i8);
        let left = if job as u8 == b'A' { a.m } else { a.n };
        let (mut u, mut vt) =
            (Matrix::new(a.m, left, |_, _| 0.0), Matrix::new(a.n, a.n, |_, _| 0.0));
        let mut values = vec![T::default(); a.n];
        let (a, s) = (a.data(), values.as_mut_ptr().cast());
        let (ldu, ldvt) = (u.lead(), vt.lead());
        let (ud, vd) =
            if job as u8 == b'N' { (null_mut(), null_mut()) } else { (u.data(), vt.data()) };
        let (handle, params) = (self.handle, self.params);
        // SAFETY: cuSOLVER's interface.
        let info = Self::run(
            |d, h| unsafe {
                sizes(
                    handle, params, job, job, m, n, t, a, lead, t, s, t, ud, ldu, t, vd, ldvt, t,
                    d, h,
                )
            },
            |d, ds, h, hs, info| unsafe {
                call(
                    handle, params, job, job, m, n, t, a, lead, t, s, t, ud, ldu, t, vd, ldvt, t,
                    d, ds, h, hs, info,
                )
            },
        )?;
        Ok((info, values.into_iter().map(Real::get).collect(), u, vt))
    }

    fn geqrf<T: Real>(&self, a: &mut Matrix<T>) -> Vec<T> {
        let sizes = function!(
            LIBRARY,
            "cusolverDnXgeqrf_bufferSize",
            fn(P, P, L, L, i32, P, L, i32, P, i32, S, S)
        );
        let call = function!(
            LIBRARY,
            "cusolverDnXgeqrf",
            fn(P, P, L, L, i32, P, L, i32, P, i32, P, U, P, U, I)
        );
        let (t, m, n, lead) = (T::TYPE, a.m as L, a.n as L, a.lead());
        let mut tau = vec![T::default(); a.n];
        let (a, factors) = (a.data(), tau.as_mut_ptr().cast());
        let (handle, params) = (self.handle, self.params);
        // SAFETY: cuSOLVER's interface.
        let info = Self::run(
            |d, h| unsafe { sizes(handle, params, m, n, t, a, lead, t, factors, t, d, h) },
            |d, ds, h, hs, info| unsafe {
                call(handle, params, m, n, t, a, lead, t, factors, t, d, ds, h, hs, info)
            },
        );
        assert_eq!(info, Ok(0));
        tau
    }

    fn orgqr<T: Real>(&self, q: &mut Matrix<T>, tau: &mut [T]) {
        let (sizes, call) = match T::TYPE {
            0 => ("cusolverDnSorgqr_bufferSize", "cusolverDnSorgqr"),
            _ => ("cusolverDnDorgqr_bufferSize", "cusolverDnDorgqr"),
        };
        let (sizes, call) = (common::symbol(LIBRARY, sizes), common::symbol(LIBRARY, call));
        let (m, n, k, lead) = (q.m as i32, q.n as i32, tau.len() as i32, q.lead() as i32);
        let (h, a, tau) = (self.handle, q.data(), tau.as_mut_ptr().cast());
        let (mut size, mut info) = (0, -1);
        // SAFETY: cuSOLVER's interface; the pointers are those of the element type of the name.
        unsafe {
            let sizes = std::mem::transmute::<
                P,
                unsafe extern "C" fn(P, i32, i32, i32, P, i32, P, *mut i32) -> i32,
            >(sizes);
            let call = std::mem::transmute::<
                P,
                unsafe extern "C" fn(P, i32, i32, i32, P, i32, P, P, i32, *mut i32) -> i32,
            >(call);
            assert_eq!(sizes(h, m, n, k, a, lead, tau, &raw mut size), 0);
            let mut work = vec![T::default(); size as usize];
            let work = work.as_mut_ptr().cast();
            assert_eq!(call(h, m, n, k, a, lead, tau, work, size, &raw mut info), 0);
        }
        assert_eq!(info, 0);
    }

    fn potrf<T: Real>(&self, a: &mut Matrix<T>, uplo: i32) -> i32 {
        let sizes = function!(
            LIBRARY,
            "cusolverDnXpotrf_bufferSize",
            fn(P, P, i32, L, i32, P, L, i32, S, S)
        );
        let call =
            function!(LIBRARY, "cusolverDnXpotrf", fn(P, P, i32, L, i32, P, L, i32, P, U, P, U, I));
        let (t, n, lead, a) = (T::TYPE, a.n as L, a.lead(), a.data());
        let (handle, params) = (self.handle, self.params);
        // SAFETY: cuSOLVER's interface.
        Self::run(
            |d, h| unsafe { sizes(handle, params, uplo, n, t, a, lead, t, d, h) },
            |d, ds, h, hs, info| unsafe {
                call(handle, params, uplo, n, t, a, lead, t, d, ds, h, hs, info)
            },
        )
        .unwrap()
    }
}

const LOWER: i32 = 0;
const UPPER: i32 = 1;

/// The symmetric matrix, with rubbish in the triangle that is not to be read.
fn half<T: Real>(a: &Matrix<T>, uplo: i32) -> Matrix<T> {
    let read = |i, j| i == j || (i > j) == (uplo == LOWER);
    Matrix::new(a.n, a.n, |i, j| if read(i, j) { a.at(i, j) } else { f64::NAN })
}

fn eigen<T: Real>() {
    let solver = Solver::new();
    for n in [1, 2, 3, 17, 64] {
        let x = Matrix::<T>::random(n, n, n as u64);
        let a = Matrix::<T>::new(n, n, |i, j| x.at(i, j) + x.at(j, i));
        for uplo in [LOWER, UPPER] {
            let mut v = half(&a, uplo);
            let (values, info) = solver.syevd(&mut v, 1, uplo);
            assert_eq!(info, 0);
            assert!(values.windows(2).all(|w| w[0] <= w[1]), "{values:?}");
            v.assert_orthonormal();
            let product = a.times(&v);
            Matrix::<T>::new(n, n, product).assert_is(|i, j| v.at(i, j) * values[j]);
            let (alone, _) = solver.syevd(&mut half(&a, uplo), 0, uplo);
            let near =
                |(x, y): (&f64, &f64)| (x - y).abs() <= 20.0 * T::ROUNDING * n as f64 * a.norm();
            assert!(alone.iter().zip(&values).all(near), "{alone:?} {values:?}");
        }
    }
}

fn singular<T: Real>() {
    let solver = Solver::new();
    for (m, n, rank) in [(1, 1, 1), (5, 1, 1), (3, 3, 3), (40, 17, 17), (33, 20, 6), (7, 4, 0)] {
        let (x, y) = (Matrix::<T>::random(m, rank, 1), Matrix::<T>::random(rank, n, 2));
        let a = Matrix::<T>::new(m, n, x.times(&y));
        for job in [b'S', b'A'] {
            let (info, s, u, vt) = solver.gesvd(&mut a.clone(), job).unwrap();
            assert_eq!(info, 0);
            assert!(s.windows(2).all(|w| w[0] >= w[1]) && s[n - 1] >= 0.0, "{s:?}");
            u.assert_orthonormal();
            vt.t().assert_orthonormal();
            let scaled = Matrix::<T>::new(n, n, |i, j| s[i] * vt.at(i, j));
            let first = Matrix::<T>::new(m, n, |i, j| u.at(i, j));
            a.assert_is(first.times(&scaled));
            let (_, alone, ..) = solver.gesvd(&mut a.clone(), b'N').unwrap();
            assert_eq!(alone, s);
        }
    }
    assert_eq!(solver.gesvd(&mut Matrix::<T>::random(3, 4, 1), b'S').err(), Some(INVALID_VALUE));
}

fn orthogonal<T: Real>() {
    let solver = Solver::new();
    for (m, n) in [(1, 1), (4, 1), (5, 5), (40, 17)] {
        let a = Matrix::<T>::random(m, n, 3);
        let mut q = a.clone();
        let mut tau = solver.geqrf(&mut q);
        let r = Matrix::<T>::new(n, n, |i, j| if i <= j { q.at(i, j) } else { 0.0 });
        solver.orgqr(&mut q, &mut tau);
        q.assert_orthonormal();
        a.assert_is(q.times(&r));
    }
}

fn positive<T: Real>() {
    let solver = Solver::new();
    for n in [1, 2, 19] {
        let x = Matrix::<T>::random(n, n, 4);
        let transposed = x.t();
        let gram = Matrix::<T>::new(n, n, transposed.times(&x));
        let a = Matrix::<T>::new(n, n, |i, j| gram.at(i, j) + f64::from(u8::from(i == j)));
        for uplo in [LOWER, UPPER] {
            let mut factor = half(&a, uplo);
            assert_eq!(solver.potrf(&mut factor, uplo), 0);
            let lower = Matrix::<T>::new(n, n, |i, j| match (i >= j, uplo) {
                (false, _) => 0.0,
                (true, LOWER) => factor.at(i, j),
                (true, _) => factor.at(j, i),
            });
            let upper = lower.t();
            a.assert_is(lower.times(&upper));
            let spoilt = |i, j| if (i, j) == (n - 1, n - 1) { -1.0 } else { a.at(i, j) };
            assert_eq!(solver.potrf(&mut Matrix::<T>::new(n, n, spoilt), uplo), n as i32);
        }
    }
}

#[test]
fn eigenvalues_and_vectors() {
    eigen::<f32>();
    eigen::<f64>();
}

#[test]
fn singular_values_and_vectors() {
    singular::<f32>();
    singular::<f64>();
}

#[test]
fn orthogonal_factors() {
    orthogonal::<f32>();
    orthogonal::<f64>();
}

#[test]
fn cholesky_factors() {
    positive::<f32>();
    positive::<f64>();
}

#[test]
fn workspace_smaller_than_asked_for_is_refused() {
    let solver = Solver::new();
    let call =
        function!(LIBRARY, "cusolverDnXpotrf", fn(P, P, i32, L, i32, P, L, i32, P, U, P, U, I));
    let (mut a, mut info) = (Matrix::<f64>::new(2, 2, |i, j| f64::from(u8::from(i == j))), 0);
    let (lead, a) = (a.lead(), a.data());
    let (mut device, mut host) = (vec![0u8; 64], vec![0u8; 4096]);
    let (d, h) = (device.as_mut_ptr().cast(), host.as_mut_ptr().cast());
    // SAFETY: cuSOLVER's interface.
    let status = unsafe {
        call(solver.handle, solver.params, LOWER, 2, 1, a, lead, 1, d, 64, h, 4096, &raw mut info)
    };
    assert_eq!(status, INVALID_VALUE);
}
