//! Rows of the matrix that a stack of levels stands for.
//!
//! ```text
//! w[i, j] = inverse_scale[j] Σ_l S_l[i, j] (u_l v_l)[i, j]        first <= i < last
//! signs [L, m, ⌈n/8⌉] u8    u [L, m, k], v [L, k, n] f16    inverse_scale [n] f32
//! ->    w [rows, n] f32 or bf16
//! no gradient
//! ```
//!
//! `2 L k` flops per element, summed in f32 from the first level on, rounded once.

use std::ops::Range;

use candle_core::{CpuStorage, CudaStorage, CustomOp3, DType, Layout, Shape, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::cuda::{Grid, Launch};
use super::lanes::{self, Kernel};
use super::sign_pack::{host_values, multiply};
use super::{operand, stack};
use crate::error::Result;

const OP: &str = "stack_rebuild";

/// Rows that are summed together: two tiles of them stay in cache.
const ROWS: usize = 8;

/// The `rows` of `W`, its columns multiplied by `inverse_scale [n]`, as `dtype`: f32 or bf16.
///
/// # Errors
/// Operands that do not fit are [`Error::Bug`](crate::error::Error::Bug).
pub fn stack_rebuild(
    signs: &Tensor,
    u: &Tensor,
    v: &Tensor,
    inverse_scale: Option<&Tensor>,
    rows: Range<usize>,
    dtype: DType,
) -> Result<Tensor> {
    let sizes = stack::sizes(OP, signs, u, v)?;
    if let Some(scale) = inverse_scale {
        operand::expect(OP, "inverse_scale", scale, DType::F32)?;
        operand::expect_dims(OP, "inverse_scale", scale, &[sizes.n])?;
    }
    if rows.is_empty() || rows.end > sizes.m {
        return Err(operand::refuse(OP, format_args!("rows {rows:?} of {}", sizes.m)));
    }
    if !matches!(dtype, DType::F32 | DType::BF16) {
        return Err(operand::refuse(OP, format_args!("a matrix of {dtype:?}, not f32 or bf16")));
    }
    stack::expect_together(OP, signs.device(), &[u, v])?;
    stack::expect_together(OP, signs.device(), inverse_scale.as_slice())?;
    Ok(signs.apply_op3_no_bwd(u, v, &Rebuild { sizes, inverse_scale, rows, dtype })?)
}

struct Rebuild<'a> {
    sizes: stack::Sizes,
    inverse_scale: Option<&'a Tensor>,
    rows: Range<usize>,
    dtype: DType,
}

