//! The product with a weight, differentiable in the activations only.
//!
//! ```text
//! y[t, i] = Σ_j x[t, j] w[i, j] + bias[i]
//! x [t, n] f32    w [m, n] f32 or bf16    bias [m] f32    ->    y [t, m] f32
//! gradient:  dx = dy w; the weight and the bias get none
//! ```
//!
//! `2 t n m` flops, and as many for the gradient. The product is the device's own. With a bf16 weight,
//! `x` (and on the way back `dy`) is rounded to bf16 first: products of two bf16 numbers are exact in
//! f32, and so are taken and summed there. Compression needs gradients at activations, never at
//! weights: `dy` is shown to a [`GradientSink`] as it passes, and forgotten.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, CustomOp3, DType, Layout, Shape, Tensor};
use half::bf16;

use super::cuda::{self, Grid, Launch};
use super::lanes::{self, Kernel};
use super::{operand, row_dots};
use crate::error::{Error, Result};

const OP: &str = "linear";

/// Something that looks at a gradient while it flows back.
pub trait GradientSink: Send + Sync {
    /// The gradient of the loss at some rows, f32: `[tokens, channels]` of an activation, `[tokens]` of a
    /// gain. Called once per backward pass, on the thread that runs it.
    ///
    /// # Errors
    /// Whatever makes the gradient unusable; it ends the backward pass.
    fn gradient(&self, gradient: &Tensor) -> Result<()>;
}

/// Sinks for the gradients of one linear.
#[derive(Default, Clone)]
pub struct GradientSinks {
    /// Sink of the gradient at the input, `[tokens, in]`: the part that flows back through this linear,
    /// which is all of it where no other linear reads the same activation.
    pub input: Option<Arc<dyn GradientSink>>,
    /// Sink of the gradient at the output, `[tokens, out]`.
    pub output: Option<Arc<dyn GradientSink>>,
    /// Sink of the gradient at a gain of 1 on every token's `W x`: `⟨dy, W x⟩ = ⟨dx, x⟩`, `[tokens]`.
    pub gain: Option<Arc<dyn GradientSink>>,
}

impl std::fmt::Debug for GradientSinks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GradientSinks")
            .field("input", &self.input.is_some())
            .field("output", &self.output.is_some())
            .field("gain", &self.gain.is_some())
            .finish()
    }
}

/// `x [t, n]` times the transpose of `w [m, n]`, plus `bias [m]`; `sinks` see the gradients if a
/// backward pass comes by.
///
/// # Errors
/// Operands that do not fit are [`Error::Bug`](crate::error::Error::Bug): shapes are checked when
/// a model is read.
pub fn linear(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    sinks: GradientSinks,
) -> Result<Tensor> {
    let (_, n) = expect_matrices(x, w)?;
    let m = w.dims()[0];
    operand::expect_dims(OP, "w", w, &[m, n])?;
    let Some(bias) = bias else {
        return Ok(x.apply_op2(w, Linear { sinks })?);
    };
    operand::expect(OP, "bias", bias, DType::F32)?;
    operand::expect_dims(OP, "bias", bias, &[m])?;
    Ok(x.apply_op3(w, bias, Linear { sinks })?)
}

/// `dy [t, m]` times `w [m, n]`: the gradient of [`linear()`] at its input, computed without a graph.
///
/// # Errors
/// As [`linear()`].
pub fn linear_gradient(dy: &Tensor, w: &Tensor) -> Result<Tensor> {
    let (_, m) = expect_matrices(dy, w)?;
    operand::expect_dims(OP, "w", w, &[m, w.dims()[1]])?;
    Ok(dy.apply_op2_no_bwd(w, &Product { back: true })?)
}

/// Rows and columns of x.
fn expect_matrices(x: &Tensor, w: &Tensor) -> Result<(usize, usize)> {
    operand::expect(OP, "x", x, DType::F32)?;
    let dtype = if w.dtype() == DType::BF16 { DType::BF16 } else { DType::F32 };
    operand::expect(OP, "w", w, dtype)?;
    match (x.dims(), w.dims()) {
        (&[t, n], [_, _]) => Ok((t, n)),
        (x, w) => {
            Err(operand::refuse(OP, format_args!("x {x:?} and w {w:?} are not both matrices")))
        }
    }
}

