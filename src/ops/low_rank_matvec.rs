//! The product of two factors with one vector, for decoding token by token.
//!
//! ```text
//! y = u (v x) + bias
//! x [1, n] f32    v [r, n], u [m, r] f32 or bf16    bias [m] f32    ->    y [1, m] f32
//! no gradient
//! ```
//!
//! `2 r (n + m)` flops and as many elements read once: bound by memory. x and v x are not rounded,
//! whatever the factors are. On a GPU it is one launch where two products of matrices take two, and
//! between them a wait that is as long as each.

use candle_core::{CpuStorage, CudaStorage, CustomOp3, DType, Layout, Shape, Storage, Tensor};
use rayon::prelude::*;

use super::cuda::{Grid, Launch};
use super::lanes;
use super::operand;
use crate::error::Result;

const OP: &str = "low_rank_matvec";

/// `u (v x) + bias` of a single row `x [1, n]`.
///
/// # Errors
/// Operands that do not fit are [`Error::Bug`](crate::error::Error::Bug): shapes are checked when
/// a model is read.
pub fn low_rank_matvec(
    x: &Tensor,
    v: &Tensor,
    u: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    operand::expect(OP, "x", x, DType::F32)?;
    let dtype = if v.dtype() == DType::BF16 { DType::BF16 } else { DType::F32 };
    operand::expect(OP, "v", v, dtype)?;
    operand::expect(OP, "u", u, dtype)?;
    let (&[_, n], &[r, _], &[m, _]) = (x.dims(), v.dims(), u.dims()) else {
        let why = format_args!("x {:?}, v {:?}, u {:?}", x.dims(), v.dims(), u.dims());
        return Err(operand::refuse(OP, why));
    };
    operand::expect_dims(OP, "x", x, &[1, n])?;
    operand::expect_dims(OP, "v", v, &[r, n])?;
    operand::expect_dims(OP, "u", u, &[m, r])?;
    if let Some(bias) = bias {
        operand::expect(OP, "bias", bias, DType::F32)?;
        operand::expect_dims(OP, "bias", bias, &[m])?;
    }
    Ok(x.apply_op3_no_bwd(v, u, &LowRankMatvec { bias: bias.cloned() })?)
}

struct LowRankMatvec {
    bias: Option<Tensor>,
}

impl CustomOp3 for LowRankMatvec {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
        u: &CpuStorage,
        u_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = operand::elements::<f32>(x, x_layout)?;
        let z = rows_times(v, v_layout, x)?;
        let mut y = rows_times(u, u_layout, &z)?;
        if let Some(bias) = &self.bias {
            y.iter_mut().zip(bias.to_vec1::<f32>()?).for_each(|(y, bias)| *y += bias);
        }
        let shape = Shape::from((1, y.len()));
        Ok((CpuStorage::F32(y), shape))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        v: &CudaStorage,
        v_layout: &Layout,
        u: &CudaStorage,
        u_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        /// Rows of v that a block multiplies, and rows of u.
        const ROWS: (usize, usize) = (8, 16);
        let (r, n) = v_layout.shape().dims2()?;
        let m = u_layout.shape().dims2()?.0;
        let bias = self.bias.as_ref().map(Tensor::storage_and_layout);
        let bias = match bias.as_ref().map(|(storage, layout)| (&**storage, *layout)) {
            None => None,
            Some((Storage::Cuda(bias), layout)) => Some((bias, layout)),
            Some(_) => return Err(candle_core::Error::Msg("bias is on another device".into())),
        };
        let bf16 = candle_core::backend::BackendStorage::dtype(v) == DType::BF16;
        let kernel = if bf16 { "low_rank_matvec_bf16" } else { "low_rank_matvec_f32" };
        let blocks = r.div_ceil(ROWS.0) + m.div_ceil(ROWS.1);
        let [_, y] = Launch::of(OP, kernel, x)
            .read(x, x_layout)?
            .read(v, v_layout)?
            .read(u, u_layout)?
            .read_or_null(bias)?
            .output(DType::F32, r)?
            .output(DType::F32, m)?
            .int(n)
            .int(r)
            .int(m)
            .run(Grid::blocks(blocks))?
            .many()?;
        Ok((y, Shape::from((1, m))))
    }
}

/// The dot product of every row of `a [rows, x.len()]`, f32 or bf16, with x.
fn rows_times(a: &CpuStorage, layout: &Layout, x: &[f32]) -> candle_core::Result<Vec<f32>> {
    let n = x.len().max(1);
    Ok(match a {
        CpuStorage::BF16(_) => operand::elements::<half::bf16>(a, layout)?
            .par_chunks_exact(n)
            .map(|row| {
                let row: Vec<f32> = row.iter().map(|v| v.to_f32()).collect();
                lanes::run(lanes::Dot { a: &row, b: x }) as f32
            })
            .collect(),
        _ => operand::elements::<f32>(a, layout)?
            .par_chunks_exact(n)
            .map(|row| lanes::run(lanes::Dot { a: row, b: x }) as f32)
            .collect(),
    })
}