impl CustomOp3 for Rebuild<'_> {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        signs: &CpuStorage,
        signs_layout: &Layout,
        u: &CpuStorage,
        u_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let n = self.sizes.n;
        let levels = Levels {
            sizes: self.sizes,
            signs: operand::elements::<u8>(signs, signs_layout)?,
            u: operand::elements::<f16>(u, u_layout)?,
            v: operand::elements::<f16>(v, v_layout)?.to_f32_vec(),
            inverse_scale: host_values(self.inverse_scale)?,
        };
        let shape = Shape::from((self.rows.len(), n));
        let scratch = || vec![0.0; ROWS * n];
        let w = match self.dtype {
            DType::BF16 => {
                let mut w = vec![bf16::ZERO; shape.elem_count()];
                w.par_chunks_mut(ROWS * n).enumerate().for_each_init(
                    || (scratch(), scratch()),
                    |(sums, product), (tile, w)| {
                        let sums = &mut sums[..w.len()];
                        levels.sum(self.rows.start + tile * ROWS, sums, product);
                        for (w, &sum) in w.iter_mut().zip(&*sums) {
                            *w = bf16::from_f32(sum);
                        }
                    },
                );
                CpuStorage::BF16(w)
            }
            _ => {
                let mut w = vec![0.0; shape.elem_count()];
                w.par_chunks_mut(ROWS * n).enumerate().for_each_init(scratch, |product, tile| {
                    levels.sum(self.rows.start + tile.0 * ROWS, tile.1, product);
                });
                CpuStorage::F32(w)
            }
        };
        Ok((w, shape))
    }

    fn cuda_fwd(
        &self,
        signs: &CudaStorage,
        signs_layout: &Layout,
        u: &CudaStorage,
        u_layout: &Layout,
        v: &CudaStorage,
        v_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        /// Rows and columns of a block.
        const TILE: (usize, usize) = (128, 64);
        let stack::Sizes { levels, m, n, k } = self.sizes;
        let rows = self.rows.len();
        let scale = self.inverse_scale.map(Tensor::storage_and_layout);
        let scale = scale.as_ref().map(|(s, l)| stack::on_gpu((s, l))).transpose()?;
        let bf16 = self.dtype == DType::BF16;
        let kernel = if bf16 { "stack_rebuild_bf16" } else { "stack_rebuild_f32" };
        let w = Launch::of(OP, kernel, u)
            .read(signs, signs_layout)?
            .read(u, u_layout)?
            .read(v, v_layout)?
            .read_or_null(scale)?
            .output(self.dtype, rows * n)?
            .int(levels)
            .int(m)
            .int(n)
            .int(k)
            .int(self.rows.start)
            .int(rows)
            .run(Grid::blocks(rows.div_ceil(TILE.0) * n.div_ceil(TILE.1)))?
            .one()?;
        Ok((w, Shape::from((rows, n))))
    }
}

/// A stack on the CPU.
struct Levels<'a> {
    sizes: stack::Sizes,
    signs: &'a [u8],
    u: &'a [f16],
    v: Vec<f32>,
    inverse_scale: Vec<f32>,
}

impl Levels<'_> {
    /// The rows from `first` on that `sums` has room for.
    fn sum(&self, first: usize, sums: &mut [f32], product: &mut [f32]) {
        let stack::Sizes { levels, m, n, k } = self.sizes;
        let (rows, row) = (sums.len() / n, stack::bytes(n));
        let product = &mut product[..sums.len()];
        for level in 0..levels {
            let at = level * m + first;
            let u = self.u[at * k..][..rows * k].to_f32_vec();
            multiply(product, &u, &self.v[level * k * n..][..k * n], k);
            let signs = &self.signs[at * row..][..rows * row];
            lanes::run(Add { sums, n, signs, product, first: level == 0 });
        }
        if !self.inverse_scale.is_empty() {
            for sums in sums.chunks_exact_mut(n) {
                for (sum, scale) in sums.iter_mut().zip(&self.inverse_scale) {
                    *sum *= scale;
                }
            }
        }
    }
}

/// `sums += s ∘ product` of whole rows of `n`; for the `first` level the sums start from 0.
struct Add<'a> {
    sums: &'a mut [f32],
    n: usize,
    signs: &'a [u8],
    product: &'a [f32],
    first: bool,
}

impl Kernel for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        if self.first {
            self.sums.fill(0.0);
        }
        let rows = self.sums.chunks_exact_mut(self.n).zip(self.product.chunks_exact(self.n));
        for ((sums, product), signs) in rows.zip(self.signs.chunks_exact(stack::bytes(self.n))) {
            let (eights, rest) = sums.as_chunks_mut::<8>();
            let (products, product_rest) = product.as_chunks::<8>();
            for ((sums, &product), &signs) in eights.iter_mut().zip(products).zip(signs) {
                let level = stack::flipped(signs, product);
                for (sum, level) in sums.iter_mut().zip(level) {
                    *sum += level;
                }
            }
            if let Some(&last) = signs.last() {
                let level = stack::flipped(last, stack::eight(product_rest, 0.0));
                for (sum, level) in rest.iter_mut().zip(level) {
                    *sum += level;
                }
            }
        }
    }
}
