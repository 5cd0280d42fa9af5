//! The Gaussian error linear unit, alone and as the gate of an MLP (arXiv 1606.08415).
//!
//! ```text
//! gelu(x) = x Φ(x)                                                        erf
//! gelu(x) = x / (1 + e^-2u)    u = √(2/π) (x + 0.044715 x³)               tanh
//! y = gelu(x)    y = gelu(gate) * up
//! x; gate, up  any one shape, f32    ->    y  the same shape, f32
//!
//! gradients:  dx = dy gelu'(x)        dgate = dy up gelu'(gate)    dup = dy gelu(gate)
//! gelu'(x) = Φ(x) + x φ(x)                                                erf
//! gelu'(x) = s + x s (1 - s) 2u'    s = 1 / (1 + e^-2u)                   tanh
//! ```
//!
//! `½ (1 + tanh u)`, as the approximation is usually written, is `s`. About 30 flops and 8 bytes
//! (12 gated) per element: bound by memory on several threads.

use std::f32::consts::SQRT_2;

use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp2, DType, Layout, Shape, Tensor};

use super::cuda::{Grid, Launch};
use super::{lanes, operand};
use crate::error::Result;

const OP: &str = "gelu";
const OP_MUL: &str = "gelu_mul";

/// A form of the Gaussian error linear unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gelu {
    /// With the normal distribution itself.
    Erf,
    /// With the hyperbolic tangent that approximates it to 1e-3.
    Tanh,
}

/// `gelu(x)`, element by element.
///
/// # Errors
/// Operands that do not fit are [`Error::Bug`](crate::error::Error::Bug): shapes are checked when
/// a model is read.
pub fn gelu(x: &Tensor, form: Gelu) -> Result<Tensor> {
    operand::expect(OP, "x", x, DType::F32)?;
    Ok(x.apply_op1(Unary { form })?)
}

/// `gelu(gate) * up`, element by element.
///
/// # Errors
/// As [`gelu`].
pub fn gelu_mul(gate: &Tensor, up: &Tensor, form: Gelu) -> Result<Tensor> {
    operand::expect(OP_MUL, "gate", gate, DType::F32)?;
    operand::expect(OP_MUL, "up", up, DType::F32)?;
    operand::expect_dims(OP_MUL, "up", up, gate.dims())?;
    Ok(gate.apply_op2(up, Gated { form })?)
}

struct Unary {
    form: Gelu,
}

impl CustomOp1 for Unary {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = operand::elements::<f32>(x, x_layout)?;
        let y = match self.form {
            Gelu::Erf => lanes::map(x, |x| x * normal(x)),
            Gelu::Tanh => lanes::map(x, |x| x * logistic(x)),
        };
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let shape = x_layout.shape().clone();
        let n = shape.elem_count();
        let kernel = match self.form {
            Gelu::Erf => "gelu_erf",
            Gelu::Tanh => "gelu_tanh",
        };
        let y = Launch::of(OP, kernel, x)
            .read(x, x_layout)?
            .output(DType::F32, n)?
            .int(n)
            .run(Grid::elements(n))?
            .one()?;
        Ok((y, shape))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let slope = Product { form: self.form, factor: Factor::Slope };
        x.apply_op2_no_bwd(&dy.contiguous()?, &slope).map(Some)
    }
}

struct Gated {
    form: Gelu,
}

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        OP_MUL
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let product = Product { form: self.form, factor: Factor::Value };
        product.cpu_fwd(gate, gate_layout, up, up_layout)
    }

    fn cuda_fwd(
        &self,
        gate: &CudaStorage,
        gate_layout: &Layout,
        up: &CudaStorage,
        up_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let product = Product { form: self.form, factor: Factor::Value };
        product.cuda_fwd(gate, gate_layout, up, up_layout)
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let form = self.form;
        let slope = Product { form, factor: Factor::Slope };
        let value = Product { form, factor: Factor::Value };
        let dgate = gate.apply_op2_no_bwd(&(&dy * up)?, &slope)?;
        let dup = gate.apply_op2_no_bwd(&dy, &value)?;
        Ok((Some(dgate), Some(dup)))
    }
}

/// The factor of the second operand: the value of `gelu`, or its slope.
#[derive(Clone, Copy)]
enum Factor {
    Value,
    Slope,
}

