//! The product of a residual stack with one vector, for decoding token by token, without the matrix.
//!
//! ```text
//! y = Σ_l rowsum(u_l ∘ (S_l Z_l)),    Z_l[j, c] = v_l[c, j] x[j]
//! x [1, n] f32    signs [L, m, ⌈n/8⌉] u8    u [L, m, k], v [L, k, n] f16    ->    y [1, m] f32
//! no gradient
//! ```
//!
//! On the CPU all 256 signed sums of eight rows of Z are made once, so that a row of S adds one
//! vector of length k per byte: `m n k / 8` additions per level where the product of S and Z takes
//! `2 m n k` flops. Sums are f32 within a segment of a row, f64 beyond, in an order that the shape
//! determines.

use std::ops::Range;

use candle_core::{CpuStorage, CudaStorage, CustomOp3, DType, Layout, Shape, Tensor};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::cuda::{Grid, Launch};
use super::lanes::{self, Kernel};
use super::{operand, stack};
use crate::error::Result;

const OP: &str = "stack_matvec";

/// The most and the fewest bytes of a row that one task looks up. With fewer, the work that a task does
/// once per row shows; with more there are too few tasks.
const SEGMENT: (usize, usize) = (256, 64);

/// The number of tasks to reach: [`segment_of`] shortens segments until there are as many.
const TASKS: usize = 8;

/// The most rows of a task; they share the signed sums that it makes.
const ROWS: usize = 4096;

/// Bytes of a row that are looked up together: their tables of signed sums take 64 KiB.
const TOGETHER: usize = 4;

/// The most columns of u that one task takes.
const WIDEST: usize = 16;

/// `W x` of a single row `x [1, n]`.
///
/// # Errors
/// Operands that do not fit are [`Error::Bug`](crate::error::Error::Bug).
pub fn stack_matvec(x: &Tensor, signs: &Tensor, u: &Tensor, v: &Tensor) -> Result<Tensor> {
    let sizes = stack::sizes(OP, signs, u, v)?;
    operand::expect(OP, "x", x, DType::F32)?;
    operand::expect_dims(OP, "x", x, &[1, sizes.n])?;
    stack::expect_together(OP, x.device(), &[signs, u, v])?;
    Ok(signs.apply_op3_no_bwd(u, v, &StackMatvec { sizes, x })?)
}

struct StackMatvec<'a> {
    sizes: stack::Sizes,
    x: &'a Tensor,
}

impl CustomOp3 for StackMatvec<'_> {
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
        let stack::Sizes { levels, m, n, k } = self.sizes;
        let operands = Operands {
            sizes: self.sizes,
            signs: operand::elements::<u8>(signs, signs_layout)?,
            u: operand::elements::<f16>(u, u_layout)?,
            v: operand::elements::<f16>(v, v_layout)?,
        };
        let (segment, row) = (segment_of(self.sizes), stack::bytes(n));
        let mut tasks = Vec::new();
        for rows in (0..m).step_by(ROWS) {
            for level in 0..levels {
                for columns in columns_of(k) {
                    tasks.extend((0..row).step_by(segment).map(|byte| {
                        let bytes = byte..row.min(byte + segment);
                        Task { rows, level, columns, bytes }
                    }));
                }
            }
        }
        let parts: Vec<Vec<f32>> = stack::with_elements::<f32, _>(self.x, |x| {
            Ok(tasks
                .par_iter()
                .map_init(
                    || Scratch::new(self.sizes),
                    |scratch, task| match task.columns.1 {
                        WIDEST => operands.part::<WIDEST>(x, task, scratch),
                        8 => operands.part::<8>(x, task, scratch),
                        _ => operands.part::<4>(x, task, scratch),
                    },
                )
                .collect())
        })?;
        let mut y = vec![0.0_f64; m];
        for (task, part) in tasks.iter().zip(parts) {
            for (y, part) in y[task.rows..].iter_mut().zip(part) {
                *y += f64::from(part);
            }
        }
        Ok((CpuStorage::F32(y.into_iter().map(|y| y as f32).collect()), Shape::from((1, m))))
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
        /// Rows and columns of a block, and the columns of u that it takes at a time.
        const TILE: (usize, usize, usize) = (512, 512, 16);
        /// Blocks that fill the largest device.
        const BLOCKS: usize = 2 * 132;
        let stack::Sizes { levels, m, n, k } = self.sizes;
        let (x, x_layout) = self.x.storage_and_layout();
        let (x, x_layout) = stack::on_gpu((&x, x_layout))?;
        let (tiles, ranges) = (m.div_ceil(TILE.0), n.div_ceil(TILE.1));
        let groups = (BLOCKS / (tiles * ranges)).clamp(1, levels * k.div_ceil(TILE.2));
        let parts = ranges * groups;
        let [y, _] = Launch::new(OP, x)
            .read(x, x_layout)?
            .read(signs, signs_layout)?
            .read(u, u_layout)?
            .read(v, v_layout)?
            .output(DType::F32, m)?
            // Scratch `[parts, m]`: the sums over every part of the columns and levels.
            .output(DType::F32, parts * m)?
            .int(levels)
            .int(m)
            .int(n)
            .int(k)
            .run(Grid::blocks(tiles * parts))?
            .many()?;
        Ok((y, Shape::from((1, m))))
    }
}

