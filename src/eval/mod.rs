//! What a model is worth: perplexity, by a protocol that is stated with every number.

mod perplexity;

pub use perplexity::{Perplexity, perplexity};
