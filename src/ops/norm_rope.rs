//! Every head normed by its root mean square, then turned by its position, in one pass: the step
//! between projection and attention in families with norms of queries and keys.
//!
//! ```text
//! y[b, h, t] = rope(rms_norm(x[b, t, h], weight))
//! x [b, t, h, d] f32    weight [d]    cos, sin [t, w], 2 w <= d    ->    y [b, h, t, d], contiguous
//! gradient:  of the rotation, then of the norm
//! ```
//!
//! 8 bytes per element (x read, y written), where norm and rotation apart take 16.

use candle_core::{CpuStorage, CudaStorage, CustomOp1, DType, Layout, Shape, Storage, Tensor};

use super::cuda::{Grid, Launch};
use super::rms_norm::{self, rms_norm};
use super::rope::{self, rope};
use super::row_norm;
use crate::error::Result;

const OP: &str = "norm_rope";

/// [`rope`] of [`rms_norm`] of the rows of `x [b, t, h, d]`.
///
/// # Errors
/// As [`rms_norm()`] and [`rope()`].
pub fn norm_rope(
    x: &Tensor,
    weight: &Tensor,
    eps: f64,
    cos: &Tensor,
    sin: &Tensor,
) -> Result<Tensor> {
    if x.device().is_cpu() {
        // The definition. A core's cache makes one pass of the two.
        return rope(&rms_norm(x, weight, eps)?, cos, sin);
    }
    row_norm::expect_operands(rms_norm::OP, x, weight)?;
    rope::expect_operands(x, cos, sin)?;
    let (weight, cos, sin) = (weight.clone(), cos.clone(), sin.clone());
    Ok(x.apply_op1(NormRope { weight, eps, cos, sin })?)
}

struct NormRope {
    weight: Tensor,
    eps: f64,
    cos: Tensor,
    sin: Tensor,
}

impl CustomOp1 for NormRope {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Err(candle_core::Error::Msg("on the CPU norm and rotation are ops of their own".into()))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let (b, t, h, d) = layout.shape().dims4()?;
        let half = self.cos.dim(1)?;
        let operands = [&self.weight, &self.cos, &self.sin].map(Tensor::storage_and_layout);
        let [(Storage::Cuda(weight), wl), (Storage::Cuda(cos), cl), (Storage::Cuda(sin), sl)] =
            operands.each_ref().map(|(storage, layout)| (&**storage, *layout))
        else {
            return Err(candle_core::Error::Msg("an operand is on another device".into()));
        };
        let y = Launch::new(OP, x)
            .read(x, layout)?
            .read(weight, wl)?
            .read(cos, cl)?
            .read(sin, sl)?
            .output(DType::F32, b * t * h * d)?
            .int(b)
            .int(t)
            .int(h)
            .int(d)
            .int(half)
            .double(self.eps)
            .run(Grid::warps_for(b * t * h))?
            .one()?;
        Ok((y, Shape::from((b, h, t, d))))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let turned = rope::back(&dy.contiguous()?, &self.cos, &self.sin)?;
        rms_norm::gradient(x, &self.weight, &turned, self.eps).map(Some)
    }
}
