//! Binds the CUDA libraries on first use.
//!
//! A program that links them does not even start on a machine without them, and needs them to be
//! built. This crate defines the functions itself (`symbols.txt` lists them): each jumps to the real
//! one, which is looked up in the shared library on the first call. Without the library a call
//! returns that library's own error code, as a machine without a GPU would.
//!
//! Libraries are looked for in `CUDA_LIB_PATH`, then in the toolkit (`CUDA_HOME`, `CUDA_PATH`,
//! `/usr/local/cuda`), then among the `nvidia` packages of the Python environment, then wherever the
//! loader looks.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod search;
mod table;

pub use search::{Found, folders, found};

/// Whether the driver's library is there. It says nothing of a GPU.
pub fn driver_present() -> bool {
    table::library(table::DRIVER).is_some()
}
