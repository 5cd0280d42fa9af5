//! Where a verb computes: the CPU or a GPU, and how much of it.

use candle_core::Device;
use clap::{Args, ValueEnum};

use super::args::size;
use super::console::Console;
use crate::arch::Model;
use crate::error::{Error, Result};
use crate::measure::{Compute, Measured};
use crate::ops;
use crate::settings::format_size;

/// The device.
#[derive(Debug, Args)]
pub(super) struct ComputeArgs {
    /// Where to compute; auto takes the GPU where there is one.
    #[arg(long, value_enum, value_name = "DEVICE", default_value = "auto")]
    compute: DeviceName,

    /// Device memory to take at most [default: what is free].
    #[arg(long, value_name = "SIZE", value_parser = size)]
    device_memory: Option<u64>,
}

/// Devices as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DeviceName {
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
            DeviceName::Cpu => Ok(Device::Cpu),
            DeviceName::Cuda => ops::gpu(),
            DeviceName::Auto => match ops::gpu() {
                Ok(device) => Ok(device),
                Err(Error::NoGpu { why }) => {
                    console.detail(&format!("computing on the CPU: {why}"));
                    Ok(Device::Cpu)
                }
                Err(other) => Err(other),
            },
        }
    }

    /// The device, and how a run over windows of `length` tokens that takes `measured` goes about it.
    ///
    /// # Errors
    /// As [`device`](Self::device); [`Error::DeviceMemory`] where not even one window fits.
    pub(super) fn on(
        &self,
        model: &Model,
        length: usize,
        measured: &Measured<'_>,
        console: &Console,
    ) -> Result<Compute> {
        let device = self.device(console)?;
        let Some(free) = ops::free_memory(&device)? else { return Ok(Compute::cpu()) };
        let memory = self.device_memory.unwrap_or(free).min(free);
        let compute = Compute::on(&device, memory, model, length, measured)?;
        console.detail(&format!(
            "computing on the GPU, {} of its memory, {} tokens at a time",
            format_size(memory),
            compute.chunk_tokens(length)
        ));
        Ok(compute)
    }
}
