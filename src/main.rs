//! The `bantam` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    one_thread_per_core();
    bantam::cli::run()
}

/// Rayon has a thread on every core. candle brings a pool of its own for elementwise sums, whose
/// threads spin while they wait for the next, and a backward pass is full of sums.
#[allow(unsafe_code, reason = "candle reads the size of its pool from the environment only")]
fn one_thread_per_core() {
    const POOL: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(POOL).is_none() {
        // SAFETY: no other thread runs yet that could read the environment meanwhile.
        unsafe { std::env::set_var(POOL, "1") };
    }
}
