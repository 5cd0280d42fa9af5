//! Calibration: text → tokens → windows → a walk through the model → statistics of its linears.
//!
//! Where a pass wants to know what the loss feels of a change, a backward pass follows the forward.
//! One block's weights are in memory at a time, and one block's statistics: whoever asks gets them
//! when the block is done and decides what to keep.
//!
//! ```
//! use bantam::measure::{Draw, Windows};
//!
//! let tokens: Vec<u32> = (0..10).collect();
//! let windows = Windows::cut(&tokens, 4, None, Draw::FromStart)?;
//! assert_eq!((windows.count(), windows.ids().len()), (2, 8)); // the remainder is dropped
//! # Ok::<(), bantam::Error>(())
//! ```

mod activations;
mod backward;
mod compute;
mod footprint;
mod stats;
mod stream;
mod text;
mod text_windows;
mod walk;
mod windows;

pub use activations::{Activations, Spill};
pub use backward::Backward;
pub use compute::{CPU_CHUNK, Compute};
pub use footprint::{Footprint, Measured, OVERHEAD, Reading};
pub use stats::{
    GradientMoment, GradientMoments, Importance, LayerStats, SecondMoment, Side, SiteStats, Wanted,
};
pub use stream::Stream;
pub use text::{Text, Tokenizer};
pub use text_windows::{Calibration, Cut, DEFAULT_WINDOWS, TextWindows};
pub use walk::Scored;
pub use windows::{Draw, Windows};