struct Linear {
    sinks: GradientSinks,
}

impl Linear {
    fn gradient(&self, x: &Tensor, w: &Tensor, dy: &Tensor) -> candle_core::Result<Tensor> {
        let show = |sink: &Option<Arc<dyn GradientSink>>, gradient: &Tensor| {
            sink.as_ref().map_or(Ok(()), |sink| sink.gradient(gradient))
        };
        let dy = dy.contiguous()?;
        show(&self.sinks.output, &dy).map_err(Error::through_candle)?;
        let dx = dy.apply_op2_no_bwd(w, &Product { back: true })?;
        show(&self.sinks.input, &dx).map_err(Error::through_candle)?;
        if let Some(sink) = &self.sinks.gain {
            let gain = row_dots(&dx, &x.contiguous()?).and_then(|gain| sink.gradient(&gain));
            gain.map_err(Error::through_candle)?;
        }
        Ok(dx)
    }
}

/// `x wᵀ`, or (`back`) `x w`.
#[derive(Clone, Copy)]
struct Product {
    back: bool,
}

impl Product {
    /// By the device's own product of two f32 matrices.
    fn of<S: BackendStorage>(
        self,
        x: &S,
        x_layout: &Layout,
        w: &S,
        w_layout: &Layout,
    ) -> candle_core::Result<(S, Shape)> {
        let (t, inner) = x_layout.shape().dims2()?;
        let w_layout = if self.back { w_layout.clone() } else { w_layout.transpose(0, 1)? };
        let width = w_layout.shape().dims2()?.1;
        let y = x.matmul(w, (1, t, width, inner), x_layout, &w_layout)?;
        Ok((y, Shape::from((t, width))))
    }
}

impl CustomOp2 for Product {
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
        let CpuStorage::BF16(_) = w else { return self.of(x, x_layout, w, w_layout) };
        let round = |&x: &f32| bf16::from_f32(x).to_f32();
        let x = operand::elements::<f32>(x, x_layout)?.iter().map(round).collect();
        let w = operand::elements::<bf16>(w, w_layout)?.iter().map(|w| w.to_f32()).collect();
        let [x_layout, w_layout] = [x_layout, w_layout].map(|l| Layout::contiguous(l.shape()));
        self.of(&CpuStorage::F32(x), &x_layout, &CpuStorage::F32(w), &w_layout)
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        w: &CudaStorage,
        w_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        if w.dtype() == DType::F32 {
            return self.of(x, x_layout, w, w_layout);
        }
        let (m, n) = w_layout.shape().dims2()?;
        let shape = Shape::from((x_layout.dims()[0], if self.back { n } else { m }));
        Ok((cuda::product_bf16(x, x_layout, w, w_layout, self.back)?, shape))
    }
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
        CustomOp2::cpu_fwd(&Product { back: false }, x, x_layout, w, w_layout)
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        w: &CudaStorage,
        w_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        CustomOp2::cuda_fwd(&Product { back: false }, x, x_layout, w, w_layout)
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(self.gradient(x, w, dy)?), None))
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
        let (mut y, shape) = Product { back: false }.cpu_fwd(x, x_layout, w, w_layout)?;
        let bias = operand::elements::<f32>(bias, bias_layout)?;
        if let CpuStorage::F32(y) = &mut y {
            lanes::for_row_blocks(y, bias.len(), |_, y| lanes::run(AddToRows { bias, y }));
        }
        Ok((y, shape))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        w: &CudaStorage,
        w_layout: &Layout,
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let (mut y, shape) = Product { back: false }.cuda_fwd(x, x_layout, w, w_layout)?;
        let (rows, m) = shape.dims2()?;
        Launch::of(OP, "add_bias", x)
            .update(&mut y, &Layout::contiguous(&shape))?
            .read(bias, bias_layout)?
            .int(rows)
            .int(m)
            .run(Grid::elements(rows * m))?;
        Ok((y, shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Ok((Some(self.gradient(x, w, dy)?), None, None))
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
