//! Next-token loss in nats, one number per row, of logits that come in tiles of the vocabulary.
//!
//! ```text
//! loss[i] = log sum_j e^logits[i, j] - logits[i, targets[i]]
//! logits [n, w] f32, columns first .. first + w of v    targets [n] u32    ->    loss [n] f32
//! state [3, n] f64:  the largest logit m so far, sum_j e^(logits[j] - m), the target's logit
//! gradient of Σ loss:  dlogits[i, j] = softmax_j(logits[i]) - [j = targets[i]]
//! ```
//!
//! About 20 w flops and 4 w bytes per row and tile; all logits of a row exist at no time. The
//! exponentials are summed in f32 within blocks of 1024 and in f64 across blocks and tiles; the
//! logarithm is taken in f64.

use std::ops::Range;

use candle_core::{CpuStorage, CudaStorage, CustomOp3, DType, InplaceOp3, Layout, Shape, Tensor};
use rayon::prelude::*;

use super::cuda::{Grid, Launch};
use super::lanes::{self, Kernel, LANES};
use super::operand;
use crate::error::{Error, Result};

const OP: &str = "cross_entropy";

/// Columns of one tile: logits of 512 rows then take 32 MiB, and a product this wide keeps any device
/// busy.
pub const VOCABULARY_TILE: usize = 16 * 1024;

/// Terms that are summed in f32 before the sum goes on in f64.
const BLOCK: usize = 64 * LANES;

/// The losses of some rows, with the targets and the state that their gradient needs.
#[derive(Debug)]
pub struct CrossEntropy {
    targets: Tensor,
    state: Tensor,
    losses: Tensor,
}

impl CrossEntropy {
    /// The losses against `targets [n]` below `vocabulary`; `logits(columns)` returns the logits `[n,
    /// columns.len()]` of some columns, and is asked for [`VOCABULARY_TILE`] of them at a time.
    ///
    /// # Errors
    /// The errors of `logits`; [`Error::NonFinite`], naming a row that holds NaN or infinity;
    /// [`Error::Bug`] for a target that is not below `vocabulary`, and for operands that do not fit.
    pub fn of(
        targets: &Tensor,
        vocabulary: usize,
        mut logits: impl FnMut(Range<usize>) -> Result<Tensor>,
    ) -> Result<Self> {
        operand::expect(OP, "targets", targets, DType::U32)?;
        let &[n] = targets.dims() else {
            let why = format_args!("targets have shape {:?}, expected [n]", targets.dims());
            return Err(operand::refuse(OP, why));
        };
        let ids = targets.to_vec1::<u32>()?;
        let outside = |(_, target): &(usize, &u32)| **target as usize >= vocabulary;
        if let Some((row, target)) = ids.iter().enumerate().find(outside) {
            let why = format_args!("target {target} of row {row} is not below {vocabulary}");
            return Err(operand::refuse(OP, why));
        }
        if n == 0 {
            let none = Tensor::zeros(0, DType::F32, targets.device())?;
            return Ok(Self { targets: targets.clone(), state: none.clone(), losses: none });
        }
        let mut start = vec![f64::NEG_INFINITY; n];
        start.resize(3 * n, 0.0);
        let state = Tensor::from_vec(start, (3, n), targets.device())?;
        for columns in tiles(vocabulary) {
            let tile = logits(columns.clone())?;
            operand::expect(OP, "logits", &tile, DType::F32)?;
            operand::expect_dims(OP, "logits", &tile, &[n, columns.len()])?;
            state.inplace_op3(&tile, targets, &Tile { first: columns.start })?;
        }
        let losses = (state.get(1)?.log()? + (state.get(0)? - state.get(2)?)?)?;
        let losses = losses.to_dtype(DType::F32)?;
        if let Some(row) = losses.to_vec1::<f32>()?.iter().position(|loss| loss.is_nan()) {
            return Err(non_finite(row, n, vocabulary, logits)?);
        }
        Ok(Self { targets: targets.clone(), state, losses })
    }

    /// The loss of every row, `[n]`.
    pub fn losses(&self) -> &Tensor {
        &self.losses
    }

    /// The gradient of the sum of the losses at `logits [n, w]`, columns `first ..`, as they were in
    /// [`of`](Self::of).
    ///
    /// # Errors
    /// [`Error::Bug`] for logits that are not f32, or have another number of rows.
    pub fn gradient(&self, logits: &Tensor, first: usize) -> Result<Tensor> {
        operand::expect(OP, "logits", logits, DType::F32)?;
        let width = logits.dims().get(1).copied().unwrap_or(0);
        operand::expect_dims(OP, "logits", logits, &[self.targets.elem_count(), width])?;
        Ok(logits.apply_op3_no_bwd(&self.state, &self.targets, &Gradient { first })?)
    }
}

/// The columns of a vocabulary, tile by tile.
pub fn tiles(vocabulary: usize) -> impl Iterator<Item = Range<usize>> {
    let end = move |first: usize| (first + VOCABULARY_TILE).min(vocabulary);
    (0..vocabulary).step_by(VOCABULARY_TILE).map(move |first| first..end(first))
}

/// Says which element of `row` is at fault.
fn non_finite(
    row: usize,
    rows: usize,
    vocabulary: usize,
    mut logits: impl FnMut(Range<usize>) -> Result<Tensor>,
) -> Result<Error> {
    let mut detail = format!("row {row} of {rows}");
    for columns in tiles(vocabulary) {
        let values = logits(columns.clone())?.get(row)?.to_vec1::<f32>()?;
        if let Some(column) = values.iter().position(|v| !v.is_finite()) {
            detail += &format!(", column {}: {}", columns.start + column, values[column]);
            break;
        }
    }
    Ok(Error::NonFinite { what: "logits".into(), detail })
}

