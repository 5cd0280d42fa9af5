//! The road from one checkpoint to a smaller one.
//!
//! ```text
//!  open ──► check ──► measure + analyse ──► allocate ──► make + write ──► verify ──► publish
//!  headers  feasible?  block by block       one budget    tensor by tensor  reload     rename
//! ```
//!
//! A [`Run`] holds what is asked for and what was measured, and goes as far as it is told; [`cut`] takes a
//! stack to another size, for which nothing is measured.

mod analyse;
mod cut;
mod draw;
mod manifest;
mod produce;
mod rules;
mod run;
mod statistics;
mod verify;
mod write;

pub use cut::{Fitted, cut};
pub use manifest::StackRecord;
pub use produce::Preview;
pub use run::{Outcome, Run};
