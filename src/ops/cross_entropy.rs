//! Next-token loss in nats, one number per row.
//!
//! ```text
//! loss[i] = log sum_j e^logits[i, j] - logits[i, targets[i]]
//! logits [n, v] f32    targets [n] u32    ->    loss [n] f32
//! gradient:  dlogits[i, j] = dloss[i] (softmax_j(logits[i]) - [j = targets[i]])
//! ```
//!
//! About 20 v flops and 4 v bytes per row (the second pass finds the row in cache). The
//! exponentials are summed in f32 within blocks of 1024 and in f64 across them; the logarithm is
//! taken in f64.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Layout, Shape, Tensor};
use rayon::prelude::*;

use super::lanes::{self, Kernel, LANES};
use super::operand;
use crate::error::{Error, Result};

const OP: &str = "cross_entropy";

/// Terms that are summed in f32 before the sum goes on in f64.
const BLOCK: usize = 64 * LANES;

/// The loss of every row of `logits [n, v]` against `targets [n]`.
///
/// # Errors
/// A row that holds NaN or infinity is [`Error::NonFinite`], naming it; a target that is not below
/// `v`, and what does not fit, is [`Error::Bug`].
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    operand::expect(OP, "logits", logits, DType::F32)?;
    operand::expect(OP, "targets", targets, DType::U32)?;
    let &[n, v] = logits.dims() else {
        return Err(operand::refuse(
            OP,
            format_args!("logits have shape {:?}, expected [n, v]", logits.dims()),
        ));
    };
    operand::expect_dims(OP, "targets", targets, &[n])?;
    if let Some((row, target)) =
        targets.to_vec1::<u32>()?.into_iter().enumerate().find(|&(_, target)| target as usize >= v)
    {
        return Err(operand::refuse(
            OP,
            format_args!("target {target} of row {row} is not below {v}"),
        ));
    }
    let loss = logits.apply_op2(targets, CrossEntropy)?;
    if let Some(row) = loss.to_vec1::<f32>()?.iter().position(|loss| loss.is_nan()) {
        return Err(non_finite(logits, row)?);
    }
    Ok(loss)
}

/// The gradient `[n, v]` at `logits [n, v]` of the losses, each weighted by `dloss [n]`. For who has no
/// need of a graph: logits are large.
///
/// # Errors
/// What does not fit is [`Error::Bug`].
pub fn cross_entropy_gradient(logits: &Tensor, targets: &Tensor, dloss: &Tensor) -> Result<Tensor> {
    operand::expect(OP, "logits", logits, DType::F32)?;
    operand::expect(OP, "targets", targets, DType::U32)?;
    operand::expect(OP, "dloss", dloss, DType::F32)?;
    let rows = &logits.dims()[..logits.rank().min(1)];
    operand::expect_dims(OP, "targets", targets, rows)?;
    operand::expect_dims(OP, "dloss", dloss, rows)?;
    Ok(logits.apply_op3_no_bwd(targets, dloss, &CrossEntropyGradient)?)
}

/// Says which element of `row` is at fault.
fn non_finite(logits: &Tensor, row: usize) -> Result<Error> {
    let values = logits.get(row)?.to_vec1::<f32>()?;
    let detail = match values.iter().position(|v| !v.is_finite()) {
        Some(column) => {
            format!("row {row} of {}, column {column}: {}", logits.dims()[0], values[column])
        }
        None => format!("row {row} of {}", logits.dims()[0]),
    };
    Ok(Error::NonFinite { what: "logits".into(), detail })
}

struct CrossEntropy;

impl CustomOp2 for CrossEntropy {
    fn name(&self) -> &'static str {
        OP
    }

    /// The loss of a row that is not finite is NaN.
    fn cpu_fwd(
        &self,
        logits: &CpuStorage,
        logits_layout: &Layout,
        targets: &CpuStorage,
        targets_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (n, v) = logits_layout.shape().dims2()?;
        let logits = operand::elements::<f32>(logits, logits_layout)?;
        let targets = operand::elements::<u32>(targets, targets_layout)?;
        let loss = (0..n)
            .into_par_iter()
            .map(|i| {
                let row = &logits[i * v..][..v];
                lanes::run(Row { row, target: row[targets[i] as usize] })
            })
            .collect();
        Ok((CpuStorage::F32(loss), Shape::from(n)))
    }

    fn bwd(
        &self,
        logits: &Tensor,
        targets: &Tensor,
        _: &Tensor,
        dloss: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let dloss = dloss.contiguous()?;
        Ok((Some(logits.apply_op3_no_bwd(targets, &dloss, &CrossEntropyGradient)?), None))
    }
}

/// `dlogits` from logits, targets and dloss.
struct CrossEntropyGradient;

impl CustomOp3 for CrossEntropyGradient {
    fn name(&self) -> &'static str {
        "cross_entropy_gradient"
    }

    fn cpu_fwd(
        &self,
        logits: &CpuStorage,
        logits_layout: &Layout,
        targets: &CpuStorage,
        targets_layout: &Layout,
        dloss: &CpuStorage,
        dloss_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let v = logits_layout.shape().dims2()?.1;
        let logits = operand::elements::<f32>(logits, logits_layout)?;
        let targets = operand::elements::<u32>(targets, targets_layout)?;
        let dloss = operand::elements::<f32>(dloss, dloss_layout)?;
        let mut dlogits = vec![0.0; logits.len()];
        lanes::for_row_blocks(&mut dlogits, v, |first, dlogits| {
            for (i, y) in (first..).zip(dlogits.chunks_exact_mut(v)) {
                lanes::run(GradientRow { row: &logits[i * v..][..v], dloss: dloss[i], y });
                y[targets[i] as usize] -= dloss[i];
            }
        });
        Ok((CpuStorage::F32(dlogits), logits_layout.shape().clone()))
    }
}

struct Row<'a> {
    row: &'a [f32],
    target: f32,
}

impl Kernel for Row<'_> {
    type Output = f32;

    #[inline(always)]
    fn call(self) -> f32 {
        let max = lanes::max(self.row);
        let mut sum = 0.0;
        for block in self.row.chunks(BLOCK) {
            sum += sum_exp(block, max);
        }
        (sum.ln() + (f64::from(max) - f64::from(self.target))) as f32
    }
}

/// The sum of `e^(v - max)`; NaN if some v is not finite.
#[inline(always)]
fn sum_exp(x: &[f32], max: f32) -> f64 {
    lanes::sum_by(x, |_, v| term(v, max))
}

/// `e^(v - max)`. NaN and +inf make it NaN by themselves; -inf, whose term would be 0, through `0
/// v`.
#[inline(always)]
fn term(v: f32, max: f32) -> f32 {
    v.mul_add(0.0, lanes::exp(v - max))
}

/// `y = dloss softmax(row)`.
struct GradientRow<'a> {
    row: &'a [f32],
    dloss: f32,
    y: &'a mut [f32],
}

impl Kernel for GradientRow<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let max = lanes::max(self.row);
        let mut sum = 0.0;
        for (row, y) in self.row.chunks(BLOCK).zip(self.y.chunks_mut(BLOCK)) {
            for (y, &v) in y.iter_mut().zip(row) {
                *y = lanes::exp(v - max);
            }
            sum += lanes::sum(y);
        }
        let scale = (f64::from(self.dloss) / sum) as f32;
        for y in self.y {
            *y *= scale;
        }
    }
}
