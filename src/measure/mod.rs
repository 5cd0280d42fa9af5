//! Calibration: text → tokens → windows → streamed forward → second moments per site.
//!
//! One block's weights are in memory at a time, and one block's statistics: whoever asks gets them
//! when the block is done and decides what to keep.

mod layer_moments;
mod second_moment;
mod stream;
mod text;
mod windows;

pub use layer_moments::{Importance, LayerMoments, Side, SiteStats};
pub use second_moment::SecondMoment;
pub use stream::{Stream, TOKENS_PER_CHUNK};
pub use text::{Text, Tokenizer};
pub(crate) use windows::split_mix;
pub use windows::{Draw, Windows};

use serde::{Deserialize, Serialize};

/// How measuring and analysing were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeasureOptions {
    /// Whether gradients of the loss weigh the outputs.
    pub gradients: bool,
    /// Whether decompositions are those of the papers, not weighted by gradients.
    pub paper: bool,
}
