//! Compressor passes: the contract that every method keeps, what offers cost against what carrying them
//! out does, and the rules of single methods.

#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

#[path = "../support/cli.rs"]
mod cli;
#[path = "../support/models.rs"]
mod models;
#[path = "../support/numbers.rs"]
mod numbers;

mod contract;
mod expected_loss;
mod layer;
mod lord;
mod reads;
mod refusals;
mod road;
mod toy;
mod welore;
