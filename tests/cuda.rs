//! The suites of ops, moments and families on a GPU: the same definitions in f64, the same bounds.
//!
//! Where there is no GPU they run in the emulator: `scripts/emulate.sh cargo test --features cuda`.

#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]
#![allow(clippy::duplicate_mod, reason = "every suite takes in the same support")]

#[path = "families.rs"]
mod families;
#[path = "moments.rs"]
mod moments;
#[path = "ops.rs"]
mod ops;
#[path = "ops_bf16.rs"]
mod ops_bf16;
#[path = "ops_gradients.rs"]
mod ops_gradients;
#[path = "ops_norms_and_gates.rs"]
mod ops_norms_and_gates;
#[path = "ops_stack.rs"]
mod ops_stack;
