//! The signs of a residual and a sketch of its magnitudes, in one read of it.
//!
//! ```text
//! signs[i, j] = r[i, j] >= 0          packed, see `stack`
//! sketch      = |r| omega
//! r [m, n] f32    omega [n, c] f32    ->    signs [1, m, ⌈n/8⌉] u8    sketch [m, c] f32
//! no gradient
//! ```
//!
//! `2 m n c` flops. A randomised decomposition of |r| begins with the sketch. On the CPU |r| exists
//! for [`ROWS`] rows at a time.

use candle_core::{CpuStorage, CudaStorage, CustomOp1, DType, Layout, Shape, Tensor};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::cuda::{Grid, Launch};
use super::lanes::{self, Kernel};
use super::{operand, stack};
use crate::error::Result;

const OP: &str = "sign_pack";

/// Rows that are worked on together.
pub(super) const ROWS: usize = 32;

/// The signs of `r [m, n]` and, where there is an `omega [n, c]`, the sketch `|r| omega`.
///
/// # Errors
/// Operands that do not fit are [`Error::Bug`](crate::error::Error::Bug).
pub fn sign_pack(r: &Tensor, omega: Option<&Tensor>) -> Result<(Tensor, Option<Tensor>)> {
    let (m, n) = stack::matrix(OP, r)?;
    let c = stack::sketch_width(OP, omega, n)?;
    stack::expect_together(OP, r.device(), omega.as_slice())?;
    let op = SignPack { omega, c, sketch: stack::Extra::default() };
    let signs = r.apply_op1_no_bwd(&op)?;
    let sketch = omega.map(|_| op.sketch.into_tensor((m, c))).transpose()?;
    Ok((signs, sketch))
}

struct SignPack<'a> {
    omega: Option<&'a Tensor>,
    c: usize,
    sketch: stack::Extra,
}

impl CustomOp1 for SignPack<'_> {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, r: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (m, n) = layout.shape().dims2()?;
        let r = operand::elements::<f32>(r, layout)?;
        let omega = host_values(self.omega)?;
        let mut signs = vec![0; m * stack::bytes(n)];
        let mut sketch = vec![0.0; m * self.c];
        let mut sketches = sketch.chunks_mut((ROWS * self.c).max(1));
        let tiles: Vec<_> = r
            .chunks(ROWS * n)
            .zip(signs.chunks_mut(ROWS * stack::bytes(n)))
            .map(|(r, signs)| (r, signs, sketches.next().unwrap_or_default()))
            .collect();
        tiles.into_par_iter().for_each_init(
            || vec![0.0; ROWS.min(m) * n],
            |magnitudes, (r, signs, sketch)| {
                lanes::run(Pack { r, n, signs, magnitudes });
                multiply(sketch, &magnitudes[..r.len()], &omega, n);
            },
        );
        self.sketch.set_cpu(CpuStorage::F32(sketch));
        Ok((CpuStorage::U8(signs), Shape::from((1, m, stack::bytes(n)))))
    }

    fn cuda_fwd(
        &self,
        r: &CudaStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let (m, n) = layout.shape().dims2()?;
        let omega = self.omega.map(Tensor::storage_and_layout);
        let omega = omega.as_ref().map(|(s, l)| stack::on_gpu((s, l))).transpose()?;
        let launch = Launch::new(OP, r)
            .read(r, layout)?
            .read_or_null(omega)?
            .output(DType::U8, m * stack::bytes(n))?;
        let signs = with_sketch(launch, &[m, n, self.c], &self.sketch)?;
        Ok((signs, Shape::from((1, m, stack::bytes(n)))))
    }
}

/// Runs a kernel whose first output is signs and whose sizes begin with m and n and end with c;
/// gives it a sketch of c columns to fill and returns the signs.
pub(super) fn with_sketch(
    mut launch: Launch<'_>,
    sizes: &[usize],
    sketch: &stack::Extra,
) -> candle_core::Result<CudaStorage> {
    /// Rows of a block, and the fewest columns of one.
    const TILE: (usize, usize) = (64, 256);
    /// Blocks that fill the largest device; fewer tiles of rows are split by columns.
    const BLOCKS: usize = 2 * 132;
    let (&[m, n, ..], Some(&c)) = (sizes, sizes.last()) else {
        return Err(candle_core::Error::Msg("a residual without sizes".into()));
    };
    let tiles = m.div_ceil(TILE.0);
    let splits = (BLOCKS / tiles).clamp(1, n.div_ceil(TILE.1));
    launch = match c {
        0 => launch.read_or_null(None)?.read_or_null(None)?,
        // The second is scratch: the parts of the sketch.
        _ => launch.output(DType::F32, m * c)?.output(DType::F32, splits * m * c)?,
    };
    for &size in sizes {
        launch = launch.int(size);
    }
    let made = launch.run(Grid::blocks(tiles * splits))?;
    if c == 0 {
        return made.one();
    }
    let [signs, filled, _] = made.many()?;
    sketch.set_cuda(filled);
    Ok(signs)
}

/// The values of an operand on the CPU that may be missing.
pub(super) fn host_values(omega: Option<&Tensor>) -> candle_core::Result<Vec<f32>> {
    match omega {
        Some(omega) => stack::with_elements(omega, |values| Ok(values.to_vec())),
        None => Ok(Vec::new()),
    }
}

/// `product = a b` of a few rows of `inner`; nothing where b is empty.
pub(super) fn multiply(product: &mut [f32], a: &[f32], b: &[f32], inner: usize) {
    if b.is_empty() {
        return;
    }
    let (rows, columns) = (a.len() / inner, b.len() / inner);
    matmul(
        MatMut::from_row_major_slice_mut(product, rows, columns),
        Accum::Replace,
        MatRef::from_row_major_slice(a, rows, inner),
        MatRef::from_row_major_slice(b, inner, columns),
        1.0,
        // A tile is one thread's.
        Par::Seq,
    );
}

/// Signs and magnitudes of whole rows of `n`.
pub(super) struct Pack<'a> {
    pub(super) r: &'a [f32],
    pub(super) n: usize,
    pub(super) signs: &'a mut [u8],
    pub(super) magnitudes: &'a mut [f32],
}

impl Kernel for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let rows = self.r.chunks_exact(self.n).zip(self.magnitudes.chunks_exact_mut(self.n));
        for ((r, magnitudes), signs) in rows.zip(self.signs.chunks_exact_mut(stack::bytes(self.n)))
        {
            let (eights, rest) = r.as_chunks::<8>();
            for (signs, &eight) in signs.iter_mut().zip(eights) {
                *signs = stack::packed(eight);
            }
            if let (Some(last), false) = (signs.last_mut(), rest.is_empty()) {
                // Bits beyond the row are 0, as those of minus are.
                *last = stack::packed(stack::eight(rest, -1.0));
            }
            for (magnitude, &r) in magnitudes.iter_mut().zip(r) {
                *magnitude = r.abs();
            }
        }
    }
}
