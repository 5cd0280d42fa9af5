//! The sum of two tensors of one shape, with which a block adds to the residual stream.
//!
//! ```text
//! y = a + b
//! a, b  any one shape, f32    ->    y  the same shape, f32
//! gradients:  da = db = dy
//! ```
//!
//! One flop and 12 bytes (two reads, one write) per element: bound by memory. It runs on the thread
//! that asks and on idle ones; candle's own addition wakes a pool of its own for every sum, whose
//! threads then spin beside the computing ones.

use candle_core::{CpuStorage, CudaStorage, CustomOp2, DType, Layout, Shape, Tensor};

use super::cuda::{Grid, Launch};
use super::{lanes, operand};
use crate::error::Result;

const OP: &str = "add";

/// `a + b`, element by element.
///
/// # Errors
/// Operands that do not fit are [`Error::Bug`](crate::error::Error::Bug): shapes are checked when
/// a model is read.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    operand::expect(OP, "a", a, DType::F32)?;
    operand::expect(OP, "b", b, DType::F32)?;
    operand::expect_dims(OP, "b", b, a.dims())?;
    Ok(a.apply_op2(b, Add)?)
}

struct Add;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let a = operand::elements::<f32>(a, a_layout)?;
        let b = operand::elements::<f32>(b, b_layout)?;
        Ok((CpuStorage::F32(lanes::zip(a, b, |a, b| a + b)), a_layout.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        a: &CudaStorage,
        a_layout: &Layout,
        b: &CudaStorage,
        b_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let shape = a_layout.shape().clone();
        let n = shape.elem_count();
        let y = Launch::new(OP, a)
            .read(a, a_layout)?
            .read(b, b_layout)?
            .output(DType::F32, n)?
            .int(n)
            .run(Grid::elements(n))?
            .one()?;
        Ok((y, shape))
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(dy.clone()), Some(dy.clone())))
    }
}
