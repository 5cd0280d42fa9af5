//! Rotary position embedding, with the transposition attention needs, in one pass.
//!
//! ```text
//! for i < w:  y[b, h, t, i]     = x[b, t, h, i] cos[t, i] - x[b, t, h, w + i] sin[t, i]
//!             y[b, h, t, w + i] = x[b, t, h, w + i] cos[t, i] + x[b, t, h, i] sin[t, i]
//! i >= 2 w:   y[b, h, t, i]     = x[b, t, h, i]                       (partial rotary)
//! x [b, t, h, d] f32    cos, sin [t, w] f32, 2 w <= d    ->    y [b, h, t, d] f32, contiguous
//! gradient:  dx is dy turned back, sin negated, and transposed back
//! ```
//!
//! Halves are rotated against each other, as Hugging Face's `rotate_half` does; not interleaved
//! pairs. 6 w flops and 8 d bytes (x read, y written) per head and position: bound by memory.

use candle_core::{CpuStorage, CudaStorage, CustomOp3, DType, Layout, Shape, Tensor};

use super::cuda::{Grid, Launch};
use super::lanes::{self, Kernel};
use super::operand;
use crate::error::Result;

const OP: &str = "rope";

/// Rotates `x [b, t, h, d]` by the angles of its positions and returns it as `[b, h, t, d]`.
///
/// Row `i` of `cos` and `sin` belongs to position `i` of `x`: a caller with a cache narrows its
/// tables.
///
/// # Errors
/// Operands that do not fit are [`Error::Bug`](crate::error::Error::Bug): shapes are checked when
/// a model is read.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    expect_operands(x, cos, sin)?;
    Ok(x.apply_op3(cos, sin, Rope { back: false })?)
}

pub(super) fn expect_operands(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<()> {
    operand::expect(OP, "x", x, DType::F32)?;
    operand::expect(OP, "cos", cos, DType::F32)?;
    operand::expect(OP, "sin", sin, DType::F32)?;
    let &[_, t, _, d] = x.dims() else {
        return Err(operand::refuse(
            OP,
            format_args!("x has shape {:?}, expected [b, t, h, d]", x.dims()),
        ));
    };
    let &[rows, half] = cos.dims() else {
        return Err(operand::refuse(
            OP,
            format_args!("cos has shape {:?}, expected [t, w]", cos.dims()),
        ));
    };
    if rows != t || 2 * half > d {
        return Err(operand::refuse(
            OP,
            format_args!("cos has shape {:?}, expected [{t}, at most {}]", cos.dims(), d / 2),
        ));
    }
    operand::expect_dims(OP, "sin", sin, cos.dims())
}

/// The gradient at x from the gradient `dy [b, h, t, d]` at y.
pub(super) fn back(dy: &Tensor, cos: &Tensor, sin: &Tensor) -> candle_core::Result<Tensor> {
    dy.apply_op3_no_bwd(cos, sin, &Rope { back: true })
}

/// From `[b, t, h, d]` to `[b, h, t, d]`, or back and turning the other way.
struct Rope {
    back: bool,
}

impl CustomOp3 for Rope {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        cos: &CpuStorage,
        cos_layout: &Layout,
        sin: &CpuStorage,
        sin_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (b, n, m, d) = x_layout.shape().dims4()?;
        let half = cos_layout.shape().dims2()?.1;
        let x = operand::elements::<f32>(x, x_layout)?;
        let cos = operand::elements::<f32>(cos, cos_layout)?;
        let sin = operand::elements::<f32>(sin, sin_layout)?;
        let mut y = vec![0.0; x.len()];
        lanes::for_row_blocks(&mut y, d, |first, y| {
            lanes::run(Rows { x, cos, sin, m, n, d, half, back: self.back, first, y });
        });
        Ok((CpuStorage::F32(y), Shape::from((b, m, n, d))))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        cos: &CudaStorage,
        cos_layout: &Layout,
        sin: &CudaStorage,
        sin_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let (b, n, m, d) = x_layout.shape().dims4()?;
        let half = cos_layout.shape().dims2()?.1;
        let kernel = if self.back { "rope_back" } else { "rope" };
        let y = Launch::of("norm_rope", kernel, x)
            .read(x, x_layout)?
            .read(cos, cos_layout)?
            .read(sin, sin_layout)?
            .output(DType::F32, b * n * m * d)?
            .int(b)
            .int(n)
            .int(m)
            .int(d)
            .int(half)
            .run(Grid::elements(b * n * m * (d - half)))?
            .one()?;
        Ok((y, Shape::from((b, m, n, d))))
    }

    fn bwd(
        &self,
        _: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Ok((Some(back(&dy.contiguous()?, cos, sin)?), None, None))
    }
}

/// Rows `first..` of y, counted over `[b, m, n]`; x is `[b, n, m, d]`. Positions are `n`, or `m` on the
/// way back.
struct Rows<'a> {
    x: &'a [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    m: usize,
    n: usize,
    d: usize,
    half: usize,
    back: bool,
    first: usize,
    y: &'a mut [f32],
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { m, n, d, half, back, .. } = self;
        for (row, y) in (self.first..).zip(self.y.chunks_exact_mut(d)) {
            let (batch, i, j) = (row / n / m, row / n % m, row % n);
            let position = if back { i } else { j };
            let at = ((batch * n + j) * m + i) * d;
            let (x1, rest) = self.x[at..at + d].split_at(half);
            let (x2, pass) = rest.split_at(half);
            let cos = &self.cos[position * half..][..half];
            let sin = &self.sin[position * half..][..half];
            let (y1, rest) = y.split_at_mut(half);
            let (y2, y_pass) = rest.split_at_mut(half);
            match back {
                false => rotate([x1, x2], [cos, sin], [y1, y2]),
                // The other way round is the same with the halves exchanged.
                true => rotate([x2, x1], [cos, sin], [y2, y1]),
            }
            if !pass.is_empty() {
                y_pass.copy_from_slice(pass);
            }
        }
    }
}

/// The rotation of one row; a function of its own so that its slices are known not to overlap.
#[inline(always)]
fn rotate([x1, x2]: [&[f32]; 2], [cos, sin]: [&[f32]; 2], [y1, y2]: [&mut [f32]; 2]) {
    let angles = cos.iter().zip(sin);
    let halves = x1.iter().zip(x2);
    for (((y1, y2), (x1, x2)), (cos, sin)) in y1.iter_mut().zip(y2).zip(halves).zip(angles) {
        *y1 = x1 * cos - x2 * sin;
        *y2 = x2 * cos + x1 * sin;
    }
}
