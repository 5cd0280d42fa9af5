//! Next-token loss in nats, one number per row.
//!
//! ```text
//! loss[i] = log sum_j e^logits[i, j] - logits[i, targets[i]]
//! logits [n, v] f32    targets [n] u32    ->    loss [n] f32
//! ```
//!
//! About 20 v flops and 4 v bytes per row (the second pass finds the row in cache). The
//! exponentials are summed in f32 within blocks of 1024 and in f64 across them; the logarithm is
//! taken in f64.

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Shape, Tensor};

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
        use rayon::prelude::*;
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
    let mut sums = [0.0; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, &v) in sums.iter_mut().zip(chunk) {
            *sum += term(v, max);
        }
    }
    lanes::total(&sums) + tail.iter().map(|&v| f64::from(term(v, max))).sum::<f64>()
}

/// `e^(v - max)`. NaN and +inf make it NaN by themselves; -inf, whose term would be 0, through `0
/// v`.
#[inline(always)]
fn term(v: f32, max: f32) -> f32 {
    v.mul_add(0.0, lanes::exp(v - max))
}
