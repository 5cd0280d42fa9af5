//! Checks of operands, shared by all ops and made before an op runs: a refusal is a typed error that
//! names the op and the operand.

use candle_core::{CpuStorage, DType, Layout, Tensor, WithDType};

use crate::error::{Error, Result};

/// Callers validate shapes when they load a model, so a refusal here is a bug.
pub(super) fn refuse(op: &'static str, why: impl std::fmt::Display) -> Error {
    Error::Bug(format!("{op}: {why}"))
}

/// `tensor` has `dtype` and lies contiguous in memory.
pub(super) fn expect(
    op: &'static str,
    name: &'static str,
    tensor: &Tensor,
    dtype: DType,
) -> Result<()> {
    if tensor.dtype() != dtype {
        return Err(refuse(op, format_args!("{name} is {:?}, expected {dtype:?}", tensor.dtype())));
    }
    if !tensor.is_contiguous() {
        let strides = tensor.stride();
        return Err(refuse(op, format_args!("{name} is not contiguous (strides {strides:?})")));
    }
    Ok(())
}

/// `tensor` has exactly the shape `dims`.
pub(super) fn expect_dims(
    op: &'static str,
    name: &'static str,
    tensor: &Tensor,
    dims: &[usize],
) -> Result<()> {
    if tensor.dims() == dims {
        return Ok(());
    }
    Err(refuse(op, format_args!("{name} has shape {:?}, expected {dims:?}", tensor.dims())))
}

/// The elements a contiguous layout covers.
pub(super) fn elements<'a, T: WithDType>(
    storage: &'a CpuStorage,
    layout: &Layout,
) -> candle_core::Result<&'a [T]> {
    let (start, end) = range(layout)?;
    Ok(&storage.as_slice::<T>()?[start..end])
}

/// The f64 elements a contiguous layout covers, to be changed: sums that outlive a chunk.
pub(super) fn sums_mut<'a>(
    storage: &'a mut CpuStorage,
    layout: &Layout,
) -> candle_core::Result<&'a mut [f64]> {
    let (start, end) = range(layout)?;
    match storage {
        CpuStorage::F64(sums) => Ok(&mut sums[start..end]),
        _ => Err(candle_core::Error::Msg("sums are not f64".into())),
    }
}

/// Returns the start and end of a contiguous layout in its storage.
pub(super) fn range(layout: &Layout) -> candle_core::Result<(usize, usize)> {
    layout
        .contiguous_offsets()
        .ok_or_else(|| candle_core::Error::Msg("operand is not contiguous".into()))
}
