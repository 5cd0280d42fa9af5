//! The road from one checkpoint to a smaller one.
//!
//! ```text
//!  open ──► draft ──► measure + analyse ──► allocate ──► apply + write ──► verify ──► publish
//!  headers  feasible?  block by block       one budget    unit by unit      reload     rename
//! ```
//!
//! Each step is a function here; a verb of the command line calls as many of them as it needs.

mod allocate;
mod analyse;
mod apply;
mod cut;
mod fused;
mod statistics;
mod verify;

pub use allocate::{Request, draw_plan};
pub use analyse::{CalibrationText, analyse};
pub use apply::{Applied, apply};
pub use cut::{Cut, StackRecord, cut};

use candle_core::Device;

use crate::measure::{MeasureOptions, Place};
use crate::passes::Pass;
use crate::progress::Progress;

/// What every step needs besides its data.
#[derive(Clone, Copy)]
#[expect(missing_debug_implementations, reason = "a trait object has nothing to show")]
pub struct Context<'a> {
    /// The passes, in the order given.
    pub passes: &'a [Box<dyn Pass>],
    /// How statistics are taken and used.
    pub measure: MeasureOptions,
    /// Bytes of activations that stay in memory for a backward pass; the rest goes to the job folder.
    pub activation_memory: u64,
    /// Windows of text asked for and tokens of each: what a forecast without the text counts on.
    pub windows: (usize, usize),
    /// Where it is computed.
    pub place: &'a Place,
    /// Who is told.
    pub progress: &'a dyn Progress,
}

impl<'a> Context<'a> {
    /// Where tensors live.
    fn device(&self) -> &'a Device {
        self.place.device()
    }
}
