//! bantam fits a language-model checkpoint into the memory of the device that has to run it.
//!
//! ```text
//!  open ──► plan ──► measure ──► allocate ──► apply ──► write ──► verify
//!  headers  what     statistics  one budget,  unit by   shards,   reload,
//!  only     would    per block   every pass   unit      index,    compare
//!           happen   (streamed)               (streamed) manifest
//! ```
//!
//! - [`checkpoint`] is the only code that knows file formats;
//! - [`arch`] turns `config.json` and tensor names into a description and its *sites*;
//! - [`model`] is the one decoder that the description drives;
//! - [`measure`] streams text through it, a block at a time, and keeps statistics;
//! - [`passes`] are the methods: each *offers* choices of bytes against expected loss;
//! - [`plan`] holds the one allocator that spends a budget on the offers of all passes;
//! - [`job`] keeps what was measured, so that nothing is computed twice;
//! - [`pipeline`] is the road from one checkpoint to another, [`eval`] what it cost;
//! - [`linalg`] and [`ops`] are the arithmetic, [`cli`] the command line.

pub mod arch;
mod atomic;
pub mod checkpoint;
pub mod cli;
mod digest;
pub mod error;
pub mod eval;
pub mod job;
pub mod linalg;
mod lock;
pub mod measure;
pub mod model;
pub mod ops;
pub mod passes;
mod paths;
pub mod pipeline;
pub mod plan;
pub mod progress;
mod random;
pub mod settings;

pub use error::{Error, Result};
