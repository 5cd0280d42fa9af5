//! The bridge between candle's tensors and the device memory that the libraries work in.

use std::cmp::Ordering;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::{CudaStorage, CudaStorageSlice, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, Layout, Shape, Storage, Tensor};
use cudarc::driver::CudaSlice;

use super::super::dense::{self, Entries};
use crate::error::{Error, Result};

/// A matrix whose largest magnitude lies between `1 / LARGE` and this is decomposed as it is, because
/// squares of its entries, and sums of those squares, neither overflow nor vanish.
const LARGE: f64 = 1e100;

/// Returns `a` as contiguous f64, or an error that names the first entry of `part` that is not finite.
/// Entries outside a triangle may have been replaced by zeros.
pub(super) fn checked(
    op: &'static str,
    a: &Tensor,
    part: Entries,
    subject: &str,
) -> Result<Tensor> {
    let a = dense::as_f64(op, a, subject)?;
    // A sum is finite only if all its terms are.
    if a.sum(1)?.to_vec1::<f64>()?.iter().all(|sum| sum.is_finite()) {
        return Ok(a);
    }
    let (m, n) = a.dims2()?;
    let mut rows = a.flatten_all()?.to_vec1::<f64>()?;
    dense::expect_finite(&rows, n, part, subject)?;
    for (i, row) in rows.chunks_exact_mut(n).enumerate() {
        let kept = part.columns(i, n);
        row[..kept.start].fill(0.0);
        row[kept.end..].fill(0.0);
    }
    Ok(Tensor::from_vec(rows, (m, n), a.device())?)
}

/// The power of two by which to divide `a` before squares of its entries are taken: 1 but for
/// entries of extreme magnitude.
pub(super) fn power_of_two(a: &Tensor) -> Result<f64> {
    let (most, least) = (a.max(1)?.to_vec1::<f64>()?, a.min(1)?.to_vec1::<f64>()?);
    let largest = most.iter().chain(&least).fold(0.0_f64, |m, v| m.max(v.abs()));
    if largest == 0.0 || (1.0 / LARGE..=LARGE).contains(&largest) {
        return Ok(1.0);
    }
    // Short of the limits of f64, so that the inverse is finite too.
    Ok(2.0_f64.powi((largest.log2() as i32).clamp(-1000, 1000)))
}

/// The device that `a` is on.
pub(super) fn on_device(a: &Tensor) -> Result<CudaDevice> {
    Ok(a.device().as_cuda_device()?.clone())
}

/// `factor` times the f64 tensor `a`, row after row whatever its strides, in memory of its own.
pub(super) fn copy(a: &Tensor, factor: f64) -> Result<CudaSlice<f64>> {
    let (storage, layout) = a.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => owned(storage.affine(layout, factor, 0.0)?),
        _ => Err(Error::Bug("a matrix for cuSOLVER is not on a GPU".into())),
    }
}

/// Room for `elements` numbers.
pub(super) fn f64s(device: &CudaDevice, elements: usize) -> Result<CudaSlice<f64>> {
    Ok(device.alloc_zeros(elements)?)
}

/// Every `stride + 1`-th of the numbers, `n` of them: the diagonal of a matrix whose rows, or
/// columns, are `stride` long. The numbers are handed back.
pub(super) fn diagonal(
    numbers: CudaSlice<f64>,
    n: usize,
    stride: usize,
    device: &CudaDevice,
) -> Result<(Vec<f64>, CudaSlice<f64>)> {
    let positions: Vec<i64> = (0..n).map(|i| (i * (stride + 1)) as i64).collect();
    let positions = CudaStorage::wrap_cuda_slice(device.clone_htod(&positions)?, device.clone());
    let all = Layout::contiguous(numbers.len());
    let numbers = CudaStorage::wrap_cuda_slice(numbers, device.clone());
    let picked = numbers.index_select(&positions, &all, &Layout::contiguous(n), 0)?;
    let picked = device.cuda_stream().clone_dtoh(&owned(picked)?).w()?;
    Ok((picked, owned(numbers)?))
}

fn owned(storage: CudaStorage) -> Result<CudaSlice<f64>> {
    match storage.slice {
        CudaStorageSlice::F64(slice) => Ok(slice),
        _ => Err(Error::Bug("a matrix for cuSOLVER is not f64".into())),
    }
}

/// The tensor of these numbers, row after row.
pub(super) fn tensor(
    numbers: CudaSlice<f64>,
    shape: impl Into<Shape>,
    device: &CudaDevice,
) -> Tensor {
    let storage = CudaStorage::wrap_cuda_slice(numbers, device.clone());
    Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
}

/// For every vector along `dim` of a matrix, the factor (1 or -1) that makes its entry of largest
/// magnitude positive, the first of equals; the length of `dim` is 1 in the result.
pub(super) fn signs(vectors: &Tensor, dim: usize) -> Result<Tensor> {
    let most = vectors.max(dim)?.to_vec1::<f64>()?;
    let least = vectors.min(dim)?.to_vec1::<f64>()?;
    let mut signs = Vec::with_capacity(most.len());
    for (i, (&most, &least)) in most.iter().zip(&least).enumerate() {
        let negative = match most.total_cmp(&-least) {
            Ordering::Less => true,
            Ordering::Greater => false,
            // Equals of both signs are rare enough to be looked at one by one.
            Ordering::Equal => {
                let vector = vectors.narrow(1 - dim, i, 1)?.flatten_all()?.to_vec1::<f64>()?;
                vector.iter().find(|v| v.abs().total_cmp(&most).is_eq()).is_some_and(|&v| v < 0.0)
            }
        };
        signs.push(if negative { -1.0 } else { 1.0 });
    }
    let mut shape = [1; 2];
    shape[1 - dim] = signs.len();
    Ok(Tensor::from_vec(signs, &shape, vectors.device())?)
}

/// A wrong size here would let the libraries write where they must not.
pub(super) fn expect_size(sizes_hold: bool) -> Result<()> {
    match sizes_hold {
        true => Ok(()),
        false => Err(Error::Bug("a matrix in device memory has another size".into())),
    }
}
