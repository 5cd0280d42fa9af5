//! Code shared by the ops on residual stacks: the layout of a stack, the checks of its tensors,
//! packed signs and outputs that candle has no way to return.
//!
//! ```text
//! W = Σ_i S_i ∘ (u_i v_i)      i < levels, S_i = ±1
//! signs u8 [levels, m, ⌈n/8⌉]    u f16 [levels, m, k]    v f16 [levels, k, n]    k <= 64
//! ```
//!
//! A byte holds the signs of eight neighbours of a row, the first in its most significant bit; a
//! set bit is plus, and so is the sign of 0 and of -0. Unused bits of a row's last byte are 0.

use std::cell::OnceCell;

use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, CudaStorage, DType, Device, Layout, Shape, Storage, Tensor};

use super::operand;
use crate::error::Result;

/// The largest rank of a level that the kernels have room for.
const MOST_RANK: usize = 64;

/// The largest width of a sketch: [`MOST_RANK`] and the 16 columns that `linalg::Truncation` adds.
const MOST_SKETCH: usize = 80;

const SIGN: u32 = 1 << 31;

/// The sizes of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) levels: usize,
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
}

/// Returns the sizes of the stack that the tensors make up, or refuses tensors that make up none.
pub(super) fn sizes(op: &'static str, signs: &Tensor, u: &Tensor, v: &Tensor) -> Result<Sizes> {
    operand::expect(op, "signs", signs, DType::U8)?;
    operand::expect(op, "u", u, DType::F16)?;
    operand::expect(op, "v", v, DType::F16)?;
    let (&[levels, m, k], &[_, _, n]) = (u.dims(), v.dims()) else {
        let why = format_args!("u {:?} and v {:?} are not three-dimensional", u.dims(), v.dims());
        return Err(operand::refuse(op, why));
    };
    operand::expect_dims(op, "v", v, &[levels, k, n])?;
    operand::expect_dims(op, "signs", signs, &[levels, m, bytes(n)])?;
    if levels * m * n == 0 || k == 0 || k > MOST_RANK {
        let why = format_args!("{levels} levels of [{m}, {n}] of rank {k} (1..={MOST_RANK})");
        return Err(operand::refuse(op, why));
    }
    Ok(Sizes { levels, m, n, k })
}

/// Rows and columns of the matrix `r`, neither of them 0.
pub(super) fn matrix(op: &'static str, r: &Tensor) -> Result<(usize, usize)> {
    operand::expect(op, "r", r, DType::F32)?;
    match *r.dims() {
        [m, n] if m * n > 0 => Ok((m, n)),
        ref dims => Err(operand::refuse(op, format_args!("r has shape {dims:?}, expected [m, n]"))),
    }
}

/// The width of the sketch by `omega [n, c]`; 0 without one.
pub(super) fn sketch_width(op: &'static str, omega: Option<&Tensor>, n: usize) -> Result<usize> {
    let Some(omega) = omega else { return Ok(0) };
    operand::expect(op, "omega", omega, DType::F32)?;
    let c = omega.dims().last().copied().unwrap_or(0);
    operand::expect_dims(op, "omega", omega, &[n, c])?;
    if c == 0 || c > MOST_SKETCH {
        return Err(operand::refuse(
            op,
            format_args!("a sketch of {c} columns (1..={MOST_SKETCH})"),
        ));
    }
    Ok(c)
}

/// Bytes of the signs of a row of `n`.
pub(super) fn bytes(n: usize) -> usize {
    n.div_ceil(8)
}

/// Eight values, negated where the sign is minus.
#[inline(always)]
pub(super) fn flipped(signs: u8, values: [f32; 8]) -> [f32; 8] {
    let minus = !u32::from(signs);
    let mut out = values;
    for (i, v) in out.iter_mut().enumerate() {
        *v = f32::from_bits(v.to_bits() ^ (minus << (24 + i) & SIGN));
    }
    out
}

/// The signs of eight values.
#[inline(always)]
pub(super) fn packed(values: [f32; 8]) -> u8 {
    let mut bits = [0_u32; 8];
    for (i, (bit, &v)) in bits.iter_mut().zip(&values).enumerate() {
        *bit = if v >= 0.0 { 0x80 >> i } else { 0 };
    }
    bits.iter().fold(0, |byte, bit| byte | bit) as u8
}

/// The values of `from`, filled up to eight with `rest`.
#[inline(always)]
pub(super) fn eight(from: &[f32], rest: f32) -> [f32; 8] {
    let mut values = [rest; 8];
    values[..from.len()].copy_from_slice(from);
    values
}

/// The contiguous elements of a tensor on the CPU, lent to `work`.
pub(super) fn with_elements<T: candle_core::WithDType, R>(
    tensor: &Tensor,
    work: impl FnOnce(&[T]) -> candle_core::Result<R>,
) -> candle_core::Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => work(operand::elements::<T>(storage, layout)?),
        _ => Err(elsewhere()),
    }
}

/// Returns the CUDA storage of an operand with its layout, or refuses an operand that is not on a GPU.
pub(super) fn on_gpu<'a>(
    (storage, layout): (&'a Storage, &'a Layout),
) -> candle_core::Result<(&'a CudaStorage, &'a Layout)> {
    match storage {
        Storage::Cuda(storage) => Ok((storage, layout)),
        _ => Err(elsewhere()),
    }
}

fn elsewhere() -> candle_core::Error {
    candle_core::Error::Msg("operands of one op are on two devices".into())
}

/// An output that candle has no way to return: a second one of an op, or one of an op in place.
#[derive(Default)]
pub(super) struct Extra(OnceCell<Storage>);

impl Extra {
    pub(super) fn set_cpu(&self, storage: CpuStorage) {
        // An op runs once.
        let _ = self.0.set(Storage::Cpu(storage));
    }

    pub(super) fn set_cuda(&self, storage: CudaStorage) {
        let _ = self.0.set(Storage::Cuda(storage));
    }

    /// The tensor that was left here.
    pub(super) fn into_tensor(self, shape: impl Into<Shape>) -> Result<Tensor> {
        match self.0.into_inner() {
            Some(storage) => Ok(Tensor::from_storage(storage, shape, BackpropOp::none(), false)),
            None => Err(operand::refuse("a residual stack", "an output was not computed")),
        }
    }
}

/// Refuses operands that are not where `device` is.
pub(super) fn expect_together(
    op: &'static str,
    device: &Device,
    operands: &[&Tensor],
) -> Result<()> {
    match operands.iter().all(|operand| operand.device().same_device(device)) {
        true => Ok(()),
        false => Err(operand::refuse(op, "operands are on two devices")),
    }
}
