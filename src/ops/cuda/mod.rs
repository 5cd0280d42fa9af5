//! CUDA under the ops: kernels launched on candle's device, the product of bf16 matrices, and the way
//! of weights to the device.
//!
//! An op names the operands, outputs and sizes of its kernel, in the order of the kernel's parameters:
//!
//! ```text
//! Launch::new("rms_norm", x).read(x, layout)?.read(w, layout)?.output(F32, n)?.int(rows).run(grid)
//! ```
//!
//! Everything is queued on the one stream of the device. cudarc keeps it in order with the stream that
//! uploads, through the events it records with every use of an allocation.

mod blas;
mod grid;
mod launch;
mod modules;
mod system;
mod upload;

use candle_core::backend::BackendDevice;
use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Error, Layout, Result, Shape};

pub(super) use blas::product_bf16;
pub(super) use grid::Grid;
pub(super) use launch::Launch;
pub(super) use system::{free_memory, open, system};
pub(super) use upload::upload;

/// The parts `(f32, elements)` one after the other, for gradients that go back in one storage.
pub(super) fn joined(parts: &[(&CudaStorage, usize)]) -> Result<(CudaStorage, Shape)> {
    let shape = Shape::from(parts.iter().map(|(_, elements)| elements).sum::<usize>());
    let (first, _) = parts.first().ok_or_else(|| Error::Msg("no parts to join".into()))?;
    let mut all = first.device().zeros_impl(&shape, DType::F32)?;
    let mut at = 0;
    for (part, elements) in parts {
        part.copy_strided_src(&mut all, at, &Layout::contiguous(*elements))?;
        at += elements;
    }
    Ok((all, shape))
}
