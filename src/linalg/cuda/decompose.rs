//! The decompositions of cuSOLVER: eigenvalues and singular values.
#![expect(unsafe_code, reason = "the libraries are C; each call says why its pointers hold")]

use std::ffi::{c_int, c_schar};
use std::ptr::null_mut;

use candle_core::cuda_backend::WrapErr;
use cudarc::cusolver::sys::{self, cublasFillMode_t as Fill, cusolverEigMode_t as EigMode};
use cudarc::driver::CudaSlice;

use super::matrix::expect_size;
use super::solver::{F64, Solver};
use crate::error::Result;

impl Solver {
    /// Computes the eigenvalues, ascending, of the symmetric `a [n, n]`, reading its upper triangle.
    /// Where eigenvectors are wanted, they replace `a` column by column; else `a` is lost. A status
    /// above zero: no convergence.
    pub(super) fn syevd(
        &self,
        a: &mut CudaSlice<f64>,
        n: usize,
        vectors: bool,
    ) -> Result<(Vec<f64>, c_int)> {
        expect_size(a.len() == n * n)?;
        let job = match vectors {
            true => EigMode::CUSOLVER_EIG_MODE_VECTOR,
            false => EigMode::CUSOLVER_EIG_MODE_NOVECTOR,
        };
        let (n_, uplo) = (n as i64, Fill::CUBLAS_FILL_MODE_UPPER);
        let (handle, params) = self.handle();
        let mut values = self.device.alloc_zeros::<f64>(n)?;
        let info = {
            let (a, _a) = self.pointer(a);
            let (w, _w) = self.pointer(&mut values);
            self.run(
                "cusolverDnXsyevd",
                // SAFETY: handle and pointers are live; it writes nothing but the two sizes.
                |on_device, on_host| unsafe {
                    sys::cusolverDnXsyevd_bufferSize(
                        handle, params, job, uplo, n_, F64, a, n_, F64, w, F64, on_device, on_host,
                    )
                },
                // SAFETY: `a` holds n * n numbers, `w` n, and the space is what was asked for.
                |space| unsafe {
                    sys::cusolverDnXsyevd(
                        handle,
                        params,
                        job,
                        uplo,
                        n_,
                        F64,
                        a,
                        n_,
                        F64,
                        w,
                        F64,
                        space.on_device,
                        space.device_bytes,
                        space.on_host,
                        space.host_bytes,
                        space.info,
                    )
                },
            )?
        };
        Ok((self.stream.clone_dtoh(&values).w()?, info))
    }

    /// Singular values, descending, of `a [m, n]`, `n <= m`, which is lost. Where they are wanted,
    /// the left vectors `[m, n]` and the transposed right ones `[n, n]` go into `vectors`. A status
    /// above zero: no convergence.
    ///
    /// By QR iteration (gesvd), because the faster polar decomposition of gesvdp perturbs singular
    /// matrices, and low-rank weights are singular.
    pub(super) fn gesvd(
        &self,
        a: &mut CudaSlice<f64>,
        (m, n): (usize, usize),
        vectors: Option<(&mut CudaSlice<f64>, &mut CudaSlice<f64>)>,
    ) -> Result<(Vec<f64>, c_int)> {
        expect_size(n <= m && a.len() == m * n)?;
        let job = if vectors.is_some() { b'S' } else { b'N' } as c_schar;
        let (m_, n_) = (m as i64, n as i64);
        let (handle, params) = self.handle();
        let mut values = self.device.alloc_zeros::<f64>(n)?;
        let info = {
            let (a, _a) = self.pointer(a);
            let (s, _s) = self.pointer(&mut values);
            let (mut u, mut vt) = (null_mut(), null_mut());
            let _uses = match vectors {
                Some((left, right)) => {
                    expect_size(left.len() == m * n && right.len() == n * n)?;
                    let (left, right) = (self.pointer(left), self.pointer(right));
                    (u, vt) = (left.0, right.0);
                    Some((left.1, right.1))
                }
                None => None,
            };
            self.run(
                "cusolverDnXgesvd",
                // SAFETY: handle and pointers are live; it writes nothing but the two sizes.
                |on_device, on_host| unsafe {
                    sys::cusolverDnXgesvd_bufferSize(
                        handle, params, job, job, m_, n_, F64, a, m_, F64, s, F64, u, m_, F64, vt,
                        n_, F64, on_device, on_host,
                    )
                },
                // SAFETY: `a` and `u` hold m * n numbers, `s` n, `vt` n * n, and the space is what
                // was asked for; with job N, `u` and `vt` are null and not touched.
                |space| unsafe {
                    sys::cusolverDnXgesvd(
                        handle,
                        params,
                        job,
                        job,
                        m_,
                        n_,
                        F64,
                        a,
                        m_,
                        F64,
                        s,
                        F64,
                        u,
                        m_,
                        F64,
                        vt,
                        n_,
                        F64,
                        space.on_device,
                        space.device_bytes,
                        space.on_host,
                        space.host_bytes,
                        space.info,
                    )
                },
            )?
        };
        Ok((self.stream.clone_dtoh(&values).w()?, info))
    }
}