/// Folds a tile of logits into the state. The sum of a row that is not finite becomes NaN.
struct Tile {
    first: usize,
}

impl InplaceOp3 for Tile {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        state: &mut CpuStorage,
        state_layout: &Layout,
        logits: &CpuStorage,
        logits_layout: &Layout,
        targets: &CpuStorage,
        targets_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (n, width) = logits_layout.shape().dims2()?;
        let logits = operand::elements::<f32>(logits, logits_layout)?;
        let targets = operand::elements::<u32>(targets, targets_layout)?;
        let state = operand::sums_mut(state, state_layout)?;
        if n == 0 || width == 0 {
            return Ok(());
        }
        let (max, rest) = state.split_at_mut(n);
        let (sum, hit) = rest.split_at_mut(n);
        let rows = logits.par_chunks_exact(width).zip(targets);
        let state = max.par_iter_mut().zip(sum).zip(hit);
        rows.zip(state).for_each(|((row, &target), ((max, sum), hit))| {
            let (here, terms) = lanes::run(Row { row });
            let largest = max.max(f64::from(here));
            let seen = if *max > f64::NEG_INFINITY { *sum * (*max - largest).exp() } else { 0.0 };
            *sum = seen + terms * (f64::from(here) - largest).exp();
            *max = largest;
            if let Some(&logit) = (target as usize).checked_sub(self.first).and_then(|j| row.get(j))
            {
                *hit = f64::from(logit);
            }
        });
        Ok(())
    }

    fn cuda_fwd(
        &self,
        state: &mut CudaStorage,
        state_layout: &Layout,
        logits: &CudaStorage,
        logits_layout: &Layout,
        targets: &CudaStorage,
        targets_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (n, width) = logits_layout.shape().dims2()?;
        Launch::of(OP, "cross_entropy_tile", logits)
            .read(logits, logits_layout)?
            .read(targets, targets_layout)?
            .update(state, state_layout)?
            .int(n)
            .int(width)
            .int(self.first)
            .run(Grid::blocks(n))?;
        Ok(())
    }
}

/// `dlogits` from a tile of logits, the state and the targets.
struct Gradient {
    first: usize,
}

impl CustomOp3 for Gradient {
    fn name(&self) -> &'static str {
        "cross_entropy_gradient"
    }

    fn cpu_fwd(
        &self,
        logits: &CpuStorage,
        logits_layout: &Layout,
        state: &CpuStorage,
        state_layout: &Layout,
        targets: &CpuStorage,
        targets_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (n, width) = logits_layout.shape().dims2()?;
        let logits = operand::elements::<f32>(logits, logits_layout)?;
        let state = operand::elements::<f64>(state, state_layout)?;
        let targets = operand::elements::<u32>(targets, targets_layout)?;
        let mut dlogits = vec![0.0; logits.len()];
        lanes::for_row_blocks(&mut dlogits, width, |first, dlogits| {
            for (i, y) in (first..).zip(dlogits.chunks_exact_mut(width)) {
                let (max, scale) = (state[i] as f32, (1.0 / state[n + i]) as f32);
                lanes::run(GradientRow { row: &logits[i * width..][..width], max, scale, y });
                if let Some(hit) =
                    (targets[i] as usize).checked_sub(self.first).and_then(|j| y.get_mut(j))
                {
                    *hit -= 1.0;
                }
            }
        });
        Ok((CpuStorage::F32(dlogits), logits_layout.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        logits: &CudaStorage,
        logits_layout: &Layout,
        state: &CudaStorage,
        state_layout: &Layout,
        targets: &CudaStorage,
        targets_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let (n, width) = logits_layout.shape().dims2()?;
        let dlogits = Launch::of(OP, "cross_entropy_tile_gradient", logits)
            .read(logits, logits_layout)?
            .read(targets, targets_layout)?
            .read(state, state_layout)?
            .output(DType::F32, n * width)?
            .int(n)
            .int(width)
            .int(self.first)
            .run(Grid::blocks(n))?
            .one()?;
        Ok((dlogits, logits_layout.shape().clone()))
    }
}

/// The largest of a row, and the sum of the exponentials relative to it.
struct Row<'a> {
    row: &'a [f32],
}

impl Kernel for Row<'_> {
    type Output = (f32, f64);

    #[inline(always)]
    fn call(self) -> (f32, f64) {
        let max = lanes::max(self.row);
        let mut sum = 0.0;
        for block in self.row.chunks(BLOCK) {
            sum += lanes::sum_by(block, |_, v| term(v, max));
        }
        (max, sum)
    }
}

/// `e^(v - max)`. NaN and +inf make it NaN by themselves; -inf, whose term would be 0, through `0
/// v`.
#[inline(always)]
fn term(v: f32, max: f32) -> f32 {
    v.mul_add(0.0, lanes::exp(v - max))
}

/// `y = scale e^(row - max)`.
struct GradientRow<'a> {
    row: &'a [f32],
    max: f32,
    scale: f32,
    y: &'a mut [f32],
}

impl Kernel for GradientRow<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (y, &v) in self.y.iter_mut().zip(self.row) {
            *y = lanes::exp(v - self.max) * self.scale;
        }
    }
}
