//! The blocks, threads and shared memory that a kernel is launched with.

/// Threads of a block where a kernel does not ask for another number.
const THREADS: u32 = 256;

/// The most blocks of a kernel that loops over the rest: 16 for each of the largest device's 132
/// multiprocessors keep it busy.
const MOST_BLOCKS: usize = 132 * 16;

/// Shape of a launch.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct Grid {
    /// Blocks.
    pub(in crate::ops) blocks: u32,
    /// Threads of each, as `(x, y)`.
    pub(in crate::ops) threads: (u32, u32),
    /// Dynamic shared memory of each, bytes.
    pub(in crate::ops) shared: u32,
}

impl Grid {
    /// For a loop over `n` elements, four to a thread.
    pub(in crate::ops) fn elements(n: usize) -> Self {
        Self::blocks(n.div_ceil(4 * THREADS as usize).min(MOST_BLOCKS))
    }

    /// A thread for every row.
    pub(in crate::ops) fn threads_for(rows: usize) -> Self {
        Self::blocks(rows.div_ceil(THREADS as usize).min(MOST_BLOCKS))
    }

    /// A warp for every row.
    pub(in crate::ops) fn warps_for(rows: usize) -> Self {
        Self::blocks(rows.div_ceil(THREADS as usize / 32).min(MOST_BLOCKS))
    }

    /// A warp for every row of `d`, or a block where rows are longer than a warp likes.
    pub(in crate::ops) fn rows_of(rows: usize, d: usize) -> Self {
        if d <= 1024 { Self::warps_for(rows) } else { Self::blocks(rows.min(MOST_BLOCKS)) }
    }

    /// Tiles of `side` on and below the diagonal of a square of `n`.
    pub(in crate::ops) fn triangle(n: usize, side: usize) -> Self {
        let tiles = n.div_ceil(side);
        Self::blocks(tiles * (tiles + 1) / 2)
    }

    /// Exactly so many blocks.
    pub(in crate::ops) fn blocks(blocks: usize) -> Self {
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX).max(1);
        Self { blocks, threads: (THREADS, 1), shared: 0 }
    }

    /// The same with other threads.
    #[must_use]
    pub(in crate::ops) fn threads(self, x: u32, y: u32) -> Self {
        Self { threads: (x, y), ..self }
    }

    /// The same with dynamic shared memory.
    #[must_use]
    pub(in crate::ops) fn shared(self, bytes: usize) -> Self {
        Self { shared: u32::try_from(bytes).unwrap_or(u32::MAX), ..self }
    }
}
