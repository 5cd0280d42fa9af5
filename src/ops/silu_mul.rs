//! The gated activation of a SwiGLU block.
//!
//! ```text
//! y = gate * sigmoid(gate) * up = gate * up / (1 + e^-gate)
//! gate, up  any one shape, f32    ->    y  the same shape, f32
//!
//! gradients, with s = sigmoid(gate):
//! dgate = dy up s (1 + gate (1 - s))        dup = dy gate s
//! ```
//!
//! About 20 flops and 12 bytes (two reads, one write) per element: bound by memory. The gradients
//! are computed together: 20 bytes per element.

use candle_core::{CpuStorage, CudaStorage, CustomOp2, CustomOp3, DType, Layout, Shape, Tensor};
use rayon::prelude::*;

use super::cuda::{Grid, Launch};
use super::lanes::{self, Kernel};
use super::operand;
use crate::error::Result;

const OP: &str = "silu_mul";

/// `silu(gate) * up`, element by element.
///
/// # Errors
/// Operands that do not fit are [`Error::Bug`](crate::error::Error::Bug): shapes are checked when
/// a model is read.
pub fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    operand::expect(OP, "gate", gate, DType::F32)?;
    operand::expect(OP, "up", up, DType::F32)?;
    operand::expect_dims(OP, "up", up, gate.dims())?;
    Ok(gate.apply_op2(up, SiluMul)?)
}

struct SiluMul;

impl CustomOp2 for SiluMul {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let gate = operand::elements::<f32>(gate, gate_layout)?;
        let up = operand::elements::<f32>(up, up_layout)?;
        let y = lanes::zip(gate, up, |gate, up| (gate / (1.0 + lanes::exp(-gate))) * up);
        Ok((CpuStorage::F32(y), gate_layout.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        gate: &CudaStorage,
        gate_layout: &Layout,
        up: &CudaStorage,
        up_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let shape = gate_layout.shape().clone();
        let n = shape.elem_count();
        let y = Launch::new(OP, gate)
            .read(gate, gate_layout)?
            .read(up, up_layout)?
            .output(DType::F32, n)?
            .int(n)
            .run(Grid::elements(n))?
            .one()?;
        Ok((y, shape))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let both = gate.apply_op3_no_bwd(up, &dy.contiguous()?, &SiluMulGradient)?;
        Ok((Some(both.get(0)?), Some(both.get(1)?)))
    }
}

/// `dgate` and `dup`, one after the other: `[2, ..]`.
struct SiluMulGradient;

impl CustomOp3 for SiluMulGradient {
    fn name(&self) -> &'static str {
        "silu_mul_gradient"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
        dy: &CpuStorage,
        dy_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        /// Elements of one task.
        const BLOCK: usize = 8 * 1024;
        let gate = operand::elements::<f32>(gate, gate_layout)?;
        let up = operand::elements::<f32>(up, up_layout)?;
        let dy = operand::elements::<f32>(dy, dy_layout)?;
        let mut both = vec![0.0; 2 * gate.len()];
        let (dgate, dup) = both.split_at_mut(gate.len());
        let inputs = gate.par_chunks(BLOCK).zip(up.par_chunks(BLOCK)).zip(dy.par_chunks(BLOCK));
        let outputs = dgate.par_chunks_mut(BLOCK).zip(dup.par_chunks_mut(BLOCK));
        inputs.zip(outputs).for_each(|(((gate, up), dy), (dgate, dup))| {
            lanes::run(Gradients { gate, up, dy, dgate, dup });
        });
        let dims = [&[2], gate_layout.dims()].concat();
        Ok((CpuStorage::F32(both), Shape::from(dims)))
    }

    fn cuda_fwd(
        &self,
        gate: &CudaStorage,
        gate_layout: &Layout,
        up: &CudaStorage,
        up_layout: &Layout,
        dy: &CudaStorage,
        dy_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let shape = gate_layout.shape().clone();
        let n = shape.elem_count();
        let y = Launch::of(OP, "silu_mul_gradient", gate)
            .read(gate, gate_layout)?
            .read(up, up_layout)?
            .read(dy, dy_layout)?
            .output(DType::F32, 2 * n)?
            .int(n)
            .run(Grid::elements(n))?
            .one()?;
        Ok((y, Shape::from([&[2], gate_layout.dims()].concat())))
    }
}

struct Gradients<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    dy: &'a [f32],
    dgate: &'a mut [f32],
    dup: &'a mut [f32],
}

impl Kernel for Gradients<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let inputs = self.gate.iter().zip(self.up).zip(self.dy);
        let outputs = self.dgate.iter_mut().zip(self.dup);
        for (((&gate, &up), &dy), (dgate, dup)) in inputs.zip(outputs) {
            let e = lanes::exp(-gate);
            let s = 1.0 / (1.0 + e);
            // 1 - s: the difference loses its digits near s = 1, the product its range near s = 0.
            let rest = if e > 1.0 { 1.0 - s } else { e * s };
            let silu = gate * s;
            *dgate = (dy * up) * (s + silu * rest);
            *dup = dy * silu;
        }
    }
}
