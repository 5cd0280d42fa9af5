//! Launches of the attention kernels: which variant, in which tiles.

use candle_core::{CudaStorage, DType, Layout, Result, Shape};

use super::{CausalAttention, Sizes};
use crate::ops::cuda::{Grid, Launch, joined};

/// Threads of a block, of the kernels in f32.
const THREADS: u32 = 128;

/// Kernels are compiled for heads of so many channels; a smaller head fills the rest with zeros.
const WIDTHS: [usize; 4] = [32, 64, 128, 256];

/// Queries of a block on the tensor cores, and the shared memory of each width, bytes.
const BF16_QUERIES: usize = 128;
const BF16_SHARED: [usize; 4] = [10_240, 18_432, 34_816, 84_480];

/// Queries and keys of a tile.
struct Tile {
    queries: usize,
    keys: usize,
}

/// The index of the narrowest width that holds heads of `d` channels.
fn width(d: usize) -> Result<usize> {
    WIDTHS.iter().position(|&width| d <= width).ok_or_else(|| {
        let most = WIDTHS[WIDTHS.len() - 1];
        candle_core::Error::Msg(format!("heads of {d} channels, kernels take {most} at most"))
    })
}

impl CausalAttention {
    fn sizes<'a>(&self, launch: Launch<'a>, b: usize, sizes: Sizes) -> Launch<'a> {
        let Sizes { heads, kv_heads, tq, tk, d } = sizes;
        launch
            .int(b)
            .int(heads)
            .int(kv_heads)
            .int(tq)
            .int(tk)
            .int(d)
            .int(self.first)
            .int(self.window.unwrap_or(0))
            .float(self.scores.scale)
            .float(self.scores.cap.unwrap_or(0.0))
    }

    /// `y [b tq, heads d]`.
    pub(super) fn launch(
        &self,
        q: (&CudaStorage, &Layout),
        k: (&CudaStorage, &Layout),
        v: (&CudaStorage, &Layout),
    ) -> Result<(CudaStorage, Shape)> {
        /// Of each width.
        const TILES: [Tile; 4] = [
            Tile { queries: 64, keys: 64 },
            Tile { queries: 64, keys: 64 },
            Tile { queries: 64, keys: 64 },
            Tile { queries: 32, keys: 32 },
        ];
        let (b, sizes) = operands(q.1, k.1)?;
        let index = width(sizes.d)?;
        let (Tile { queries, keys }, wide) = (&TILES[index], WIDTHS[index]);
        let shape = Shape::from((b * sizes.tq, sizes.heads * sizes.d));
        let heads = sizes.heads * b;
        let (module, grid) = match self.scores.in_bf16 {
            true => {
                let grid = Grid::blocks(sizes.tq.div_ceil(BF16_QUERIES) * heads);
                ("causal_attention_bf16", grid.shared(BF16_SHARED[index]))
            }
            false => {
                let shared = 4 * ((queries + keys) * (wide + 4) + queries * (keys + 4));
                let grid = Grid::blocks(sizes.tq.div_ceil(*queries) * heads);
                ("causal_attention", grid.threads(THREADS, 1).shared(shared))
            }
        };
        let launch = Launch::of(module, format!("{module}_{wide}"), q.0)
            .read(q.0, q.1)?
            .read(k.0, k.1)?
            .read(v.0, v.1)?
            .output(DType::F32, shape.elem_count())?;
        Ok((self.sizes(launch, b, sizes).run(grid)?.one()?, shape))
    }

    /// dq, dk and dv one after the other.
    pub(super) fn launch_gradient(
        &self,
        q: (&CudaStorage, &Layout),
        k: (&CudaStorage, &Layout),
        v: (&CudaStorage, &Layout),
        dy: (&CudaStorage, &Layout),
    ) -> Result<(CudaStorage, Shape)> {
        /// Of each width: for dq, and for dk and dv.
        const TILES: [(Tile, Tile); 4] = [
            (Tile { queries: 64, keys: 64 }, Tile { queries: 32, keys: 64 }),
            (Tile { queries: 64, keys: 64 }, Tile { queries: 32, keys: 64 }),
            (Tile { queries: 64, keys: 32 }, Tile { queries: 32, keys: 32 }),
            (Tile { queries: 32, keys: 16 }, Tile { queries: 16, keys: 16 }),
        ];
        const MODULE: &str = "causal_attention_gradient";
        let (b, sizes) = operands(q.1, k.1)?;
        let Sizes { heads, kv_heads, tq, tk, d } = sizes;
        let index = width(d)?;
        let ((for_q, for_kv), wide) = (&TILES[index], WIDTHS[index]);

        let Tile { queries, keys } = for_q;
        let shared = 4 * ((2 * queries + keys) * (wide + 4) + queries * (keys + 4));
        let grid = Grid::blocks(tq.div_ceil(*queries) * heads * b);
        let launch = Launch::of(MODULE, format!("causal_attention_dq_{wide}"), q.0)
            .read(q.0, q.1)?
            .read(k.0, k.1)?
            .read(v.0, v.1)?
            .read(dy.0, dy.1)?
            .output(DType::F32, b * heads * tq * d)?
            .output(DType::F32, b * heads * tq * 3)?;
        let grid = grid.threads(THREADS, 1).shared(shared);
        // Of every query the largest score, the inverse of the sum, and Σ p dp.
        let [dq, stats] = self.sizes(launch, b, sizes).run(grid)?.many()?;

        let Tile { queries, keys } = for_kv;
        let shared = 4 * (2 * (keys + queries) * (wide + 4) + keys * (queries + 4));
        let grid = Grid::blocks(tk.div_ceil(*keys) * kv_heads * b);
        let keys_in_all = b * kv_heads * tk * d;
        let launch = Launch::of(MODULE, format!("causal_attention_dkv_{wide}"), q.0)
            .read(q.0, q.1)?
            .read(k.0, k.1)?
            .read(v.0, v.1)?
            .read(dy.0, dy.1)?
            .read(&stats, &Layout::contiguous(b * heads * tq * 3))?
            .output(DType::F32, keys_in_all)?
            .output(DType::F32, keys_in_all)?;
        let grid = grid.threads(THREADS, 1).shared(shared);
        let [dk, dv] = self.sizes(launch, b, sizes).run(grid)?.many()?;
        joined(&[(&dq, b * heads * tq * d), (&dk, keys_in_all), (&dv, keys_in_all)])
    }
}

/// Texts, and the sizes of each.
fn operands(q: &Layout, k: &Layout) -> Result<(usize, Sizes)> {
    let (b, heads, tq, d) = q.shape().dims4()?;
    let (_, kv_heads, tk, _) = k.shape().dims4()?;
    Ok((b, Sizes { heads, kv_heads, tq, tk, d }))
}
