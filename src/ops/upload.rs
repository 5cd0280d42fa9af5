//! Copies values of a file to the device that computes with them.
//!
//! To a CUDA device they go through pinned memory on a stream of their own, so that a block can be
//! copied while another computes; work that uses the tensor waits for it, on the device.

use candle_core::op::BackpropOp;
use candle_core::{DType, Device, Shape, Storage, Tensor};

use super::{cuda, operand};
use crate::error::Result;

const OP: &str = "upload";

/// The tensor of `shape` whose little-endian elements of `dtype`, f32, bf16, f16 or u8, are `bytes`.
///
/// # Errors
/// [`Error::Bug`](crate::error::Error::Bug) for more or fewer bytes than the shape takes;
/// [`Error::OutOfDeviceMemory`](crate::error::Error::OutOfDeviceMemory).
pub fn upload(
    bytes: &[u8],
    dtype: DType,
    shape: impl Into<Shape>,
    device: &Device,
) -> Result<Tensor> {
    let shape = shape.into();
    if bytes.len() != shape.elem_count() * dtype.size_in_bytes() {
        let why = format_args!("{} bytes for {shape:?} of {dtype:?}", bytes.len());
        return Err(operand::refuse(OP, why));
    }
    match device {
        Device::Cuda(cuda) => {
            let storage = Storage::Cuda(cuda::upload(bytes, dtype, cuda)?);
            Ok(Tensor::from_storage(storage, shape, BackpropOp::none(), false))
        }
        _ => Ok(Tensor::from_raw_buffer(bytes, dtype, shape.dims(), device)?),
    }
}
