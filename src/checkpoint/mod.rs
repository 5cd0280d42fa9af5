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
//!
//! ```
//! use bantam::checkpoint::{Checkpoint, Dtype};
//!
//! let checkpoint = Checkpoint::open("tests/fixtures/pycode-llama".as_ref())?;
//! let norm = checkpoint.require("model.norm.weight")?;
//! assert_eq!((norm.dtype, &norm.shape[..]), (Dtype::BF16, &[256][..]));
//! assert_eq!(checkpoint.bytes(norm)?.len(), 512);
//! # Ok::<(), bantam::Error>(())
//! ```

mod config;
mod decode;
mod durable;
mod file;
mod fingerprint;
pub mod header;
mod hub;
mod index;
mod layout;
mod members;
mod names;
mod reader;
mod shard;
mod side;
mod staging;
mod tensor;
mod tensor_file;
mod writer;

pub use config::Config;
pub(crate) use decode::float_width;
pub use decode::{check_finite, from_f32, to_f32};
pub use hub::{HubEnv, resolve};
pub use layout::DataOrder;
pub use names::MANIFEST_FILE;
pub use reader::Checkpoint;
pub use safetensors::Dtype;
pub use tensor::{TensorInfo, TensorSpec};
pub use tensor_file::TensorFile;
pub use writer::{ModelWriter, SealedModel, WriteOptions, WrittenModel};
