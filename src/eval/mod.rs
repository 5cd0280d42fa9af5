//! Perplexity of a model, by a protocol that is stated with every number.
//!
//! ```
//! use bantam::arch::Model;
//! use bantam::eval::perplexity;
//! use bantam::measure::{Compute, Windows};
//! use bantam::progress::Silent;
//!
//! let folder = std::path::Path::new("tests/fixtures/golden/llama");
//! let model = Model::open(folder)?;
//! let windows = Windows::from_ids_file(&folder.join("golden.safetensors"), model.spec().vocab)?;
//! let found = perplexity(&model, &windows, &Compute::cpu(), &Silent)?;
//! assert_eq!(found.perplexity, found.nll.exp());
//! // Every token of a window is predicted but for the first.
//! assert_eq!(found.tokens as usize, windows.count() * (windows.length() - 1));
//! # Ok::<(), bantam::Error>(())
//! ```

mod perplexity;

pub use perplexity::{Perplexity, perplexity};