/// Columns of u: the first, and the width of the lanes they are computed in.
type Columns = (usize, usize);

/// The columns of u in lanes of 16, 8 and 4; the last ones may reach beyond k.
fn columns_of(k: usize) -> Vec<Columns> {
    let mut all = Vec::new();
    let mut first = 0;
    while first < k {
        let width = match k - first {
            9.. => WIDEST,
            5..=8 => 8,
            _ => 4,
        };
        all.push((first, width));
        first += width;
    }
    all
}

/// Bytes of a segment: the most within [`SEGMENT`] that still gives [`TASKS`] tasks, else the fewest.
/// It does not depend on the number of threads.
fn segment_of(sizes: stack::Sizes) -> usize {
    let stack::Sizes { levels, m, n, k } = sizes;
    let of_one = levels * m.div_ceil(ROWS) * columns_of(k).len();
    let (mut segment, least) = SEGMENT;
    while segment > least && of_one * stack::bytes(n).div_ceil(segment) < TASKS {
        segment /= 2;
    }
    segment
}

/// Up to [`ROWS`] rows, one level, some columns of u and a segment of the signs.
struct Task {
    rows: usize,
    level: usize,
    columns: Columns,
    bytes: Range<usize>,
}

/// The buffers of a task. A thread keeps them, because the first use of new pages takes time.
struct Scratch {
    sums: Vec<f32>,
    totals: Vec<f32>,
    u: Vec<f32>,
}

impl Scratch {
    fn new(sizes: stack::Sizes) -> Self {
        let rows = ROWS.min(sizes.m);
        Self {
            sums: vec![0.0; TOGETHER * 256 * WIDEST],
            totals: vec![0.0; rows * WIDEST],
            u: vec![0.0; rows * sizes.k],
        }
    }
}

struct Operands<'a> {
    sizes: stack::Sizes,
    signs: &'a [u8],
    u: &'a [f16],
    v: &'a [f16],
}

/// All signed sums of eight rows of Z, by the byte of their signs.
type Sums<const W: usize> = [[f32; W]; 256];

impl Operands<'_> {
    /// Computes the terms that `task` adds to its rows of y, one per row.
    fn part<const W: usize>(&self, x: &[f32], task: &Task, scratch: &mut Scratch) -> Vec<f32> {
        let stack::Sizes { m, n, k, .. } = self.sizes;
        let (rows, row) = (ROWS.min(m - task.rows), stack::bytes(n));
        let at = task.level * m + task.rows;
        let signs = &self.signs[at * row..][..rows * row];
        let z = self.z::<W>(x, task);
        let sums = scratch.sums.as_chunks_mut::<W>().0.as_chunks_mut::<256>().0;
        let totals = &mut scratch.totals.as_chunks_mut::<W>().0[..rows];
        totals.fill([0.0; W]);
        for (byte, z) in (task.bytes.start..).step_by(TOGETHER).zip(z.chunks(TOGETHER)) {
            let count = z.len();
            for (z, sums) in z.iter().zip(&mut *sums) {
                lanes::run(SignedSums { z, sums });
            }
            let (sums, totals) = (&*sums, &mut *totals);
            match sums.first_chunk::<TOGETHER>() {
                Some(sums) if count == TOGETHER => {
                    lanes::run(LookUp { sums, signs, row, byte, totals });
                }
                _ => {
                    for (i, sums) in sums[..count].iter().enumerate() {
                        let sums = std::array::from_ref(sums);
                        lanes::run(LookUp { sums, signs, row, byte: byte + i, totals });
                    }
                }
            }
        }
        let u = &mut scratch.u[..rows * k];
        self.u[at * k..][..rows * k].convert_to_f32_slice(u);
        let mut y = vec![0.0; rows];
        lanes::run(Weigh { u, k, first: task.columns.0, totals, y: &mut y });
        y
    }

    /// The rows of Z that belong to the bytes of `task`, eight to each; beyond the matrix they are 0.
    fn z<const W: usize>(&self, x: &[f32], task: &Task) -> Vec<[[f32; W]; 8]> {
        let stack::Sizes { n, k, .. } = self.sizes;
        let columns = 8 * task.bytes.start..n.min(8 * task.bytes.end);
        let mut z = vec![[[0.0; W]; 8]; task.bytes.len()];
        for c in 0..W.min(k - task.columns.0) {
            let v = &self.v[(task.level * k + task.columns.0 + c) * n..][..n];
            let v = v[columns.clone()].to_f32_vec();
            let products = v.iter().zip(&x[columns.clone()]).map(|(v, x)| v * x);
            for (z, product) in z.as_flattened_mut().iter_mut().zip(products) {
                z[c] = product;
            }
        }
        z
    }
}

