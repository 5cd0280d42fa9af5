//! Calls into cuSOLVER, made safe: a handle per stream, workspace, status.
//!
//! A handle is made on first use and kept for the life of the process. A call returns when its
//! result is there, because the status that the routine leaves on the device is always read: so
//! the workspace is not freed under a running kernel. cuSOLVER's results are deterministic by
//! default. `decompose` and `factor` hold the routines, on f64 matrices in device memory,
//! column-major.
#![expect(unsafe_code, reason = "a handle is a C pointer")]

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use candle_core::CudaDevice;
use candle_core::cuda_backend::WrapErr;
use cudarc::cusolver::result::{self, CusolverError};
use cudarc::cusolver::safe::DnHandle;
use cudarc::cusolver::sys::{
    cudaDataType, cudaDataType_t, cusolverDnHandle_t, cusolverDnParams_t,
    cusolverStatus_t as Status,
};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut, SyncOnDrop};

use crate::error::{Error, Result};
use crate::lock::lock;

pub(super) const F64: cudaDataType = cudaDataType_t::CUDA_R_64F;

/// A handle of cuSOLVER, and the parameters that its 64-bit functions take beside it.
struct Handle {
    solver: DnHandle,
    params: cusolverDnParams_t,
}

// SAFETY: neither belongs to a thread, and `Solver` lets one thread at a time use them.
unsafe impl Send for Handle {}

/// The right to call cuSOLVER on a device's stream, held by one thread at a time.
pub(super) struct Solver {
    handle: MutexGuard<'static, Handle>,
    pub(super) device: CudaDevice,
    pub(super) stream: Arc<CudaStream>,
}

/// Context and stream of a handle. The handle keeps both alive, so no others get these addresses.
type Key = (usize, usize);

/// The workspace of a routine, on the device and on the host, and the place of its status.
pub(super) struct Space {
    pub(super) on_device: *mut c_void,
    pub(super) device_bytes: usize,
    pub(super) on_host: *mut c_void,
    pub(super) host_bytes: usize,
    pub(super) info: *mut c_int,
}

impl Solver {
    pub(super) fn of(device: &CudaDevice) -> Result<Self> {
        static HANDLES: OnceLock<Mutex<HashMap<Key, &'static Mutex<Handle>>>> = OnceLock::new();
        let stream = device.cuda_stream();
        stream.context().bind_to_thread().w()?;
        let key = (stream.context().cu_ctx() as usize, stream.cu_stream() as usize);
        let mut handles = lock(HANDLES.get_or_init(Mutex::default));
        let handle = match handles.get(&key) {
            Some(&handle) => handle,
            None => {
                let solver = DnHandle::new(stream.clone()).map_err(unavailable)?;
                let params = result::dn_create_params().map_err(unavailable)?;
                let handle: &Mutex<Handle> =
                    Box::leak(Box::new(Mutex::new(Handle { solver, params })));
                handles.insert(key, handle);
                handle
            }
        };
        drop(handles);
        let handle = lock(handle);
        Ok(Self { handle, device: device.clone(), stream })
    }

    /// The first arguments of every routine: handle and parameters.
    pub(super) fn handle(&self) -> (cusolverDnHandle_t, cusolverDnParams_t) {
        (self.handle.solver.cu(), self.handle.params)
    }

    /// Asks for the sizes of the workspace, provides it, calls, waits, and returns the status.
    pub(super) fn run(
        &self,
        call: &'static str,
        sizes: impl FnOnce(&mut usize, &mut usize) -> Status,
        work: impl FnOnce(&Space) -> Status,
    ) -> Result<c_int> {
        let (mut device_bytes, mut host_bytes) = (0, 0);
        sizes(&mut device_bytes, &mut host_bytes).result().map_err(|e| failed(call, e))?;
        let mut on_device = self.device.alloc_zeros::<u8>(device_bytes.max(1))?;
        // In words, for its alignment.
        let mut on_host = vec![0_u64; host_bytes.div_ceil(size_of::<u64>())];
        let mut info = self.device.alloc_zeros::<c_int>(1)?;
        {
            let (on_device, _on_device) = self.pointer(&mut on_device);
            let (info, _info) = self.pointer(&mut info);
            let on_host = on_host.as_mut_ptr().cast();
            let info = info.cast();
            work(&Space { on_device, device_bytes, on_host, host_bytes, info })
                .result()
                .map_err(|e| failed(call, e))?;
        }
        // Waits for the routine, before its workspace goes.
        match self.stream.clone_dtoh(&info).w()?.first() {
            Some(&info) if info >= 0 => Ok(info),
            info => Err(Error::Bug(format!("{call}: status {info:?}"))),
        }
    }

    /// The address of `slice`, to be written on this stream while the second value lives.
    pub(super) fn pointer<'a, T>(
        &'a self,
        slice: &'a mut CudaSlice<T>,
    ) -> (*mut c_void, SyncOnDrop<'a>) {
        let (address, uses) = slice.device_ptr_mut(&self.stream);
        (address as *mut c_void, uses)
    }
}

fn failed(call: &str, error: CusolverError) -> Error {
    match error.0 {
        Status::CUSOLVER_STATUS_ALLOC_FAILED => Error::OutOfDeviceMemory(call.into()),
        _ => candle_core::Error::Cuda(format!("{call}: {error}").into()).into(),
    }
}

fn unavailable(error: CusolverError) -> Error {
    match error.0 {
        Status::CUSOLVER_STATUS_NOT_INITIALIZED => Error::NoGpu {
            why:
                "libcusolver.so.12 is not there or does not start; CUDA_LIB_PATH names the folder \
                  of the CUDA libraries"
                    .into(),
        },
        _ => failed("cusolverDnCreate", error),
    }
}
