//! Calibration: text → tokens → windows → streamed forward → second moments per site.
//!
//! Where a pass wants to know what the loss feels of a change, a backward pass follows the forward.
//! One block's weights are in memory at a time, and one block's statistics: whoever asks gets them
//! when the block is done and decides what to keep.

mod activations;
mod backward;
mod gradient_moments;
mod layer_moments;
mod place;
mod second_moment;
mod stream;
mod sweep;
mod text;
mod windows;

pub use activations::{Activations, Keep};
pub use backward::Backward;
pub use gradient_moments::{GradientMoment, GradientMoments};
pub use layer_moments::{Importance, LayerMoments, Side, SiteStats};
pub use place::{CPU_CHUNK, DeviceNeeds, OVERHEAD, PassKind, Place, device_needs};
pub use second_moment::SecondMoment;
pub use stream::Stream;
pub(crate) use sweep::ROWS_PER_HEAD;
pub use sweep::Scored;
pub use text::{Text, Tokenizer};
pub(crate) use windows::split_mix;
pub use windows::{Draw, Windows};

use serde::{Deserialize, Serialize};

/// Windows of calibration text that are read unless told otherwise.
pub const DEFAULT_WINDOWS: usize = 128;

/// How measuring and analysing were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeasureOptions {
    /// Whether gradients of the loss weigh the outputs.
    pub gradients: bool,
    /// Whether decompositions are those of the papers, not weighted by gradients.
    pub paper: bool,
}
