//! Every op against its definition in f64, at awkward sizes: values, gradients, threads, refusals. The
//! error allowed is twice that of the same definition in plain f32, plus a few ulps of the range.
//!
//! `tests/cuda.rs` takes all of it in as a module, to run it on a GPU.

#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

#[path = "../support/numbers.rs"]
mod numbers;
#[path = "../support/slopes.rs"]
mod slopes;

mod attention;
mod experts;
mod gates;
mod levels;
mod linear;
mod loss;
mod moments;
mod norms;
mod rope;
mod stack;
