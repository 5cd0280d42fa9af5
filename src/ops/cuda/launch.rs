//! One launch of one kernel: its arguments in the order of the kernel's parameters.

use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaView, CudaViewMut, LaunchConfig, PushKernelArg, sys,
};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::{CudaDevice, CudaStorage, DType, Layout, Result};
use half::{bf16, f16};

use super::{Grid, modules};
use crate::ops::operand;

/// A kernel and its arguments, in the order of its parameters.
pub(in crate::ops) struct Launch<'a> {
    device: CudaDevice,
    module: &'static str,
    kernel: String,
    arguments: Vec<Argument<'a>>,
}

enum Argument<'a> {
    F32(CudaView<'a, f32>),
    F64(CudaView<'a, f64>),
    Bf16(CudaView<'a, bf16>),
    F16(CudaView<'a, f16>),
    U8(CudaView<'a, u8>),
    U32(CudaView<'a, u32>),
    InPlaceF32(CudaViewMut<'a, f32>),
    InPlaceF64(CudaViewMut<'a, f64>),
    NewF32(CudaSlice<f32>),
    NewBf16(CudaSlice<bf16>),
    NewU8(CudaSlice<u8>),
    List(CudaSlice<i64>),
    Int(i64),
    Float(f32),
    Double(f64),
}

impl<'a> Launch<'a> {
    /// Kernel `name` of `kernels/<name>.cu`, where `on` is.
    pub(in crate::ops) fn new(name: &'static str, on: &CudaStorage) -> Self {
        Self::of(name, name, on)
    }

    /// Kernel `kernel` of `kernels/<module>.cu`, where `on` is.
    pub(in crate::ops) fn of(
        module: &'static str,
        kernel: impl Into<String>,
        on: &CudaStorage,
    ) -> Self {
        Self { device: on.device.clone(), module, kernel: kernel.into(), arguments: Vec::new() }
    }

    /// A contiguous operand.
    pub(in crate::ops) fn read(
        mut self,
        storage: &'a CudaStorage,
        layout: &Layout,
    ) -> Result<Self> {
        let (start, end) = operand::range(layout)?;
        self.arguments.push(match &storage.slice {
            CudaStorageSlice::F32(slice) => Argument::F32(slice.slice(start..end)),
            CudaStorageSlice::F64(slice) => Argument::F64(slice.slice(start..end)),
            CudaStorageSlice::BF16(slice) => Argument::Bf16(slice.slice(start..end)),
            CudaStorageSlice::F16(slice) => Argument::F16(slice.slice(start..end)),
            CudaStorageSlice::U8(slice) => Argument::U8(slice.slice(start..end)),
            CudaStorageSlice::U32(slice) => Argument::U32(slice.slice(start..end)),
            _ => return Err(self.refuse("reads f32, f64, bf16, f16, u8 and u32")),
        });
        Ok(self)
    }

    /// A contiguous operand, or nothing: a null pointer.
    pub(in crate::ops) fn read_or_null(
        self,
        operand: Option<(&'a CudaStorage, &Layout)>,
    ) -> Result<Self> {
        match operand {
            Some((storage, layout)) => self.read(storage, layout),
            // A pointer is eight bytes, as an integer is.
            None => Ok(self.int(0)),
        }
    }

    /// A contiguous operand that is changed.
    pub(in crate::ops) fn update(
        mut self,
        storage: &'a mut CudaStorage,
        layout: &Layout,
    ) -> Result<Self> {
        let (start, end) = operand::range(layout)?;
        let argument = match &mut storage.slice {
            CudaStorageSlice::F32(slice) => Argument::InPlaceF32(slice.slice_mut(start..end)),
            CudaStorageSlice::F64(slice) => Argument::InPlaceF64(slice.slice_mut(start..end)),
            _ => return Err(self.refuse("changes f32 and f64")),
        };
        self.arguments.push(argument);
        Ok(self)
    }

    /// A new tensor of `elements`, f32, bf16 or u8, not filled with anything.
    #[expect(unsafe_code, reason = "memory that nothing was written to yet")]
    pub(in crate::ops) fn output(mut self, dtype: DType, elements: usize) -> Result<Self> {
        // The driver has no allocation of no bytes.
        let elements = elements.max(1);
        // SAFETY: every kernel writes all of its outputs; the op's tests read all of them.
        let argument = unsafe {
            match dtype {
                DType::F32 => Argument::NewF32(self.device.alloc(elements)?),
                DType::BF16 => Argument::NewBf16(self.device.alloc(elements)?),
                DType::U8 => Argument::NewU8(self.device.alloc(elements)?),
                _ => return Err(self.refuse("makes f32, bf16 and u8")),
            }
        };
        self.arguments.push(argument);
        Ok(self)
    }

    /// A list of positions, copied to the device.
    pub(in crate::ops) fn list(mut self, values: &[usize]) -> Result<Self> {
        let values: Vec<i64> = values.iter().map(|&value| value as i64).collect();
        self.arguments.push(Argument::List(self.device.clone_htod(&values)?));
        Ok(self)
    }

    /// A size.
    #[must_use]
    pub(in crate::ops) fn int(mut self, value: usize) -> Self {
        self.arguments.push(Argument::Int(value as i64));
        self
    }

    /// A number.
    #[must_use]
    pub(in crate::ops) fn float(mut self, value: f32) -> Self {
        self.arguments.push(Argument::Float(value));
        self
    }

    /// A number in f64.
    #[must_use]
    pub(in crate::ops) fn double(mut self, value: f64) -> Self {
        self.arguments.push(Argument::Double(value));
        self
    }

    /// Queues the kernel and returns its outputs in their order.
    #[expect(unsafe_code, reason = "a kernel's parameters are known to the kernel alone")]
    pub(in crate::ops) fn run(mut self, grid: Grid) -> Result<Outputs> {
        let function = modules::function(&self.device, self.module, &self.kernel)?;
        if grid.shared > modules::SHARED_WITHOUT_ASKING {
            let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(most, grid.shared as i32).w()?;
        }
        let stream = self.device.cuda_stream();
        let mut launch = stream.launch_builder(&function);
        for argument in &mut self.arguments {
            match argument {
                Argument::F32(view) => launch.arg(&*view),
                Argument::F64(view) => launch.arg(&*view),
                Argument::Bf16(view) => launch.arg(&*view),
                Argument::F16(view) => launch.arg(&*view),
                Argument::U8(view) => launch.arg(&*view),
                Argument::U32(view) => launch.arg(&*view),
                Argument::InPlaceF32(view) => launch.arg(view),
                Argument::InPlaceF64(view) => launch.arg(view),
                Argument::NewF32(slice) => launch.arg(slice),
                Argument::NewBf16(slice) => launch.arg(slice),
                Argument::NewU8(slice) => launch.arg(slice),
                Argument::List(slice) => launch.arg(&*slice),
                Argument::Int(value) => launch.arg(&*value),
                Argument::Float(value) => launch.arg(&*value),
                Argument::Double(value) => launch.arg(&*value),
            };
        }
        let config = LaunchConfig {
            grid_dim: (grid.blocks, 1, 1),
            block_dim: (grid.threads.0, grid.threads.1, 1),
            shared_mem_bytes: grid.shared,
        };
        // SAFETY: the op passes what the kernel's parameter list says, checked against the CPU's
        // definition and, in the emulator, against the ends of every allocation.
        unsafe { launch.launch(config) }.w()?;
        drop(launch);
        let device = &self.device;
        let made = self.arguments.into_iter().filter_map(|argument| match argument {
            Argument::NewF32(slice) => Some(CudaStorage::wrap_cuda_slice(slice, device.clone())),
            Argument::NewBf16(slice) => Some(CudaStorage::wrap_cuda_slice(slice, device.clone())),
            Argument::NewU8(slice) => Some(CudaStorage::wrap_cuda_slice(slice, device.clone())),
            _ => None,
        });
        Ok(Outputs(made.collect()))
    }

    fn refuse(&self, what: &str) -> candle_core::Error {
        candle_core::Error::Msg(format!("kernel {}: the launch {what} only", self.kernel))
    }
}

/// The outputs of a kernel, in the order in which the launch named them.
pub(in crate::ops) struct Outputs(Vec<CudaStorage>);

impl Outputs {
    /// The only output.
    pub(in crate::ops) fn one(self) -> Result<CudaStorage> {
        let [output] = self.many()?;
        Ok(output)
    }

    /// All outputs.
    pub(in crate::ops) fn many<const N: usize>(self) -> Result<[CudaStorage; N]> {
        let wrong =
            |outputs: Vec<_>| format!("{} outputs of a kernel, expected {N}", outputs.len());
        <[CudaStorage; N]>::try_from(self.0).map_err(|made| candle_core::Error::Msg(wrong(made)))
    }
}