/// Fills `sums` for the eight rows `z`; the first row belongs to the most significant bit.
struct SignedSums<'a, const W: usize> {
    z: &'a [[f32; W]; 8],
    sums: &'a mut Sums<W>,
}

impl<const W: usize> Kernel for SignedSums<'_, W> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        // Of four rows each, then of every pair.
        let (high, low) = (four_signed(&self.z[..4]), four_signed(&self.z[4..]));
        for (sums, high) in self.sums.chunks_exact_mut(16).zip(&high) {
            for (sums, low) in sums.iter_mut().zip(&low) {
                for ((sum, high), low) in sums.iter_mut().zip(high).zip(low) {
                    *sum = high + low;
                }
            }
        }
    }
}

/// All signed sums of four rows, the first row in the most significant bit: each row doubles the
/// number of sums.
#[inline(always)]
fn four_signed<const W: usize>(z: &[[f32; W]]) -> [[f32; W]; 16] {
    let mut sums = [[0.0; W]; 16];
    for (i, z) in z.iter().enumerate() {
        for at in (0..1 << i).rev() {
            let before = sums[at];
            for (c, z) in z.iter().enumerate() {
                sums[2 * at][c] = before[c] - z;
                sums[2 * at + 1][c] = before[c] + z;
            }
        }
    }
    sums
}

/// Adds to the total of every row the sums that `B` bytes of its signs, from `byte` on, stand for.
struct LookUp<'a, const W: usize, const B: usize> {
    sums: &'a [Sums<W>; B],
    signs: &'a [u8],
    row: usize,
    byte: usize,
    totals: &'a mut [[f32; W]],
}

impl<const W: usize, const B: usize> Kernel for LookUp<'_, W, B> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (totals, signs) in self.totals.iter_mut().zip(self.signs.chunks_exact(self.row)) {
            let mut added = [0.0; W];
            for (sums, &signs) in self.sums.iter().zip(&signs[self.byte..self.byte + B]) {
                for (added, sum) in added.iter_mut().zip(&sums[usize::from(signs)]) {
                    *added += sum;
                }
            }
            for (total, added) in totals.iter_mut().zip(added) {
                *total += added;
            }
        }
    }
}

/// The sum of every row's totals, each times its element of u, from column `first` of k on.
struct Weigh<'a, const W: usize> {
    u: &'a [f32],
    k: usize,
    first: usize,
    totals: &'a [[f32; W]],
    y: &'a mut [f32],
}

impl<const W: usize> Kernel for Weigh<'_, W> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for ((y, u), totals) in self.y.iter_mut().zip(self.u.chunks_exact(self.k)).zip(self.totals)
        {
            let u = &u[self.first..];
            let mut products = *totals;
            match u.first_chunk::<W>() {
                Some(u) => products.iter_mut().zip(u).for_each(|(total, u)| *total *= u),
                // Beyond k, Z and with it the totals are 0.
                None => products.iter_mut().zip(u).for_each(|(total, u)| *total *= u),
            }
            let mut width = W;
            while width > 1 {
                width /= 2;
                for i in 0..width {
                    products[i] += products[i + width];
                }
            }
            *y = products[0];
        }
    }
}
