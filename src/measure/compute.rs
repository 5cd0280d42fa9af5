//! The device of a run over text, the size of its chunks, and the bytes that stay on the device.
//!
//! GPU memory beyond the [`Footprint`] of the run keeps the residual stream between blocks; the part of
//! the stream that does not fit goes to the host. A model larger than the GPU streams through it like
//! any other.

use candle_core::Device;

use super::footprint::{Footprint, Measured};
use crate::arch::Model;
use crate::error::{Error, Result};

/// Tokens that go through a block together on the CPU: enough to keep a matrix product busy, few
/// enough for activations to stay in cache.
pub const CPU_CHUNK: usize = 1024;

/// The same on a GPU, where products want more. A multiple of the 1024 rows that a Gram matrix sums in
/// f32, so that a smaller chunk changes none of its bits.
const GPU_CHUNK: usize = 4096;

/// Rows of the residual stream that are turned into logits at a time: their logits in a tile of the
/// vocabulary ([`VOCABULARY_TILE`](crate::ops::VOCABULARY_TILE)) take 32 MiB.
pub(super) const ROWS_PER_HEAD: usize = 512;

/// A device, and how a run over text goes about it.
#[derive(Debug, Clone)]
pub struct Compute {
    device: Device,
    chunk: usize,
    resident: u64,
}

impl Compute {
    /// The CPU.
    pub fn cpu() -> Self {
        Self { device: Device::Cpu, chunk: CPU_CHUNK, resident: u64::MAX }
    }

    /// A run on `device` that takes at most `memory` bytes of it, over windows of `length` tokens of
    /// `model`, with the measurements `measured`.
    ///
    /// # Errors
    /// [`Error::DeviceMemory`] where not even one window fits.
    pub fn on(
        device: &Device,
        memory: u64,
        model: &Model,
        length: usize,
        measured: &Measured<'_>,
    ) -> Result<Self> {
        if device.is_cpu() {
            return Ok(Self::cpu());
        }
        let mut chunk = GPU_CHUNK;
        loop {
            let needs = Footprint::on_gpu(model, whole_windows(chunk, length), measured);
            if needs.peak <= memory {
                let resident = memory - needs.peak;
                return Ok(Self { device: device.clone(), chunk, resident });
            }
            if chunk <= length {
                let what = format!("one window of {length} tokens");
                return Err(Error::DeviceMemory { what, needed: needs.peak, available: memory });
            }
            chunk /= 2;
        }
    }

    /// The device that tensors are on while they are computed with.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Tokens of a chunk of windows of `length`: as many whole windows as fit, one at least.
    pub fn chunk_tokens(&self, length: usize) -> usize {
        whole_windows(self.chunk, length)
    }

    /// Bytes of the residual stream that stay on the device between blocks.
    pub(super) fn resident(&self) -> u64 {
        self.resident
    }

    /// Whether chunks side by side are faster than one after the other: a GPU is busy with one.
    pub fn side_by_side(&self) -> bool {
        self.device.is_cpu()
    }
}

fn whole_windows(chunk: usize, length: usize) -> usize {
    (chunk / length.max(1)).max(1) * length
}
