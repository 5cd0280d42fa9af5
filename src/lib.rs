//! bantam fits a language-model checkpoint into the memory of the device that has to run it.
//!
//! ```text
//!  open ──► check ──► measure + analyse ──► allocate ──► make + write ──► verify ──► publish
//!  headers  feasible?  block by block       one budget    tensor by tensor  reload     rename
//! ```
//!
//! The whole road, on a model of 4.9 million parameters:
//!
//! ```
//! use bantam::arch::Model;
//! use bantam::checkpoint::WriteOptions;
//! use bantam::eval::perplexity;
//! use bantam::measure::{Compute, Cut, TextWindows};
//! use bantam::pipeline::Run;
//! use bantam::progress::Silent;
//! use bantam::settings::{Rule, Settings};
//!
//! let model = Model::open("tests/fixtures/pycode-llama".as_ref())?;
//! let cut = Cut { length: Some(64), windows: Some(8), ..Cut::default() };
//! let text = TextWindows::read(&model, &["tests/fixtures/pycode.calib.txt".into()], cut)?;
//!
//! let folder = tempfile::tempdir().expect("a folder");
//! let (out, options) = (folder.path().join("smaller"), WriteOptions::default());
//! let mut run = Run::new(&model, Settings::new(Rule::keep(0.6)))?.text(text.clone());
//! run.check(&out, &options)?; // before hours of work
//! run.measure()?;
//! let plan = run.plan()?; // what would be written, to the byte
//!
//! // What it would cost, before anything is written.
//! let cpu = Compute::cpu();
//! let preview = perplexity(&run.preview(&plan)?, text.windows(), &cpu, &Silent)?;
//!
//! let written = run.write(&out, &options)?.written; // make, write, verify
//! assert_eq!(written.weight_bytes, plan.weight_bytes);
//! assert!(written.weight_bytes <= model.weight_bytes() * 6 / 10);
//! let after = perplexity(&Model::open(&out)?, text.windows(), &cpu, &Silent)?;
//! assert_eq!(after.perplexity, preview.perplexity);
//! # Ok::<(), bantam::Error>(())
//! ```
//!
//! # The map
//!
//! - [`checkpoint`] is the only code that knows file formats;
//! - [`arch`] turns `config.json` and tensor names into a description and its *sites*;
//! - [`model`] is the one decoder that the description drives;
//! - [`measure`] streams text through it, a block at a time, and keeps statistics;
//! - [`settings`] is what a user asks for, said in one type;
//! - [`passes`] are the methods: each *offers* choices of bytes against expected loss;
//! - [`plan`] holds the one allocator that spends a budget on the offers of all passes;
//! - [`job`] keeps what was measured, so that nothing is computed twice;
//! - [`pipeline`] is the road from one checkpoint to another, and cuts stacks; [`eval`] says what it cost;
//! - [`linalg`] and [`ops`] are the arithmetic, [`error`] and [`progress`] what is told on the way.
//!
//! # The words
//!
//! | word | meaning |
//! |---|---|
//! | checkpoint | a folder in Hugging Face layout; bantam never writes into its input |
//! | site | one linear's place: its module, role (`attn.q` … `expert.down`, `embed`, `head`), block, shape `[out, in]` |
//! | storage | how a site's weight is stored: dense, low rank, stack |
//! | piece | one tensor of a storage: the weight, a factor, the signs of a level, the bias |
//! | port | the activation that a site reads; sites of one port share its statistics |
//! | statistics | what measure saw of a site: energies, second moments, gradients |
//! | pass | a compression method; it analyses a site once, offers, and makes what was taken |
//! | analysis | what a pass made of a site, whatever the budget; it waits in a job |
//! | offer | one choice of a pass for a site: a storage, its bytes, its expected loss |
//! | rule | how the choices are made: a target of bytes, or one of the literature |
//! | plan | the chosen offers and every tensor of the output; a file, readable, diffable |
//! | run | what is asked for, what was measured for it, and how far it goes |
//! | preview | a planned model that runs, of which nothing is on a disk |
//! | job | a folder with analyses and a journal; resume reads it, and so does another budget |
//! | stack | a checkpoint of levels in priority order; any prefix of it is a model |
//! | level | one term of a stacked linear: packed signs times a matrix of low rank |
//! | block | one transformer block |
//! | prefix | a stack cut to a budget: the first of its levels |
//! | fold | to multiply factors or levels out again, to a dense weight |
//!
//! # For those who call it
//!
//! candle has a pool of threads of its own for elementwise sums, whose threads spin while they wait. A
//! backward pass is full of sums, and rayon has a thread on every core already: a program that measures
//! with gradients wants `CANDLE_NUM_THREADS=1` in its environment before its first tensor, as `bantam`
//! itself sets it.

// A new storage or piece must fall through nowhere.
#[warn(clippy::wildcard_enum_match_arm)]
pub mod arch;
mod atomic;
pub mod checkpoint;
#[doc(hidden)]
#[warn(clippy::wildcard_enum_match_arm)]
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
#[warn(clippy::wildcard_enum_match_arm)]
pub mod passes;
mod paths;
#[warn(clippy::wildcard_enum_match_arm)]
pub mod pipeline;
#[warn(clippy::wildcard_enum_match_arm)]
pub mod plan;
pub mod progress;
mod random;
pub mod settings;

pub use error::{Error, Result};
