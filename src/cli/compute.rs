//! Where a verb computes: the CPU or a GPU, and how much of it.

use candle_core::Device;
use clap::{Args, ValueEnum};

use super::args::size;
use super::console::Console;
use crate::arch::SourceModel;
use crate::error::{Error, Result};
use crate::measure::{PassKind, Place};
use crate::ops;
use crate::plan::{format_size, largest_decomposition};

/// The device.
#[derive(Debug, Args)]
pub(super) struct ComputeArgs {
    /// Where to compute; auto takes the GPU where there is one.
    #[arg(long, value_enum, value_name = "DEVICE", default_value = "auto")]
    compute: Compute,

    /// Device memory to take at most [default: what is free].
    #[arg(long, value_name = "SIZE", value_parser = size)]
    device_memory: Option<u64>,
}

/// Devices as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Compute {
    /// The GPU where there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU.
    Cuda,
}

impl ComputeArgs {
    /// The device asked for.
    ///
    /// # Errors
    /// [`Error::NoGpu`] where one is asked for by name.
    pub(super) fn device(&self, console: &Console) -> Result<Device> {
        match self.compute {
            Compute::Cpu => Ok(Device::Cpu),
            Compute::Cuda => ops::gpu(),
            Compute::Auto => match ops::gpu() {
                Ok(device) => Ok(device),
                Err(Error::NoGpu { why }) => {
                    console.detail(&format!("computing on the CPU: {why}"));
                    Ok(Device::Cpu)
                }
                Err(other) => Err(other),
            },
        }
    }

    /// The device, and how a pass over windows of `length` tokens is to go about it.
    ///
    /// # Errors
    /// As [`device`](Self::device); [`Error::DeviceMemory`] where not even one window fits.
    pub(super) fn place(
        &self,
        model: &SourceModel,
        length: usize,
        pass: PassKind,
        console: &Console,
    ) -> Result<Place> {
        let device = self.device(console)?;
        let Some(free) = ops::free_memory(&device)? else { return Ok(Place::cpu()) };
        let memory = self.device_memory.unwrap_or(free).min(free);
        let place = Place::on(&device, memory, model, length, pass)?;
        console.detail(&format!(
            "computing on the GPU, {} of its memory, {} tokens at a time",
            format_size(memory),
            place.chunk_tokens(length)
        ));
        Ok(place)
    }
}

/// What a pass takes that measures for compressor passes.
pub(super) fn measuring_pass(model: &SourceModel, gradients: bool) -> PassKind {
    PassKind { gradients, moments: true, decomposition: largest_decomposition(model) }
}
