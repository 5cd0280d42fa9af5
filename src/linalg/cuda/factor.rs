//! The factorisations of cuSOLVER, and cuBLAS's substitution.
#![expect(unsafe_code, reason = "the libraries are C; each call says why its pointers hold")]

use std::ffi::c_int;

use candle_core::CudaDevice;
use cudarc::cublas::sys::{
    cublasDiagType_t, cublasDtrsm_v2, cublasFillMode_t, cublasOperation_t, cublasSideMode_t,
    cublasStatus_t,
};
use cudarc::cusolver::sys::{self, cublasFillMode_t as Fill};
use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};

use super::super::Triangle;
use super::matrix::expect_size;
use super::solver::{F64, Solver};
use crate::error::{Error, Result};

impl Solver {
    /// Householder QR of `a [m, r]`, `r <= m`: R on and above its diagonal, below it reflections,
    /// whose factors are returned.
    pub(super) fn geqrf(
        &self,
        a: &mut CudaSlice<f64>,
        (m, r): (usize, usize),
    ) -> Result<CudaSlice<f64>> {
        expect_size(r <= m && a.len() == m * r)?;
        let (m_, r_) = (m as i64, r as i64);
        let (handle, params) = self.handle();
        let mut factors = self.device.alloc_zeros::<f64>(r)?;
        {
            let (a, _a) = self.pointer(a);
            let (tau, _tau) = self.pointer(&mut factors);
            self.run(
                "cusolverDnXgeqrf",
                // SAFETY: handle and pointers are live; it writes nothing but the two sizes.
                |on_device, on_host| unsafe {
                    sys::cusolverDnXgeqrf_bufferSize(
                        handle, params, m_, r_, F64, a, m_, F64, tau, F64, on_device, on_host,
                    )
                },
                // SAFETY: `a` holds m * r numbers, `tau` r, and the space is what was asked for.
                |space| unsafe {
                    sys::cusolverDnXgeqrf(
                        handle,
                        params,
                        m_,
                        r_,
                        F64,
                        a,
                        m_,
                        F64,
                        tau,
                        F64,
                        space.on_device,
                        space.device_bytes,
                        space.on_host,
                        space.host_bytes,
                        space.info,
                    )
                },
            )?;
        }
        Ok(factors)
    }

    /// Replaces what [`geqrf`](Self::geqrf) left of `a [m, r]` by the columns of Q.
    pub(super) fn orgqr(
        &self,
        a: &mut CudaSlice<f64>,
        factors: &CudaSlice<f64>,
        (m, r): (usize, usize),
    ) -> Result<()> {
        expect_size(r <= m && a.len() == m * r && factors.len() == r)?;
        // This one counts elements in 32 bits.
        int(m * r)?;
        let (m, r) = (int(m)?, int(r)?);
        let (handle, _) = self.handle();
        let (a, _a) = self.pointer(a);
        let (tau, _tau) = factors.device_ptr(&self.stream);
        let (a, tau) = (a.cast::<f64>(), tau as *const f64);
        let mut numbers = 0;
        self.run(
            "cusolverDnDorgqr",
            |on_device, _| {
                // SAFETY: handle and pointers are live; it writes nothing but the size.
                let status = unsafe {
                    sys::cusolverDnDorgqr_bufferSize(handle, m, r, r, a, m, tau, &raw mut numbers)
                };
                *on_device = numbers as usize * size_of::<f64>();
                status
            },
            // SAFETY: `a` holds m * r numbers, `tau` r, and the space is what was asked for.
            |space| unsafe {
                let numbers = (space.device_bytes / size_of::<f64>()) as c_int;
                let work = space.on_device.cast();
                sys::cusolverDnDorgqr(handle, m, r, r, a, m, tau, work, numbers, space.info)
            },
        )?;
        Ok(())
    }

    /// Replaces the upper triangle of the symmetric `a [n, n]` by `U` with `A = U^T U`. A status
    /// above zero is the order of the first leading minor that is not positive.
    pub(super) fn potrf(&self, a: &mut CudaSlice<f64>, n: usize) -> Result<c_int> {
        expect_size(a.len() == n * n)?;
        let (n_, uplo) = (n as i64, Fill::CUBLAS_FILL_MODE_UPPER);
        let (handle, params) = self.handle();
        let (a, _a) = self.pointer(a);
        self.run(
            "cusolverDnXpotrf",
            // SAFETY: handle and pointer are live; it writes nothing but the two sizes.
            |on_device, on_host| unsafe {
                sys::cusolverDnXpotrf_bufferSize(
                    handle, params, uplo, n_, F64, a, n_, F64, on_device, on_host,
                )
            },
            // SAFETY: `a` holds n * n numbers, and the space is what was asked for.
            |space| unsafe {
                sys::cusolverDnXpotrf(
                    handle,
                    params,
                    uplo,
                    n_,
                    F64,
                    a,
                    n_,
                    F64,
                    space.on_device,
                    space.device_bytes,
                    space.on_host,
                    space.host_bytes,
                    space.info,
                )
            },
        )
    }
}

/// Solves `T X = B`, or `T^T X = B`, for the row-major `t [n, n]` and `x [n, k]`, which holds B
/// before and X after.
pub(super) fn trsm(
    device: &CudaDevice,
    t: &CudaSlice<f64>,
    x: &mut CudaSlice<f64>,
    (n, k): (usize, usize),
    triangle: Triangle,
    transposed: bool,
) -> Result<()> {
    expect_size(t.len() == n * n && x.len() == n * k)?;
    // Column by column both are read as their transposes: X^T T^T = B^T, where T^T has its
    // entries in the other triangle.
    let uplo = match triangle {
        Triangle::Lower => cublasFillMode_t::CUBLAS_FILL_MODE_UPPER,
        Triangle::Upper => cublasFillMode_t::CUBLAS_FILL_MODE_LOWER,
    };
    let operation = match transposed {
        true => cublasOperation_t::CUBLAS_OP_T,
        false => cublasOperation_t::CUBLAS_OP_N,
    };
    let (n, k) = (int(n)?, int(k)?);
    let one = 1.0_f64;
    let (blas, stream) = (device.cublas_handle(), device.cuda_stream());
    let (t, _t) = t.device_ptr(&stream);
    let (x, _x) = x.device_ptr_mut(&stream);
    // SAFETY: the handle is live and on this stream; `t` holds n * n numbers, `x` n * k; the
    // factor is read from host memory before the call returns.
    let status = unsafe {
        cublasDtrsm_v2(
            *blas.handle(),
            cublasSideMode_t::CUBLAS_SIDE_RIGHT,
            uplo,
            operation,
            cublasDiagType_t::CUBLAS_DIAG_NON_UNIT,
            k,
            n,
            &raw const one,
            t as *const f64,
            n,
            x as *mut f64,
            k,
        )
    };
    match status {
        cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        status => Err(candle_core::Error::Cuda(format!("cublasDtrsm: {status:?}").into()).into()),
    }
}

/// What the functions with 32-bit sizes take.
fn int(n: usize) -> Result<c_int> {
    c_int::try_from(n).map_err(|_| Error::Unsupported {
        what: format!("a factorisation with {n} numbers on a GPU"),
        hint: Some("the CPU has no such limit".into()),
    })
}
