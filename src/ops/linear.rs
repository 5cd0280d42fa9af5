//! The product with a weight, differentiable in the activations only.
//!
//! ```text
//! y[t, i] = Σ_j x[t, j] w[i, j] + bias[i]
//! x [t, n]    w [m, n]    bias [m]    ->    y [t, m]    all f32
//! gradient:  dx = dy w; the weight and the bias get none
//! ```
//!
//! `2 t n m` flops, and as many for the gradient. The product is the device's own. A compressor asks
//! what the loss feels of an activation, never which way a weight should move: `dy` is shown to a
//! [`GradientSink`] as it passes, and forgotten.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Layout, Shape, Tensor};

use super::lanes::{self, Kernel};
use super::operand;
use crate::error::Result;

const OP: &str = "linear";

/// Something that looks at a gradient while it flows back.
pub trait GradientSink: Send + Sync {
    /// The gradient of the loss at some rows of an activation, `[tokens, channels]` f32. Called once
    /// per backward pass, on the thread that runs it.
    ///
    /// # Errors
    /// Whatever makes the gradient unusable; it ends the backward pass.
    fn gradient(&self, gradient: &Tensor) -> Result<()>;
}

/// Who looks at the gradients of one linear.
#[derive(Default, Clone)]
pub struct GradientSinks {
    /// At what it reads, `[tokens, in]`: the part that flows back through this linear, which is all of
    /// it where no other linear reads the same activation.
    pub input: Option<Arc<dyn GradientSink>>,
    /// At what it writes, `[tokens, out]`.
    pub output: Option<Arc<dyn GradientSink>>,
}

impl std::fmt::Debug for GradientSinks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (input, output) = (self.input.is_some(), self.output.is_some());
        f.debug_struct("GradientSinks").field("input", &input).field("output", &output).finish()
    }
}

/// `x [t, n]` times the transpose of `w [m, n]`, plus `bias [m]`; `sinks` see the gradients if a
/// backward pass comes by.
///
/// # Errors
/// What does not fit is [`Error::Bug`](crate::error::Error::Bug): shapes are checked when a model
/// is read.
pub fn linear(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    sinks: GradientSinks,
) -> Result<Tensor> {
    operand::expect(OP, "x", x, DType::F32)?;
    operand::expect(OP, "w", w, DType::F32)?;
    let (&[_, n], &[m, _]) = (x.dims(), w.dims()) else {
        let why = format_args!("x {:?} and w {:?} are not both matrices", x.dims(), w.dims());
        return Err(operand::refuse(OP, why));
    };
    operand::expect_dims(OP, "w", w, &[m, n])?;
    let Some(bias) = bias else {
        return Ok(x.apply_op2(w, Linear { sinks })?);
    };
    operand::expect(OP, "bias", bias, DType::F32)?;
    operand::expect_dims(OP, "bias", bias, &[m])?;
    Ok(x.apply_op3(w, bias, Linear { sinks })?)
}

struct Linear {
    sinks: GradientSinks,
}

impl Linear {
    fn gradient(&self, w: &Tensor, dy: &Tensor) -> candle_core::Result<Tensor> {
        let show = |sink: &Option<Arc<dyn GradientSink>>, gradient: &Tensor| {
            sink.as_ref().map_or(Ok(()), |sink| sink.gradient(gradient))
        };
        let dy = dy.contiguous()?;
        show(&self.sinks.output, &dy).map_err(candle_core::Error::wrap)?;
        let dx = dy.matmul(w)?;
        show(&self.sinks.input, &dx).map_err(candle_core::Error::wrap)?;
        Ok(dx)
    }
}

/// `x wᵀ` on any device.
fn product<S: BackendStorage>(
    x: &S,
    x_layout: &Layout,
    w: &S,
    w_layout: &Layout,
) -> candle_core::Result<(S, Shape)> {
    let (t, n) = x_layout.shape().dims2()?;
    let m = w_layout.shape().dims2()?.0;
    Ok((x.matmul(w, (1, t, m, n), x_layout, &w_layout.transpose(0, 1)?)?, Shape::from((t, m))))
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        product(x, x_layout, w, w_layout)
    }

    fn bwd(
        &self,
        _: &Tensor,
        w: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(self.gradient(w, dy)?), None))
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (mut y, shape) = product(x, x_layout, w, w_layout)?;
        let bias = operand::elements::<f32>(bias, bias_layout)?;
        if let CpuStorage::F32(y) = &mut y {
            lanes::for_row_blocks(y, bias.len(), |_, y| lanes::run(AddToRows { bias, y }));
        }
        Ok((y, shape))
    }

    fn bwd(
        &self,
        _: &Tensor,
        w: &Tensor,
        _: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Ok((Some(self.gradient(w, dy)?), None, None))
    }
}

struct AddToRows<'a> {
    bias: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for AddToRows<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for y in self.y.chunks_exact_mut(self.bias.len()) {
            for (y, &bias) in y.iter_mut().zip(self.bias) {
                *y += bias;
            }
        }
    }
}
