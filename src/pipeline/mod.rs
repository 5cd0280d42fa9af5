//! The road from one checkpoint to a smaller one.
//!
//! ```text
//!  open ──► check ──► measure + analyse ──► allocate ──► make + write ──► verify ──► publish
//!  headers  feasible?  block by block       one budget    tensor by tensor  reload     rename
//! ```
//!
//! A [`Run`] holds what is asked for and what was measured, and goes as far as it is told; [`cut`] takes a
//! stack to another size, for which nothing is measured. The crate's first page shows a run from end to
//! end.
//!
//! ```
//! use bantam::arch::Model;
//! use bantam::checkpoint::WriteOptions;
//! use bantam::pipeline::Run;
//! use bantam::settings::{Method, Rule, Settings};
//!
//! // Singular values need no text.
//! let model = Model::open("tests/fixtures/golden/llama".as_ref())?;
//! let settings = Settings { rank_multiple: 2, ..Settings::new(Rule::keep(0.9)) };
//! let mut run = Run::new(&model, Settings { methods: vec![Method::WELORE], ..settings })?;
//! let folder = tempfile::tempdir().expect("a folder");
//! let outcome = run.write(&folder.path().join("smaller"), &WriteOptions::default())?;
//! assert!(outcome.written.weight_bytes <= model.weight_bytes() * 9 / 10);
//! # Ok::<(), bantam::Error>(())
//! ```

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
