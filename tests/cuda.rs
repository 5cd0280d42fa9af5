//! The suites of ops and families on a GPU: the same definitions in f64, the same bounds.
//!
//! Where there is no GPU they run in the emulator: `scripts/emulate.sh cargo test --features cuda`.

#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]
#![allow(clippy::duplicate_mod, reason = "both suites take in the same support")]

#[path = "families.rs"]
mod families;
#[path = "ops/main.rs"]
mod ops;
