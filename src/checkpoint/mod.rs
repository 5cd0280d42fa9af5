//! Checkpoints on disk: the only code that knows file formats.
//!
//! ```text
//!   hub ──► Checkpoint::open ──► Config, TensorInfo ──► bytes ──► to_f32 ──► …
//!  a name   headers only         what there is          mapped    checked
//!
//!   … ──► from_f32 ──► ModelWriter::write ──► seal ─────► reopen ──► publish
//!         rounded      shard by shard, in     fsync,      verify     config last,
//!                      a hidden folder        index                  one rename
//! ```
//!
//! A checkpoint is a folder in Hugging Face layout. Reading validates everything once, then trusts
//! it; the input is never written to. Writing leaves a whole model or nothing.

mod config;
mod decode;
mod durable;
mod error;
mod file;
mod fingerprint;
pub mod header;
mod hub;
mod index;
mod layout;
mod members;
mod problem;
mod reader;
mod shard;
mod side;
mod staging;
mod tensor;
mod writer;

pub use config::Config;
pub(crate) use decode::float_width;
pub use decode::{check_finite, from_f32, to_f32};
pub use error::CheckpointError;
pub use hub::{HubEnv, resolve};
pub use layout::DataOrder;
pub use problem::{ConfigProblem, HeaderProblem, IndexProblem, OutputProblem};
pub use reader::{Checkpoint, MANIFEST_FILE};
pub use safetensors::Dtype;
pub use tensor::{TensorInfo, TensorSpec};
pub use writer::{ModelWriter, SealedModel, WriteOptions, WrittenModel};
