//! The driver, its libraries and its devices.

use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::CudaDevice;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError, result, sys};

use crate::error::{Error, Result};
use crate::ops::devices::{CudaSystem, Gpu, Library};

/// The first device, with a stream of its own: the default stream of candle is another one for every
/// thread, and nothing would keep those in order.
pub(in crate::ops) fn open() -> Result<CudaDevice> {
    if !cuda_lazy::driver_present() {
        return Err(no_gpu("there is no NVIDIA driver (libcuda.so.1) on this machine".into()));
    }
    let device = CudaDevice::new_with_stream(0).map_err(|error| {
        let missing: Vec<&str> =
            cuda_lazy::found().iter().filter(|l| l.path.is_none()).map(|l| l.file).collect();
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        no_gpu(match missing.as_slice() {
            [] => first.to_owned(),
            missing => format!("{first}; not found: {}", missing.join(", ")),
        })
    })?;
    keep_freed_memory(&device)?;
    Ok(device)
}

fn no_gpu(why: String) -> Error {
    Error::NoGpu { why }
}

/// Freed memory stays with the process: giving it back at every synchronisation costs more than the
/// kernels between them.
#[expect(unsafe_code, reason = "a call into the driver that cudarc has no safe form of")]
fn keep_freed_memory(device: &CudaDevice) -> Result<()> {
    let context = device.cuda_stream().context().clone();
    let all = u64::MAX;
    let (mut pool, attribute) =
        (std::ptr::null_mut(), sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD);
    // SAFETY: the device is open, the pool is its own, and the attribute is 64 bits wide.
    let kept = unsafe {
        sys::cuDeviceGetDefaultMemPool(&raw mut pool, context.cu_device()).result().and_then(|()| {
            sys::cuMemPoolSetAttribute(pool, attribute, (&raw const all).cast_mut().cast()).result()
        })
    };
    Ok(kept.w()?)
}

pub(in crate::ops) fn free_memory(device: &CudaDevice) -> Result<u64> {
    let (free, _) = device.cuda_stream().context().mem_get_info().w()?;
    Ok(free as u64)
}

pub(in crate::ops) fn system() -> CudaSystem {
    let mut system = CudaSystem { built_in: true, ..CudaSystem::default() };
    system.libraries = cuda_lazy::found()
        .into_iter()
        .map(|found| Library { file: found.file.to_owned(), path: found.path })
        .collect();
    if !cuda_lazy::driver_present() {
        system.problem = Some("there is no NVIDIA driver (libcuda.so.1) on this machine".into());
        return system;
    }
    // A panic over a damaged driver must not end a program that only reports.
    match catch_unwind(AssertUnwindSafe(devices)) {
        Ok(Ok(devices)) if devices.is_empty() => {
            system.problem = Some("the driver knows no device".into());
        }
        Ok(Ok(devices)) => system.devices = devices,
        Ok(Err(error)) => system.problem = Some(error.to_string()),
        Err(_) => system.problem = Some("the driver failed".into()),
    }
    system.driver = driver_version();
    system
}

fn devices() -> std::result::Result<Vec<Gpu>, DriverError> {
    result::init()?;
    (0..CudaContext::device_count()?)
        .map(|ordinal| {
            let context = CudaContext::new(ordinal as usize)?;
            let (major, minor) = context.compute_capability()?;
            let (free, memory) = context.mem_get_info()?;
            Ok(Gpu {
                name: context.name()?,
                compute_capability: format!("{major}.{minor}"),
                memory: memory as u64,
                free: free as u64,
            })
        })
        .collect()
}

#[expect(unsafe_code, reason = "a call into the driver that cudarc has no safe form of")]
fn driver_version() -> Option<String> {
    let mut version = 0;
    // SAFETY: the driver writes one integer.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().ok()?;
    Some(format!("{}.{}", version / 1000, version % 1000 / 10))
}
