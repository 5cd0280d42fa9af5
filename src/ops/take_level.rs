//! One level taken off a residual, and the signs and sketch of the next, in one read and one write.
//!
//! ```text
//! r      <- r - s ∘ (u v)
//! signs  =  r >= 0          of the new r, packed, see `stack`
//! sketch =  |r| omega       of the new r
//! r [m, n] f32    s [1, m, ⌈n/8⌉] u8    u [1, m, k], v [1, k, n] f16    omega [n, c] f32
//! no gradient
//! ```
//!
//! `2 m n (k + c)` flops; products of the f16 factors are exact, their sums f32. A level is subtracted
//! as it is stored, so the levels and the last residual add up to the first.

use candle_core::{CpuStorage, CudaStorage, DType, InplaceOp1, Layout, Tensor};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::cuda::Launch;
use super::lanes::{self, Kernel};
use super::sign_pack::{Pack, ROWS, host_values, multiply, with_sketch};
use super::{operand, stack};
use crate::error::Result;

const OP: &str = "take_level";

/// Subtracts the one level `signs`, `u`, `v` from `r [m, n]`, in place, and returns the signs and,
/// where there is an `omega`, the sketch of the new `r`, as [`sign_pack`](super::sign_pack()) does.
///
/// # Errors
/// Operands that do not fit are [`Error::Bug`](crate::error::Error::Bug).
pub fn take_level(
    r: &Tensor,
    signs: &Tensor,
    u: &Tensor,
    v: &Tensor,
    omega: Option<&Tensor>,
) -> Result<(Tensor, Option<Tensor>)> {
    let sizes = stack::sizes(OP, signs, u, v)?;
    let stack::Sizes { m, n, .. } = sizes;
    stack::matrix(OP, r)?;
    operand::expect_dims(OP, "r", r, &[m, n])?;
    operand::expect_dims(OP, "signs", signs, &[1, m, stack::bytes(n)])?;
    let c = stack::sketch_width(OP, omega, n)?;
    stack::expect_together(OP, r.device(), &[signs, u, v])?;
    stack::expect_together(OP, r.device(), omega.as_slice())?;
    let (next, sketch) = Default::default();
    let op = Residual { sizes, signs, u, v, omega, c, next, sketch };
    r.inplace_op1(&op)?;
    let sketch = omega.map(|_| op.sketch.into_tensor((m, c))).transpose()?;
    Ok((op.next.into_tensor((1, m, stack::bytes(n)))?, sketch))
}

struct Residual<'a> {
    sizes: stack::Sizes,
    signs: &'a Tensor,
    u: &'a Tensor,
    v: &'a Tensor,
    omega: Option<&'a Tensor>,
    c: usize,
    next: stack::Extra,
    sketch: stack::Extra,
}

impl InplaceOp1 for Residual<'_> {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, r: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let stack::Sizes { m, n, k, .. } = self.sizes;
        let (start, end) = operand::range(layout)?;
        let CpuStorage::F32(r) = r else {
            return Err(candle_core::Error::Msg("r is not f32".into()));
        };
        let r = &mut r[start..end];
        let wide = |factor: &[f16]| Ok(factor.to_f32_vec());
        let (u, v) = (stack::with_elements(self.u, wide)?, stack::with_elements(self.v, wide)?);
        let omega = host_values(self.omega)?;
        let row = stack::bytes(n);
        let mut next = vec![0; m * row];
        let mut sketch = vec![0.0; m * self.c];
        stack::with_elements::<u8, _>(self.signs, |signs| {
            let mut sketches = sketch.chunks_mut((ROWS * self.c).max(1));
            let levels = signs.chunks(ROWS * row).zip(u.chunks(ROWS * k));
            let tiles: Vec<_> = r
                .chunks_mut(ROWS * n)
                .zip(levels)
                .zip(next.chunks_mut(ROWS * row))
                .map(|(tile, next)| (tile, next, sketches.next().unwrap_or_default()))
                .collect();
            tiles.into_par_iter().for_each_init(
                || vec![0.0; ROWS.min(m) * n],
                |product, ((r, (signs, u)), next, sketch)| {
                    let product = &mut product[..r.len()];
                    multiply(product, u, &v, k);
                    lanes::run(Subtract { r, n, signs, product });
                    lanes::run(Pack { r, n, signs: next, magnitudes: product });
                    multiply(sketch, product, &omega, n);
                },
            );
            Ok(())
        })?;
        self.next.set_cpu(CpuStorage::U8(next));
        self.sketch.set_cpu(CpuStorage::F32(sketch));
        Ok(())
    }

    fn cuda_fwd(&self, r: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        let stack::Sizes { m, n, k, .. } = self.sizes;
        let [signs, u, v] = [self.signs, self.u, self.v].map(Tensor::storage_and_layout);
        let (signs, u, v) = (
            stack::on_gpu((&signs.0, signs.1))?,
            stack::on_gpu((&u.0, u.1))?,
            stack::on_gpu((&v.0, v.1))?,
        );
        let omega = self.omega.map(Tensor::storage_and_layout);
        let omega = omega.as_ref().map(|(s, l)| stack::on_gpu((s, l))).transpose()?;
        // The kernel for small ranks and sketches holds two tiles at a time.
        let kernel = if k <= 16 && self.c <= 32 { "take_level_16" } else { OP };
        let launch = Launch::of(OP, kernel, signs.0)
            .update(r, layout)?
            .read(signs.0, signs.1)?
            .read(u.0, u.1)?
            .read(v.0, v.1)?
            .read_or_null(omega)?
            .output(DType::U8, m * stack::bytes(n))?;
        let next = with_sketch(launch, &[m, n, k, self.c], &self.sketch)?;
        self.next.set_cuda(next);
        Ok(())
    }
}

/// `r -= s ∘ product` of whole rows of `n`.
struct Subtract<'a> {
    r: &'a mut [f32],
    n: usize,
    signs: &'a [u8],
    product: &'a [f32],
}

impl Kernel for Subtract<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let rows = self.r.chunks_exact_mut(self.n).zip(self.product.chunks_exact(self.n));
        for ((r, product), signs) in rows.zip(self.signs.chunks_exact(stack::bytes(self.n))) {
            let (eights, rest) = r.as_chunks_mut::<8>();
            let (products, product_rest) = product.as_chunks::<8>();
            for ((r, &product), &signs) in eights.iter_mut().zip(products).zip(signs) {
                let level = stack::flipped(signs, product);
                for (r, level) in r.iter_mut().zip(level) {
                    *r -= level;
                }
            }
            if let Some(&last) = signs.last() {
                let level = stack::flipped(last, stack::eight(product_rest, 0.0));
                for (r, level) in rest.iter_mut().zip(level) {
                    *r -= level;
                }
            }
        }
    }
}
