//! The product of bf16 matrices with a result in f32, which candle does not offer.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublas::{result, sys};
use candle_core::cuda_backend::cudarc::driver::{CudaView, DevicePtr, DevicePtrMut};
use candle_core::{CudaStorage, DType, Error, Layout, Result};
use half::bf16;

use super::{Grid, Launch};
use crate::ops::operand;

/// `x wᵀ [t, m]` of `x [t, n]` f32 and `w [m, n]` bf16, or (`back`) `x w [t, n]` of `x [t, m]`: x is
/// rounded to bf16, products are exact, sums and result in f32.
#[expect(unsafe_code, reason = "a call into cuBLAS")]
pub(in crate::ops) fn product_bf16(
    x: &CudaStorage,
    x_layout: &Layout,
    w: &CudaStorage,
    w_layout: &Layout,
    back: bool,
) -> Result<CudaStorage> {
    let (t, inner) = x_layout.shape().dims2()?;
    let (m, n) = w_layout.shape().dims2()?;
    let width = if back { n } else { m };
    let rounded = Launch::of("linear", "to_bf16", x)
        .read(x, x_layout)?
        .output(DType::BF16, t * inner)?
        .int(t * inner)
        .run(Grid::elements(t * inner))?
        .one()?;
    let device = &x.device;
    // SAFETY: the product writes all of it.
    let mut y = unsafe { device.alloc::<f32>((t * width).max(1)) }?;
    if t * width == 0 {
        return Ok(CudaStorage::wrap_cuda_slice(y, device.clone()));
    }
    let (start, end) = operand::range(w_layout)?;
    let w: CudaView<'_, bf16> = w.as_cuda_slice::<bf16>()?.slice(start..end);
    let size = |n: usize| {
        i32::try_from(n).map_err(|_| Error::Msg(format!("a matrix side of {n} is too long")))
    };
    // cuBLAS counts by columns: its matrices are the transposes of ours.
    let (transpose_w, rows) = match back {
        false => (sys::cublasOperation_t::CUBLAS_OP_T, size(m)?),
        true => (sys::cublasOperation_t::CUBLAS_OP_N, size(n)?),
    };
    let stream = device.cuda_stream();
    let blas = device.cublas_handle();
    let (one, zero) = (1.0_f32, 0.0_f32);
    let x = rounded.as_cuda_slice::<bf16>()?;
    {
        let (w_pointer, _read_w) = w.device_ptr(&stream);
        let (x_pointer, _read_x) = x.device_ptr(&stream);
        let (y_pointer, _write_y) = y.device_ptr_mut(&stream);
        // SAFETY: the pointers are of this device and cover the matrices whose sizes are given; the
        // guards keep them until the product is queued; alpha and beta are f32, as the compute type
        // says.
        unsafe {
            result::gemm_ex(
                *blas.handle(),
                transpose_w,
                sys::cublasOperation_t::CUBLAS_OP_N,
                rows,
                size(t)?,
                size(inner)?,
                (&raw const one).cast(),
                w_pointer as *const _,
                sys::cudaDataType_t::CUDA_R_16BF,
                size(n)?,
                x_pointer as *const _,
                sys::cudaDataType_t::CUDA_R_16BF,
                size(inner)?,
                (&raw const zero).cast(),
                y_pointer as *mut _,
                sys::cudaDataType_t::CUDA_R_32F,
                rows,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .w()?;
    }
    Ok(CudaStorage::wrap_cuda_slice(y, device.clone()))
}
