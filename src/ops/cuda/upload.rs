//! Weights on their way to the device: through pinned memory, on a stream of their own, so that one
//! block is copied while another computes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DevicePtrMut, DeviceRepr, HostSlice, PinnedHostSlice,
    result,
};
use candle_core::{CudaDevice, CudaStorage, DType, Error, Result};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::lock::lock;

/// Bytes of one pinned buffer: large enough for the full bandwidth of the bus.
const BUFFER: usize = 16 << 20;

/// Bytes that one thread copies at a time.
const SHARE: usize = 1 << 20;

/// The stream of one device, and the buffers that are filled in turn: one while the other is copied.
struct Uploader {
    stream: Arc<CudaStream>,
    buffers: [PinnedHostSlice<u8>; 2],
    next: usize,
}

/// Copies little-endian `bytes` of `dtype`, f32, bf16, f16 or u8, to `device`.
pub(in crate::ops) fn upload(
    bytes: &[u8],
    dtype: DType,
    device: &CudaDevice,
) -> Result<CudaStorage> {
    static UPLOADERS: Mutex<Option<HashMap<usize, Uploader>>> = Mutex::new(None);
    let mut uploaders = lock(&UPLOADERS);
    let uploaders = uploaders.get_or_insert_default();
    let compute = device.cuda_stream();
    let context = compute.context();
    let key = Arc::as_ptr(context) as usize;
    let uploader = match uploaders.entry(key) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => entry.insert(Uploader::new(context)?),
    };
    let own = device.clone();
    match dtype {
        DType::F32 => Ok(CudaStorage::wrap_cuda_slice(uploader.copy::<f32>(bytes)?, own)),
        DType::BF16 => Ok(CudaStorage::wrap_cuda_slice(uploader.copy::<bf16>(bytes)?, own)),
        DType::F16 => Ok(CudaStorage::wrap_cuda_slice(uploader.copy::<f16>(bytes)?, own)),
        DType::U8 => Ok(CudaStorage::wrap_cuda_slice(uploader.copy::<u8>(bytes)?, own)),
        _ => Err(Error::Msg(format!("upload: no weights are {dtype:?}"))),
    }
}

#[expect(unsafe_code, reason = "memory that is filled before it is read, and copies that run on")]
impl Uploader {
    fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let buffer = || {
            // SAFETY: nothing reads a buffer before it was written to.
            unsafe { context.alloc_pinned::<u8>(BUFFER) }.w()
        };
        Ok(Self { stream: context.new_stream().w()?, buffers: [buffer()?, buffer()?], next: 0 })
    }

    /// Copies `bytes` into a new slice. It belongs to this stream; work on another stream that uses it
    /// waits for the copies, through the events that cudarc keeps with it.
    fn copy<T: DeviceRepr>(&mut self, bytes: &[u8]) -> Result<CudaSlice<T>> {
        let elements = bytes.len() / size_of::<T>();
        // SAFETY: all of it is written below.
        let mut slice = unsafe { self.stream.alloc::<T>(elements.max(1)) }.w()?;
        let (mut target, written) = slice.device_ptr_mut(&self.stream);
        for piece in bytes.chunks(BUFFER) {
            let buffer = &mut self.buffers[self.next];
            self.next = 1 - self.next;
            // Waits until the copy out of this buffer that was queued before is done.
            // Several threads, as one alone fills it more slowly than the bus empties it.
            let filled = buffer.as_mut_slice().w()?[..piece.len()].par_chunks_mut(SHARE);
            filled.zip(piece.par_chunks(SHARE)).for_each(|(to, from)| to.copy_from_slice(from));
            // SAFETY: the guard records on the buffer that it is in use until the copy is done; the
            // target covers the piece, as `elements` counts all bytes.
            unsafe {
                let (filled, _in_use) = buffer.stream_synced_slice(&self.stream);
                let stream = self.stream.cu_stream();
                result::memcpy_htod_async(target, &filled[..piece.len()], stream).w()?;
            }
            target += piece.len() as u64;
        }
        drop(written);
        Ok(slice)
    }
}
