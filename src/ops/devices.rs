//! The devices of this machine: which there are, and the one to compute on.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use candle_core::Device;
use serde::Serialize;

use super::cuda;
use crate::error::Result;

/// The parts of CUDA that were found on this machine: driver, libraries and devices.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CudaSystem {
    /// Whether this program was built to use it.
    pub built_in: bool,
    /// Version of the driver, as `major.minor` of the CUDA it speaks.
    pub driver: Option<String>,
    /// The libraries and where they lie.
    pub libraries: Vec<Library>,
    /// The devices.
    pub devices: Vec<Gpu>,
    /// The reason why no device could be used.
    pub problem: Option<String>,
}

/// A shared library.
#[derive(Debug, Clone, Serialize)]
pub struct Library {
    /// Its file name.
    pub file: String,
    /// The path it was found at; `None` where it was not found.
    pub path: Option<PathBuf>,
}

/// A GPU.
#[derive(Debug, Clone, Serialize)]
pub struct Gpu {
    /// As the driver calls it.
    pub name: String,
    /// `major.minor`.
    pub compute_capability: String,
    /// Bytes of its memory.
    pub memory: u64,
    /// Bytes of it that nobody uses.
    pub free: u64,
}

/// Looks for CUDA; opens the libraries, but leaves nothing on a device.
pub fn cuda_system() -> CudaSystem {
    cuda::system()
}

/// The first GPU.
///
/// # Errors
/// [`Error::NoGpu`](crate::error::Error::NoGpu) says what is missing.
pub fn gpu() -> Result<Device> {
    Ok(Device::Cuda(cuda::open()?))
}

/// Bytes of device memory that are free now; `None` for the CPU.
///
/// # Errors
/// Only the driver's.
pub fn free_memory(device: &Device) -> Result<Option<u64>> {
    match device {
        Device::Cuda(device) => Ok(Some(cuda::free_memory(device)?)),
        _ => Ok(None),
    }
}

/// The folder for kernels that are compiled where the program runs.
static KERNEL_CACHE: OnceLock<PathBuf> = OnceLock::new();

/// Keeps kernels that are compiled for the device at hand in `folder`, from the first call on: the next
/// start saves a second. Without it they are compiled at every start.
pub fn cache_kernels_in(folder: PathBuf) {
    // A second folder would only hold the same files.
    let _ = KERNEL_CACHE.set(folder);
}

/// The folder named, if any.
#[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only kernels are cached"))]
pub(super) fn kernel_cache() -> Option<&'static Path> {
    KERNEL_CACHE.get().map(PathBuf::as_path)
}
