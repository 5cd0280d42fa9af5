//! The sizes that are measured.

/// Shapes of a model and of its calibration text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Rows of activations.
    pub(crate) tokens: usize,
    /// Tokens of a window.
    pub(crate) window: usize,
    /// Width of the residual stream.
    pub(crate) hidden: usize,
    /// Width of the MLP's hidden activation.
    pub(crate) wide: usize,
    /// Rank of a pair of factors.
    pub(crate) rank: usize,
    /// Query heads, heads of keys and values, channels of each.
    pub(crate) heads: [usize; 3],
    /// Rows whose loss is taken together.
    pub(crate) loss_rows: usize,
    /// Columns of the logits.
    pub(crate) vocabulary: usize,
    /// Order of a small eigenproblem: that of one layer's keys.
    pub(crate) narrow: usize,
    /// Bytes that are copied.
    pub(crate) copied: usize,
    /// Order of the square matrices whose product is the peak.
    pub(crate) square: usize,
}

impl Sizes {
    /// Those of llama 3 8B.
    pub(crate) fn of_8b() -> Self {
        Self {
            tokens: 8192,
            window: 2048,
            hidden: 4096,
            wide: 14_336,
            rank: 1024,
            heads: [32, 8, 128],
            loss_rows: 4096,
            vocabulary: 8 * 16_384,
            narrow: 1024,
            copied: 1 << 30,
            square: 8192,
        }
    }

    /// Tiny, and even enough for every kernel.
    pub(crate) fn small() -> Self {
        Self {
            tokens: 64,
            window: 32,
            hidden: 64,
            wide: 96,
            rank: 16,
            heads: [4, 2, 32],
            loss_rows: 8,
            vocabulary: 1000,
            narrow: 32,
            copied: 1 << 16,
            square: 64,
        }
    }
}
