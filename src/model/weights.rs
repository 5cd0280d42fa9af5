//! Tensors of a checkpoint, read into the form a device computes with.

use candle_core::{DType, Device, Tensor};

use crate::checkpoint::{Checkpoint, Dtype, check_finite, to_f32};
use crate::error::Result;
use crate::ops;

/// The use that a tensor is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// A factor of products: bf16 stays bf16 where the device multiplies it.
    Product,
    /// Anything else: f32.
    Values,
}

/// Reads tensor `name` in f32, refusing values that are not finite.
///
/// # Errors
/// A tensor that is missing, of a dtype that is not a float, or not finite.
pub fn load_tensor(checkpoint: &Checkpoint, name: &str, device: &Device) -> Result<Tensor> {
    let info = checkpoint.require(name)?;
    let bytes = checkpoint.bytes(info)?;
    let tensor = tensor_of(Use::Values, info.dtype, bytes, name, &info.shape, device);
    // The values are ours now; the mapped pages would only add to what the process seems to hold.
    checkpoint.release(info);
    tensor
}

/// The tensor of `shape` whose data are `bytes` of `dtype`.
pub(super) fn tensor_of(
    purpose: Use,
    dtype: Dtype,
    bytes: &[u8],
    name: &str,
    shape: &[usize],
    device: &Device,
) -> Result<Tensor> {
    if device.is_cpu() {
        return Ok(Tensor::from_vec(to_f32(dtype, bytes, name)?, shape, device)?);
    }
    let as_stored = match dtype {
        Dtype::BF16 if purpose == Use::Product => DType::BF16,
        Dtype::F32 => DType::F32,
        _ => {
            let values = to_f32(dtype, bytes, name)?;
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            return ops::upload(&bytes, DType::F32, shape, device);
        }
    };
    check_finite(dtype, bytes, name)?;
    ops::upload(bytes, as_stored, shape, device)
}
