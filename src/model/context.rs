//! The positions of an activation's rows in their texts.

use candle_core::Tensor;

/// The rows of an activation: `batch` texts of `length` positions each, from position `first` on.
#[derive(Debug, Clone, Copy)]
pub struct Positions<'a> {
    /// Texts side by side.
    pub batch: usize,
    /// Positions of each.
    pub length: usize,
    /// Absolute position of the first.
    pub first: usize,
    /// `[length, half of the channels that turn]`.
    pub cos: &'a Tensor,
    /// The same shape.
    pub sin: &'a Tensor,
}