/// `gelu(x) * other` or `gelu'(x) * other`.
struct Product {
    form: Gelu,
    factor: Factor,
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "gelu_product"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        other: &CpuStorage,
        other_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = operand::elements::<f32>(x, x_layout)?;
        let other = operand::elements::<f32>(other, other_layout)?;
        let y = match (self.form, self.factor) {
            (Gelu::Erf, Factor::Value) => lanes::zip(x, other, |x, o| x * normal(x) * o),
            (Gelu::Tanh, Factor::Value) => lanes::zip(x, other, |x, o| x * logistic(x) * o),
            (Gelu::Erf, Factor::Slope) => lanes::zip(x, other, |x, o| normal_slope(x) * o),
            (Gelu::Tanh, Factor::Slope) => lanes::zip(x, other, |x, o| logistic_slope(x) * o),
        };
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        other: &CudaStorage,
        other_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let shape = x_layout.shape().clone();
        let n = shape.elem_count();
        let kernel = match (self.form, self.factor) {
            (Gelu::Erf, Factor::Value) => "gelu_erf_mul",
            (Gelu::Tanh, Factor::Value) => "gelu_tanh_mul",
            (Gelu::Erf, Factor::Slope) => "gelu_erf_slope_mul",
            (Gelu::Tanh, Factor::Slope) => "gelu_tanh_slope_mul",
        };
        let y = Launch::of(OP, kernel, x)
            .read(x, x_layout)?
            .read(other, other_layout)?
            .output(DType::F32, n)?
            .int(n)
            .run(Grid::elements(n))?
            .one()?;
        Ok((y, shape))
    }
}

/// `Φ(x)`, the normal distribution, to 3e-7 relative; far below -3 to 4e-6, as `a²/2` has its digits
/// before the point there.
///
/// `Φ(-a) = t e^(P(t) - a²/2)` with `t = 1 / (1 + 0.55 a/√2)`: what is left to the polynomial is
/// smooth on all of `(0, 1]`. P was fitted to `ln(½ erfcx(a/√2) / t)`, 1e-7 at most.
#[inline(always)]
fn normal(x: f32) -> f32 {
    const P: [f32; 9] = [
        -1.863_184_6,
        0.995_947_84,
        0.390_676_08,
        -0.207_348_75,
        0.664_732_04,
        -1.856_205_2,
        1.928_253_2,
        -0.917_060_73,
        0.171_042_96,
    ];
    let a = x.abs();
    let t = 1.0 / a.mul_add(0.55 / SQRT_2, 1.0);
    let mut p = P[8];
    for &c in P[..8].iter().rev() {
        p = p.mul_add(t, c);
    }
    let tail = t * lanes::exp(a.mul_add(-0.5 * a, p));
    if x < 0.0 { tail } else { 1.0 - tail }
}

/// The derivative of `x Φ(x)`.
#[inline(always)]
fn normal_slope(x: f32) -> f32 {
    /// `1 / √(2π)`.
    const DENSITY: f32 = 0.398_942_3;
    x.mul_add(DENSITY * lanes::exp(-0.5 * x * x), normal(x))
}

/// `√(2/π)` and the coefficient of the cube, twice each: `2u = x (A + B x²)`.
const A: f32 = 1.595_769_2;
const B: f32 = 0.071_354_814;

/// `s` of the form with the hyperbolic tangent.
#[inline(always)]
fn logistic(x: f32) -> f32 {
    1.0 / (1.0 + lanes::exp(-x * (x * x).mul_add(B, A)))
}

/// The derivative of `x s`. `s (1 - s)` is even and `e / (1 + e)²` with `e` at most 1: `1 - s` itself
/// has no digits left where `s` is nearly 1.
#[inline(always)]
fn logistic_slope(x: f32) -> f32 {
    let x2 = x * x;
    let e = lanes::exp(-(x * x2.mul_add(B, A)).abs());
    let inverse = 1.0 / (1.0 + e);
    let s = if x < 0.0 { e * inverse } else { inverse };
    // For large |x| the slope of u overflows where this has long been 0.
    let rest = e * inverse * inverse;
    let slope = if rest > 0.0 { x * rest * x2.mul_add(3.0 * B, A) } else { 0.0 };
    s + slope
}
